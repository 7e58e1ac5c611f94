"""The optimizer's state beside a hypernetwork, ``NAME.pt.optim``, as the webui keeps it.

A mapping of ``optimizer_name``, ``hash`` (the first 10 hex digits of the network file's sha256) and
``optimizer_state_dict``, whose parameters are numbered in the order of the webui's list: widths as in the
file, keys before values, parameters in layer order.  That is ``hypernetwork.parameters()``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import sha256
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files import OPTIMIZER_SUFFIX
from hyperbrush.hypernetworks.files.checks import DTYPES, all_finite, check_apart
from hyperbrush.hypernetworks.files.torch_files import Tensor, outline, read
from hyperbrush.hypernetworks.files.torch_writing import write_content

T = TypeVar("T")


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state as torch has it, and whether it is this file's.

    optimizer_name: torch's class, "AdamW". state_dict: for ``optimizer.load_state_dict``, numbered as
    ``hypernetwork.parameters()``. warning: why it may not belong to the network, in words; None if it does.
    """

    optimizer_name: str
    state_dict: dict[str, Any]
    warning: str | None = None


def sidecar_of(path: str | Path) -> Path:
    """Where the optimizer's state of a network's file is kept.

    >>> sidecar_of("water.pt").name
    'water.pt.optim'
    """
    path = Path(path)
    return path.with_name(path.name + OPTIMIZER_SUFFIX)


def read_optimizer(path: str | Path) -> OptimizerState | None:
    """The optimizer's state beside a network's file; None if there is none.

    path: the network's file. Nothing is executed. A state of another save of the network comes with a
    ``warning``: whether to use it is the caller's choice.

    Raises:
        UserError: there is no such network, or the sidecar is damaged or of another kind.
    """
    path = Path(path)
    sidecar = sidecar_of(path)
    try:
        if not sidecar.exists():
            return None
        outlined = outline(sidecar)
        _check_structure(sidecar, outlined)
        check_apart(sidecar, _tensors(outlined["optimizer_state_dict"]["state"], Tensor))
        content = read(sidecar)
        digest = sha256(path)[:10]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or sidecar}: {error.strerror or error}") from error
    state_dict = content["optimizer_state_dict"]
    for name, tensor in _tensors(state_dict["state"], torch.Tensor):
        if tensor.is_floating_point() and not (tensor.dtype in DTYPES and all_finite(tensor)):
            raise UserError(
                f"{sidecar}: {name} holds NaN or infinite numbers; remove the file to train with a new optimizer"
            )
    warning = None
    if content.get("hash") != digest:
        warning = (
            f"{sidecar.name} was saved beside another state of {path.name} (hash {str(content.get('hash'))!r:.40}, "
            f"the file's is {digest!r})"
        )
    return OptimizerState(content.get("optimizer_name") or "AdamW", state_dict, warning)


def write_optimizer(path: str | Path, optimizer_name: str, state_dict: Mapping[str, Any]) -> Path:
    """Write the optimizer's state beside a network's file that has just been saved.

    path: the network's file, whose hash is stored. optimizer_name: torch's class, "AdamW". state_dict: of
    an optimizer over ``hypernetwork.parameters()`` (`check_fits`).
    Returns the sidecar's path.

    Raises:
        UserError: there is no such network, the state is none of an optimizer, or the file cannot be
            written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no {path}: save the network first; the optimizer's state carries its hash")
    content = {
        "optimizer_name": optimizer_name,
        "hash": sha256(path)[:10],
        "optimizer_state_dict": dict(state_dict),
    }
    sidecar = sidecar_of(path)
    _check_structure(sidecar, content)
    write_content(content, sidecar)
    return sidecar


def check_fits(state: OptimizerState, hypernetwork: AttentionHypernetwork) -> None:
    """See that a state's tensors have the shapes of the network's parameters.

    Raises:
        UserError: another number of parameters, or a tensor of another shape.
    """
    parameters = list(hypernetwork.parameters())
    numbers = [n for group in state.state_dict["param_groups"] for n in group["params"]]
    if sorted(numbers) != list(range(len(parameters))):
        raise UserError(
            f"the optimizer's state is of {len(numbers)} parameters, but {hypernetwork.name!r} has "
            f"{len(parameters)}: train with a new optimizer"
        )
    for number, entries in state.state_dict["state"].items():
        shape = parameters[number].shape if 0 <= number < len(parameters) else None
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != shape:
                raise UserError(
                    f"the optimizer's {name} of parameter {number} has the shape {tuple(value.shape)}, but the "
                    f"parameter has {None if shape is None else tuple(shape)}: train with a new optimizer"
                )


def _check_structure(path: Path, content: Any) -> None:
    """The mappings an optimizer's state is made of, tensors read or not."""
    content = content if isinstance(content, Mapping) else {}
    state = content.get("optimizer_state_dict")
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    entries = state.get("state") if isinstance(state, Mapping) else None
    if not (
        isinstance(content.get("optimizer_name") or "AdamW", str)
        and isinstance(groups, list)
        and groups
        and all(isinstance(group, Mapping) and _whole_numbers(group.get("params")) for group in groups)
        and isinstance(entries, Mapping)
        and all(isinstance(n, int) and isinstance(entry, Mapping) for n, entry in entries.items())
    ):
        raise UserError(
            f"{path} is no optimizer state: expected optimizer_name, hash and optimizer_state_dict with its "
            "state and param_groups; remove the file to train with a new optimizer"
        )


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _tensors(state: Mapping[int, Mapping[str, Any]], kind: type[T]) -> Iterator[tuple[str, T]]:
    for number, entry in state.items():
        for name, value in entry.items():
            if isinstance(value, kind):
                yield f"{name} of parameter {number}", value

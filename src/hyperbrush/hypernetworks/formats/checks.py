"""What both formats check before a hypernetwork is built from them: settings and tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.context_network import derived_dropout

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# key → (test, what is expected); the webui's names, in both formats.
_TESTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (lambda v: _is_whole(v) and v >= 0, "a whole number from 0"),
    "name": (lambda v: isinstance(v, str), "a text"),
    "layer_structure": (lambda v: _are_numbers(v), "a list of numbers"),
    "activation_func": (lambda v: v is None or isinstance(v, str), "a name"),
    "is_layer_norm": (lambda v: isinstance(v, bool), "true or false"),
    "weight_initialization": (lambda v: isinstance(v, str), "a name"),
    "activate_output": (lambda v: isinstance(v, bool), "true or false"),
    "use_dropout": (lambda v: isinstance(v, bool), "true or false"),
    "last_layer_dropout": (lambda v: isinstance(v, bool), "true or false"),
    "dropout_structure": (lambda v: v is None or _are_numbers(v), "a list of numbers"),
    "skip_connection": (lambda v: isinstance(v, bool), "true or false"),
    "upsample_linear": (lambda v: v is None or isinstance(v, str), "a name"),
}
_NONE_IS_ABSENT = (
    "step",
    "name",
    "weight_initialization",
    "use_dropout",
    "last_layer_dropout",
    "skip_connection",
)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value
    )


def build(
    path: Any, stem: str, settings: Mapping[str, Any], widths: Mapping[Key, int]
) -> AttentionHypernetwork:
    """A hypernetwork without tensors (on the meta device) from a file's settings.

    settings: by the webui's keys, its defaults for what is absent; other keys become ``metadata``
    where they are texts, numbers, booleans or None.

    Raises:
        UserError: a setting or width is wrong; all wrong settings are said at once.
    """
    given = {k: v for k, v in settings.items() if not (v is None and k in _NONE_IS_ABSENT)}
    wrong = [
        f"{key} is {given[key]!r:.60}, expected {expected}"
        for key, (test, expected) in _TESTS.items()
        if key in given and not test(given[key])
    ]
    if wrong:
        raise UserError(f"{path} is no sound hypernetwork: {'; '.join(wrong)}")
    structure = given.get("layer_structure", (1, 2, 1))
    rates = given.get("dropout_structure")
    use_dropout = given.get("use_dropout", False)
    last_layer_dropout = given.get("last_layer_dropout", False)
    if rates is None and use_dropout:
        rates = derived_dropout(structure, last_layer_dropout)
    metadata = {
        k: v
        for k, v in settings.items()
        if k not in _TESTS and (v is None or isinstance(v, str | int | float | bool))
    }
    try:
        with torch.device("meta"):
            hypernetwork = AttentionHypernetwork(
                widths,
                layer_structure=structure,
                activation=given.get("activation_func"),
                layer_norm=given.get("is_layer_norm", False),
                dropout_structure=rates,
                use_dropout=use_dropout,
                last_layer_dropout=last_layer_dropout,
                activate_output=given.get("activate_output", True),
                skip_connection=given.get("skip_connection", False),
                upsample_linear=given.get("upsample_linear"),
                weight_init="Normal",
                name=given.get("name", stem),
                step=given.get("step", 0),
                metadata=metadata,
            )
    except UserError as error:
        raise UserError(f"{path} is no sound hypernetwork: {error}") from error
    # Files name initialisations we do not know; it no longer matters, but is kept.
    hypernetwork.weight_init = given.get("weight_initialization", "Normal")
    return hypernetwork


def fill(path: Any, where: str, network: torch.nn.Module, tensors: Sequence[tuple[str, Any]]) -> None:
    """Put a file's tensors, in order, into a network on the meta device, after looking at each one.

    where: the network in words, "width 768, keys". tensors: (the file's name, tensor), in layer
        order.

    Raises:
        UserError: number, shape, type or content of the tensors does not fit the settings.
    """
    expected = list(network.named_parameters())
    want = [tuple(p.shape) for _, p in expected]
    got = [tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__ for _, t in tensors]
    if got != want:
        raise UserError(
            f"{path}, {where}: tensors of shapes {_short(got)}, but the file's settings "
            f"mean {_short(want)}: the file is damaged, or its settings are of another one"
        )
    state = {}
    for (name, _), (file_name, tensor) in zip(expected, tensors, strict=True):
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.device.type != "cpu":
            raise UserError(
                f"{path}, {where}: {file_name} is a {tensor.layout} tensor of {tensor.dtype}: "
                "expected a dense one of float16, bfloat16, float32 or float64"
            )
        # A view that repeats a few bytes would unpack to any size.
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(f"{path}, {where}: {file_name} repeats its content: the file is damaged")
        # The maximum hands NaN on, and is many times as fast as isfinite of every number.
        if not torch.isfinite(tensor.abs().max()):
            raise UserError(
                f"{path}, {where}: {file_name} holds NaN or infinite numbers: "
                "its training diverged or the file is damaged; take an earlier save"
            )
        state[name] = tensor.detach().contiguous()
    network.load_state_dict(state, assign=True)
    network.requires_grad_(True)


def _short(items: Sequence[Any]) -> str:
    shown = ", ".join(str(i) for i in items[:8])
    return f"[{shown}{', …' if len(items) > 8 else ''}] ({len(items)})"


def settings_of(hypernetwork: AttentionHypernetwork) -> dict[str, Any]:
    """The settings of a hypernetwork under the webui's keys, as both formats write them."""
    s = hypernetwork.settings
    return {
        "step": hypernetwork.step,
        "name": hypernetwork.name,
        "layer_structure": list(s.layer_structure),
        "activation_func": s.activation,
        "is_layer_norm": s.layer_norm,
        "weight_initialization": hypernetwork.weight_init,
        "activate_output": s.activate_output,
        "use_dropout": hypernetwork.use_dropout,
        "dropout_structure": list(s.dropout_structure or [0] * len(s.layer_structure)),
        "last_layer_dropout": hypernetwork.last_layer_dropout,
        "skip_connection": s.skip_connection,
        "upsample_linear": s.upsample_linear,
        **hypernetwork.metadata,
    }

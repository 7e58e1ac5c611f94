"""Checkpoints: one safetensors file each, whole or absent, that knows whether it is intact."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path

FORMAT = "1"
log = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """State of a training after ``step`` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    extra: dict[str, Any]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()


def path_of(folder: Path, step: int) -> Path:
    """File of the checkpoint at a step."""
    return folder / f"step-{step:08d}.safetensors"


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending, intact or not."""
    return sorted(int(p.stem[5:]) for p in folder.glob("step-*.safetensors") if p.stem[5:].isdecimal())


def planned_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that every training with these settings has, however often it is stopped.

    The others were written by a stop, or at the end: to go on from, never to go back to.
    """
    return [step for step in steps(folder) if not extra_of(path_of(folder, step)).get("unplanned")]


def save(folder: Path, checkpoint: Checkpoint, keep: int, spare: int | None = None) -> Path:
    """Write one, which is the newest then, and delete those that are not to be kept, see `prune`.

    Raises:
        UserError: it cannot be written; the older ones stand untouched.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    metadata = {
        "hyperbrush": FORMAT,
        "step": str(checkpoint.step),
        "extra": json.dumps(checkpoint.extra),
        "sha256": digest(tensors),
    }
    metadata["sha256_about"] = _about(metadata)
    path = path_of(folder, checkpoint.step)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    prune(folder, keep, checkpoint.step, spare)
    return path


def prune(folder: Path, keep: int, newest: int, spare: int | None = None) -> None:
    """Keep ``keep`` planned checkpoints up to ``newest``, that one itself, and the one at step ``spare``."""
    kept = {newest, spare, *[step for step in planned_steps(folder) if step <= newest][-keep:]}
    drop(folder, [step for step in steps(folder) if step not in kept])


def drop(folder: Path, unwanted: Iterable[int]) -> None:
    """Delete checkpoints; one that cannot be deleted stays, with a warning."""
    for step in unwanted:
        try:
            path_of(folder, step).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot delete %s: %s", path_of(folder, step), error.strerror or error)


def load(path: Path) -> Checkpoint:
    """Read and check one.

    Raises:
        UserError: missing, truncated, altered, or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is mapped from the file would keep it open, and Windows deletes no open files.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); an older one may stand beside it"
        ) from error
    if "hyperbrush" not in metadata:
        raise UserError(f"{path} is not a hyperbrush checkpoint")
    if metadata["hyperbrush"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {metadata['hyperbrush']}, this hyperbrush reads format {FORMAT}; "
            "go on with the version that wrote it, or train anew"
        )
    # Optional: the first checkpoints had no "sha256_about".
    about = _about(metadata)
    if metadata.get("sha256") != digest(tensors) or metadata.get("sha256_about", about) != about:
        raise UserError(f"checkpoint {path} is damaged: its content does not match its checksum")
    try:
        return Checkpoint(int(metadata["step"]), tensors, json.loads(metadata["extra"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged: its header does not say where it stood") from error


def extra_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, which are not read; nothing where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {}).get("extra", "{}"))
            return found
    except (SafetensorError, OSError, ValueError):
        return {}


def _about(metadata: Mapping[str, str]) -> str:
    """sha256 of what the header says beside the tensors."""
    return hashlib.sha256(f"{metadata.get('step')} {metadata.get('extra')}".encode()).hexdigest()


def latest(folder: Path, at: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint (or the one at a step); damaged ones are passed over.

    Raises:
        UserError: none at that step; or all that exist are damaged.
    """
    if at is not None:
        if not path_of(folder, at).is_file():
            there = ", ".join(map(str, steps(folder))) or "none"
            raise UserError(f"no checkpoint at step {at} in {folder}; there are: {there}")
        return load(path_of(folder, at))
    problems = []
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step))
        except UserError as error:
            log.warning("%s; taking an older one", error)
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return None


Values = dict[str, Any]


def group_values(optimizer: torch.optim.Optimizer) -> list[Values]:
    """What each group of an optimizer holds beside its parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, settings: Sequence[Values] | None = None
) -> tuple[dict[str, Tensor], Values]:
    """An optimizer's state as tensors by name, and the rest as plain values.

    settings: the groups' values at the start; those that changed since (Prodigy's estimate, the steps of
    schedule-free ones) are state too, except the learning rate, which the Trainer sets.

    Raises:
        UserError: the state of a parameter holds lists or the like, as SOAP's does.
    """
    tensors: dict[str, Tensor] = {}
    rest: Values = {}

    def put(name: str, value: Any) -> None:
        (tensors if isinstance(value, Tensor) else rest)[name] = value

    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor | bool | int | float | str | None):
                raise UserError(
                    f"optimizer {type(optimizer).__name__} keeps {name!r} as a {type(value).__name__}, which "
                    "checkpoints do not hold (tensors and plain numbers are held): a run could not be resumed; "
                    "take another optimizer"
                )
            put(f"{index}.{name}", value)
    for index, (now, before) in enumerate(zip(group_values(optimizer), settings or [], strict=False)):
        for name, value in now.items():
            if name != "lr" and _differs(value, before.get(name)):
                put(f"group.{index}.{name}", value)
    return tensors, rest


def _differs(value: Any, before: Any) -> bool:
    if isinstance(value, Tensor):
        return True  # a tensor may have changed in place
    return type(value) is not type(before) or bool(value != before)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    settings: Sequence[Values],
) -> None:
    """Undo `flatten_optimizer`; settings: those of the groups at the start, of which it kept what had changed."""
    state: dict[int, Values] = {}
    groups: dict[int, Values] = {}
    for key, value in [*tensors.items(), *rest.items()]:
        of, own = (groups, key[6:]) if key.startswith("group.") else (state, key)
        index, name = own.split(".", 1)
        of.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for number, (group, start) in enumerate(zip(optimizer.param_groups, settings, strict=True)):
        for name in group.keys() - start.keys() - {"params"}:
            del group[name]  # came in since
        group.update({name: value for name, value in start.items() if name != "lr"} | groups.get(number, {}))
    # The fused kernels walk through memory: moments must lie as their parameter does (channels_last).
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

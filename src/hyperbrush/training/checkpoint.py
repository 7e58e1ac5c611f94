"""Checkpoints: one safetensors file each, whole or absent, that knows whether it is intact."""

import hashlib
import json
import logging
from collections.abc import Mapping
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


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write one and delete the oldest beyond ``keep``.

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
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        if old != path:
            old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read and check one.

    Raises:
        UserError: missing, truncated, altered, or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); an older one may stand beside it"
        ) from error
    if metadata.get("hyperbrush") != FORMAT:
        raise UserError(f"{path} is not a hyperbrush checkpoint")
    # Optional: the first checkpoints had no "sha256_about".
    about = _about(metadata)
    if metadata.get("sha256") != digest(tensors) or metadata.get("sha256_about", about) != about:
        raise UserError(f"checkpoint {path} is damaged: its content does not match its checksum")
    try:
        return Checkpoint(int(metadata["step"]), tensors, json.loads(metadata["extra"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged: its header does not say where it stood") from error


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
            steps = (
                ", ".join(str(int(p.stem[5:])) for p in sorted(folder.glob("step-*.safetensors"))) or "none"
            )
            raise UserError(f"no checkpoint at step {at} in {folder}; there are: {steps}")
        return load(path_of(folder, at))
    problems = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return load(path)
        except UserError as error:
            log.warning("%s; taking an older one", error)
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as plain values."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    state = optimizer.state_dict()["state"]
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                rest[f"{index}.{name}"] = value
    return tensors, rest


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Undo `flatten_optimizer`; the settings of the groups stay as they are now."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *rest.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused kernels walk through memory: moments must lie as their parameter does (channels_last).
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

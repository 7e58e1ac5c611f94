"""The process and the model that a training is a guest in: everything is left as it was found."""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn


class AccelerateStates:
    """Accelerate's process-wide states of one training, beside those of whoever called it."""

    def __init__(self) -> None:
        self._own: tuple[dict[str, Any], ...] = ({}, {})

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within, Accelerate sees this training's; after it, what it saw before."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        kinds: tuple[Any, ...] = (AcceleratorState, GradientState)
        found = [vars(kind)["_shared_state"] for kind in kinds]
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        was_begun = bool(PartialState._shared_state)
        for kind, own in zip(kinds, self._own, strict=True):
            kind._shared_state = own
        try:
            yield
        finally:
            for kind, before in zip(kinds, found, strict=True):
                kind._shared_state = before
            if alone and not was_begun:
                PartialState._reset_state()


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """After it, the global generators go on as if nothing had been drawn."""
    chances = _Chances()
    try:
        yield
    finally:
        chances.restore()


@contextlib.contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """After it, each module trains or evaluates as before."""
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


class ModuleAsFound:
    """What training changes in a model that it does not train: devices, memory formats, modes, freezing."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [
            (tensor, tensor.device, tensor.stride(), tensor.requires_grad) for tensor in module.parameters()
        ]
        self._buffers = [
            (inner, name, tensor.device, tensor.stride())
            for inner in module.modules()
            for name, tensor in inner._buffers.items()
            if tensor is not None
        ]
        self._attributes = [
            (inner, name, getattr(inner, name))
            for inner in module.modules()
            for name in ("training", "gradient_checkpointing", "_compiled_call_impl")
            if hasattr(inner, name)
        ]

    def restore(self) -> None:
        """Make it what it was; values stay."""
        for parameter, device, stride, requires_grad in self._parameters:
            parameter.data = _laid(parameter.data, device, stride)
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for inner, name, device, stride in self._buffers:  # moving a module makes new ones
            if (buffer := inner._buffers.get(name)) is not None:
                inner._buffers[name] = _laid(buffer, device, stride)
        for inner, name, value in self._attributes:
            if getattr(inner, name) is not value:
                setattr(inner, name, value)


def _laid(tensor: torch.Tensor, device: torch.device, stride: tuple[int, ...]) -> torch.Tensor:
    """The same values on a device and in an order of memory."""
    if tensor.device == device and tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device).copy_(tensor)


@dataclass
class _Chances:
    """The states of all global generators."""

    python: Any = field(default_factory=random.getstate)
    numpy: Any = field(default_factory=lambda: np.random.get_state())
    cpu: Any = field(default_factory=torch.get_rng_state)
    cuda: Any = field(
        default_factory=lambda: torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    )

    def restore(self) -> None:
        """Make them what they were."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

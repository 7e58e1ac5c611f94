"""A few steps tried out, and everything put back."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hyperbrush.training.config import TrainerConfig
from hyperbrush.training.objectives import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def trial(objective: Objective, config: TrainerConfig) -> Iterator["Accelerator"]:
    """An accelerator like the training's; everything a trial changes is put back after it, to the bit."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # or the training could not choose another precision
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    objective.to(accelerator.device)
    objective.place(accelerator.device)
    parameters = list(objective.parameters())
    tensors = [p for p in parameters if p.requires_grad] + list(objective.buffers())
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    modes = [(module, module.training) for module in objective.modules()]
    chances = _Chances()
    try:
        yield accelerator
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        chances.restore()
        AcceleratorState._reset_state()


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

"""A few steps tried out, and everything put back."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from hyperbrush.training.loop.caller import AccelerateStates, generators_kept, modes_kept
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.objectives import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def trial(objective: Objective, config: TrainerConfig) -> Iterator["Accelerator"]:
    """An accelerator like the training's; everything a trial changes is put back after it, to the bit."""
    from accelerate import Accelerator

    with AccelerateStates().entered(), generators_kept(), modes_kept(objective):
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
        objective.to(accelerator.device)
        objective.place(accelerator.device)
        parameters = list(objective.parameters())
        tensors = [p for p in parameters if p.requires_grad] + list(objective.buffers())
        values = [tensor.detach().clone() for tensor in tensors]
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        try:
            yield accelerator
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

"""Steps tried out before a training, with everything put back: what one takes, the largest batch that fits."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.training.loop.caller import AccelerateStates, generators_kept, modes_kept
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.memory import PeakMemory, free_memory
from hyperbrush.training.loop.micro_batches import MicroBatches, is_out_of_memory
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import begin_training, configured
from hyperbrush.training.loop.processes import check_precision, join

if TYPE_CHECKING:
    from accelerate import Accelerator

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

TIMED_STEPS = 2
NO_ROOM = (
    "out of memory with one picture at a time; take smaller pictures, gradient_checkpointing, mixed_precision, "
    "or another device"
)


@contextlib.contextmanager
def trial(objective: Objective, config: TrainerConfig) -> Iterator["Accelerator"]:
    """An accelerator like the training's; everything a trial changes is put back after it, to the bit."""
    from accelerate import Accelerator

    with AccelerateStates().entered(), generators_kept(), modes_kept(objective):
        check_precision(config.mixed_precision, join())
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


def timed(objective: Objective, config: TrainerConfig) -> tuple[float, int | None]:
    """Seconds of a step and the bytes it takes."""
    with trial(objective, config) as accelerator:
        trained: list[torch.Tensor] = [p for p in objective.parameters() if p.requires_grad]
        micro = MicroBatches(accelerator, objective, trained, config.batch_size, config.gradient_accumulation)
        objective.train()

        def step(number: int) -> None:
            micro.gradients(lambda: objective.batch(number, config.batch_size), number)
            for parameter in trained:
                parameter.grad = None
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()

        peak = PeakMemory(accelerator.device)
        with peak:
            step(0)
        begin = time.perf_counter()
        for number in range(TIMED_STEPS):
            step(1 + number)
        return (time.perf_counter() - begin) / TIMED_STEPS, peak.grown or None


def find_batch_size(
    objective: Objective,
    config: TrainerConfig,
    *,
    limit: int = 256,
    headroom: Callable[[torch.device], int | None] | None = None,
    optimizer_factory: OptimizerFactory | None = None,
    on_progress: Callable[[int, bool], None] | None = None,
) -> int:
    """The largest number of rows that one step can compute at once: 1, 2, 4, … up to ``limit``.

    A device says when it has no memory left. A machine without one begins to swap or kills the process
    instead, so there a size is only tried if twice what the last one needed is free, less a fifth. Nothing of
    the objective is changed. The result is meant for batch_size / gradient_accumulation.

    Args:
        objective, config: of the training; its batch size is not looked at.
        limit: the largest size of interest, tried last.
        headroom: free bytes of a device whose allocations never fail; None: it cannot know.
        optimizer_factory: as of `Trainer`; its moments take memory too.
        on_progress: called with (size, does it fit?).

    Raises:
        UserError: not even one row fits; a limit below 1; nothing is trainable; on a CPU, no way to know what
            is free.
    """
    if limit < 1:
        raise UserError(f"limit is {limit}; expected 1 or more")
    sizes = [2**n for n in range(limit.bit_length()) if 2**n < limit] + [limit]
    with trial(objective, config) as accelerator:
        device = accelerator.device
        free = headroom or (free_memory if device.type == "cpu" else None)
        there = free(device) if free is not None else None
        if free is not None and there is None:
            raise UserError(
                f"how much memory is free on {device} cannot be known here; set batch_size and "
                "gradient_accumulation by hand, beginning small"
            )
        groups = _groups(objective)
        for group in groups:
            group.pop("scale", None)
        optimizer = (optimizer_factory or partial(configured, config.optimizer))(groups)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # steps that only take memory
        begin_training(optimizer)
        peak = PeakMemory(device)
        fits, needed = 0, 0
        for size in sizes:
            if there is not None and needed * size > 0.8 * there * max(1, fits):
                break
            needed = _try(accelerator, objective, optimizer, size, peak)
            if on_progress is not None:
                on_progress(size, needed >= 0)
            if needed < 0:
                break
            fits = size
    if not fits:
        raise UserError(NO_ROOM)
    return fits


def _try(
    accelerator: "Accelerator", objective: Objective, optimizer: Any, size: int, peak: PeakMemory
) -> int:
    """Bytes that a step of so many rows takes beside what was there; -1: more than there is."""
    from accelerate.utils.memory import clear_device_cache

    failed = False
    try:
        with peak:
            objective.train()
            with accelerator.autocast():
                loss = objective(objective.batch(0, size))["loss"]
            loss.backward()
            optimizer.step()
            del loss
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    finally:
        optimizer.zero_grad(set_to_none=True)
    if failed:  # only here: the error's traceback holds the tensors no more
        clear_device_cache(garbage_collection=True)
    return -1 if failed else peak.grown


def _groups(objective: Objective) -> list[dict[str, Any]]:
    groups = [dict(group) for group in objective.parameter_groups()]
    if not any(group["params"] for group in groups):
        raise UserError("nothing is trainable: every parameter of the objective is frozen")
    return groups

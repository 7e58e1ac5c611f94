"""What to set before a training: a learning rate that pays, and the largest batch that fits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.training.charts import Chart, Line, Mark
from hyperbrush.training.clipping import Clipping
from hyperbrush.training.config import TrainerConfig
from hyperbrush.training.memory import PeakMemory, free_memory
from hyperbrush.training.micro_batches import MicroBatches, is_out_of_memory
from hyperbrush.training.objectives import Objective, rows
from hyperbrush.training.optimizers import (
    begin_training,
    configured,
    evaluation_weights,
    rate_scales,
)
from hyperbrush.training.trial import trial

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

RISEN = 3.0  # times the loss at the start: the sweep is over
LEAST_DESCENT = 0.005  # share of the loss at the start; less is no descent
NO_ROOM = (
    "out of memory with one picture at a time; take smaller pictures, gradient_checkpointing, mixed_precision, "
    "or another device"
)
WIDTH = 5  # points over which the curve is smoothed, and its slope taken


@dataclass(frozen=True)
class LrCurve:
    """Loss on a fixed batch after each step of a sweep whose rate grows by a constant factor.

    rates: of the steps, ascending; losses: after them, of the same number, all finite; start: before the
    first one; ended: why the sweep ended.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    start: float
    ended: str

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Median of each loss and its neighbours, so that one step that jumps says nothing."""
        half = WIDTH // 2
        padded = [self.start] * half + list(self.losses)
        return tuple(float(np.median(padded[i : i + WIDTH])) for i in range(len(self.losses)))

    @property
    def lowest(self) -> float | None:
        """The rate at the lowest loss: already too high for a whole training."""
        smooth = self.smoothed
        if not smooth or self.start - min(smooth) < LEAST_DESCENT * abs(self.start):
            return None
        return self.rates[smooth.index(min(smooth))]

    @property
    def suggestion(self) -> float | None:
        """The rate at which the loss falls most steeply over log(rate), at most a third of `lowest`.

        Smith (2017, 1506.01186) takes a rate from where the loss falls; None where it never does.
        """
        if (lowest := self.lowest) is None:
            return None
        smooth = (self.start, *self.smoothed)
        end = self.rates.index(lowest) + 1
        falls = [(smooth[max(0, i - WIDTH)] - smooth[i]) / (i - max(0, i - WIDTH)) for i in range(1, end + 1)]
        return min(self.rates[falls.index(max(falls))], lowest / 3)

    def __str__(self) -> str:
        """What was found, for a person."""
        if (rate := self.suggestion) is None or self.lowest is None:
            return (
                f"no learning rate from {self.rates[0]:.1e} to {self.rates[-1]:.1e} brought the loss down from "
                f"{self.start:.4g} ({self.ended}), so none is suggested; sweep other rates or more steps, or look "
                "at the data"
            )
        return (
            f"learning rate {rate:.1e}: the loss falls most steeply there; lowest at {self.lowest:.1e} "
            f"({self.start:.4g} → {min(self.smoothed):.4g}); {self.ended}"
        )

    def chart(self) -> Chart:
        """Loss over the rate, with the suggestion marked."""
        most = max(1.5 * self.start, *self.losses[:1]) if self.start > 0 else math.inf
        shown = [min(loss, most) for loss in self.losses]
        marks = [Mark(r, f"suggested {r:.1e}") for r in [self.suggestion] if r is not None]
        smooth = list(zip(self.rates, (min(loss, most) for loss in self.smoothed), strict=True))
        return Chart(
            "loss over learning rate",
            [
                Line("each step", list(zip(self.rates, shown, strict=True)), faint=True),
                Line("smoothed", smooth),
                Line("before", [(self.rates[0], self.start), (self.rates[-1], self.start)], "grey", (2, 4)),
            ],
            marks,
            x_label="learning rate",
            log_x=True,
        )

    def picture(self) -> "Image | None":
        """`chart` as pixels."""
        return self.chart().picture()

    def save(self, path: str | Path) -> Path:
        """Write the chart, .svg or .png.

        Raises:
            UserError: another suffix; the file cannot be written.
        """
        return self.chart().save(path)


def find_learning_rate(
    objective: Objective,
    config: TrainerConfig,
    *,
    low: float = 1e-6,
    high: float = 1e-1,
    steps: int = 100,
    probe: int | None = None,
    optimizer_factory: OptimizerFactory | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> LrCurve:
    """Train a few steps at ever higher rates and look where the loss falls: the range test of Smith (2017).

    Unlike there, the loss is not that of the step's own batch, whose noise hides what a step did, but of a
    fixed batch that is never trained on. Everything the sweep changes is put back, to the bit: weights,
    buffers, gradients, modes and the global generators.

    Args:
        objective: what will be trained; it is left on the training's device.
        config: batch size, accumulation, precision, seed, optimizer and clipping of the training.
        low, high: the first and the last rate; steps: how many.
        probe: rows of the fixed batch; four batches by default.
        optimizer_factory: as of `Trainer`.
        on_progress: called with (step, steps, loss) after each.

    Raises:
        UserError: rates or steps that make no sweep; nothing is trainable; the loss is not finite before the
            first step; out of memory with one row at a time.
    """
    if not (0 < low < high and math.isfinite(high)) or steps < 10:
        raise UserError(
            f"a sweep of {steps} steps from {low:g} to {high:g}; expected 10 or more, from a rate above 0 to a "
            "higher one"
        )
    many = 4 * config.batch_size if probe is None else probe
    if many < 1:
        raise UserError(f"probe is {probe}; expected 1 row or more")
    with trial(objective, config) as accelerator:
        groups = _groups(objective)
        scales = [float(group.pop("scale", 1.0)) for group in groups]
        make = optimizer_factory or partial(configured, config.optimizer, scales=scales)
        optimizer = accelerator.prepare_optimizer(make(groups))
        scales = rate_scales(optimizer, scales)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        micro = MicroBatches(accelerator, objective, trained, config.batch_size, config.gradient_accumulation)
        clip = Clipping(config.optimizer.clip, config.optimizer.max_grad_norm)
        fixed = objective.batch(steps, many)

        def look() -> float:
            with evaluation_weights(optimizer):
                return _loss(accelerator, objective, fixed, many, micro.size, config.seed)

        start = look()
        if not math.isfinite(start):
            raise UserError(f"the loss is {start} before the first step; look at the data and the precision")
        rates: list[float] = []
        losses: list[float] = []
        ended = f"{steps} steps"
        begin_training(optimizer)
        for step in range(steps):
            rate = low * (high / low) ** (step / (steps - 1))
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = rate * scale
            objective.train()
            seed = keyed_seed(config.seed, "global", step, accelerator.process_index)
            micro.gradients(lambda step=step: objective.batch(step, config.batch_size), seed)  # type: ignore[misc]
            accelerator.unscale_gradients(optimizer)
            clip(trained, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss = look()
            if not math.isfinite(loss):
                ended = f"ended at {rate:.1e}, where the loss became {loss}"
                break
            rates.append(rate)
            losses.append(loss)
            if on_progress is not None:
                on_progress(step + 1, steps, loss)
            if loss > RISEN * abs(start):
                ended = f"ended at {rate:.1e}, where the loss had risen {RISEN:g}fold"
                break
        if not rates:
            raise UserError(f"the loss is not finite after one step at {low:g}; begin at a lower rate")
        return LrCurve(tuple(rates), tuple(losses), start, ended)


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


def _loss(
    accelerator: "Accelerator", objective: Objective, batch: dict[str, Any], many: int, size: int, seed: int
) -> float:
    """Mean loss of a batch, in parts, in evaluation mode, with the same draws each time."""
    objective.eval()
    while True:
        torch.manual_seed(keyed_seed(seed, "probe"))
        total = 0.0
        try:
            with torch.no_grad(), accelerator.autocast():
                for begin in range(0, many, size):
                    end = min(many, begin + size)
                    total += float(objective(rows(batch, begin, end, many))["loss"]) * (end - begin)
            return total / many
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(NO_ROOM) from error
            size //= 2

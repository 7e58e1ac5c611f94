"""Gradients of one whole batch, computed in equal parts; smaller parts where memory is short."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.training.loop.objectives import rows
from hyperbrush.training.loop.processes import average_gradients, worst

if TYPE_CHECKING:
    from accelerate import Accelerator

FINE, OUT_OF_MEMORY, FAILED = range(3)


class MicroBatches:
    """Cuts a batch over processes and parts and adds their gradients up to those of the whole.

    Args:
        accelerator: precision, device and processes.
        module: turns (part of) a batch into loss terms that are means over its rows.
        parameters: what gets gradients.
        batch_size: rows over all processes and parts.
        parts: parts one after another on each process; more of them after `gradients` ran out of memory.

    Raises:
        UserError: the batch cannot be cut so.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        module: nn.Module,
        parameters: list[Tensor],
        batch_size: int,
        parts: int,
    ) -> None:
        whole = parts * accelerator.num_processes
        if batch_size % whole:
            raise UserError(
                f"batch_size {batch_size} cannot be split over {accelerator.num_processes} processes "
                f"times {parts} parts; take a multiple of {whole}"
            )
        self.accelerator, self.module, self.parameters = accelerator, module, parameters
        self.batch_size, self.parts = batch_size, parts

    @property
    def size(self) -> int:
        """Rows of one part on one process."""
        whole: int = self.parts * self.accelerator.num_processes
        return self.batch_size // whole

    def shrink(self, size: int | None) -> None:
        """Cut at least as small as ``size`` rows a part, as an earlier run without memory had to."""
        while size is not None and self.size > max(1, size):
            self._halve()

    def gradients(
        self, make_batch: Callable[[], dict[str, Any]], seed: int
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The batch and its mean loss terms; the parameters have its gradients, the same on all processes.

        Parts are halved until they fit; the whole batch is then computed again, so that the result is that
        of so many parts from the start.

        seed: of the global generator (dropout draws from it) at the begin of each attempt.

        Raises:
            UserError: out of memory even with one row at a time; another process failed.
        """
        while True:
            state, batch, terms = self._attempt(make_batch, seed)
            if state == FINE:
                break
            self._free()
            self._halve()
        average_gradients(self.accelerator, self.parameters)
        return batch, {k: self.accelerator.reduce(v, "mean") for k, v in terms.items()}

    def _attempt(
        self, make_batch: Callable[[], dict[str, Any]], seed: int
    ) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        torch.manual_seed(seed)
        batch: dict[str, Any] = {}
        terms: dict[str, Tensor] = {}
        state, failure = FINE, None
        try:
            batch = make_batch()
            for part in range(self.parts):
                self._add(batch, part, terms)
        except Exception as error:
            if is_out_of_memory(error):
                state = OUT_OF_MEMORY
            elif self.accelerator.num_processes == 1:
                raise
            else:
                state, failure = FAILED, error
        state = worst(self.accelerator, state)
        if failure is not None:
            raise failure
        if state == FAILED:
            raise UserError(
                f"process {self.accelerator.process_index} stops, since another process failed; "
                "its own message says why"
            )
        return state, batch, terms

    def _add(self, batch: dict[str, Any], part: int, terms: dict[str, Tensor]) -> None:
        accelerator, size = self.accelerator, self.size
        start = (part * accelerator.num_processes + accelerator.process_index) * size
        with accelerator.autocast():
            found = self.module(rows(batch, start, start + size, self.batch_size))
        accelerator.backward(found["loss"] / self.parts)
        for name, value in found.items():
            terms[name] = terms.get(name, 0.0) + value.detach().float() / self.parts

    def _free(self) -> None:
        from accelerate.utils.memory import clear_device_cache

        for parameter in self.parameters:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)

    def _halve(self) -> None:
        """The next smaller parts that cut the batch evenly."""
        own = self.batch_size // self.accelerator.num_processes
        if self.size == 1:
            raise UserError(
                f"out of memory with one picture at a time (batch_size {self.batch_size} in {self.parts} parts); "
                "take smaller pictures, gradient_checkpointing, mixed_precision, or another device"
            )
        self.parts = next(n for n in range(2 * self.parts, own + 1) if own % n == 0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)

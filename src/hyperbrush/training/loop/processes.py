"""Several processes as one: work of the main process, agreements, averages.

Every function is a plain pass-through where there is one process.  All processes call each of them in the
same order; none of them is called inside code that only one process runs.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.stopping import stoppable
from hyperbrush.training.loop.progress import Interrupted

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

T = TypeVar("T")
BUCKET = 1 << 24  # numbers averaged at once


LONG = timedelta(days=7)  # one process may look at pictures and encode them while the others wait


def join() -> torch.device:
    """Find the other processes that a launcher started with this one, and return this one's device.

    accelerate joins processes without GPUs only where the first of its objects is told so.

    Raises:
        UserError: a launcher started several, and they cannot be joined.
    """
    from accelerate import PartialState

    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        state = PartialState(timeout=LONG)
        if state.num_processes != started:
            PartialState._reset_state()
            state = PartialState(cpu=True, timeout=LONG)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{started} processes were started (WORLD_SIZE), but they cannot be joined: {error}. Start them "
            "with torchrun or accelerate launch"
        ) from error
    if state.num_processes != started:
        raise UserError(
            f"{started} processes were started (WORLD_SIZE), but accelerate sees {state.num_processes}"
        )
    return torch.device(state.device)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse, before anything is encoded, what a device cannot compute in.

    Raises:
        UserError: fp16 on the CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError(f"mixed_precision fp16 needs a GPU, and this is {device}: take bf16 or no")


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def on_main(accelerator: "Accelerator | PartialState", work: "Callable[[], T]") -> T:
    """Do ``work`` on the main process; its result, or its error, is everyone's.

    So that a full disk on the main process ends all of them instead of leaving the others waiting.

    Raises:
        UserError, Interrupted: what ``work`` raised, on all processes; RuntimeError for other errors of the main one.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list[tuple[T | None, Callable[..., Exception] | None, tuple[Any, ...]]] = [(None, None, ())]
    failed: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = (work(), None, ())
        except Interrupted as stopped:
            failed = stopped
            outcome[0] = (None, Interrupted, (stopped.run, stopped.step))
        except Exception as error:  # noqa: BLE001 - raised below, after the others know
            failed = error
            said = str(error) or type(error).__name__
            mendable = isinstance(error, UserError)
            told = (UserError, (said,)) if mendable else (RuntimeError, (f"the main process failed: {said}",))
            outcome[0] = (None, *told)
    broadcast_object_list(outcome)
    result, problem, about = outcome[0]
    if failed is not None:
        raise failed
    if problem is not None:
        raise problem(*about)
    return result  # type: ignore[return-value]


def main_first(work: Callable[[], T]) -> T:
    """``work`` of the main process, then of the others, who find its files; each has its own result.

    Raises:
        UserError, Interrupted: see `on_main`; what the others' own ``work`` raises.
    """
    from accelerate import PartialState

    made: list[T] = []
    on_main(PartialState(), lambda: made.append(work()))
    return made[0] if made else work()


def prepared(run: str | Path, work: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """What comes before the first step, the main process first; that one obeys a stop at once, and so do all.

    Raises:
        UserError: see `main_first`.
        Interrupted: ``should_stop`` said so; caches hold what was encoded, in whole batches.
    """

    def ask() -> None:
        if should_stop():
            raise Interrupted(Path(run), None)

    def on_this() -> T:
        if not is_main():  # what the main process made is there, and all begin the first step together
            return work()
        with stoppable(ask):
            return work()

    return main_first(on_this)


def worst(accelerator: "Accelerator", state: int) -> int:
    """The highest of the processes' numbers."""
    if accelerator.num_processes == 1:
        return state
    found: Tensor = accelerator.gather(torch.tensor([state], device=accelerator.device))
    return int(found.max())


def average_gradients(accelerator: "Accelerator", parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes; one that is missing counts as zero."""
    if accelerator.num_processes == 1:
        return
    trained = list(parameters)
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        mean = accelerator.reduce(flat, "mean").split([gradient.numel() for gradient in bucket])
        for gradient, value in zip(bucket, mean, strict=True):
            gradient.copy_(value.view(gradient.shape))


def share_from_main(accelerator: "Accelerator", tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with the main process's."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().contiguous(), from_process=0))


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """Neighbours of one type, up to BUCKET numbers together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (
            tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket

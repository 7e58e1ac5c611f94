"""What a person sees in the terminal: progress with time left, notes, one-line errors."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from hyperbrush.training.trainer import Progress as Step

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    err.print(text, style="yellow", markup=False)


def done(text: str) -> None:
    """A result, on stdout."""
    out.print(text, markup=False)


def bar(*, transient: bool = False) -> Progress:
    """A progress bar with count, elapsed time and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=err,
        transient=transient,
        disable=not err.is_terminal,
    )


@contextlib.contextmanager
def sampling_bar(steps: int) -> Iterator[Callable[[int, int, Any], None]]:
    """Progress of a sampling; yields the callback."""
    with bar(transient=True) as progress:
        task = progress.add_task("sampling", total=steps, info="")
        yield lambda step, total, _latents: progress.update(task, completed=step, total=total)


@contextlib.contextmanager
def training_bar(name: str) -> "Iterator[Callable[[Step], None]]":
    """Progress of a training; yields the callback.  Without a terminal, a line now and then."""
    smooth: list[float] = []
    with bar() as progress:
        task = progress.add_task(f"training {name}", total=None, info="")

        def told(step: "Step") -> None:
            loss = step.losses["loss"]
            smooth[:] = [loss if not smooth else 0.95 * smooth[0] + 0.05 * loss]
            info = f"loss {smooth[0]:.4f}  rate {step.learning_rate:.1e}"
            progress.update(task, completed=step.step, total=step.steps, info=info)
            if step.validation:
                shown = "  ".join(f"{k} {v:.4f}" for k, v in step.validation.items())
                err.print(f"step {step.step}/{step.steps}  {info}  validation: {shown}", markup=False)
            elif not err.is_terminal and step.step % max(1, step.steps // 20) == 0:
                left = step.seconds / max(1, step.step) * (step.steps - step.step)
                err.print(f"step {step.step}/{step.steps}  {info}  about {left:.0f} s left", markup=False)

        yield told


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """First Ctrl-C or SIGTERM: the yielded function turns true; the second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            err.print("stopping after this step; once more to stop at once", style="yellow")
        asked = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

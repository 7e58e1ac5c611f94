"""What the user sees in the terminal: progress with time left, notes, one-line errors."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
from rich.text import Text

from hyperbrush.cli.language import told

if TYPE_CHECKING:
    from hyperbrush.training.loop.trainer import Interrupted
    from hyperbrush.training.loop.trainer import Progress as Step

# No markup and no :codes: what is shown holds people's names and commands to be copied.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    err.print(told(text), style="yellow")


def stopped(training: "Interrupted", command: str) -> None:
    """How a training goes on that was stopped; command: that of its kind, which has --resume."""
    if training.step is None:
        note("stopped before the first step; the same command goes on from there")
    else:
        again = f"{command} --resume {shlex.quote(str(training.run))}"
        note(f"stopped after step {training.step}; go on with: {again}")


def done(text: str) -> None:
    """A result, on stdout."""
    out.print(told(text))


def suggest(command: str) -> None:
    """A command that could come next: on a terminal alone, where a person reads it."""
    if err.is_terminal:
        err.print(told(f"try: {command}"), style="dim")


def suggest_without(option: str) -> None:
    """The same command without an option that only tried it."""
    suggest(shlex.join(["hyperbrush", *(word for word in sys.argv[1:] if word != option)]))


def show_page(path: Path) -> None:
    """Open a page or picture in the browser, where a person sits before a screen."""
    import webbrowser

    screen = sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    if out.is_terminal and screen and not os.environ.get("CI"):
        webbrowser.open(path.resolve().as_uri())


def bar(*, transient: bool = False) -> Progress:
    """A progress bar with count, elapsed time and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        console=err,
        transient=transient,
        disable=not err.is_terminal,
    )


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner beside what is being done; yields what tells it anew, as it is: names may hold [brackets] and :codes:."""
    with err.status(Text(what)) as status:
        yield lambda text: status.update(Text(text))


@contextlib.contextmanager
def sampling_bar(steps: int) -> Iterator[Callable[[int, int, Any], None]]:
    """Progress of a sampling; yields the callback."""
    with bar(transient=True) as progress:
        task = progress.add_task("sampling", total=steps, info="")
        yield lambda step, total, _latents: progress.update(task, completed=step, total=total)


@contextlib.contextmanager
def preparing_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of what comes before the first step; yields the callback (what, done, in all)."""
    with bar(transient=True) as progress:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of, info="")
            progress.update(tasks[what], completed=done, total=of, visible=done < of)

        yield told


@contextlib.contextmanager
def training_bar(name: str) -> "Iterator[Callable[[Step], None]]":
    """Progress of a training; yields the callback.  Without a terminal, a line now and then."""
    from hyperbrush.training.loop.memory import memory_in_use

    smooth: list[float] = []
    with bar() as progress:
        task = progress.add_task(f"training {name}", total=None, info="")

        def told(step: "Step") -> None:
            loss = step.losses["loss"]
            smooth[:] = [loss if not smooth else 0.95 * smooth[0] + 0.05 * loss]
            info = f"loss {smooth[0]:.4f}  rate {step.learning_rate:.1e}"
            info += f"  {step.batch_size * step.step / max(step.seconds, 1e-3):.1f} pictures/s  {memory_in_use() / 2**20:.0f} MiB"
            progress.update(task, completed=step.step, total=step.steps, info=info)
            for said in step.notes:
                note(said)
            if step.validation:
                shown = "  ".join(f"{k} {v:.4f}" for k, v in step.validation.items())
                err.print(f"step {step.step}/{step.steps}  {info}  validation: {shown}", markup=False)
            elif not err.is_terminal and step.step % max(1, step.steps // 20) == 0:
                left = step.seconds / max(1, step.step) * (step.steps - step.step)
                err.print(f"step {step.step}/{step.steps}  {info}  about {left:.0f} s left", markup=False)

        yield told


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """First Ctrl-C or SIGTERM: the yielded function turns true; the second Ctrl-C is a KeyboardInterrupt.

    A launcher (torchrun, accelerate) passes on the Ctrl-C that its processes have had from the terminal:
    what comes within a second is the first one again.  Outside the main thread no signal arrives, and
    nothing is changed.  One of several processes that were launched together stops too when the launcher is gone.
    """
    asked: float | None = None

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        now = time.monotonic()
        if asked is None:
            asked = now
            note("stopping; once more to stop at once")
        elif number == signal.SIGINT and not ("TORCHELASTIC_RUN_ID" in os.environ and now - asked < 1):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    launcher = os.environ.pop("HYPERBRUSH_LAUNCHER", "")  # see training.launch
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked is not None or (launcher != "" and str(os.getppid()) != launcher)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

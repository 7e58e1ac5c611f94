"""What a training tells: after each step, when it ends early, and in live.json to whoever watches its folder."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.files import write_json
from hyperbrush.training.loop.memory import memory_in_use

# (what is looked at or encoded before the first step, how many are done, in all)
PrepareCallback = Callable[[str, int, int], None]
EVERY = 0.1  # seconds between two writings at least


@dataclass
class Progress:
    """What a listener is told after each step."""

    step: int
    steps: int
    losses: dict[str, float]
    learning_rate: float
    seconds: float  # of training so far, earlier parts of a resumed run included
    batch_size: int = 1  # pictures a step, over all processes
    validation: dict[str, float] = field(default_factory=dict)
    preview: Path | None = None
    checkpoint: Path | None = None
    notes: list[str] = field(default_factory=list)  # warnings and what was done about them


class Interrupted(Exception):
    """The training was asked to stop; its state is on disk.

    step: the last one made; None: it was still preparing its first one, and what is encoded is kept.
    """

    def __init__(self, run: Path, step: int | None) -> None:
        super().__init__("stopped before the first step" if step is None else f"stopped after step {step}")
        self.run, self.step = run, step


class NotFinite(UserError):
    """A step whose loss or gradient is not finite; no weight was changed."""


class Live:
    """Writes a run's live.json, at most ten times a second and always at the last step.

    step, steps; loss, smoothed (over about 20 steps), learning_rate; seconds of training, seconds_left;
    pictures_per_second; memory (bytes); validation (the last one's figures); time (seconds since 1970).
    The rate is that of this process: of the steps since it began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._smoothed: float | None = None
        self._first: tuple[int, float] | None = None  # (step, seconds) where this process began
        self._validation: dict[str, float] = {}
        self._written = 0.0

    def tell(self, progress: Progress) -> None:
        """After a step.  A full disk is the checkpoint's to complain of."""
        loss = progress.losses["loss"]
        self._smoothed = loss if self._smoothed is None else 0.95 * self._smoothed + 0.05 * loss
        self._validation = dict(progress.validation) or self._validation
        if self._first is None:
            self._first = (progress.step, progress.seconds)
        now = time.monotonic()
        if now - self._written < EVERY and progress.step < progress.steps:
            return
        self._written = now
        steps, seconds = progress.step - self._first[0], progress.seconds - self._first[1]
        if steps == 0:
            steps, seconds = progress.step, progress.seconds
        each = seconds / max(1, steps)
        with contextlib.suppress(UserError):
            write_json(
                self.path,
                {
                    "step": progress.step,
                    "steps": progress.steps,
                    "loss": loss,
                    "smoothed": self._smoothed,
                    "learning_rate": progress.learning_rate,
                    "seconds": progress.seconds,
                    "seconds_left": each * (progress.steps - progress.step),
                    "pictures_per_second": progress.batch_size / each if each > 0 else 0.0,
                    "memory": memory_in_use(),
                    "validation": self._validation,
                    "time": time.time(),
                },
                sync=False,
            )

"""What a training tells: after each step, and when it ends early."""

from dataclasses import dataclass, field
from pathlib import Path

from hyperbrush.errors import UserError


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

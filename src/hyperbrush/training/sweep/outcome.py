"""What a trial came to, as its folder keeps it."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from hyperbrush.training.sweep.settings import Sweep, Trial

OUTCOME = "trial.json"  # in a trial's run folder, once it has ended


@dataclass(frozen=True)
class Outcome:
    """What a trial came to; losses are None where no pictures were held out, or where it failed."""

    number: int
    label: str
    state: str  # "done" or "failed"
    best_loss: float | None = None
    base_loss: float | None = None
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0
    file: str = ""  # in the trial's folder
    error: str = ""
    worker: str = ""

    def __str__(self) -> str:
        """One line for a person."""
        if self.state == "failed":
            return f"failed: {self.error}"
        if self.best_loss is None or self.base_loss is None:
            return f"done in {self.seconds:.0f} s"
        return (
            f"validation loss {self.best_loss:.4f} at step {self.best_step}, {self.base_loss:.4f} without, "
            f"{self.seconds:.0f} s"
        )


def outcome_of(trial: Trial) -> Outcome | None:
    """What a trial came to; None while it is to be done."""
    try:
        return Outcome(**json.loads((trial.run / OUTCOME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fail_abandoned(trial: Trial) -> Outcome:
    """What a trial comes to whose workers died too often."""
    error = f"its worker died again and again (killed, or out of memory); see {trial.run}"
    return Outcome(trial.number, trial.label, "failed", error=error)


@dataclass
class Teller:
    """Tells once of each trial that has ended, whoever did it.

    told: numbers of those that are known already.
    """

    sweep: Sweep
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        self.told = {trial.number for trial in self.sweep.trials if outcome_of(trial) is not None}

    def tell(self) -> None:
        """Say what has ended since."""
        for trial in self.sweep.trials:
            if trial.number not in self.told and (found := outcome_of(trial)) is not None:
                self.told.add(trial.number)
                count = f"{len(self.told)} of {len(self.sweep.trials)} done"
                self.note(f"trial {trial.number} ({trial.label}): {found}; {count}")

    @property
    def left(self) -> int:
        """Trials to be done."""
        return len(self.sweep.trials) - len(self.told)

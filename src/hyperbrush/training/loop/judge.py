"""How a training goes, judged by its losses: diverging (and where to go back to), overfitting, time to stop."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from hyperbrush.errors import UserError
from hyperbrush.training.loop import checkpoint as checkpoints

NEWEST, USUAL, ENOUGH = 10, 100, 20  # losses


@dataclass
class Judge:
    """Watches the training loss and the validation loss; its state is in every checkpoint.

    Args:
        divergence_factor: the loss diverges when the median of its newest ten is so many times the median
            of the hundred before them; None: it is not watched.
        overfitting_after: rises of the validation loss in a row that are called overfitting.
        patience: validations without a lower loss after which to stop; None: never.
    """

    divergence_factor: float | None = None
    overfitting_after: int = 3
    patience: int | None = None
    newest: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    diverging_since: int | None = None
    last: float | None = None
    rises: int = 0
    best: float | None = None
    best_step: int = 0
    without_better: int = 0

    def train(self, step: int, loss: float) -> str:
        """Take in one step's loss; words when it begins to diverge, else none."""
        self.newest.append(loss)
        if len(self.newest) > NEWEST:
            older = self.newest.pop(0)
            if self.diverging_since is None:  # or the median would get used to it
                self.usual = [*self.usual, older][-USUAL:]
        if self.divergence_factor is None or len(self.usual) < ENOUGH:
            return ""
        if median(self.newest) <= self.divergence_factor * median(self.usual) or median(self.usual) <= 0:
            self.diverging_since = None
            return ""
        if self.diverging_since is not None:
            return ""
        self.diverging_since = step - NEWEST + 1
        times = median(self.newest) / median(self.usual)
        return f"step {step}: the loss is {times:.1f} times its usual since step {self.diverging_since}, it diverges"

    def validate(self, step: int, loss: float) -> list[tuple[str, str]]:
        """Take in one validation loss; verdicts, each said once: its name and its words."""
        was = self.patience_exceeded
        self.rises = self.rises + 1 if self.last is not None and loss > self.last else 0
        self.last = loss
        better = self.best is None or loss < self.best
        if better:
            self.best, self.best_step = loss, step
        self.without_better = 0 if better else self.without_better + 1
        lowest = f"the lowest was {self.best:.4g} at step {self.best_step}"
        verdicts = []
        if self.rises == self.overfitting_after:
            rose = f"the validation loss has risen {self.rises} times in a row"
            verdicts.append(("overfitting", f"step {step}: {rose}, it overfits; {lowest}"))
        if self.patience_exceeded and not was:
            waited = f"no lower validation loss in {self.without_better} validations"
            verdicts.append(("early_stop", f"stopped early at step {step}: {waited}; {lowest}"))
        return verdicts

    @property
    def patience_exceeded(self) -> bool:
        """Whether `patience` validations have passed without a lower loss."""
        return self.patience is not None and self.without_better >= self.patience

    def state(self) -> dict[str, Any]:
        """Everything but the settings."""
        return {k: v for k, v in asdict(self).items() if k not in SETTINGS}

    def restored(self, state: dict[str, Any]) -> Self:
        """One with these settings and a saved state (or a fresh one, where nothing was saved)."""
        own = {k: getattr(self, k) for k in SETTINGS}
        return type(self)(**own, **{k: v for k, v in state.items() if k not in own})


SETTINGS = ("divergence_factor", "overfitting_after", "patience")


def good_steps(folder: Path, judge: Judge) -> list[int]:
    """Steps of the planned checkpoints from before the loss began to rise."""
    since = judge.diverging_since or math.inf
    calm = [step for step in checkpoints.planned_steps(folder) if step < since]
    states = {s: checkpoints.extra_of(checkpoints.path_of(folder, s)).get("judge", {}) for s in calm}
    return [step for step in calm if states[step].get("diverging_since") is None]


def last_good(folder: Path, judge: Judge, now: int, before: int | None, why: str) -> checkpoints.Checkpoint:
    """Load the newest of these and delete those after it, which a resume would take.

    now: step reached; later checkpoints are of a training that was left by going back.
    before: step that an earlier return went to; if nothing good came since, the one before it is taken.

    Raises:
        UserError: none is left (begins with ``why``), or it is damaged.
    """
    good = [step for step in good_steps(folder, judge) if step <= now]
    if len(good) > 1 and good[-1] == before:
        good.pop()
    if not good:
        raise UserError(f"{why}. No checkpoint from before is left to go back to")
    found = checkpoints.load(checkpoints.path_of(folder, good[-1]))
    checkpoints.drop(folder, [s for s in reversed(checkpoints.steps(folder)) if s > found.step])
    return found

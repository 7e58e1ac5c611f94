"""How a training goes, judged by its losses: diverging, overfitting, time to stop."""

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

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
        was = self.impatient
        self.rises = self.rises + 1 if self.last is not None and loss > self.last else 0
        self.last = loss
        better = self.best is None or loss < self.best
        if better:
            self.best, self.best_step = loss, step
        self.without_better = 0 if better else self.without_better + 1
        lowest = f"the lowest was {self.best:.4g} at step {self.best_step}"
        said = []
        if self.rises == self.overfitting_after:
            rose = f"the validation loss has risen {self.rises} times in a row"
            said.append(("overfitting", f"step {step}: {rose}, it overfits; {lowest}"))
        if self.impatient and not was:
            waited = f"no lower validation loss in {self.without_better} validations"
            said.append(("early_stop", f"stopped early at step {step}: {waited}; {lowest}"))
        return said

    @property
    def impatient(self) -> bool:
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

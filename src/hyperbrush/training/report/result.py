"""What a finished run leaves: its file in the run and in the library, its figures, its report."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.library.notes import collect_notes, write_notes
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.report.report import report_run


@dataclass
class RunResult:
    """A finished run; losses are of the step with the lowest validation loss, inf where nothing was held out.

    file: in the library's folder. best: that step's line of metrics.jsonl. seconds: of all parts of the training.
    """

    run: Path
    file: Path
    steps: int
    seconds: float
    best: Mapping[str, Any]

    @property
    def best_step(self) -> int:
        """The step whose weights were kept, as far as the figures say."""
        return int(self.best.get("step", self.steps))

    @property
    def best_loss(self) -> float:
        """The lowest validation loss."""
        return float(self.best.get("validation_loss", math.inf))

    @property
    def base_loss(self) -> float:
        """The validation loss of the model alone."""
        return float(self.best.get("validation_base", math.inf))

    @property
    def report(self) -> Path:
        """A page about the run."""
        return self.run / "report.html"

    def judged(self) -> str:
        """The losses in words."""
        return f"validation loss {self.base_loss:.4f} without, {self.best_loss:.4f} with it (best, at step {self.best_step})"

    def command(self) -> str:
        """A command that uses the file."""
        raise NotImplementedError

    def summary(self) -> str:
        """A few lines to show."""
        lines = [f"{self.file}  ({self.steps} steps, {self.seconds:.0f} s)"]
        lines += [self.judged()] if math.isfinite(self.best_loss) else []
        return "\n".join([*lines, f"report: {self.report}", f"try: {self.command()}"])


def figures_of(run: Path) -> dict[str, Any]:
    """Steps, seconds and best validation of a run, as `RunResult` has them."""
    rows = [row for row in read(run / "metrics.jsonl") if "loss" in row]
    judged = [row for row in rows if "validation_loss" in row]
    best = min(judged, key=lambda row: row["validation_loss"], default={})
    return {"steps": rows[-1]["step"], "seconds": rows[-1]["seconds"], "best": best}


def keep_result(result: RunResult, save: Callable[[Path], Any], again: str, *, trigger: str = "") -> None:
    """Write the finished file into the run and into the library, and the report.

    save: writes the file. again: a command that writes it elsewhere. trigger: noted beside the library's file, if
    nobody has noted trigger words there.

    Raises:
        UserError: it cannot be written; says where it stands, if it does.
    """
    own = result.run / result.file.name
    save(own)
    try:
        save(result.file)
        notes, wrong = collect_notes(result.file)
        if trigger and not notes.activation_text and not wrong:  # what is damaged is its owner's to mend
            write_notes(result.file, replace(notes, activation_text=trigger))
    except UserError as error:
        raise UserError(
            f"{error}. The training is done and its file stands at {own}; to write it elsewhere: {again}"
        ) from error
    report_run(result.run, commands=[result.command()])

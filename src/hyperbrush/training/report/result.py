"""What a finished run leaves: its file in the run and in the library, its figures, its report."""

import filecmp
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json
from hyperbrush.hypernetworks.library.notes import collect_notes, write_notes
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.loop.processes import is_main
from hyperbrush.training.report.report import report_run


@dataclass
class RunResult:
    """A finished run; losses are of the step whose weights were kept, inf where nothing was held out.

    file: in the library's folder. best: that step's line of metrics.jsonl, where it was validated. keeps_best: it has the lowest
    validation loss, else it is the last one. seconds: of all parts of the training.
    """

    run: Path
    file: Path
    steps: int
    seconds: float
    best: Mapping[str, Any]
    keeps_best: bool

    @property
    def best_step(self) -> int:
        """The step whose weights were kept, as far as the figures say."""
        return int(self.best.get("step", self.steps))

    @property
    def best_loss(self) -> float:
        """The validation loss of what was kept."""
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
        base, own = self.base_loss, self.best_loss
        if self.keeps_best:
            return f"validation loss {base:.4f} without, {own:.4f} with it (best, at step {self.best_step})"
        return f"validation loss {base:.4f} without, {own:.4f} with it (the last step's)"

    def command(self) -> str:
        """A command that uses the file."""
        raise NotImplementedError

    def summary(self) -> str:
        """A few lines to show."""
        lines = [f"{self.file}  ({self.steps} steps, {self.seconds:.0f} s)"]
        lines += [self.judged()] if math.isfinite(self.best_loss) else []
        return "\n".join([*lines, f"report: {self.report}", f"try: {self.command()}"])


ORIGIN = "origin.json"  # of a run folder, where it goes on from another's file


def steps_before(run: Path, step: int | None, *, resumed: bool) -> int:
    """Steps that what a run goes on from had made; kept there, for its own file may take that one's place in the end."""
    if resumed:
        return int(read_json(run / ORIGIN).get("step", step or 0))
    if step and is_main():
        write_json(run / ORIGIN, {"step": step})
    return step or 0


def figures_of(run: Path, keeps_best: bool) -> dict[str, Any]:
    """Steps, seconds and the validation of what a run kept, as `RunResult` has them; keeps_best: its setting `keep_best`."""
    rows = [row for row in read(run / "metrics.jsonl") if "loss" in row]
    judged = [row for row in rows if "validation_loss" in row]
    best = (
        min(judged, key=lambda row: row["validation_loss"], default={})
        if keeps_best
        else (judged or [{}])[-1]
    )
    return {"steps": rows[-1]["step"], "seconds": rows[-1]["seconds"], "best": best, "keeps_best": keeps_best}


def check_file(file: Path, source: str, *, overwrite: bool, resumed: Path | None = None) -> None:
    """See that a training does not replace somebody's file at its end.

    source: what it goes on from, which it may replace. resumed: the run that goes on; what it left there before it may
    replace too.

    Raises:
        UserError: it would.
    """
    if overwrite or not file.exists() or (source and Path(source).exists() and file.samefile(source)):
        return
    if resumed is None:
        raise UserError(f"{file} exists already: choose another name, or give --overwrite")
    own = resumed / file.name
    if not (own.exists() and filecmp.cmp(own, file, shallow=False)):
        raise UserError(f"{file} is not what {resumed} left there: take another folder, or give --overwrite")


def note_trigger(file: Path, trigger: str) -> None:
    """Note a word beside a library's file, if nobody has noted trigger words there; "" is none."""
    notes, wrong = collect_notes(file)
    if trigger and not notes.activation_text and not wrong:  # what is damaged is its owner's to mend
        write_notes(file, replace(notes, activation_text=trigger))


def keep_result(result: RunResult, save: Callable[[Path], Any], again: str, *, trigger: str = "") -> None:
    """Write the finished file into the run and into the library, and the report.

    save: writes the file. again: a command that writes it elsewhere. trigger: see `note_trigger`.

    Raises:
        UserError: it cannot be written; says where it stands, if it does.
    """
    own = result.run / result.file.name
    save(own)
    try:
        save(result.file)
        note_trigger(result.file, trigger)
    except UserError as error:
        raise UserError(
            f"{error}. The training is done and its file stands at {own}; to write it elsewhere: {again}"
        ) from error
    report_run(result.run, commands=[result.command()])

"""A sweep's end: one table, one picture, one page, and the best network in the library."""

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, write_json, write_text
from hyperbrush.hypernetworks.files.optimizer import sidecar_of
from hyperbrush.shell import quoted
from hyperbrush.training.attention.run import trigger_of
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.report.charts import Chart, Line
from hyperbrush.training.report.contact_sheet import find_previews, open_previews, run_prompts
from hyperbrush.training.report.report import duration, write_report
from hyperbrush.training.report.result import note_trigger
from hyperbrush.training.sweep.outcome import Outcome, outcome_of
from hyperbrush.training.sweep.settings import Sweep, Trial, described, read_sweep, short, shown

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

LABELLED = 8  # curves with a name; the others are drawn pale behind them
PICTURED = 24  # trials in the grid of previews
SAME = 0.01  # share by which the bare model's losses may differ between trials that can be compared
SEED = "training.seed"
STYLES = [(colour, dash) for dash in ((), (6, 3), (2, 4)) for colour in ("blue", "red", "green")]


@dataclass(frozen=True)
class Row:
    """One trial in the table; over_seeds: (mean, standard deviation) of the losses of its settings."""

    trial: Trial
    outcome: Outcome
    over_seeds: tuple[float, float] | None = None

    @property
    def gain(self) -> float | None:
        """How much lower the validation loss is than the bare model's, as a share of it."""
        best, base = self.outcome.best_loss, self.outcome.base_loss
        return None if best is None or not base else 1 - best / base


@dataclass(frozen=True)
class Comparison:
    """A sweep's rows, the best first, failed ones last.

    differing: whole names of the settings that are not the same in all rows.
    file: the best network in the library; None where none was validated.
    """

    sweep: Sweep
    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    file: Path | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def best(self) -> Row | None:
        """The row with the lowest validation loss."""
        return next((row for row in self.rows if row.outcome.best_loss is not None), None)

    def table(self) -> "Table":
        """For the terminal."""
        from rich import box
        from rich.table import Table

        page = Table(box=box.SIMPLE_HEAD, title=f"sweep {self.sweep.name}", title_justify="left")
        page.add_column("trial", justify="right")
        for name in self.differing:
            page.add_column(short(name))
        for name in ("loss", "without", "gain", "best step", "seconds"):
            page.add_column(name, justify="right", no_wrap=True)
        if self.sweep.config.seeds:
            page.add_column("over seeds", justify="right", no_wrap=True)
        for row in self.rows:
            page.add_row(*self._cells(row))
        return page

    def _cells(self, row: Row) -> list[str]:
        o = row.outcome
        cells = [str(o.number)]
        cells += [shown(row.trial.settings[n]) if n in row.trial.settings else "" for n in self.differing]
        if o.state == "failed":
            cells += ["failed", "", "", "", ""]
        else:
            cells += [_figure(o.best_loss), _figure(o.base_loss)]
            cells += ["" if row.gain is None else f"{row.gain:.1%}", str(o.best_step), f"{o.seconds:.0f}"]
        if self.sweep.config.seeds:
            cells.append("" if row.over_seeds is None else "{:.4f} ± {:.4f}".format(*row.over_seeds))
        return cells

    def text(self) -> str:
        """What is to be said below the table."""
        lines = [f"trial {r.outcome.number} failed: {r.outcome.error}" for r in self.rows if _failed(r)]
        lines += self.notes
        if self.best is not None:
            lines.append(f"best: trial {self.best.outcome.number}, {self.best.trial.label}")
        if self.file is not None:
            lines.append(str(self.file))
        lines.append(f"report: {self.sweep.folder / 'report.html'}")
        if self.file is not None:
            lines.append(f"try: {self.command()}")
        return "\n".join(lines)

    def command(self) -> str:
        """A command that draws with the best network."""
        config = (self.best or self.rows[0]).trial.config
        prompt = (config.training.prompts or ["cat face"])[0]
        return (
            f"hyperbrush generate {quoted(f'{prompt} <hypernet:{self.sweep.name}:1>')} --model {quoted(config.model)} "
            f"--hypernetworks {quoted(self.sweep.library)}"
        )

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain values, for sweep.csv and sweep.json."""
        found = []
        for row in self.rows:
            o, over = row.outcome, row.over_seeds or (None, None)
            record: dict[str, Any] = {"trial": o.number, "state": o.state}
            record |= {name: row.trial.settings.get(name) for name in self.differing}
            record |= {"validation_loss": o.best_loss, "without": o.base_loss, "gain": row.gain}
            record |= {"best_step": o.best_step, "steps": o.steps, "seconds": round(o.seconds, 3)}
            if self.sweep.config.seeds:
                record |= {"mean_over_seeds": over[0], "deviation_over_seeds": over[1]}
            record |= {"run": row.trial.run.relative_to(self.sweep.folder).as_posix(), "error": o.error}
            found.append(record)
        return found


def finish(folder: str | Path) -> Comparison:
    """Write sweep.csv, sweep.json, sweep.png and report.html, and copy the best network to the library.

    The library's file bears the sweep's name; what was trained stays in the trials' folders too.

    Raises:
        UserError: no sweep there; trials are still to be done; a file cannot be written.
    """
    found = compare(read_sweep(Path(folder)))
    if (best := found.best) is not None:
        trained = best.trial.run / best.outcome.file
        file = found.sweep.library / trained.name
        found = replace(found, file=file)
        _copy(trained, file)
        note_trigger(file, trigger_of(best.trial.config))
    _write(found)
    return found


def compare(sweep: Sweep) -> Comparison:
    """The rows of a sweep whose trials have all ended.

    Raises:
        UserError: some have not.
    """
    ended = [(trial, outcome_of(trial)) for trial in sweep.trials]
    if to_do := [trial.number for trial, outcome in ended if outcome is None]:
        raise UserError(
            f"{len(to_do)} of {len(ended)} trials are still to be done; go on with "
            f"hyperbrush sweep --resume {sweep.folder}"
        )
    over = _over_seeds([(trial, outcome) for trial, outcome in ended if outcome is not None])
    rows = [Row(t, o, over.get(_but_seed(t))) for t, o in ended if o is not None]
    rows.sort(key=lambda row: (_failed(row), _or_last(row.outcome.best_loss), row.trial.number))
    names = list(dict.fromkeys(name for row in rows for name in row.trial.settings))
    differing = [n for n in names if len({shown(row.trial.settings.get(n)) for row in rows}) > 1]
    return Comparison(sweep, tuple(rows), tuple(differing or names), notes=tuple(_notes(rows)))


def _over_seeds(ended: Sequence[tuple[Trial, Outcome]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the losses that differ in nothing but their seed, where there are two."""
    losses: dict[str, list[float]] = {}
    for trial, outcome in ended:
        if SEED in trial.settings and outcome.best_loss is not None:
            losses.setdefault(_but_seed(trial), []).append(outcome.best_loss)
    return {key: (mean(values), stdev(values)) for key, values in losses.items() if len(values) > 1}


def _but_seed(trial: Trial) -> str:
    return described({name: value for name, value in trial.settings.items() if name != SEED})


def _notes(rows: Sequence[Row]) -> list[str]:
    done = [row for row in rows if not _failed(row)]
    bases = [row.outcome.base_loss for row in done if row.outcome.base_loss is not None]
    if done and not bases:
        return ["no pictures were held out, so none is the best: give 'validation', or more pictures"]
    if bases and max(bases) > (1 + SAME) * min(bases):
        return [
            f"the bare model's loss differs between the trials ({min(bases):.4f} to {max(bases):.4f}): they were "
            "judged on different pictures or models. Compare the gain, or give 'validation'"
        ]
    return []


def chart(found: Comparison) -> Chart:
    """Validation losses over the steps, a line for each trial; the best ones have names."""
    lines = []
    for place, row in enumerate(found.rows):
        rows = read(row.trial.run / "metrics.jsonl")
        points = [(r["step"], r["validation_loss"]) for r in rows if "validation_loss" in r]
        if place < LABELLED:
            colour, dash = STYLES[place]
            lines.append(Line(row.trial.label, points, colour, dash))
        else:
            lines.append(Line("", points, "blue", faint=True))
    bases = [row.outcome.base_loss for row in found.rows if row.outcome.base_loss is not None]
    last = max((x for line in lines for x, _ in line.points), default=0)
    if bases and last and max(bases) <= (1 + SAME) * min(bases):
        lines.append(Line("without a hypernetwork", [(0, bases[0]), (last, bases[0])], "grey", (2, 4)))
    return Chart(f"validation loss over steps, {len(found.rows)} trials", lines, x_label="step")


def previews(found: Comparison) -> "Image | None":
    """The last previews of the best trials, a row for each and a column for each prompt; None: there are none.

    A column is called by its prompt where that is the same in all rows, as captions of held-out pictures may not be.
    """
    from PIL import Image

    from hyperbrush.generation.grids import labelled_grid

    shown_rows: list[tuple[str, list[Image.Image]]] = []
    prompts: list[dict[str, None]] = []  # different ones of each column
    for row in found.rows:
        said = run_prompts(row.trial.run)
        steps = find_previews(row.trial.run)
        if not steps or not said or len(shown_rows) == PICTURED:
            continue
        step = max(steps)
        pictures = open_previews(steps[step], len(said))
        shown_rows.append((f"{row.trial.label}; step {step}", pictures))
        prompts += [{} for _ in said[len(prompts) :]]
        for column, prompt in zip(prompts, said, strict=False):
            column[prompt] = None
    if not shown_rows:
        return None
    nothing = Image.new("RGB", shown_rows[0][1][0].size, "white")
    cells = [[*pictures, *[nothing] * (len(prompts) - len(pictures))] for _, pictures in shown_rows]
    side = min(256, max(128, nothing.height))
    columns = [next(iter(own)) if len(own) == 1 else "" for own in prompts]
    return labelled_grid(
        cells, [label for label, _ in shown_rows], columns, side=side, title=found.sweep.name
    )


def _write(found: Comparison) -> None:
    folder, records = found.sweep.folder, found.records()
    page = io.StringIO()
    writer = csv.DictWriter(page, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in record.items()} for record in records)
    write_text(folder / "sweep.csv", page.getvalue())
    best = found.best
    about: Mapping[str, Any] = {
        "name": found.sweep.name,
        "best": None if best is None else best.outcome.number,
        "file": None if found.file is None else str(found.file),
        "notes": list(found.notes),
        "trials": records,
    }
    write_json(folder / "sweep.json", about)
    pictures: list[tuple[str, Image]] = []
    curves = chart(found)
    if (drawn := curves.picture(880, 420)) is not None:
        with atomic_path(folder / "sweep.png") as temporary:
            drawn.save(temporary)
        pictures.append(("Validation loss of every trial", drawn))
    if (grid := previews(found)) is not None:
        pictures.append(("The last previews of each trial, the same prompts and seeds", grid))
    write_report(
        folder / "report.html",
        title=f"Sweep {found.sweep.name}",
        figures=[(f"{row.outcome.number}: {row.trial.label}", _said(row)) for row in found.rows],
        run=folder,
        pictures=pictures,
        commands=[found.command()] if found.file is not None else [],
        settings=(best or found.rows[0]).trial.config.model_dump(mode="json"),
    )


def _said(row: Row) -> str:
    o = row.outcome
    if _failed(row) or o.best_loss is None:
        return str(o)
    less = "" if row.gain is None else f", {row.gain:.1%} below {_figure(o.base_loss)} of the bare model"
    return f"validation loss {o.best_loss:.4f} at step {o.best_step}{less}; {duration(o.seconds)}"


def _copy(trained: Path, target: Path) -> None:
    """A network's file, and its optimizer's where that was saved."""
    for source, place in ((trained, target), (sidecar_of(trained), sidecar_of(target))):
        if source.is_file():
            with atomic_path(place) as temporary:
                shutil.copyfile(source, temporary)


def _failed(row: Row) -> bool:
    return row.outcome.state == "failed"


def _or_last(loss: float | None) -> float:
    return math.inf if loss is None else loss


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _plain(value: Any) -> Any:
    """For a cell of a table: numbers as they are, nothing for None."""
    return "" if value is None else value if isinstance(value, int | float) else shown(value)

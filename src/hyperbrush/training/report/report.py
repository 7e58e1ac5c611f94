"""A run as one self-contained HTML page: figures, curves, pictures, settings, what to do next."""

import base64
import csv
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.files import write_text
from hyperbrush.generation.picture_files import save_picture
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.report.charts import COLOURS, ON_DARK, Chart, Line, Mark
from hyperbrush.training.report.contact_sheet import NAME as SHEET
from hyperbrush.training.report.contact_sheet import contact_sheet, run_config, run_name, sheet_text

if TYPE_CHECKING:
    from PIL.Image import Image

Rows = Sequence[dict[str, Any]]

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.15rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8884}
th{font-weight:600;width:14rem}td{overflow-wrap:anywhere}
pre{background:#f3f3f3;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}code{font-family:ui-monospace,monospace}
svg{display:block;width:100%;height:auto}img{max-width:100%;height:auto;border-radius:4px}
.wide{overflow-x:auto}.wide img{max-width:max(100%,52rem)}
summary{cursor:pointer}h2,summary h2{display:inline-block}
.narrow{display:none}
@media(max-width:40rem){.narrow{display:block}.broad{display:none}th{width:8rem}body{margin:1rem auto}}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}pre{background:#262626}}
@media print{body{max-width:none;margin:0}}
"""
EVENTS = {  # what is marked in the curve, and how
    "back_off": "rate lowered",
    "diverging": "diverges",
    "overfitting": "overfits",
    "early_stop": "stopped early",
    "out_of_memory": "out of memory",
    "resume": "resumed",
    "restart": "restart",
}
MOST_MARKS = 12
NEIGHBOURS = 0.05  # share of the losses that one smoothed value looks back on


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """An exponential moving average without the bias of its beginning, as Adam's (Kingma & Ba 2015)."""
    keep = 1 - 1 / max(5.0, NEIGHBOURS * len(points))
    total = weight = 0.0
    found = []
    for x, y in points:
        if math.isfinite(y):
            total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
            found.append((x, total / weight))
    return found


def best_of(rows: Rows) -> tuple[int, float] | None:
    """(step, validation loss) where it was lowest; None where nothing was validated."""
    found = [(r["validation_loss"], r["step"]) for r in rows if _is_figure(r.get("validation_loss"))]
    return (min(found)[1], min(found)[0]) if found else None


def loss_chart(rows: Rows, base: float | None = None, zero_name: str = "without the hypernetwork") -> Chart:
    """Training loss with its average, validation loss, the bare model's; the best step and events marked."""
    train = [(r["step"], r["loss"]) for r in rows if _is_figure(r.get("loss"))]
    valid = [(r["step"], r["validation_loss"]) for r in rows if _is_figure(r.get("validation_loss"))]
    if not train and not valid:
        return Chart("loss over steps", [])
    lines = []
    said = []
    if train:
        average = smoothed(train)
        if len(train) > 1:
            lines.append(Line("training", train, faint=True))
        lines.append(Line("training (smoothed)", average))
        said.append(f"training {average[0][1]:.4g} to {average[-1][1]:.4g}")
    if valid:
        lines.append(Line("validation", valid, "red", (6, 3)))
        said.append(
            f"validation {valid[0][1]:.4g} to {valid[-1][1]:.4g}, lowest {min(v for _, v in valid):.4g}"
        )
    if base is not None:
        last = max(step for step, _ in train + valid)
        lines.append(Line(zero_name, [(0, base), (last, base)], "grey", (2, 4)))
        said.append(f"{zero_name} {base:.4g}")
    return Chart("loss over steps: " + "; ".join(said), lines, _marks(rows), x_label="step")


def rate_chart(rows: Rows) -> Chart:
    """The learning rate over the steps."""
    rates = [(r["step"], r["learning_rate"]) for r in rows if _is_figure(r.get("learning_rate"))]
    said = f": {rates[0][1]:.3g} to {rates[-1][1]:.3g}" if rates else ""
    return Chart("learning rate over steps" + said, [Line("learning rate", rates, "green")], x_label="step")


def loss_curve(rows: Rows, *, width: int = 720, height: int = 300, base: float | None = None) -> str:
    """`loss_chart` as an <svg> element; "" where there is nothing to draw."""
    return loss_chart(rows, base).svg(width, height)


def save_loss_curve(run: str | Path, path: str | Path | None = None) -> Path:
    """Write a run's `loss_chart` as .svg or .png; loss.svg in the run folder by default.

    Raises:
        UserError: no losses yet; another suffix; the file cannot be written.
    """
    rows = read(Path(run) / "metrics.jsonl")
    return loss_chart(rows, _base(rows)).save(Path(run) / "loss.svg" if path is None else path)


def embedded(picture: "Image", text: str) -> str:
    """An <img> that holds the picture itself."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img alt="{html.escape(text)}" {size} src="data:image/png;base64,{source}">'


def write_report(
    path: Path,
    *,
    title: str,
    figures: Sequence[tuple[str, str]],
    run: Path,
    pictures: "Sequence[tuple[str, Image]]" = (),
    commands: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page; it asks nothing of the network.

    Args:
        path: of the page.
        title: its heading.
        figures: a table of names and values.
        run: folder whose metrics.jsonl gives the curves and what happened.
        pictures: with their captions.
        commands: what to try next.
        settings: nested mappings become rows like "training.learning_rate".

    Raises:
        UserError: it cannot be written.
    """
    rows = read(run / "metrics.jsonl")
    notes = [_told(r) for r in rows if r.get("event") and r.get("message")]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _table(figures),
        *(
            f"<section><h2>{html.escape(text)}</h2>{_wide(picture, text)}</section>"
            for text, picture in pictures
        ),
        _drawn("Loss", loss_chart(rows, _base(rows)), 300),
        _drawn("Learning rate", rate_chart(rows), 180),
    ]
    if notes:
        body.append(
            _section("What happened", "<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes) + "</ul>")
        )
    if commands:
        shown = html.escape("\n".join(commands))
        body.append(_section("What to try next", f"<pre><code>{shown}</code></pre>"))
    if settings:
        table = _table(list(_flat(settings)))
        body.append(f"<details><summary><h2>Settings</h2></summary>{table}</details>")
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}{_strokes()}</style></head>
<body><main>
{chr(10).join(part for part in body if part)}
</main></body></html>
""",
    )
    return path


def write_csv(path: Path, rows: Rows) -> None:
    """Figures as a table: a line for each step that was logged, a column for each name."""
    lines = [row for row in rows if "event" not in row]
    names = list(dict.fromkeys(name for row in lines for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def report_run(run: str | Path, *, title: str | None = None, commands: Sequence[str] = ()) -> Path:
    """The report of a run folder, from what is in it: report.html, loss.svg, loss.png, metrics.csv,
    contact_sheet.png.

    Raises:
        UserError: no figures yet; a file cannot be written.
    """
    run = Path(run)
    rows = read(run / "metrics.jsonl")
    if not any(_is_figure(r.get("loss")) for r in rows):
        raise UserError(f"{run} has no figures to report yet: its metrics.jsonl holds no loss")
    config = run_config(run)
    save_loss_curve(run)
    save_loss_curve(run, run / "loss.png")
    write_csv(run / "metrics.csv", rows)
    best = best_of(rows)
    page = contact_sheet(run, best=best[0] if best else None)
    if page is not None:
        save_picture(page, run / SHEET, sheet_text(run))
    return write_report(
        run / "report.html",
        title=title or f"Training of {run_name(run)}",
        figures=run_figures(rows, config),
        run=run,
        pictures=[("Previews over time, the same prompts and seeds", page)] if page is not None else [],
        commands=commands,
        settings=config,
    )


def run_figures(rows: Rows, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run's metrics say, as names and values for `write_report`."""
    train = [r for r in rows if _is_figure(r.get("loss"))]
    if not train:
        return []
    last, average = train[-1], smoothed([(r["step"], r["loss"]) for r in train])
    found = [("Steps", str(last["step"]))]
    if _is_figure(last.get("seconds")) and last["seconds"] > 0:
        seconds = float(last["seconds"])
        found.append(("Time", duration(seconds)))
        training = config.get("training")
        batch = training.get("batch_size") if isinstance(training, Mapping) else None
        if isinstance(batch, int):
            found.append(("Pictures a second", f"{batch * last['step'] / seconds:.1f}"))
    found.append(("Training loss", f"{average[0][1]:.4f} → {average[-1][1]:.4f} (smoothed)"))
    if (best := best_of(rows)) is not None:
        zero = _base(rows)
        less = f", {1 - best[1] / zero:.0%} below {zero:.4f} of the bare model" if zero else ""
        found.append(("Best validation loss", f"{best[1]:.4f} at step {best[0]}{less}"))
    return found


def _marks(rows: Rows) -> list[Mark]:
    found = [Mark(best[0], f"best: {best[0]}") for best in [best_of(rows)] if best is not None]
    events = [r for r in rows if r.get("event") in EVENTS]
    return found + [Mark(r["step"], EVENTS[r["event"]]) for r in events[:MOST_MARKS]]


def _base(rows: Rows) -> float | None:
    """The loss of the model without what is trained, on the same held-out grid."""
    return next((r["validation_base"] for r in rows if _is_figure(r.get("validation_base"))), None)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _told(row: Mapping[str, Any]) -> str:
    begin = f"step {row['step']}: "
    return begin + str(row["message"]).removeprefix(begin)


def _drawn(name: str, chart: Chart, height: int) -> str:
    """A chart for wide pages and one for phones, of which a page shows one."""
    if not (broad := chart.svg(880, height)):
        return ""
    narrow = chart.svg(400, max(200, height - 20))
    return _section(name, f'<div class="broad">{broad}</div><div class="narrow">{narrow}</div>')


def _section(name: str, inner: str) -> str:
    return f"<section><h2>{html.escape(name)}</h2>{inner}</section>"


def _wide(picture: "Image", text: str) -> str:
    """A picture that a narrow page scrolls sideways, by keyboard too."""
    label = html.escape(text)
    return f'<div class="wide" tabindex="0" role="group" aria-label="{label}">{embedded(picture, text)}</div>'


def _table(pairs: Sequence[tuple[str, str]]) -> str:
    inner = "".join(
        f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in pairs
    )
    return f"<table>{inner}</table>" if pairs else ""


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{above}{key}", shown


def _strokes() -> str:
    light = "".join(f".{name}{{stroke:{colour}}}" for name, colour in COLOURS.items())
    dark = "".join(f".{name}{{stroke:{colour}}}" for name, colour in ON_DARK.items())
    return f"{light}\n@media(prefers-color-scheme:dark){{{dark}}}\n"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "44 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

"""A run as one self-contained HTML page: figures, loss curve, pictures, what to do next."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.files import write_text
from hyperbrush.training.metrics import read

if TYPE_CHECKING:
    from PIL.Image import Image

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}
pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}img,svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#262626}svg{background:#fff}}
"""


def loss_curve(
    rows: Sequence[dict[str, Any]], *, width: int = 720, height: int = 280, base: float | None = None
) -> str:
    """Training loss (smoothed), validation loss and the bare model's loss over the steps, as SVG."""
    train = [(r["step"], r["loss"]) for r in rows if "loss" in r]
    smooth, kept = [], None
    for step, loss in train:
        kept = loss if kept is None else 0.8 * kept + 0.2 * loss
        smooth.append((step, kept))
    valid = [(r["step"], r["validation_loss"]) for r in rows if "validation_loss" in r]
    values: list[float] = [y for _, y in smooth + valid] + ([base] if base is not None else [])
    if not smooth and not valid:
        return ""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    last: int = max(s for s, _ in smooth or valid)

    def x(step: float) -> float:
        return 56 + (width - 72) * step / last

    def y(value: float) -> float:
        return 16 + (height - 48) * (high - value) / (high - low)

    def line(points: Sequence[tuple[int, float]], colour: str, dash: str = "") -> str:
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'

    marks = [low + (high - low) * i / 4 for i in range(5)]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss over steps" font-size="12">']
    parts += [
        f'<line x1="56" x2="{width - 16}" y1="{y(m):.1f}" y2="{y(m):.1f}" stroke="#ddd"/>'
        f'<text x="50" y="{y(m) + 4:.1f}" text-anchor="end">{m:.3f}</text>'
        for m in marks
    ]
    parts += [
        f'<text x="{x(last * i / 4):.1f}" y="{height - 10}" text-anchor="middle">{last * i / 4:.0f}</text>'
        for i in range(5)
    ]
    # Okabe and Ito's colours; dashes tell the lines apart without colour.
    parts += [line(smooth, "#0072B2")]
    legend = [("training (smoothed)", "#0072B2", "")]
    if valid:
        parts += [line(valid, "#D55E00", "6 3")]
        legend += [("validation", "#D55E00", "6 3")]
    if base is not None:
        parts += [line([(0, base), (last, base)], "#666666", "2 4")]
        legend += [("without the hypernetwork", "#666666", "2 4")]
    for i, (name, colour, dash) in enumerate(legend):
        left = 70 + 190 * i
        parts.append(
            f'<line x1="{left}" x2="{left + 26}" y1="10" y2="10" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/><text x="{left + 32}" y="14">{name}</text>'
        )
    return "".join([*parts, "</svg>"])


def embedded(picture: "Image", text: str) -> str:
    """An <img> that holds the picture itself."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{source}">'


def write_report(
    path: Path,
    *,
    title: str,
    figures: Sequence[tuple[str, str]],
    run: Path,
    pictures: "Sequence[tuple[str, Image]]" = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write the page: ``figures`` as a table, the run's curve, ``pictures`` with captions, ``commands``."""
    rows = read(run / "metrics.jsonl")
    base = next((r["validation_base"] for r in rows if "validation_base" in r), None)
    table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in figures)
    shown = "".join(f"<h2>{html.escape(text)}</h2>{embedded(picture, text)}" for text, picture in pictures)
    next_steps = (
        f"<h2>What to try next</h2><pre>{html.escape(chr(10).join(commands))}</pre>" if commands else ""
    )
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<table>{table}</table>
{shown}
<h2>Loss</h2>
{loss_curve(rows, base=base)}
{next_steps}
</html>
""",
    )
    return path

"""The study's lines of figures as markdown tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from quality.methods import METHODS

Row = Mapping[str, Any]
LORAS = ("lora-kv", "lora-qkvo", "lora-stratified")


def tables(rows: Sequence[Row], budget: int) -> str:
    """Every table that the rows suffice for, in markdown."""
    parts = [
        _section("Rates, tuned on two styles", _rates(rows)),
        _section("Share of the gap closed, %", _shares(rows, budget, _share)),
        _section("The same at the end of the run, %", _shares(rows, budget, _share_at_end)),
        _section("Ahead of the better LoRA, points of %", _differences(rows, budget)),
        _section("Area under style against content, strengths 0.25 to 1", _figure(rows, budget, "area", 100)),
        _section(
            "Style at strength 1: pictures put into the right set, %", _figure(rows, budget, "style", 100)
        ),
        _section("Content at strength 1: own name first of 200, %", _figure(rows, budget, "content", 100)),
        _section(
            "Content at strength 1: own name in the first five, %", _figure(rows, budget, "content_five", 100)
        ),
        _section("Style / content by strength, %", _curves(rows, budget)),
        _section("Gap closed by what other styles share, % of our default's", _shared(rows, budget)),
        _section("Time to style: seconds on two cores until half the gap is closed", _times(rows, budget)),
        _section("Other sizes: share of the gap closed, %", _sizes(rows)),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, table: str) -> str:
    return f"### {title}\n\n{table}\n" if table else ""


def chosen_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Each method's rate with the lowest validation loss, relative to the bare model's, over the tuning styles.

    Rates that were not tried on every one do not count.
    """
    base = {r["job"]["style"]: r["best_watched"] for r in rows if r["job"]["method"] == "base"}
    tried: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        job = row["job"]
        if job["phase"] == "tune" and job["style"] in base:
            by_rate = tried.setdefault(job["method"], {})
            by_rate.setdefault(job["rate"], []).append(row["best_watched"] / base[job["style"]])
    found = {}
    for name, by_rate in tried.items():
        whole = max(map(len, by_rate.values()))
        found[name] = min((mean(v), rate) for rate, v in by_rate.items() if len(v) == whole)[1]
    return found


def _of(
    rows: Iterable[Row], phase: str, name: str, style: str | None = None, budget: int | None = None
) -> list[Row]:
    return [
        r
        for r in rows
        if r["job"]["phase"] == phase
        and r["job"]["method"] == name
        and style in (None, r["job"]["style"])
        and budget in (None, r["job"]["budget"])
    ]


def _styles(rows: Sequence[Row], phase: str = "main") -> list[str]:
    own = (r["job"]["style"] for r in rows if r["job"]["phase"] == phase and r["job"]["method"] != "base")
    return list(dict.fromkeys(own))


def _base(rows: Sequence[Row], style: str) -> Row:
    return next(r for r in rows if r["job"]["method"] == "base" and r["job"]["style"] == style)


def _gap(rows: Sequence[Row], style: str, of: str) -> tuple[float, float] | None:
    """(the bare model's loss, full fine-tuning's mean best loss)."""
    best = _of(rows, "main", "full", style)
    return (_base(rows, style)[of], mean(r[of] for r in best)) if best else None


def _share(rows: Sequence[Row], row: Row) -> float | None:
    """Gap closed in validation loss, over all validation pictures, by the best weights."""
    gap = _gap(rows, row["job"]["style"], "loss")
    return None if gap is None else (gap[0] - row["loss"]) / (gap[0] - gap[1])


def _share_at_end(rows: Sequence[Row], row: Row) -> float | None:
    """The same by the last weights, over the watched pictures."""
    gap = _gap(rows, row["job"]["style"], "best_watched")
    return None if gap is None else (gap[0] - row["last_watched"]) / (gap[0] - gap[1])


def half_gap_step(rows: Sequence[Row], row: Row) -> float | None:
    """The step at which half the gap was closed, between the watched ones; None: never."""
    gap = _gap(rows, row["job"]["style"], "best_watched")
    if gap is None:
        return None
    target = (gap[0] + gap[1]) / 2
    points = [(int(k), v) for k, v in row["watched"].items()]
    for (a, before), (b, after) in pairwise(points):
        if after <= target < before:
            return float(a + (b - a) * (before - target) / (before - after))
    return None


def _spread(values: Sequence[float | None], scale: float = 1, digits: int = 1) -> str:
    """'71.3 ± 0.4': mean and standard error."""
    found = [v * scale for v in values if v is not None]
    if not found:
        return "–"
    if len(found) < 2:
        return f"{found[0]:.{digits}f}"
    return f"{mean(found):.{digits}f} ± {stdev(found) / math.sqrt(len(found)):.{digits}f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    lines = list(lines)
    if not lines:
        return ""
    all_lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in all_lines)


def _rates(rows: Sequence[Row]) -> str:
    best = chosen_rates(rows)
    lines = []
    for name, rate in best.items():
        tried = sorted({r["job"]["rate"] for r in _of(rows, "tune", name)})
        lines.append([METHODS[name].about, f"{rate:g}", ", ".join(f"{x:g}" for x in tried)])
    return _table(("method", "rate", "tried"), lines)


def _by_method(
    rows: Sequence[Row], budget: int, cell: Callable[[list[Row]], str], first: str = "", extra: Any = None
) -> str:
    styles = _styles(rows)
    lines = []
    for name, about in METHODS.items():
        own = _of(rows, "main", name, budget=budget)
        if own:
            cells = [cell(_of(own, "main", name, style)) for style in styles]
            lines.append([about.about, f"{own[0]['size']:,}", *cells])
    if lines and extra:
        lines.insert(0, ["no adapter", "0", *(extra(style) for style in styles)])
    return _table(("method", "parameters", *styles), lines)


def _shares(rows: Sequence[Row], budget: int, share: Callable[[Sequence[Row], Row], float | None]) -> str:
    return _by_method(rows, budget, lambda own: _spread([share(rows, r) for r in own], 100))


def _figure(rows: Sequence[Row], budget: int, key: str, scale: float = 1) -> str:
    digits = 1 if scale > 1 else 3
    return _by_method(
        rows,
        budget,
        lambda own: _spread([r[key] for r in own], scale, digits),
        extra=lambda style: f"{_base(rows, style)[key] * scale:.{digits}f}",
    )


def _differences(rows: Sequence[Row], budget: int) -> str:
    styles, lines = _styles(rows), []
    for name in ("default", "best", "webui"):
        cells = []
        for style in styles:
            ours = {r["job"]["seed"]: _share(rows, r) for r in _of(rows, "main", name, style, budget)}
            theirs = [
                {r["job"]["seed"]: _share(rows, r) for r in _of(rows, "main", lora, style, budget)}
                for lora in LORAS
            ]
            theirs = [t for t in theirs if t and None not in t.values()]
            if not ours or not theirs or None in ours.values():
                cells.append("–")
                continue
            better = max(theirs, key=lambda t: mean(v for v in t.values() if v is not None))
            pairs = [ours[s] - better[s] for s in ours if s in better]  # type: ignore[operator]
            cells.append(_spread(pairs, 100))
        if any(c != "–" for c in cells):
            lines.append([METHODS[name].about, *cells])
    return _table(("method", *styles), lines)


def _times(rows: Sequence[Row], budget: int) -> str:
    per_step = {r["job"]["method"]: r["seconds_per_step"] for r in rows if r["job"]["phase"] == "time"}

    def cell(own: list[Row]) -> str:
        found = [half_gap_step(rows, r) for r in own]
        if not own or None in found:
            return "never" if own else "–"
        seconds = per_step.get(own[0]["job"]["method"])
        return "–" if seconds is None else _spread(found, seconds)

    return _by_method(rows, budget, cell) if per_step else ""


def _sizes(rows: Sequence[Row]) -> str:
    styles = _styles(rows, "sizes")
    budgets = sorted({r["job"]["budget"] for r in rows if r["job"]["phase"] == "sizes"})
    lines = []
    for name in METHODS:
        for budget in budgets:
            if own := _of(rows, "sizes", name, budget=budget):
                cells = [
                    _spread([_share(rows, r) for r in _of(own, "sizes", name, style)], 100)
                    for style in styles
                ]
                lines.append([METHODS[name].about, f"{own[0]['size']:,}", *cells])
    return _table(("method", "parameters", *styles), lines)


def _curves(rows: Sequence[Row], budget: int) -> str:
    def cell(own: list[Row]) -> str:
        if not own:
            return "–"
        shares = []
        for strength in own[0]["curve"]:
            style, content = (mean(r["curve"][strength][key] for r in own) for key in ("style", "content"))
            shares.append(f"{strength}: {100 * style:.0f} / {100 * content:.0f}")
        return ", ".join(shares)

    return _by_method(rows, budget, cell)


def _shared(rows: Sequence[Row], budget: int) -> str:
    """(base - shared) / (base - our default), both with one seed."""
    styles = [r["job"]["style"] for r in rows if r["job"]["phase"] == "shared"]
    cells = []
    for style in styles:
        own = _of(rows, "main", "default", style, budget)
        base = _base(rows, style)["loss"]
        shared = next(r for r in rows if r["job"]["phase"] == "shared" and r["job"]["style"] == style)
        cells.append(
            f"{100 * (base - shared['loss']) / (base - mean(r['loss'] for r in own)):.0f}" if own else "–"
        )
    return _table(("", *styles), [["share", *cells]] if styles else [])

"""What pages and API show of a run, worked out once for all who look, however many pages are open."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hyperbrush.app.runs.curves import Curves
from hyperbrush.app.runs.run import LOOKED_AT, Preview, Run
from hyperbrush.app.site import Site
from hyperbrush.errors import NotThere

SPARK = 24, 120  # pixels, height and width


@dataclass(frozen=True)
class View:
    """A run, its curves, its previews and their prompts at one moment."""

    run: Run
    curves: Curves
    previews: tuple[Preview, ...]
    prompts: tuple[str, ...]


class _Look:
    """The last look at a run; found: the news' version then, and what was seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: tuple[int, View | None] = (-1, None)


class _Views:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.look = lru_cache(LOOKED_AT)(_Look)


_views: "WeakKeyDictionary[Site, _Views]" = WeakKeyDictionary()


def kept_view(site: Site, name: str) -> View | None:
    """The view of a run if nothing has changed since it was worked out: costs nothing."""
    version, view = _views.setdefault(site, _Views()).look(name).found
    return view if version == site.version("runs") else None


def view_of(site: Site, name: str) -> View:
    """The view of a run as it stands; reads files.

    Raises:
        UserError: there is no run of that name.
    """
    views = _views.setdefault(site, _Views())
    with views.lock:
        version = site.version("runs")  # before the reading: news that comes meanwhile must not be lost
        was = kept_view(site, name)
        if was is not None and version > 0:  # 0: nobody watches the folders yet
            return was
        try:
            run = site.runs.get(name)
            rows = site.runs.metrics(name)
            previews = tuple(site.runs.previews(name))
        except NotThere:
            views.look(name).found = -1, None
            raise
        before = views.look(name).found[1]
        same = (
            before is not None
            and len(before.curves.rows) == len(rows)
            and list(before.curves.rows[-1:]) == rows[-1:]
        )
        curves = before.curves if before is not None and same else Curves(rows)
        prompts = (
            before.prompts
            if before is not None and before.previews == previews
            else _prompts(site.runs.folder(name), previews)
        )
        view = View(run, curves, previews, prompts)
        views.look(name).found = version, view
        return view


def _prompts(run: Path, previews: tuple[Preview, ...]) -> tuple[str, ...]:
    if not previews:
        return ()
    from hyperbrush.training.report.contact_sheet import run_prompts

    return tuple(run_prompts(run))


def sparkline(curves: Curves) -> bytes:
    """The smoothed loss as a small SVG line."""
    from hyperbrush.app.runs.curves import thinned

    points = thinned(curves.smoothed(0.8), 60)
    height, width = SPARK
    drawn = ""
    if len(points) > 1:
        low, high = min(y for _, y in points), max(y for _, y in points)
        first, last = points[0][0], points[-1][0]
        tall, wide = (high - low) or 1.0, (last - first) or 1
        spots = " ".join(
            f"{2 + (x - first) / wide * (width - 4):.1f},{height - 2 - (y - low) / tall * (height - 4):.1f}"
            for x, y in points
        )
        drawn = f'<polyline points="{spots}" fill="none" stroke="#3b82c4" stroke-width="2" stroke-linejoin="round"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{drawn}</svg>"
    ).encode()


def contact_sheet(site: Site, name: str) -> bytes:
    """A run's previews over time as one PNG.

    Raises:
        UserError: there is no such run, or it has no previews yet.
    """
    view = view_of(site, name)
    best = view.curves.best
    stamp = tuple(preview.stamp for preview in view.previews)
    found = _sheet(site.runs.folder(name), int(best[0]) if best else None, stamp)
    if found is None:
        raise NotThere(f"run {name!r} has no previews yet")
    return found


@lru_cache(maxsize=8)
def _sheet(folder: Path, best: int | None, stamp: Any) -> bytes | None:
    from hyperbrush.training.report.contact_sheet import contact_sheet as drawn

    page = drawn(folder, best=best)
    if page is None:
        return None
    data = io.BytesIO()
    page.save(data, "PNG")
    return data.getvalue()


KEEP = 0.8  # smoothing that is begun with
MOST = 6  # runs: as many colours are told apart


def compared(views: Sequence[View], keep: float = KEEP) -> dict[str, Any]:
    """For JSON: of each run its figures, its loss smoothed and its validation loss over the steps; then the differences."""
    runs = [
        figures_of(view, keep)
        | {"loss": view.curves.smoothed(keep), "validation": view.curves.validation, "base": view.curves.base}
        for view in views
    ]
    differing = differences([view.run.config for view in views])
    return {"runs": runs, "differences": [{"setting": key, "values": values} for key, values in differing]}


def figures_of(view: View, keep: float = KEEP) -> dict[str, Any]:
    """How far a run is and how well it does; None for what it has not told (yet).

    smoothed: its loss at the end; best_validation: the lowest, at best_step; below_base: by which share of the bare
    model's.
    """
    live, best, base = view.run.live, view.curves.best, view.curves.base
    smooth = view.curves.smoothed(keep)
    return {
        "name": view.run.name,
        "state": view.run.state,
        "step": live.get("step"),
        "seconds": live.get("seconds"),
        "smoothed": smooth[-1][1] if smooth else None,
        "best_validation": best[1] if best else None,
        "best_step": int(best[0]) if best else None,
        "below_base": 1 - best[1] / base if best and base else None,
    }


def named(asked: str, known: Sequence[str]) -> list[str]:
    """Names joined by commas, of which some may hold commas themselves."""
    parts, found = asked.split(","), []
    while parts:
        whole = [n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in known]
        count = whole[0] if whole else 1
        found.append(",".join(parts[:count]))
        del parts[:count]
    return list(dict.fromkeys(filter(None, found)))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each) of all that is not the same everywhere; names aside."""
    flat = [dict(_flat(config)) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key != "name"))
    found = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", "–" if value is None else str(value)[:200]

"""What pages and API show of a run, worked out once for all who look, however many pages are open."""

import io
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hyperbrush.app.errors import NotThere
from hyperbrush.app.runs.curves import Curves
from hyperbrush.app.runs.run import LOOKED_AT, Preview, Run
from hyperbrush.app.site import Site

SPARK = 24, 120  # pixels, height and width


@dataclass(frozen=True)
class View:
    """A run, its curves and its previews at one moment."""

    run: Run
    curves: Curves
    previews: tuple[Preview, ...]

    @property
    def prompts(self) -> list[str]:
        """Of its previews."""
        training = self.run.config.get("training")
        found = training.get("prompts") if isinstance(training, dict) else None
        return [str(prompt) for prompt in found] if isinstance(found, list) else []


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
        view = View(run, curves, previews)
        views.look(name).found = version, view
        return view


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

"""A run's figures as they grow: metrics.jsonl read on from where it was read last, and its curves, thinned for a screen."""

import json
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hyperbrush.files import finite

Point = tuple[float, float]

MOST = 400  # points of a curve: a screen has no room for more


class Rows:
    """The lines of a metrics.jsonl; only what was added is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._file: tuple[int, int] = (0, 0)  # inode, bytes read

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far; NaN and inf are None in them.  A list of its own each time something changed."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                inode, size = self._file
                if about.st_ino != inode or about.st_size < size:  # cut back to an earlier step
                    self._rows, size = [], 0
                if about.st_size > size:
                    file.seek(size)
                    new = file.read()
                    whole = new[: new.rfind(b"\n") + 1]
                    self._rows = [*self._rows, *filter(None, map(_row, whole.splitlines()))]
                    size += len(whole)
                self._file = about.st_ino, size
        except OSError:
            self._rows, self._file = [], (0, 0)
        return self._rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return finite(row) if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class Curves:
    """The curves of a run's rows, each worked out once however many pages show it."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows
        self._smoothed: dict[float, list[Point]] = {}

    def _column(self, name: str) -> list[Point]:
        return [(row["step"], row[name]) for row in self.rows if _is_figure(row.get(name))]

    @cached_property
    def whole_loss(self) -> list[Point]:
        """(step, loss) of every row."""
        return self._column("loss")

    @cached_property
    def loss(self) -> list[Point]:
        """(step, loss), thinned; spikes stay."""
        return thinned(self.whole_loss)

    @cached_property
    def validation(self) -> list[Point]:
        """(step, validation loss)."""
        return thinned(self._column("validation_loss"))

    @cached_property
    def rate(self) -> list[Point]:
        """(step, learning rate), thinned."""
        return thinned(self._column("learning_rate"))

    @cached_property
    def base(self) -> float | None:
        """Validation loss of the model without what is trained."""
        found = self._column("validation_base")
        return found[-1][1] if found else None

    @cached_property
    def best(self) -> Point | None:
        """(step, validation loss) where it was lowest."""
        return min(self._column("validation_loss"), key=lambda point: point[1], default=None)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Lines that tell of something: back-off, out of memory, overfitting, …"""
        return [row for row in self.rows if row.get("event")]

    def smoothed(self, keep: float) -> list[Point]:
        """The loss's moving average, thinned; keep: share of the old in each new value, from 0 to below 1."""
        keep = round(min(max(keep, 0.0), 0.99), 2)
        if keep not in self._smoothed:
            self._smoothed[keep] = thinned(averaged(self.whole_loss, keep))
        return self._smoothed[keep]


def averaged(points: Sequence[Point], keep: float) -> list[Point]:
    """An exponential moving average without the bias of its beginning, as Adam's (Kingma & Ba 2015)."""
    total = weight = 0.0
    found = []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, total / weight))
    return found


def thinned(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """Largest triangle three buckets (Steinarsson 2013): at most so many points, which look as all of them do."""
    if len(points) <= most:
        return list(points)
    size = (len(points) - 2) / (most - 2)
    found = [points[0]]
    for bucket in range(most - 2):
        begin, end = 1 + int(bucket * size), 1 + int((bucket + 1) * size)
        after = points[end : 1 + int((bucket + 2) * size)] or points[-1:]
        x = sum(p[0] for p in after) / len(after)
        y = sum(p[1] for p in after) / len(after)
        x0, y0 = found[-1]
        found.append(
            max(points[begin:end], key=lambda p: abs((x0 - x) * (p[1] - y0) - (x0 - p[0]) * (y - y0)))
        )
    return [*found, points[-1]]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Line charts, laid out once and drawn as SVG (pages, files) or as pixels (PNG)."""

import html
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]

# Okabe and Ito's colours, which colour-blind people tell apart, and lighter ones for dark pages.
COLOURS = {"blue": "#0072B2", "red": "#D55E00", "grey": "#666666", "green": "#007F5F"}
ON_DARK = {"blue": "#56B4E9", "red": "#F0894E", "grey": "#AAAAAA", "green": "#3CC79E"}
LETTER = 6.6  # pixels of an average letter of 12
LEGEND = 20  # pixels of one line of the legend
MOST = 400  # points of a line; a screen has no room for more


@dataclass(frozen=True)
class Line:
    """A named line; dashes tell lines apart without colour. faint: thin and pale, cut off at the edges."""

    name: str
    points: Sequence[Point]
    colour: str = "blue"
    dash: tuple[int, ...] = ()
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at an x, with a word or two."""

    x: float
    text: str


@dataclass(frozen=True)
class Stroke:
    """A line on the page, in pixels; kind: "line", "faint", "key" (in the legend), "grid" or "mark"."""

    points: Sequence[Point]
    colour: str
    kind: str = "line"
    dash: tuple[int, ...] = ()


@dataclass(frozen=True)
class Words:
    """Text on the page at a pixel; anchor: "start", "middle" or "end" of it."""

    at: Point
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; the y axis is logarithmic where values differ more than thirtyfold.

    title: what a screen reader says of it; x_label: below the axis.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = field(default_factory=tuple)
    x_label: str = ""
    log_x: bool = False

    def svg(self, width: int = 720, height: int = 300, *, alone: bool = False) -> str:
        """As an <svg> element, in a page's text colour; alone: as a file of its own, on white.

        Returns "" where there is nothing to draw.
        """
        if not (laid := self._lay(width, height)):
            return ""
        name = html.escape(self.title, quote=True)
        space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
        parts = [f'<svg{space} viewBox="0 0 {width} {height}" role="img" aria-label="{name}" font-size="12">']
        if alone:
            style = "".join(f".{key}{{stroke:{value}}}" for key, value in COLOURS.items())
            parts += [f"<style>text{{font-family:sans-serif}}{style}</style>"]
            parts += [f'<rect width="{width}" height="{height}" fill="#fff"/>']
        parts += [_svg_of(one) for one in laid]
        return "".join([*parts, "</svg>"])

    def picture(self, width: int = 720, height: int = 300, *, scale: int = 2) -> "Image | None":
        """As pixels on white, `scale` of them for each of the layout's; None where there is nothing to draw."""
        from PIL import Image, ImageDraw

        from hyperbrush.generation.grids import label_font

        if not (laid := self._lay(width, height)):
            return None
        page = Image.new("RGB", (width * scale, height * scale), "white")
        pen = ImageDraw.Draw(page)
        font = label_font(12 * scale, [one.text for one in laid if isinstance(one, Words)])
        widths = {"line": 2 * scale, "key": 2 * scale, "faint": scale, "grid": 1, "mark": scale}
        pale = {"faint": "#A8CCE3", "grid": "#DDDDDD"}
        for one in laid:
            if isinstance(one, Words):
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[one.anchor]
                pen.text((one.at[0] * scale, one.at[1] * scale), one.text, "#222222", font, anchor=anchor)
                continue
            colour = pale.get(one.kind, COLOURS[one.colour])
            points = [(x * scale, y * scale) for x, y in one.points]
            for piece in _dashed(points, [d * scale for d in one.dash]):
                pen.line(piece, colour, widths[one.kind], joint="curve")
        return page

    def save(self, path: str | Path) -> Path:
        """Write it as .svg or .png and return where.

        Raises:
            UserError: another suffix; nothing to draw; the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise UserError(f"a chart cannot be written as {path.name}; expected a name in .svg or .png")
        if not self._lay(720, 300):
            raise UserError(f"{path} was not written: there are no figures to draw yet")
        if path.suffix == ".svg":
            write_text(path, self.svg(alone=True))
        elif (picture := self.picture()) is not None:
            with atomic_path(path) as temporary:
                picture.save(temporary)
        return path

    def _lay(self, width: int, height: int) -> list[Stroke | Words]:
        lines = [(line, _kept(line, self.log_x)) for line in self.lines]
        lines = [(line, points) for line, points in lines if points]
        if not lines:
            return []
        clear = [points for line, points in lines if not line.faint] or [points for _, points in lines]
        values = [y for points in clear for _, y in points]
        positions = [x for _, points in lines for x, _ in points]
        across = (
            _Axis.over(positions, self.log_x, 0.0)
            if self.log_x
            else _Axis(min(0, *positions), max(positions))
        )
        up = _Axis.over(values, min(values) > 0 and max(values) > 30 * min(values), 0.08)
        rows = _legend([line for line, _ in lines if line.name], width)
        top, bottom = 12 + LEGEND * (len(rows) + bool(self.marks)), height - (44 if self.x_label else 26)
        left, right = 56, width - 16

        def place(point: Point) -> Point:
            x = left + (right - left) * across.share(point[0])
            y = bottom - (bottom - top) * min(1.0, max(0.0, up.share(point[1])))
            return round(x, 1), round(y, 1)

        found: list[Stroke | Words] = []
        for tick in up.ticks(5):
            y = place((positions[0], tick))[1]
            found += [
                Stroke(((left, y), (right, y)), "grey", "grid"),
                Words((left - 6, y + 4), _figure(tick), "end"),
            ]
        for tick in across.ticks(max(3, width // 120)):
            found.append(Words((place((tick, values[0]))[0], bottom + 18), _figure(tick), "middle"))
        if self.x_label:
            found.append(Words(((left + right) / 2, height - 8), self.x_label, "middle"))
        found += self._marks(place, top, bottom, (left, right))
        for line, points in sorted(lines, key=lambda pair: not pair[0].faint):
            kind = "faint" if line.faint else "line"
            found.append(Stroke([place(point) for point in points], line.colour, kind, line.dash))
        for number, row in enumerate(rows):
            for x, line in row:
                y, kind = 12 + LEGEND * number, "faint" if line.faint else "key"
                found.append(Stroke(((x, y), (x + 26, y)), line.colour, kind, line.dash))
                found.append(Words((x + 32, y + 4), line.name))
        return found

    def _marks(
        self, place: Callable[[Point], Point], top: float, bottom: float, ends: tuple[float, float]
    ) -> Iterator[Stroke | Words]:
        """Vertical lines; words that would run into those before them are left out."""
        free = 0.0
        for mark in sorted(self.marks, key=lambda mark: mark.x):
            x = place((mark.x, 0.0))[0]
            yield Stroke(((x, top), (x, bottom)), "green", "mark", (2, 3))
            half = LETTER * len(mark.text) / 2
            middle = min(max(x, half), ends[1] - half)
            if middle - half >= free:
                free = middle + half + LETTER
                yield Words((middle, top - 5), mark.text, "middle")


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], log: bool, margin: float) -> "_Axis":
        low, high = min(values), max(values)
        if log:
            room = (high / low) ** margin
            return cls(low / room, high * room, True) if high > low else cls(low / 2, high * 2, True)
        room = margin * (high - low) or 0.1 * abs(high) or 0.1
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else 0.0
        return (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self, count: int) -> list[float]:
        """At most about ``count`` round numbers on the axis."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
                found = [t for t in found if self.low <= t <= self.high]
                if len(found) <= count + 1:
                    break
            return found[:: -(-len(found) // (count + 1))] if found else [self.low, self.high]
        raw = (self.high - self.low) / count or 1.0
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _kept(line: Line, log_x: bool) -> list[Point]:
    """Points that can be drawn, as many as there is room for."""
    good = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)]
    if len(good) <= MOST:
        return good
    size = -(-len(good) // (MOST // 2 if line.faint else MOST))
    parts = [good[start : start + size] for start in range(0, len(good), size)]
    if not line.faint:
        return [part[0] for part in parts] + [good[-1]]
    ends = [sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}) for part in parts]
    return [point for pair in ends for point in pair]


def _legend(lines: Sequence[Line], width: int) -> list[list[tuple[float, Line]]]:
    """Rows of (x, line) that fit the width."""
    rows: list[list[tuple[float, Line]]] = [[]]
    x = 56.0
    for line in lines:
        room = 32 + LETTER * len(line.name) + 14
        if rows[-1] and x + room > width:
            rows.append([])
            x = 56.0
        rows[-1].append((x, line))
        x += room
    return rows


def _figure(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value and abs(value) < 1e-4 else f"{value:.6g}"


def _svg_of(one: Stroke | Words) -> str:
    if isinstance(one, Words):
        x, y = one.at
        anchor = f' text-anchor="{one.anchor}"' if one.anchor != "start" else ""
        return f'<text x="{x:g}" y="{y:g}"{anchor} fill="currentColor">{html.escape(one.text)}</text>'
    dash = f' stroke-dasharray="{" ".join(map(str, one.dash))}"' if one.dash else ""
    if one.kind == "grid":
        (x1, y1), (x2, y2) = one.points
        return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="currentColor" stroke-opacity=".15"/>'
    if one.kind in ("mark", "key"):
        (x1, y1), (x2, y2) = one.points
        wide = ' stroke-width="2"' if one.kind == "key" else ""
        ends = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
        return f'<line {ends} class="{one.colour}"{wide}{dash}/>'
    if one.kind == "faint":
        way = "M" + "L".join(f"{x:g} {y:g}" for x, y in one.points)
        return f'<path d="{way}" fill="none" class="{one.colour}" stroke-opacity=".35"/>'
    points = " ".join(f"{x:g},{y:g}" for x, y in one.points)
    return f'<polyline points="{points}" fill="none" class="{one.colour}" stroke-width="2"{dash}/>'


def _dashed(points: Sequence[Point], dash: Sequence[float]) -> Iterator[list[Point]]:
    """Pieces of a way of points that a pattern of on and off leaves."""
    if not dash or len(points) < 2:
        yield list(points)
        return
    piece, left, on, number = [points[0]], float(dash[0]), True, 0
    for begin, end in itertools.pairwise(points):
        length, done = math.dist(begin, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            here = begin[0] + (end[0] - begin[0]) * share, begin[1] + (end[1] - begin[1]) * share
            if on:
                yield [*piece, here]
            piece, on, number = [here], not on, number + 1
            left = float(dash[number % len(dash)])
        left -= length - done
        piece.append(end)
    if on and len(piece) > 1:
        yield piece

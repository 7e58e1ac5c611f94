"""Pieces that the pages of runs share, and their charts: told apart without colour, legible in both themes."""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.curves import Curves
from hyperbrush.app.runs.run import Run
from hyperbrush.app.runs.view import View
from hyperbrush.app.ui.frame import COLOURS, duration

ICONS = {
    "queued": "schedule",
    "running": "play_arrow",
    "paused": "pause",
    "stopped": "stop",
    "done": "check",
    "failed": "error_outline",
}


def words(tag: str, text: str, classes: str = "") -> TextElement:
    """An element that holds plain text."""
    element = TextElement(tag=tag, text=text)
    if classes:
        element.classes(classes)
    return element


def address(name: str) -> str:
    """Of a run's page."""
    return f"/runs/{quote(name, safe='')}"


def api(name: str, path: str = "") -> str:
    """Address of a run in the API."""
    return f"/api/v1{address(name)}{path}"


class StateBadge:
    """A run's state as icon and word."""

    def __init__(self, t: Messages, state: str) -> None:
        self.t, self.state = t, ""
        with ui.element("span").classes("run-state") as self.place:
            self.icon = ui.icon("").props('aria-hidden="true"')
            self.word = words("span", "")
        self.show(state)

    def show(self, state: str) -> None:
        """Show another state."""
        if state == self.state:
            return
        self.place.classes(remove=self.state or None, add=state)
        self.state = state
        self.icon.set_name(ICONS.get(state, "help_outline"))
        self.word.set_text(self.t(f"runs.state_{state}") if state in ICONS else state)


class Bar:
    """How far a run is, as a bar."""

    def __init__(self, label: str) -> None:
        self.bar = ui.linear_progress(0.0, show_value=False).classes("run-bar")
        self.bar.props("instant-feedback size=6px")
        self.bar.props["aria-label"] = label

    def show(self, run: Run) -> None:
        """Show a run's step, or the work before the first."""
        step, steps = done_of(run)
        self.bar.set_value(round(step / steps, 4) if steps else 0.0)


def done_of(run: Run) -> tuple[int, int]:
    """(done, of): steps of the training, or of the work before the first."""
    if prepares(run):
        return run.stage_step, run.stage_steps
    return int(run.live.get("step") or 0), int(run.live.get("steps") or 0)


def prepares(run: Run) -> bool:
    """Whether a run is at work before its first (or next) step."""
    return run.state == "running" and run.stage not in ("", "training")


def standing(t: Messages, run: Run) -> str:
    """In one line how far a run is."""
    if run.state == "queued":
        return t("runs.waits")
    done, of = done_of(run)
    if prepares(run):
        stage = t.get(f"runs.stage_{run.stage.replace(' ', '_')}", run.stage)
        return f"{stage} {done}/{of}" if of else stage
    if not of:
        return t("runs.begins") if run.state == "running" else t("runs.no_step")
    said = t("runs.step_of", step=done, steps=of)
    if run.state == "running" and done < of and run.live.get("seconds_left") is not None:
        said += " · " + t("runs.left", time=duration(run.live["seconds_left"]))
    return said


def clock(seconds: float) -> str:
    """A moment as the server's clock says it."""
    form = "%H:%M" if time.time() - seconds < 64800 else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(seconds))


def figure(value: Any, form: str = ".4f") -> str:
    """A number for the user."""
    return f"{value:{form}}" if isinstance(value, int | float) else "–"


def size_of(size: Any) -> str:
    """Bytes for the user."""
    if not isinstance(size, int | float) or size <= 0:
        return "–"
    return f"{size / 1024**3:.1f} GB" if size >= 1024**3 else f"{size / 1024**2:.0f} MB"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", *, links: Sequence[str] = ()
) -> ui.element:
    """A table of plain text; what is too wide scrolls inside of it, by keyboard too.

    links: an address for the first cell of each row.
    """
    with ui.element("div").classes("run-table").props('tabindex=0 role="group"') as place:
        place.props["aria-label"] = caption or heads[0]
        with ui.element("table"):
            with ui.element("thead"), ui.element("tr"):
                for head in heads:
                    words("th", head).props('scope="col"')
            with ui.element("tbody"):
                for number, row in enumerate(rows):
                    with ui.element("tr"):
                        with ui.element("th").props('scope="row"'):
                            if links:
                                ui.link(row[0], links[number])
                            else:
                                words("span", row[0])
                        for cell in row[1:]:
                            words("td", cell)
    return place


BLUE, SKY, RED = COLOURS[0], COLOURS[4], COLOURS[5]
DASHES: tuple[Any, ...] = ("solid", [8, 4], [2, 3], [12, 4, 2, 4], [5, 2], [14, 3])
MARKS = ("circle", "rect", "triangle", "diamond", "roundRect", "pin")
FOUR_DIGITS = "value => String(Number(value.toPrecision(4)))"  # JavaScript: 0.30000000000000004 is 0.3
FEW = 30  # points, up to which each is marked


def chart(options: dict[str, Any], label: str) -> ui.echart:
    """A chart as SVG, whose words take the page's colour."""
    made = ui.echart(options, renderer="svg").classes("run-chart").props('role="img"')
    made.props["aria-label"] = label
    return made


def loss_options(t: Messages, curves: Curves, keep: float) -> dict[str, Any]:
    """Training loss with its average, validation loss, the bare model's as the zero line."""
    average = _line(t("runs.smoothed"), BLUE, width=2)
    validation = _line(t("runs.validation"), RED, width=2, dash=[6, 3], mark="circle")
    base = _line(t("runs.base"), "#8a8a94", width=2, dash=[2, 4])
    raw = _line(t("runs.loss"), SKY, width=1, opacity=0.45)
    options = _options(t, [raw, average, validation, base])
    put_loss(options, curves, keep)
    return options


def put_loss(options: dict[str, Any], curves: Curves, keep: float) -> None:
    """Put newer points into `loss_options`."""
    last = max((p[-1][0] for p in (curves.loss, curves.validation) if p), default=0)
    flat = [] if curves.base is None else [(0, curves.base), (last, curves.base)]
    data = [curves.loss if keep > 0 else [], curves.smoothed(keep), curves.validation, flat]
    for series, points in zip(options["series"], data, strict=True):
        series["data"] = points
    options["legend"]["data"] = [series["name"] for series in options["series"] if series["data"]]
    options["series"][2]["showSymbol"] = len(curves.validation) <= FEW
    options["series"][1]["showSymbol"] = len(curves.whole_loss) == 1


def rate_options(t: Messages, curves: Curves) -> dict[str, Any]:
    """The learning rate over the steps."""
    options = _options(t, [_line(t("runs.rate"), COLOURS[2], width=2)])
    options["grid"] |= {"top": 12}
    del options["legend"]
    options["series"][0]["data"] = curves.rate
    return options


def compare_options(t: Messages, views: Sequence[View], keep: float) -> dict[str, Any]:
    """Each run's smoothed loss as a line, its validation loss as marks on a thicker one."""
    lines = []
    for number, view in enumerate(views):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        loss = _line(f"{view.run.name} · {t('runs.loss')}", colour, width=1.5, dash=dash)
        loss["data"] = view.curves.smoothed(keep)
        lines.append(loss)
        if view.curves.validation:
            mark = MARKS[number % len(MARKS)]
            held = _line(f"{view.run.name} · {t('runs.validation')}", colour, width=3, dash=dash, mark=mark)
            held["data"] = view.curves.validation
            held["showSymbol"] = len(view.curves.validation) <= FEW
            lines.append(held)
    return _options(t, lines)


def _line(
    name: str, colour: str, *, width: float, dash: Any = "solid", mark: str = "circle", opacity: float = 1.0
) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": [],
        "showSymbol": False,
        "symbol": mark,
        "symbolSize": 7,
        "color": colour,
        "lineStyle": {"width": width, "type": dash, "opacity": opacity, "color": colour},
        "emphasis": {"disabled": True},
    }


def _options(t: Messages, lines: list[dict[str, Any]]) -> dict[str, Any]:
    text = {"color": "currentColor"}
    faint = {"show": True, "lineStyle": {"color": "currentColor", "opacity": 0.15}}
    axis = {
        "axisLine": {"lineStyle": {"color": "currentColor"}},
        "axisTick": {"lineStyle": {"color": "currentColor"}},
    }
    return {
        "animation": False,
        "aria": {"enabled": False},  # the element's own label says it, in the page's language
        "textStyle": text,
        "legend": {"type": "scroll", "top": 0, "textStyle": text, "itemWidth": 40},
        "grid": {"left": 8, "right": 16, "top": 44, "bottom": 28, "containLabel": True},
        # Drawn, not HTML: names come from folders.
        "tooltip": {
            "trigger": "axis",
            "renderMode": "richText",
            "confine": True,
            "axisPointer": {"animation": False},
        },
        "xAxis": axis
        | {
            "type": "value",
            "name": t("runs.step"),
            "nameLocation": "middle",
            "nameGap": 24,
            "nameTextStyle": text,
            "min": 0,
            "max": "dataMax",
            "axisLabel": text | {"hideOverlap": True},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "axisLabel": text | {":formatter": FOUR_DIGITS},
            "splitLine": faint,
        },
        "series": lines,
    }

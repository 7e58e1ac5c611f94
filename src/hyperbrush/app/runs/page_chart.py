"""Charts of runs: told apart without colour, legible in both themes, nothing in them moves."""

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.curves import Curves
from hyperbrush.app.runs.view import View
from hyperbrush.app.ui.frame import COLOURS

BLUE, SKY, RED = COLOURS[0], COLOURS[4], COLOURS[5]
DASHES: tuple[Any, ...] = ("solid", [8, 4], [2, 3], [12, 4, 2, 4], [5, 2], [14, 3])
MARKS = ("circle", "rect", "triangle", "diamond", "roundRect", "pin")
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
        "yAxis": {"type": "value", "scale": True, "axisLabel": text, "splitLine": faint},
        "series": lines,
    }

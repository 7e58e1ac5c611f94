"""Several runs in one chart, their figures and what differs between their settings."""

from collections.abc import Sequence
from typing import Any

from nicegui import run as threads
from nicegui import ui

from hyperbrush.app.errors import NotThere
from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.comparison import KEEP, MOST, differences, figures_of, named
from hyperbrush.app.runs.page_chart import chart, compare_options
from hyperbrush.app.runs.page_parts import address, figure, table
from hyperbrush.app.runs.view import View, view_of
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import duration, on_news, title_of


async def show(site: Site, t: Messages, asked: str) -> None:
    """The page's inside; asked: names joined by commas."""
    ui.link(t("runs.all"), "/runs")
    views, missing = await threads.io_bound(_views, site, asked) or ([], [])
    for name in missing:
        with ui.element("div").classes("notice").props('role="status"'):
            ui.label(t("runs.not_there", name=name))
    if not views:
        return
    page: dict[str, Any] = {"views": views, "keep": KEEP, "stamp": _stamp(views)}
    with ui.element("section").classes("card").props('aria-labelledby="compared"'):
        title_of(2, t("runs.compared")).props('id="compared"')
        with ui.element("div").classes("bar"):
            ui.label(t("runs.smoothing"))
            slider = ui.slider(min=0, max=0.98, step=0.02, value=KEEP).classes("run-slider")
            slider.props["aria-label"] = t("runs.smoothing")
        names = ", ".join(view.run.name for view in views)
        drawn = chart(compare_options(t, views, KEEP), t("runs.compare_chart", names=names)).classes("tall")
    figures = ui.element("section").classes("card")
    with figures:
        _figures(t, views)
    with ui.element("section").classes("card").props('aria-labelledby="differs"'):
        title_of(2, t("runs.differences")).props('id="differs"')
        differing = differences([view.run.config for view in views])
        if differing:
            heads = [t("runs.setting"), *(view.run.name for view in views)]
            table(heads, [[key, *values] for key, values in differing], t("runs.differences"))
        else:
            ui.label(t("runs.no_differences")).classes("soft")

    def draw() -> None:
        drawn.options.clear()
        drawn.options.update(compare_options(t, page["views"], page["keep"]))
        drawn.update()

    def smooth(event: Any) -> None:
        page["keep"] = float(event.value)
        draw()

    slider.on_value_change(smooth)

    async def refresh() -> None:
        views, _ = await threads.io_bound(_views, site, asked) or ([], [])
        if not views or _stamp(views) == page["stamp"]:
            return
        page.update(views=views, stamp=_stamp(views))
        draw()
        figures.clear()
        with figures:
            _figures(t, views)

    on_news(site, "runs", refresh, every=1.0)


def _views(site: Site, asked: str) -> tuple[list[View], list[str]]:
    known = list(site.runs.folders())
    found, missing = [], []
    for name in named(asked, known)[:MOST]:
        try:
            found.append(view_of(site, name))
        except NotThere:
            missing.append(name)
    return found, missing


def _stamp(views: Sequence[View]) -> list[Any]:
    return [(view.run.name, view.run.state, id(view.curves)) for view in views]


def _figures(t: Messages, views: Sequence[View]) -> None:
    heads = ["run", "state", "steps", "time", "smoothed", "best_validation", "at_step", "below_base"]
    rows = []
    for one in map(figures_of, views):
        rows.append(
            [
                one["name"],
                t(f"runs.state_{one['state']}"),
                figure(one["step"], "d"),
                duration(one["seconds"]),
                figure(one["smoothed"]),
                figure(one["best_validation"]),
                figure(one["best_step"], "d"),
                figure(one["below_base"], ".1%"),
            ]
        )
    links = [address(view.run.name) for view in views]
    table([t(f"runs.{head}") for head in heads], rows, t("runs.figures"), links=links)

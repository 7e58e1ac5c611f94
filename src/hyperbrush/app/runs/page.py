"""The runs: what trains and waits, what there was, and several of them in one chart."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request
from nicegui import run as threads
from nicegui import ui

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.runs import control as run_control
from hyperbrush.app.runs import page_live as runs_live
from hyperbrush.app.runs.page_beside import Beside
from hyperbrush.app.runs.page_parts import (
    Bar,
    StateBadge,
    address,
    api,
    chart,
    clock,
    compare_options,
    figure,
    standing,
    table,
    words,
)
from hyperbrush.app.runs.run import OPEN, Run
from hyperbrush.app.runs.view import KEEP, MOST, View, differences, figures_of, named, view_of
from hyperbrush.app.site import Site
from hyperbrush.app.ui.bin_section import BinSection
from hyperbrush.app.ui.empty import empty
from hyperbrush.app.ui.frame import PATIENCE, duration, frame, on_news, refusals, title_of
from hyperbrush.errors import NotThere


async def show_comparison(site: Site, t: Messages, asked: str) -> None:
    """The page's inside; asked: names joined by commas."""
    ui.link(t("runs.all"), "/runs")
    views, missing = await threads.io_bound(_views, site, asked) or ([], [])
    for name in missing:
        with ui.element("div").classes("notice").props('role="status"'):
            ui.label(t("runs.not_there", name=name))
    if not views:
        return
    beside = Beside(t, views)  # pictures first
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
        beside.show(views)
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
    return [(view.run.name, view.run.state, id(view.curves), view.previews[-1:]) for view in views]


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


SHOWN = 50  # runs at first; a button shows more
EVERY = 0.5  # seconds between two looks


def add(site: Site) -> None:
    """Add the pages."""

    @ui.page("/runs", response_timeout=PATIENCE)
    async def page(request: Request) -> None:
        asked = ",".join(request.query_params.getlist("compare"))
        with frame(site, request, "runs") as t:
            if asked:
                await show_comparison(site, t, asked)
            else:
                await _List(site, t).begin(request.query_params.get("removed", ""))

    @ui.page("/runs/{name}", response_timeout=PATIENCE)
    async def live(request: Request, name: str) -> None:
        await runs_live.page(site, request, name)


class _List:
    """Queue and history; rows are changed in place, so that neither focus nor choice is lost."""

    def __init__(self, site: Site, t: Messages) -> None:
        self.site, self.t = site, t
        self.rows: dict[str, _Row] = {}
        self.chosen: list[str] = []
        self.most = SHOWN
        self.queue_shown: list[str] = []

    async def begin(self, removed: str) -> None:
        """Build it; removed: id of the run that was just put into the bin."""
        t, site = self.t, self.site
        undo = ui.element("div").props("role=status").style("display: contents")
        with ui.element("section").classes("card").props('aria-labelledby="queue"') as self.queue_card:
            title_of(2, t("runs.queue")).props('id="queue"')
            self.queue = ui.element("div").classes("run-list")
        self.first = empty(t("runs.none"), t("runs.first"), "model_training", "/train")
        with ui.element("section").classes("card").props('aria-labelledby="history"') as self.history:
            with ui.element("div").classes("bar"):
                title_of(2, t("runs.history")).classes("grow").props('id="history"')
                self.compare = ui.button(
                    t("runs.compare"), icon="stacked_line_chart", on_click=self.to_compare
                )
                self.compare.props("outline no-caps").disable()
                ui.button(t("runs.new"), icon="add", on_click=lambda: ui.navigate.to("/train")).props(
                    "no-caps unelevated"
                )
            self.search = ui.input(t("runs.search"), on_change=self.refresh).props(
                "outlined dense clearable debounce=150 type=search"
            )
            self.hint = ui.label(t("runs.compare_hint")).classes("soft")
            self.place = ui.element("div").classes("run-list").props('role="list"')
            self.nothing = ui.label(t("runs.none_found")).classes("soft")
            self.more = ui.button(t("runs.more"), on_click=self.show_more).props("flat no-caps")
        bin_section = BinSection(
            site,
            t,
            undo,
            "runs",
            items=lambda: site.workspace.trash.items("run"),
            restore=lambda item: run_control.restore(site, item).name,
            remove=lambda item: run_control.erase(site, item),
        )
        if removed:
            await bin_section.offer(removed)
        await self.refresh()
        on_news(site, ["runs", "jobs"].copy, self.refresh, every=EVERY)

    async def refresh(self) -> None:
        read = await threads.io_bound(_all, self.site)
        if read is None:  # the server ends
            return
        runs, jobs = read
        self._show_queue(jobs)
        wanted = str(self.search.value or "").strip().lower()
        found = [run for run in runs if wanted in run.name.lower()]
        names = [run.name for run in found[: self.most]]
        if names != list(self.rows):
            self.place.clear()
            with self.place:
                self.rows = {run.name: _Row(self, run) for run in found[: self.most]}
        for run in found[: self.most]:
            self.rows[run.name].show(run)
        self.first.set_visibility(not runs)
        self.history.set_visibility(bool(runs))
        self.nothing.set_visibility(not found)
        self.hint.set_visibility(len(runs) > 1)
        self.more.set_visibility(len(found) > self.most)

    async def show_more(self) -> None:
        self.most += SHOWN
        await self.refresh()

    def choose(self, name: str, is_chosen: bool) -> None:
        self.chosen = [n for n in self.chosen if n != name] + ([name] if is_chosen else [])
        self.compare.set_enabled(1 < len(self.chosen) <= MOST)

    def to_compare(self) -> None:
        ui.navigate.to("/runs?" + "&".join(f"compare={quote(name, safe='')}" for name in self.chosen))

    def _show_queue(self, jobs: list[Job]) -> None:
        self.queue_card.set_visibility(bool(jobs))
        shown = [f"{job.id} {job.state} {job.asked}" for job in jobs]
        if shown == self.queue_shown:
            return
        self.queue_shown = shown
        self.queue.clear()
        with self.queue:
            for number, job in enumerate(jobs):
                self._queued(number, job)

    async def _move(self, job: Job, by: int) -> None:
        with refusals():
            await threads.io_bound(self.site.jobs.move, job.id, by)
            self.site.news("jobs", "runs")

    def _queued(self, number: int, job: Job) -> None:
        t = self.t
        run = str(job.arguments.get("run", ""))
        what = t(f"frame.doing_{job.kind.replace('-', '_')}")
        with ui.element("div").classes("bar"):
            words("span", f"{number + 1}.", "soft")
            with ui.element("span").classes("grow"):
                if run:
                    ui.link(run, address(run))
                    words("span", f" {what}", "soft")
                else:
                    words("span", what)
            StateBadge(t, job.state)
            waits = job.state == "queued"
            for by, icon in ((-1, "arrow_upward"), (1, "arrow_downward")):
                move = ui.button(icon=icon, on_click=lambda by=by, job=job: self._move(job, by))
                move.props("flat round dense").set_visibility(waits and not job.asked)
                said = t("runs.earlier" if by < 0 else "runs.later")
                move.props["aria-label"] = f"{said}: {run or what}"
                move.props["title"] = said
            text = t("runs.cancel") if waits else t("runs.stop")

            def stop(job: Job = job) -> None:
                with refusals():
                    self.site.ask(job.id, "stop")
                    self.site.news("runs")

            button = ui.button(text, icon="close" if waits else "stop", on_click=stop).props(
                "flat dense no-caps"
            )
            button.props["aria-label"] = f"{text}: {run or what}"
            if job.asked:
                button.set_text(t("frame.stopping"))
                button.disable()


class _Row:
    """A run in the list."""

    def __init__(self, page: _List, run: Run) -> None:
        t = self.t = page.t
        self.name = run.name
        self.stamp = ""
        with ui.element("div").classes("run-row").props('role="listitem"'):
            box = ui.checkbox(
                value=run.name in page.chosen, on_change=lambda e: page.choose(run.name, bool(e.value))
            )
            box.props["aria-label"] = t("runs.choose", name=run.name)
            self.picture = ui.element("img").classes("run-picture").props('alt="" loading="lazy"')
            with ui.element("div").classes("run-name"):
                ui.link(run.name, address(run.name))
                self.about = words("div", "", "soft small")
            self.state = StateBadge(t, run.state)
            with ui.element("div").classes("run-progress"):
                self.standing = words("div", "", "small")
                self.bar = Bar(t("runs.progress_of", name=run.name))
            self.spark = (
                ui.element("img").classes("run-spark").props('alt="" loading="lazy" width=120 height=24')
            )

    def show(self, run: Run) -> None:
        """Show how it stands now."""
        t = self.t
        kind = t.get(f"runs.kind_{run.kind}", run.kind)
        validation = (run.live.get("validation") or {}).get("loss")
        about = [kind, clock(run.changed)]
        if validation is not None:
            about.append(f"{t('runs.validation')} {figure(validation)}")
        if run.elsewhere:
            about.append(t("runs.elsewhere"))
        self.about.set_text(" · ".join(filter(None, about)))
        self.state.show(run.state)
        self.standing.set_text(standing(t, run) if not run.error else t.said(run.error)[:200])
        self.standing.classes(add="bad") if run.error else self.standing.classes(remove="bad")
        self.bar.show(run)
        stamp = version(run)
        if stamp != self.stamp:
            self.stamp = stamp
            self.spark.props["src"] = api(run.name, f"/sparkline?v={stamp}")
            self.picture.props["src"] = api(run.name, f"/picture?v={stamp}")


def version(run: Run) -> str:
    """Tells what a run drew and its line from earlier ones, also from those of another run of its name."""
    step = int(run.live.get("step") or 0)
    return f"{step // 10}-{run.job}" if run.state in OPEN else f"{step}-{int(run.changed)}-{run.job}"


def _all(site: Site) -> tuple[list[Run], list[Job]]:
    """Runs, and the jobs that run or wait in the order of their turn."""
    return site.runs.all(), site.jobs.in_order()

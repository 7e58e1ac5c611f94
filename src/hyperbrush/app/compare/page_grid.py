"""A grid as it is drawn and as it is looked at: progress, the picture, and a large view to zoom in."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from hyperbrush.app.compare import service as comparing
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.empty import lead
from hyperbrush.app.ui.frame import duration, on_news
from hyperbrush.app.ui.parts import JobHead
from hyperbrush.errors import UserError

STEP = 1.25  # of the zoom
LEAST, MOST = 0.1, 8.0
LAST = 6  # earlier grids that are linked


class GridView:
    """The grid of a job; another job takes its place."""

    def __init__(self, site: Site, t: Messages, on_example: Callable[[], Any]) -> None:
        self.site, self.t = site, t
        self.job = ""
        self._shown = ""
        with ui.element("section").classes("card"):
            self.head = JobHead(
                site,
                t("compare.grid"),
                t("compare.nothing_yet"),
                t("compare.progress"),
                t("compare.stop"),
                t("frame.stopping"),
            )
            self.example = lead(t("compare.example"), "grid_on", on_example).style("align-self: start")
            self.place = ui.element("div").classes("stack")
            self.earlier = ui.element("nav").classes("bar")
            self.earlier.props["aria-label"] = t("compare.earlier")
        self._list_earlier()
        on_news(site, lambda: [f"job:{self.job}"] if self.job else [], self._show)

    def follow(self, job: str) -> None:
        """Look at a job from now on, also after a reload."""
        self.job, self._shown = job, ""
        self.example.set_visibility(False)
        self.place.clear()
        ui.navigate.history.replace("/compare?" + urlencode({"job": job}))
        self._show()

    def _show(self) -> None:
        try:
            job = self.site.jobs.get(self.job)
        except UserError as error:
            self.head.tell(self.t.said(error))
            return
        done, steps = float(job.progress.get("done") or 0), job.progress.get("steps")
        self.head.show(job, self._text(job), done / steps if steps and job.state == "running" else 0.0)
        if job.state == "done" and self._shown != job.id:
            self._shown = job.id
            self.place.clear()
            with self.place:
                if comparing.has_grid(self.site, job):
                    Grid(self.t, job)
                else:
                    ui.label(self.t("compare.deleted")).classes("soft")
            self._list_earlier()

    def _text(self, job: Job) -> str:
        t = self.t
        if job.state == "failed":
            return t.said(job.error)
        if job.state in ("stopped", "paused"):
            return t("compare.stopped")
        if job.state == "done":
            return t(
                "compare.drawn",
                pictures=job.result["pictures"],
                time=duration(job.result["seconds"]),
                seed=job.result["seed"],
            )
        done, steps = job.progress.get("done") or 0, job.progress.get("steps")
        if not steps or job.state == "queued":
            return t("compare.opening") if job.state == "running" else t("compare.waiting")
        left = job.progress.get("left")
        if left is None:
            return t("compare.drawing", done=int(done), pictures=steps)
        return t("compare.drawing_left", done=int(done), pictures=steps, left=duration(left))

    def _list_earlier(self) -> None:
        last = self.site.jobs.all(kinds=("compare",), last=2 * LAST)
        jobs = [job for job in last if comparing.has_grid(self.site, job)][:LAST]
        self.earlier.clear()
        self.earlier.set_visibility(bool(jobs))
        self.example.set_visibility(not jobs and not self.job)
        with self.earlier:
            ui.label(self.t("compare.earlier")).classes("soft")
            for job in jobs:
                link = ui.link(
                    str(job.arguments.get("prompt", ""))[:30], "/compare?" + urlencode({"job": job.id})
                )
                link.classes("badge")


class Grid:
    """A finished grid: small, and large in a window of its own."""

    def __init__(self, t: Messages, job: Job) -> None:
        self.t, self.width, self.zoom = t, int(job.result["width"]), 0.0  # 0: as wide as the window
        address = f"/api/v1/jobs/{job.id}/grid"
        about = ", ".join(map(str, job.arguments.get("axes", [])))
        alt = t("compare.alt", prompt=str(job.arguments.get("prompt", "")), axes=about)
        with ui.element("button").props('type="button"').classes("grid-button") as small:
            small.props["aria-label"] = t("compare.open")
            _picture(address, alt)
        with ui.element("div").classes("bar"):
            ui.button(t("compare.open"), icon="zoom_in", on_click=lambda: self.open()).props(
                "outline no-caps color=primary"
            )
            link = ui.link(t("compare.download"), address)
            link.props["download"] = "grid.png"
        for note in job.result.get("notes", []):
            ui.label(t.said(note)).classes("soft small")
        with ui.expansion(t("compare.settings"), icon="description").classes("more"):
            ui.label(str(job.result.get("parameters", ""))).classes("mono")
        small.on("click", lambda: self.open())
        self._window(address, alt)

    def open(self) -> None:
        """Show it large."""
        self.dialog.open()

    def _window(self, address: str, alt: str) -> None:
        t = self.t
        with ui.dialog().props("maximized") as self.dialog, ui.element("div").classes("zoom"):
            self.dialog.props["aria-label"] = t("compare.grid")
            with ui.element("div").classes("bar"):
                self._button("zoom_out", "zoom_out", lambda: self._by(1 / STEP))
                self.percent = ui.label(t("compare.fits")).props('aria-live="polite"').classes("soft")
                self._button("zoom_in", "zoom_in", lambda: self._by(STEP))
                self._button("fit_screen", "fit", lambda: self._to(0.0))
                self._button("crop_free", "actual", lambda: self._to(1.0))
                ui.space()
                self._button("close", "close", self.dialog.close)
            with (
                ui.element("div").classes("zoom-field").props('tabindex="0" role="region" autofocus') as field
            ):
                field.props["aria-label"] = t("compare.zoom_help")
                self.picture = _picture(address, alt)
            self.dialog.on("keydown", self._key, args=["key"])

    def _button(self, icon: str, name: str, do: Any) -> None:
        button = ui.button(icon=icon, on_click=do).props("flat round color=primary")
        button.props["aria-label"] = button.props["title"] = self.t(f"compare.{name}")

    def _key(self, event: Any) -> None:
        key = event.args.get("key") if isinstance(event.args, dict) else None
        if key in ("+", "="):
            self._by(STEP)
        elif key == "-":
            self._by(1 / STEP)
        elif key == "0":
            self._to(0.0)
        elif key == "1":
            self._to(1.0)

    def _by(self, factor: float) -> None:
        self._to((self.zoom or 1.0) * factor)

    def _to(self, zoom: float) -> None:
        self.zoom = min(MOST, max(LEAST, zoom)) if zoom else 0.0
        self.picture.style(f"width: {self.width * self.zoom:.0f}px" if self.zoom else "width: 100%")
        self.percent.set_text(f"{self.zoom:.0%}" if self.zoom else self.t("compare.fits"))


def _picture(address: str, alt: str) -> ui.element:
    picture = ui.element("img").classes("drawn")
    picture.props["src"], picture.props["alt"] = address, alt
    return picture

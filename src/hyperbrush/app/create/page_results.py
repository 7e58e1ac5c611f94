"""What came of a drawing: how far it is, its pictures with their settings, and what to do with them next."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.create.page_form import button
from hyperbrush.app.create.service import Drawn, compare_address, kept_pictures
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import duration, title_of
from hyperbrush.app.ui.parts import copy_button
from hyperbrush.app.ui.pictures import crisp, smoothing

ALONE, AMONG, EARLIER, NARROW = (
    320,
    192,
    128,
    64,
)  # pixels of a picture alone, among others, of before, on a phone


class Results:
    """Follows a job.

    on_stop: called to end it; on_use: called with ("again", "vary" or "start", picture).
    """

    def __init__(
        self, site: Site, t: Messages, on_stop: Callable[[], Any], on_use: Callable[[str, Drawn], Any]
    ) -> None:
        self.site, self.t, self.on_use = site, t, on_use
        self._shown: tuple[str, int] = ("", 0)
        self._led, self._job = False, ""
        with ui.element("section").classes("stack") as self.place:
            self.place.props["aria-label"] = t("create.results")
            with ui.element("div").classes("card") as self._running:
                self._preview = ui.element("img").classes("drawn preview")
                self._preview.props["alt"] = t("create.preview")
                self._told = ui.label().props("role=status")
                self._bar = ui.linear_progress(0, show_value=False, size="10px").props("rounded")
                self._bar.props["aria-label"] = t("create.progress")
                with ui.element("div").classes("bar"):
                    self._stop = button(t("create.stop"), "stop", on_stop)
            self._end = ui.label().classes("notice").props("role=status")
            self._pictures = ui.element("div").classes("drawings")
            self._none = ui.label(t("create.nothing_yet")).classes("soft hint")
        self.show(None)

    def lead(self, led: bool) -> None:
        """Whether something else says what to do as long as there are no pictures."""
        self._led = led
        self._none.set_visibility(not self._job)
        self.place.set_visibility(bool(self._job) or not led)

    def show(self, job: Job | None) -> None:
        """How a job stands now."""
        self._job = "" if job is None else job.id
        self.lead(self._led)
        self._running.set_visibility(job is not None and job.is_open)
        self._end.set_visibility(False)
        found = [] if job is None else kept_pictures(self.site, job)
        if self._shown != (job.id if job else "", len(found)):
            self._shown = (job.id if job else "", len(found))
            self._pictures.clear()
            with self._pictures:
                for one in found:
                    assert job is not None
                    self._picture(job, one, ALONE if len(found) == 1 else AMONG)
        if job is None:
            return
        if job.is_open:
            self._tell(job)
        elif job.state != "done":
            self._end.set_text(self.t.said(job.error) if job.state == "failed" else self.t("create.stopped"))
            self._end.classes(
                add="bad" if job.state == "failed" else "", remove="" if job.state == "failed" else "bad"
            )
            self._end.set_visibility(True)

    def _tell(self, job: Job) -> None:
        t, said = self.t, job.progress
        step, steps = said.get("step", 0), said.get("steps", 0)
        done, count = said.get("done", 0), said.get("count", 1)
        self._stop.set_enabled(not job.stopping)
        if job.stopping:
            text = t("frame.stopping")
        elif job.state == "queued":
            text = t("create.queued")
        elif said.get("stage") == "opening":
            text = t("create.opening", model=said.get("model", ""))
        elif not steps:
            text = t("create.starting")
        else:
            text = t("create.step", step=step, steps=steps)
            if count > 1:
                text += " · " + t("create.done_of", done=done, count=count)
            if said.get("left") is not None:
                text += " · " + t("create.left_time", time=duration(said["left"]))
        self._told.set_text(text)
        self._bar.value = step / steps if steps else 0
        preview = said.get("preview", 0)
        self._preview.set_visibility(bool(preview))
        if preview:
            self._preview.props["src"] = f"/api/v1/jobs/{job.id}/preview?n={preview}"

    def _picture(self, job: Job, one: Drawn, wide: int) -> None:
        t, said = self.t, one.said
        with ui.element("article").classes("card picture"):
            with ui.link(target=one.address, new_tab=True):
                image = ui.element("img").classes("drawn")
                image.props["src"] = one.address
                image.style(f"max-width: max(20rem, {int(said['width'])}px)")
                crisp(image, int(said["width"]), int(said["height"]), wide)
                prompt = str(said["parameters"]).partition("\n")[0]
                image.props["alt"] = t("create.picture_alt", seed=said["seed"], prompt=prompt[:200])
            with ui.element("div").classes("bar"):
                ui.label(t("create.seed_size", seed=said["seed"], width=said["width"], height=said["height"]))
            with ui.element("div").classes("bar actions"):
                button(t("create.again"), "refresh", lambda: self.on_use("again", one))
                button(t("create.vary"), "auto_fix_high", lambda: self.on_use("vary", one))
                button(t("create.use_as_start"), "image", lambda: self.on_use("start", one))
                _link(t("create.compare"), "grid_on", compare_address(job.arguments, said))
                name = str(said["file"]).rpartition("/")[2]
                _link(t("create.download"), "download", one.address).props["download"] = name
            with ui.expansion(t("create.settings"), icon="notes").classes("more"):
                ui.label(said["parameters"]).classes("mono")
                copy_button(t, str(said["parameters"]))
            for note in said["notes"]:
                ui.label(t.said(note)).classes("soft small")


class Earlier:
    """The pictures drawn last, each leading to the job it is of."""

    def __init__(self, t: Messages, request: Request) -> None:
        self.t = t
        with ui.element("section").classes("stack") as self.place:
            with ui.element("div").classes("bar"):
                title_of(2, t("create.earlier"))
                ui.space()
                smoothing(t, request)
                ui.link(t("create.all_pictures"), "/gallery")
            self._pictures = ui.element("div").classes("pictures small")

    def show(self, found: list[Drawn]) -> None:
        """Show these instead."""
        self.place.set_visibility(bool(found))
        self._pictures.clear()
        with self._pictures:
            for one in found:
                prompt = str(one.said["parameters"]).partition("\n")[0]
                with ui.link(target=f"/?job={one.job}"):
                    image = ui.element("img").props("loading=lazy")
                    image.props["src"] = one.address
                    image.props["alt"] = self.t(
                        "create.picture_alt", seed=one.said["seed"], prompt=prompt[:200]
                    )
                    crisp(image, int(one.said["width"]), int(one.said["height"]), EARLIER, NARROW)


def _link(label: str, icon: str, target: str) -> ui.button:
    """A link that looks like its neighbours, the buttons."""
    made = ui.button(label, icon=icon, color=None).props("flat dense no-caps tag=a").classes("quiet")
    made.props["href"] = target
    return made

"""A style beside the plain model: pictures, the strength, keeping it, tuning it."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui

from hyperbrush.app.examples import THREE
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import StyleRequest, checked
from hyperbrush.app.site import Site
from hyperbrush.app.styles import service as styles
from hyperbrush.app.styles.service import SIDES, KeepRequest, TuneRequest
from hyperbrush.app.ui.empty import empty
from hyperbrush.app.ui.frame import on_news, refusals, title_of
from hyperbrush.app.ui.parts import JobHead, once
from hyperbrush.errors import UserError

STAGES = ("opening", "generating", "drawing")
REST = 0.5  # seconds that the slider stands still before it is drawn


class StyleResult:
    """What came of a style job; another job's pictures take the places of the last one's as they come."""

    def __init__(
        self, site: Site, t: Messages, captions: Callable[[], list[str]], on_example: Callable[[], Any]
    ) -> None:
        self.site, self.t, self.captions = site, t, captions
        self.job = ""
        self._shown: dict[tuple[str, int], Any] = {}
        self._prompts: list[str] = []
        self._moves = 0  # of the slider
        with ui.element("section").classes("card") as self.card:
            self.head = JobHead(
                site,
                t("styles.result"),
                t("styles.nothing_yet"),
                t("styles.progress"),
                t("styles.stop"),
                t("frame.stopping"),
            )
            self.example = empty("", t("styles.example"), "auto_awesome", on_example, pictures=THREE)
            self.pictures = ui.element("div").classes("stack")
            with ui.element("div").classes("stack") as self.strengths:
                self.strength_told = ui.label()
                self.strength = ui.slider(min=-1, max=2, step=0.05, value=1.0)
                self.strength.props["aria-label"] = t("styles.strength")
                self.strength.on("change", self._redraw)
                self.strength_told.bind_text_from(
                    self.strength, "value", lambda v: t("styles.strength_is", strength=f"{v or 0:g}")
                )
            self.after = ui.element("div").classes("stack")
        self.strengths.set_visibility(False)
        on_news(site, lambda: [f"job:{self.job}"] if self.job else [], self._show)

    def follow(self, job: str) -> None:
        """Look at a job from now on, also after a reload; the slider stands where it was drawn."""
        with refusals():
            found = self.site.jobs.get(job)
            self.strength.set_value(float(found.arguments.get("strength", 1.0)))
        self._look_at(job)

    def _look_at(self, job: str) -> None:
        self.job = job
        self.example.set_visibility(False)
        self.after.clear()
        ui.navigate.history.replace("/styles?" + urlencode({"job": job}))
        self._show()

    def _show(self) -> None:
        t = self.t
        try:
            job = self.site.jobs.get(self.job)
        except UserError as error:
            self.head.tell(t.said(error))
            return
        stage = str(job.progress.get("stage", ""))
        step, steps = job.progress.get("step"), job.progress.get("steps")
        told = job.result or job.progress
        if job.state == "failed":
            text = t.said(job.error)
        elif job.state in ("stopped", "paused"):
            text = t("styles.stopped")
        elif "seconds" in told:
            text = t(
                "styles.made",
                seconds=f"{told['seconds']:.2f}",
                size=f"{told['size'] / 1e6:.1f}",
                model=str(told["model"]),
            )
        else:
            text = t(f"styles.{stage}") if stage in STAGES else t("styles.waiting")
        self.head.show(job, text, step / steps if isinstance(step, int) and steps else 0.0)
        self._show_pictures(job)
        self.strengths.set_visibility("seconds" in told or bool(job.arguments.get("adapter")))
        if job.state == "done" and not self.after.default_slot.children:
            self._offer(job)

    def _show_pictures(self, job: Job) -> None:
        prompts = [str(prompt) for prompt in job.arguments.get("prompts", [])]
        if prompts != self._prompts:
            self._prompts, self._shown = prompts, {}
            self.pictures.clear()
        for side in SIDES:
            for number, name in enumerate(styles.drawn(job, side)):
                if not (self.site.jobs.folder / job.id / name).is_file():  # deleted in the gallery
                    continue
                if (side, number) not in self._shown:
                    self._make_row(number, prompts[number])
                image, seen = self._shown[side, number]
                address = f"/api/v1/jobs/{job.id}/styles/{side}/{number}"
                if seen != address:
                    image.props["src"] = address
                    image.classes(remove="style-empty")
                    image.update()
                    self._shown[side, number] = (image, address)

    def _make_row(self, number: int, prompt: str) -> None:
        with self.pictures, ui.element("div").classes("beside"):
            title_of(3, prompt).classes("beside-title")
            for side in SIDES:
                with ui.element("figure"):
                    image = ui.element("img").classes("drawn style-empty")
                    image.props["alt"] = self.t(f"styles.alt_{side}", prompt=prompt)
                    # Nothing yet: one transparent pixel, so that no address is asked in vain.
                    image.props["src"] = (
                        "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
                    )
                    with ui.element("figcaption").classes("soft"):
                        ui.label(self.t(f"styles.{side}"))
                self._shown[side, number] = (image, "")

    async def _redraw(self) -> None:
        """The same adapter at another strength, once the slider has come to rest: arrow keys move it step by step."""
        self._moves += 1
        move = self._moves
        await asyncio.sleep(REST)  # the value itself comes a moment after the event
        if move != self._moves:
            return
        with refusals():
            strength = round(float(self.strength.value or 0), 3)
            before = self.site.jobs.get(self.job)
            if strength == before.arguments.get("strength"):
                return
            if before.is_open:
                self.site.ask(before.id, "stop")
            source = str(before.arguments.get("adapter") or before.id)  # the one that was generated
            values = {**before.arguments, "strength": strength, "adapter": source, "keep": False}
            job = await asyncio.to_thread(styles.begin, self.site, checked(StyleRequest, values))
            self._look_at(job.id)  # the slider may have moved on meanwhile

    def _offer(self, job: Job) -> None:
        """What can be done with a finished style."""
        t = self.t
        name = styles.unused_name(self.site.workspace)
        with self.after:
            with ui.element("section").classes("stack"):
                title_of(3, t("styles.keep_title"))
                with ui.element("div").classes("bar"):
                    kept = (
                        ui.input(t("styles.name"), value=name)
                        .props("outlined dense maxlength=100")
                        .classes("grow")
                    )
                    keep = ui.button(t("styles.keep"), icon="save").props("unelevated no-caps color=primary")
                    once(keep, lambda: self._keep(kept, place))
                place: ui.element = (
                    ui.element("div").props('role="status" aria-live="polite"').classes("stack")
                )
            with ui.element("section").classes("stack"):
                title_of(3, t("styles.tune_title"))
                if not styles.pictures_of(self.site.jobs, job.id):
                    ui.label(t("styles.tune_words")).classes("soft")
                    return
                ui.label(t("styles.tune_help")).classes("soft")
                with ui.element("div").classes("bar"):
                    tuned = ui.input(t("styles.tune_name"), value=f"{name}-tuned").props(
                        "outlined dense maxlength=100"
                    )
                    tuned.classes("grow")
                    steps = ui.number(
                        t("styles.tune_steps"), value=60, min=1, max=100_000, step=10, precision=0
                    )
                    steps.props("outlined dense")
                    tune = ui.button(t("styles.tune"), icon="model_training")
                    once(tune.props("outline no-caps color=primary"), lambda: self._tune(tuned, steps))

    async def _keep(self, field: ui.input, place: ui.element) -> None:
        with refusals():
            request = checked(KeepRequest, {"name": (field.value or "").strip()})
            await asyncio.to_thread(styles.keep, self.site, self.job, request)
            place.clear()
            with place, ui.element("div").classes("notice"):
                ui.label(self.t("styles.kept", name=request.name)).classes("good")
                ui.link(self.t("styles.use"), "/?" + urlencode({"add": request.name}))

    async def _tune(self, name: ui.input, steps: ui.number) -> None:
        with refusals():
            values = {
                "name": (name.value or "").strip(),
                "steps": int(steps.value or 0),
                "captions": self.captions(),
            }
            run_name = await asyncio.to_thread(styles.tune, self.site, self.job, checked(TuneRequest, values))
            ui.navigate.to(f"/runs/{quote(run_name, safe='')}")

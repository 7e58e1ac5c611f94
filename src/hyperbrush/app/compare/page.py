"""Compare: a grid of pictures of one prompt with up to three settings varied."""

import asyncio
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.compare import service as comparing
from hyperbrush.app.compare.page_grid import GridView
from hyperbrush.app.examples import prompts
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.model import service as base_models
from hyperbrush.app.model.service import BaseModel, fitting_samplers
from hyperbrush.app.networks import service as library
from hyperbrush.app.requests import CompareRequest, checked, limits, sound
from hyperbrush.app.site import Site
from hyperbrush.app.ui.browser import Memory
from hyperbrush.app.ui.frame import PATIENCE, duration, frame, on_news, refusals, title_of
from hyperbrush.app.ui.parts import once
from hyperbrush.errors import UserError
from hyperbrush.generation.axes import NONE
from hyperbrush.generation.tags import split_tags
from hyperbrush.ldm.sampling.names import usual_sampler

KINDS = ("hypernetwork", "strength", "seed", "steps", "cfg", "sampler", "clip_skip", "size", "prompt")
FIRST = {  # values that a new axis begins with
    "strength": "0-1:0.5",
    "seed": "1-4",
    "steps": "10, 20, 30",
    "cfg": "2, 4, 8",
    "clip_skip": "1-2",
}
SAMPLERS = (
    "DPM++ 2M Karras",
    "Euler a",
    "Flow Euler",
    "Flow Heun",
)  # that a new axis begins with, as far as they fit


class AxisField:
    """The fields of one axis; letter: X, Y or Z."""

    def __init__(
        self, t: Messages, letter: str, networks: Sequence[str], own: BaseModel, on_change: Callable[[], Any]
    ) -> None:
        self.t, self.letter, self.on_change = t, letter, on_change
        self.choices = {"hypernetwork": [NONE, *networks], "sampler": fitting_samplers(own)}
        self.side = own.image_size or 512
        with ui.element("fieldset").classes("axis"):
            with ui.element("legend"):
                ui.label(t(f"compare.{letter.lower()}"))
            kinds = {"": t("compare.nothing")} | {kind: t(f"compare.kind_{kind}") for kind in KINDS}
            self.kind = ui.select(kinds, value="", label=t("compare.vary", axis=letter))
            self.kind.props("outlined dense options-dense").on_value_change(self._build)
            self.kind.on_value_change(on_change)
            self._place = ui.element("div")
        self.values: Any = None

    def written(self) -> str:
        """As a `CompareRequest` takes it, "strength=0,0.5,1"; "" for none."""
        if not self.kind.value:
            return ""
        value = self.values.value
        if self.kind.value in FIRST and not isinstance(value, list):
            return f"{self.kind.value}={value or ''}"
        items = value if isinstance(value, list) else [line for line in (value or "").splitlines() if line]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(items)
        return f"{self.kind.value}={line.getvalue()}"

    def fill(self, written: str) -> None:
        """Take what `written` gave."""
        kind, _, rest = written.partition("=")
        if kind not in KINDS:
            return
        self.kind.set_value(kind)
        try:
            items = next(csv.reader([rest], skipinitialspace=True), [])
        except csv.Error:
            return
        if kind in self.choices:
            self.values.set_value([item for item in items if item in self.choices[kind]])
        else:
            self.values.set_value("\n".join(items) if kind in ("prompt", "size") else rest)

    def _build(self) -> None:
        """The field for the chosen kind's values."""
        kind = str(self.kind.value or "")
        self._place.clear()
        self.values = None
        if kind:
            with self._place:
                self.values = self._field(kind)

    def _field(self, kind: str) -> Any:
        t = self.t
        label = t("compare.values", axis=self.letter)
        if kind in self.choices:
            options = self.choices[kind]
            first = [name for name in SAMPLERS if name in options] if kind == "sampler" else options[:3]
            field: Any = ui.select(options, value=first, label=label, multiple=True, on_change=self.on_change)
            field.props("outlined dense options-dense use-chips")
        elif kind in ("prompt", "size"):
            sizes = f"{self.side}x{self.side}\n{self.side}x{self.side * 3 // 2 // 8 * 8}"
            field = ui.textarea(label, value=sizes if kind == "size" else "", on_change=self.on_change)
            field.props("outlined dense autogrow")
        else:
            field = ui.input(label, value=str(FIRST[kind]), on_change=self.on_change)
            field.props("outlined dense")
        field.props["hint"] = t(
            f"compare.hint_{kind if kind in (*self.choices, 'prompt', 'size') else 'numbers'}"
        )
        return field


REST = 0.3  # seconds that the form stands still before it is looked at
NUMBERS = ("steps", "guidance_scale", "seed")
MORE = ("width", "height", "clip_skip")


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/compare", response_timeout=PATIENCE)
    async def page(request: Request, job: str = "") -> None:
        found = site.jobs.find(job, "compare")
        memory, asked = Memory(site, request, "compare-forms"), request.query_params
        if found is None or found.id == memory.job:  # it goes on where this browser left it
            said = _sound({**asked, "axes": asked.getlist("axes")[:3]}) or _sound(memory.form)
        else:
            said = dict(found.arguments)
        with frame(site, request, "compare") as t:
            networks, own = await asyncio.to_thread(_known, site)
            ComparePage(site, t, memory, said, networks, own, found)


class ComparePage:
    """The form, what it would come to, and the grid that is looked at."""

    def __init__(
        self,
        site: Site,
        t: Messages,
        memory: Memory,
        said: dict[str, Any],
        networks: list[str],
        own: BaseModel,
        job: Job | None,
    ) -> None:
        self.site, self.t, self.memory, self.said, self.own = site, t, memory, said, own
        self._trying = ""  # the job that measures the model
        self._number = 0  # of the newest look at the form
        with ui.element("div").classes("two"):
            self._form(networks)
            self.grid = GridView(site, t, self._draw_example)
        for field, written in zip(self.axes, said.get("axes", []), strict=False):
            field.fill(str(written))
        if job is not None:
            self.grid.follow(job.id)
        elif not said.get("axes"):
            kinds = [kind for kind, _ in split_tags(str(said.get("prompt", "")))[1]]
            named = "hypernet" in kinds  # others would come on top of it
            self.axes[0].kind.set_value("strength" if named else "hypernetwork" if networks else "seed")
        on_news(site, lambda: ["networks", f"job:{self._trying}"], self._look, every=0.5)
        if said and job is None:
            ui.navigate.history.replace("/compare")  # or a reload would fill the form anew
        self._remember()
        ui.timer(0.5, self._remember)

    def _form(self, networks: list[str]) -> None:
        t, said = self.t, self.said
        with ui.element("section").classes("card"):
            title_of(2, t("compare.what"))
            self.prompt = ui.textarea(t("compare.prompt"), value=str(said.get("prompt", "")))
            self.negative = ui.textarea(t("compare.negative"), value=str(said.get("negative", "")))
            for text in (self.prompt, self.negative):
                text.props("outlined autogrow spellcheck=false").on_value_change(self._look)
            self.axes = [AxisField(t, letter, networks, self.own, self._look) for letter in "XYZ"]
            sampler = said.get("sampler")
            samplers = fitting_samplers(self.own, also=sampler)
            self.sampler = ui.select(
                samplers,
                value=sampler if sampler in samplers else usual_sampler(self.own.prediction),
                label=t("compare.sampler"),
                on_change=self._look,
            ).props("outlined dense options-dense")
            if sampler and sampler != self.sampler.value:
                told = t("create.other_sampler", was=sampler, now=self.sampler.value)
                ui.label(told).classes("warn small").props("role=status")
            self.numbers: dict[str, ui.number] = {}
            with ui.element("div").classes("axis-numbers"):
                for name in NUMBERS:
                    self._number_field(name)
            with (
                ui.expansion(t("compare.more"), icon="tune").classes("more"),
                ui.element("div").classes("axis-numbers"),
            ):
                for name in MORE:
                    self._number_field(name)
            self.told = ui.label().props('role="status" aria-live="polite"')
            self.far = ui.label().props("role=status").classes("warn")
            draw = ui.button(t("compare.draw"), icon="grid_on").props("unelevated no-caps color=primary")
            once(draw, self._draw)

    def _number_field(self, name: str) -> None:
        value, least, most = limits(CompareRequest, name)
        given = self.said.get(name, value)
        step = {"guidance_scale": 0.5, "width": 8, "height": 8}.get(name, 1)
        field = ui.number(
            self.t(f"compare.{name}"), value=given, min=least, max=most, step=step, on_change=self._look
        )
        field.props("outlined dense")
        if value is None:
            field.props("stack-label").props["placeholder"] = self.t(
                "compare.random" if name == "seed" else "compare.own"
            )
        self.numbers[name] = field

    def _remember(self) -> None:
        with refusals():
            self.memory.keep(self._values(), self.grid.job)

    def _values(self) -> dict[str, Any]:
        """Of the request, as far as they are filled in."""
        numbers = {
            name: (int(v) if float(v).is_integer() else v)
            for name, field in self.numbers.items()
            if (v := field.value) is not None
        }
        return {
            "prompt": self.prompt.value or "",
            "negative": self.negative.value or "",
            "sampler": self.sampler.value,
            "axes": [written for axis in self.axes if (written := axis.written())],
            **numbers,
        }

    def _request(self) -> CompareRequest:
        request: CompareRequest = checked(CompareRequest, self._values())
        return request

    async def _look(self) -> None:
        """Say what the form comes to: pictures and time, or what is missing."""
        t = self.t
        self._number += 1
        number = self._number
        self.told.classes(remove="bad")
        self.far.set_text("")
        if not (self.prompt.value or "").strip():
            self.told.set_text(t("compare.needs_prompt"))
            return
        if not any(axis.written() for axis in self.axes):
            self.told.set_text(t("compare.needs_axis"))
            return
        await asyncio.sleep(REST)  # typing is looked at once it rests
        if number != self._number:
            return
        has_tried = self._has_tried()  # before the look: what it measured is seen then
        try:
            found = await asyncio.to_thread(
                comparing.estimate, self.site.workspace, self.site.device, self._request()
            )
        except UserError as error:
            if number == self._number:
                self.told.set_text(t.said(error))
                self.told.classes("bad")
            return
        if number != self._number:  # the form has changed meanwhile
            return
        far = {base_models.far_size(self.own.image_size, pixels) for _, pixels in found.drawn if pixels} - {
            ""
        }
        self.far.set_text(" ".join(t(f"model.{name}", own=self.own.image_size) for name in sorted(far)))
        self.told.set_text(outlook(t, found.pictures, found.seconds, has_tried=has_tried))
        if found.seconds is None:
            self._try_model()

    def _has_tried(self) -> bool:
        """Whether the job that measures the model has ended."""
        job = self.site.jobs.find(self._trying) if self._trying else None
        return bool(self._trying) and (job is None or not job.is_open)

    def _try_model(self) -> None:
        """Have this model's speed measured, once."""
        if self._trying:
            return
        with refusals():
            self._trying = self.site.submit("try-model", {"model": self.site.workspace.preferences.model}).id

    async def _draw(self) -> None:
        with refusals():
            job = await asyncio.to_thread(comparing.begin, self.site, self._request())
            self.grid.follow(job.id)

    async def _draw_example(self) -> None:
        """A first grid: of whatever stands in the form, and of a prompt that the model knows where there is none."""
        if not (self.prompt.value or "").strip():
            self.prompt.value = prompts(self.site.workspace.preferences.model)[0]
        await self._draw()


def outlook(t: Messages, pictures: int, seconds: float | None, *, has_tried: bool) -> str:
    """What a grid comes to, in words; has_tried: measuring the model has ended, with or without a result."""
    if seconds is not None:
        return t("compare.outlook", pictures=pictures, time=duration(seconds))
    return t("compare.count" if has_tried else "compare.measuring", pictures=pictures)


def _known(site: Site) -> tuple[list[str], BaseModel]:
    """Hypernetworks that fit the model, and what is known of it."""
    names = [entry.name for entry in library.fitting(site.workspace)]
    return names, base_models.preferred(site.workspace)


def _sound(said: Mapping[str, Any]) -> dict[str, Any]:
    return sound(CompareRequest, said, prompt="x", axes=["x"])

"""Create: pictures from a prompt, from a picture, or of a part of one, with previews while they are drawn."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.create import service as drawings
from hyperbrush.app.create.page_first import FirstSteps
from hyperbrush.app.create.page_form import Form, button, drop
from hyperbrush.app.create.page_model import ModelChoice
from hyperbrush.app.create.page_networks import HYPERNET, added, complete, known, written
from hyperbrush.app.create.page_picker import NetworkDialog
from hyperbrush.app.create.page_prompts import PromptDialog
from hyperbrush.app.create.page_results import Earlier, Results
from hyperbrush.app.create.service import Drawn
from hyperbrush.app.examples import prompts, taken
from hyperbrush.app.gallery import service as gallery
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.model.service import BaseModel, found, preferred
from hyperbrush.app.requests import MOST_SEED, DrawRequest, checked
from hyperbrush.app.runs.run import JOB_KINDS
from hyperbrush.app.site import Site
from hyperbrush.app.ui.browser import Memory
from hyperbrush.app.ui.frame import PATIENCE, frame, on_news, refusals, refuse
from hyperbrush.errors import UserError

EARLIER = 24  # pictures of before that are shown
EMPTY = {
    "image": "",
    "mask": "",
    "negative": "",
    "clip_skip": 1,
    "subseed": None,
    "subseed_strength": 0,
    "hires_scale": None,
}  # what a picture that does not name them had


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/", response_timeout=PATIENCE)
    async def page(request: Request) -> None:
        # All that is read comes first: once the frame stands, waiting for anything sends the page as it is, and
        # what is put in afterwards would take the place of what the user is typing already.
        memory, asked = Memory(site, request, "forms"), request.query_params
        first, job = await asyncio.to_thread(_first, site, memory, asked)
        used = await asyncio.to_thread(_used, site, asked)
        own = await asyncio.to_thread(preferred, site.workspace)
        listed = await asyncio.to_thread(found, site.workspace)
        steps = await asyncio.to_thread(taken, site)
        with frame(site, request, "create") as t:
            ui.add_head_html('<script src="/static/create.js"></script>')
            page = _Create(site, t, request, memory, {**first, **used.values}, job, (own, listed))
            page.steps.show(steps)
            page.begin(asked, used)


class _Create:
    """One open page: the form, the job it shows, and what leads from one to the other."""

    def __init__(
        self,
        site: Site,
        t: Messages,
        request: Request,
        memory: Memory,
        first: Mapping[str, Any],
        job: Job | None,
        models: tuple[BaseModel, list[BaseModel]],
    ) -> None:
        self.site, self.t, self.memory = site, t, memory
        own, listed = models
        self.job = job.id if job is not None else ""
        self._earlier_of: Any = None
        with ui.element("div").classes("notice") as self.beside:
            ui.label(t("create.beside_training"))
        self.beside.set_visibility(False)
        with ui.element("div").classes("create studio"):
            with ui.element("div").classes("stack results"):
                self.results = Results(site, t, self.stop, self.use)
                self.results.show(job)
                model = site.workspace.preferences.model
                self.steps = FirstSteps(t, request, model, self.draw_first, self.results.lead)
            with ui.element("div").classes("stack form"):
                ModelChoice(site, t, own, listed, lambda: self._remember())
                self.form = Form(t, self.draw, self.last_seed, first, own)
                drop(t("create.read_settings"), "settings")
            with ui.element("div").classes("stack earlier"):
                self.earlier = Earlier(t, request)
        self._tools()
        ui.on("create_settings", lambda event: self.read(event.args))
        for name in ("create_start", "create_mask"):  # after the form's own handlers
            ui.on(name, self._remember)
        ui.on("create_refused", lambda event: self.refuse(str(event.args)))

    def _tools(self) -> None:
        """What helps to write the prompt."""
        fields = {name: self.form.fields[name] for name in ("prompt", "negative")}
        prompts = PromptDialog(self.site, self.t, fields, self._take)
        picker = NetworkDialog(self.site, self.t, fields["prompt"])
        with self.form.tools:
            button(self.t("create.choose_networks"), "collections", picker.open)
            button(self.t("create.prompts"), "history", prompts.open)

    def _take(self, values: dict[str, str]) -> None:
        self.form.fill(values)
        self._remember()

    def begin(self, asked: Mapping[str, str], used: "_Used") -> None:
        """Follow what the page shows; what its address put into the form is done."""
        name = _network(asked)
        if name and all(tag.name != name for tag in written(str(self.form.values()["prompt"]))):
            self.refuse(self.t("create.unknown_network", name=name[:100]))
        if used.error:
            self.refuse(used.error)
        if used.values:
            self._tell_used(used.values, used.notes)
        if name or asked.get("prompt") or asked.get("picture"):
            ui.navigate.history.replace("/")  # or a reload would do it again
            self._remember()
        if asked.get("job"):
            with refusals():  # it may be gone, see `Jobs.forget`
                self.site.jobs.get(asked["job"])
        complete(self.site)
        on_news(self.site, lambda: [f"job:{self.job}"], self.look, every=0.1)
        on_news(self.site, "jobs", self.look_around, every=0.5)
        ui.timer(0.5, self._remember)

    async def draw(self, changes: dict[str, Any] | None = None) -> None:
        """Ask for what is in the form, or for other values."""
        with refusals():
            values = changes
            if values is None:
                for _ in range(200):  # a stroke of the mask may be on its way here
                    if self.form.start.painting:
                        await asyncio.sleep(0.05)
                values = self.form.values()
            if not str(values.get("prompt", "")).strip():
                raise UserError(self.t("create.no_prompt"))
            request: DrawRequest = checked(DrawRequest, values)
            job = await asyncio.to_thread(drawings.ask, self.site, request)
            self.job = job.id
            ui.navigate.history.replace(f"/?job={job.id}")
            self._remember()
            self.results.show(job)
            ui.run_javascript(f"getHtmlElement({self.results.place.id}).scrollIntoView({{block: 'nearest'}})")

    async def draw_first(self) -> None:
        """Show a new user what the model draws, with whatever prompt stands there already."""
        if not str(self.form.values()["prompt"]).strip():
            prompt = prompts(self.site.workspace.preferences.model)[0]
            self.form.fill({"prompt": prompt, "count": 4})
        await self.draw()

    def stop(self) -> None:
        """End the drawing; what is drawn already stays."""
        with refusals():
            self.results.show(self.site.ask(self.job, "stop"))

    async def use(self, how: str, one: Drawn) -> None:
        """Go on from a picture: the same again with another seed, a variation, or the next one's start."""
        with refusals():
            asked = dict(self.site.jobs.get(one.job).arguments)
            if how == "again":
                another = {"seed": one.said["seed"], "subseed": None}  # of a variation: near the same one
                return await self.draw(asked | (another if asked.get("subseed_strength") else {"seed": None}))
            path = await asyncio.to_thread(drawings.picture_file, self.site, one.job, one.number)
            upload = await asyncio.to_thread(lambda: self.site.uploads.keep(path.read_bytes(), path.name))
            if how == "vary":
                return await self.draw(drawings.varied(asked, one.said, upload))
            size = {"width": one.said["width"], "height": one.said["height"]}
            self.form.fill({"image": upload, "mask": "", **size})
            self._remember()
        return None

    def last_seed(self) -> int | None:
        """Of the picture shown."""
        found = drawings.pictures_of(self.site.jobs.get(self.job)) if self.job else []
        return int(found[-1].said["seed"]) if found else self.form.fields["seed"].value

    def read(self, said: Any) -> None:
        """Settings that create.js had read out of a picture."""
        if isinstance(said, dict) and isinstance(said.get("settings"), dict):
            self.form.fill(EMPTY | said["settings"])
            self._tell_used(said["settings"], said.get("notes", []))

    def _tell_used(self, settings: Mapping[str, Any], notes: list[Any]) -> None:
        ui.notify(self.t("create.settings_read"), type="positive")
        now = self.form.fields["sampler"].value
        was = settings.get("sampler", now)
        for note in [*notes, *[self.t("create.other_sampler", was=was, now=now)] * (was != now)]:
            ui.notify(self.t.said(note), multi_line=True, timeout=10_000, close_button="✕")

    def refuse(self, why: str) -> None:
        """Tell what the server said to create.js."""
        self.form.start.painting = False
        refuse(why)

    async def look(self) -> None:
        """At the job that is shown."""
        job = None
        if self.job:
            try:
                job = await asyncio.to_thread(self.site.jobs.get, self.job)
            except UserError:
                self.job = ""
        self.results.show(job)

    async def look_around(self) -> None:
        """At the other jobs: pictures of before, and whether a training runs."""
        jobs, running = await asyncio.to_thread(
            lambda: (self.site.jobs.all(kinds=("draw",), last=60), self.site.jobs.open())
        )
        training = any(job.state == "running" and job.kind in JOB_KINDS.values() for job in running)
        self.beside.set_visibility(training)
        self.steps.show(await asyncio.to_thread(taken, self.site))
        ended = [job.id for job in jobs if not job.is_open]
        if ended != self._earlier_of:
            self._earlier_of = ended
            self.earlier.show(await asyncio.to_thread(drawings.last_pictures, self.site, EARLIER))

    def _remember(self) -> None:
        with refusals():
            self.memory.keep(self.form.values(), self.job)


def _first(site: Site, memory: Memory, asked: Mapping[str, str]) -> tuple[dict[str, Any], Job | None]:
    """What the form begins with, and the job that is shown: of this browser, else of the address, which adds to it."""
    job = None
    with contextlib.suppress(UserError):
        job = site.jobs.get(asked.get("job") or memory.job)
    values = dict(memory.form or (job.arguments if job is not None else {}))
    for name in ("image", "mask"):
        try:
            if values.get(name):
                site.uploads.path(str(values[name]))
        except UserError:  # removed meanwhile
            values[name] = ""
    if asked.get("prompt"):
        values["prompt"] = asked["prompt"][:20_000]
    if asked.get("seed", "").isdecimal():
        values["seed"] = min(int(asked["seed"][:16]), MOST_SEED)
    wanted = _network(asked)
    for one in known(site) if wanted else []:
        if one["name"] == wanted and one["kind"] == HYPERNET:  # with its trigger words and preferred strength
            values["prompt"] = added(str(values.get("prompt") or ""), wanted, one["words"], one["strength"])
    return values, job


@dataclass(frozen=True)
class _Used:
    """What a picture of the gallery puts into the form; error: why nothing."""

    values: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""


def _used(site: Site, asked: Mapping[str, str]) -> _Used:
    """The picture that the address asks for, all of it, its prompts or its seed."""
    if not asked.get("picture"):
        return _Used()
    use = asked.get("use", "all")
    try:
        said = gallery.settings(site, asked["picture"], use)
    except UserError as error:
        return _Used(error=str(error))
    whole = {} if use in ("prompt", "seed") else EMPTY
    whole = {"negative": ""} if use == "prompt" else whole
    return _Used(whole | said["settings"], said["notes"])


def _network(asked: Mapping[str, str]) -> str:
    """The network that the address asks for; "" for none."""
    return asked.get("network") or asked.get("add") or ""

"""The page "Train": pictures and captions, settings, the plan, the start."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui

from hyperbrush.app import examples
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import TrainRequest, checked
from hyperbrush.app.site import Site
from hyperbrush.app.train import page_pictures as train_pictures
from hyperbrush.app.train import page_settings as train_settings
from hyperbrush.app.train import service as trainings
from hyperbrush.app.train.datasets import EXAMPLE, Datasets
from hyperbrush.app.train.draft import Draft, with_presets
from hyperbrush.app.train.page_other import OtherKinds
from hyperbrush.app.train.service import cloned
from hyperbrush.app.ui.browser import AGE, COOKIE, browser_name, remember
from hyperbrush.app.ui.frame import (
    PATIENCE,
    duration,
    frame,
    in_thread,
    mark,
    on_news,
    refusals,
    refuse,
    title_of,
)
from hyperbrush.errors import UserError

NOTES = 8  # files named for each finding


class Start:
    """The sections that look at the pictures, make the plan, and start the training."""

    def __init__(self, site: Site, t: Messages, draft: Draft) -> None:
        self.site, self.t, self.draft = site, t, draft
        self._checks: list[Callable[[], Any]] = []
        self._section("preflight", "report", "check", "fact_check")
        with self._section("plan", "plan", "make_plan", "calculate"):
            self.problems = ui.element("div").classes("notice bad column").props("role=alert")
            self.problems.set_visibility(False)
            with ui.element("div").classes("bar"):
                self.begin = ui.button(t("train.start"), icon="play_arrow", on_click=self._start)
                self.begin.props("no-caps size=lg")
                ui.label(t("train.start_help")).classes("soft small grow")
        self._recheck = ui.timer(0.5, self._settled, active=False)
        draft.on_change.append(self._changed)

    def _section(self, kind: str, title: str, button: str, icon: str) -> ui.element:
        """A card that asks for a look at the training and shows what came of it; kind: of the look's job."""
        t = self.t
        name = {"preflight": "train-look", "plan": "train-plan"}[kind]
        show = {"preflight": _report, "plan": _plan}[kind]
        with ui.element("section").classes("card").props(f"aria-labelledby={name}") as section:
            with ui.element("div").classes("bar"):
                title_of(2, t(f"train.{title}")).classes("grow").props(f"id={name}")
                ask = ui.button(t(f"train.{button}"), icon=icon, on_click=lambda: self._look(kind))
                ask.props("outline no-caps")
            ui.label(t(f"train.{title}_help")).classes("soft small")
            self._checks.append(_job(self.site, t, self.draft, kind, lambda job: show(t, job.result)))
        return section

    async def _look(self, kind: str) -> None:
        if self._is_overtaken() or await self._wrong(kind):
            return
        with refusals():
            request = checked(TrainRequest, _asked(self.draft, kind))
            job = await in_thread(trainings.look, self.site, kind, request)
            self.draft.keep(**{kind: job.id})

    async def _wrong(self, kind: str = "plan") -> bool:
        """Show all that is wrong; whether anything is."""
        found = await in_thread(_problems, self.site, self.t, _asked(self.draft, kind))
        self.problems.clear()
        with self.problems:
            if found:
                ui.label(self.t("train.mend_first"))
                with ui.element("ul"):
                    for _, problem in found:
                        with ui.element("li"):
                            ui.label(self.t.said(problem))
        mark(self.draft.fields, [key + problem for key, problem in found])
        self.problems.set_visibility(bool(found))
        return bool(found)

    def _is_overtaken(self) -> bool:
        """Whether another tab has changed the draft, which is told then."""
        if is_overtaken := self.draft.is_overtaken:
            refuse(self.t("train.other_tab"))
        return is_overtaken

    async def _start(self) -> None:
        if self._is_overtaken() or await self._wrong():
            return
        self.begin.disable()
        with refusals():
            job = await in_thread(trainings.start, self.site, checked(TrainRequest, self.draft.request))
            self.draft.clear("name")  # the next one needs another
            self.draft.keep(plan="")
            ui.navigate.to(f"/runs/{quote(str(job.arguments['run']), safe='')}")
        self.begin.enable()

    async def _settled(self) -> None:
        self._recheck.deactivate()
        if self.problems.visible:
            await self._wrong()

    def _changed(self) -> None:
        for check in self._checks:
            check()
        self._recheck.activate()


def _asked(draft: Draft, kind: str) -> dict[str, Any]:
    """The request of a look; pictures can be looked at before the training has a name."""
    request = draft.request
    if kind == "preflight" and not request["settings"].get("name"):
        request = {**request, "settings": {**request["settings"], "name": "preflight"}}
    return request


def _problems(site: Site, t: Messages, request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong, with "FIELD: " before it where the text does not begin so."""
    settings = request["settings"]
    missing = [key for key in ("data", "name") if not settings.get(key)]
    found = [(f"{key}: ", t(f"train.problem_{key}")) for key in missing]
    rest = {key: value for key, value in settings.items() if key not in missing}
    if missing == ["name"]:  # what else is wrong is told too
        rest["name"] = secrets.token_hex(8)
    known = {f"setting {key!r} is missing" for key in missing}
    said = trainings.problems(site.workspace, rest, request["presets"])
    return [*found, *(("", text) for text in said if text not in known)]


def _job(site: Site, t: Messages, draft: Draft, kind: str, show: Callable[[Job], None]) -> Callable[[], None]:
    """Follows the draft's job of a kind; returns what looks whether the draft has changed since."""
    place = ui.element("div").classes("train-result").props('aria-live="polite"')
    stale = ui.label(t("train.stale")).classes("warn small")
    stale.set_visibility(False)
    state: dict[str, Any] = {"job": "", "seen": ""}

    def compare() -> None:
        job = site.jobs.find(str(draft.values[kind]))
        stale.set_visibility(
            job is not None and not job.is_open and dict(job.arguments) != _asked(draft, kind)
        )

    def update() -> None:
        job = site.jobs.find(str(draft.values[kind]))
        now = (job.id, job.state, job.asked, str(job.progress)) if job is not None else None
        if now == state["seen"]:
            return
        state["seen"] = now
        place.clear()
        with place:
            if job is None:
                return
            if job.is_open:
                with ui.element("div").classes("bar"):
                    ui.spinner(size="1.4rem").props("aria-hidden=true")
                    said = t("train.waits") if job.state == "queued" else t("train.works")
                    said = t("frame.stopping") if job.stopping else said
                    step, steps = job.progress.get("step"), job.progress.get("steps")
                    ui.label(f"{said} {step}/{steps}" if steps else said)
                    cancel = ui.button(t("train.cancel"), on_click=lambda: _stop(site, job.id))
                    cancel.props("flat no-caps").set_enabled(not job.stopping)
            elif job.state == "failed":
                ui.label(t.said(job.error)).classes("notice bad")
            elif job.state == "done":
                show(job)
        compare()

    def names() -> list[str]:
        job = str(draft.values[kind])
        return ["jobs", f"job:{job}"] if job else ["jobs"]

    on_news(site, names, update)

    def changed() -> None:
        update()
        compare()

    return changed


def _stop(site: Site, job: str) -> None:
    with refusals():
        site.ask(job, "stop")


def _report(t: Messages, report: Mapping[str, Any]) -> None:
    ui.label(t("train.usable", usable=report["usable"], found=report["found"])).classes("strong")
    shapes = ", ".join(f"{s['width']}×{s['height']}: {s['pictures']}" for s in report["shapes"][:12])
    ui.label(t("train.shapes", shapes=shapes)).classes("soft small")
    if not report["findings"]:
        ui.label(t("train.nothing_to_mend")).classes("good")
    for finding in report["findings"]:
        kind, notes = finding["kind"], finding["notes"]
        with ui.element("div").classes(f"finding {finding['severity']}"):
            said = t.get(f"train.finding_{kind}", "")
            summary = said.format(count=len(notes)) if said else t.said(finding["summary"])
            with ui.element("div").classes("bar tight"):
                ui.label(t(f"train.severity_{finding['severity']}")).classes("badge")
                ui.label(summary).classes("strong grow")
            ui.label("→ " + t.get(f"train.advice_{kind}", t.said(finding["advice"])))
            with ui.element("ul").classes("soft small"):
                for note in notes[:NOTES]:
                    names = " = ".join(Path(path).name for path in note["paths"][:4])
                    more = len(note["paths"]) - 4
                    names += f" +{more}" if more > 0 else ""
                    with ui.element("li"):
                        ui.label(": ".join(filter(None, (names, t.said(note["what"])))))
            if len(notes) > NOTES:
                ui.label(t("train.and_more", count=len(notes) - NOTES)).classes("soft small")


def _plan(t: Messages, plan: Mapping[str, Any]) -> None:
    memory = plan["memory"]
    rows = {
        "steps": t(
            "train.plan_steps_of",
            steps=plan["steps"],
            batch=plan["batch_size"],
            epochs=f"{plan['epochs']:.1f}",
        ),
        "time": t("train.plan_about", time=duration(plan["seconds"])),
        "memory": "–" if memory is None else t("train.plan_beside", mib=f"{memory / 2**20:.0f}"),
        "pictures": t("train.plan_held_out", pictures=plan["pictures"], held_out=plan["held_out"]),
        "captions": str(plan["captions"]),
        "parameters": f"{plan['parameters']:,}",
    }
    with ui.element("dl").classes("facts"):
        for name, value in rows.items():
            with ui.element("div"):
                with ui.element("dt"):
                    ui.label(t(f"train.plan_{name}"))
                with ui.element("dd"):
                    ui.label(value)
    for said in plan["advice"]:
        ui.label(t.said(said)).classes("notice")
    with ui.expansion(t("train.report")).classes("more"):
        _report(t, plan["report"])


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/train", response_timeout=PATIENCE)
    async def page(request: Request, clone: str = "", dataset: str = "") -> Response | None:
        browser, is_new = browser_name(request)
        draft, datasets = Draft(site.workspace, browser), Datasets(site.workspace)
        refused = ""
        if clone or dataset:  # once: a reload must not undo what was changed since
            try:
                if clone:
                    settings = cloned(site.workspace, site.runs.get(clone).config)
                    draft.clone(clone, *with_presets(settings))
                else:
                    if dataset == EXAMPLE:
                        await in_thread(datasets.example)
                    datasets.folder(dataset)
                    draft.put("data", [{"path": dataset}])
                    if dataset == EXAMPLE and not draft.get("name"):
                        draft.put("name", await in_thread(examples.free, site))
                answer = RedirectResponse("/train")
                answer.set_cookie(COOKIE, browser, max_age=AGE, samesite="strict")
                return answer
            except UserError as error:
                refused = str(error)
        if is_new:
            remember(browser)
        ui.add_head_html('<script src="/static/train.js" defer></script>')
        with frame(site, request, "train") as t:
            if refused:
                ui.label(t.said(refused)).classes("notice bad").props("role=alert")
            gallery = train_pictures.Pictures(t, draft, datasets)
            train_settings.build(t, draft, datasets, site.workspace)
            Start(site, t, draft)
            OtherKinds(site, t, lambda: gallery.name)
            with refusals():
                await gallery.show()
        return None

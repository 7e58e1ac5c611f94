"""Settings: device and precision, folders, language and theme, the workers, and the doctor."""

import asyncio
import json
import re
import time
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from nicegui import ui

from hyperbrush import __version__
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import NAMES, Messages
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import CHOICE_AGE, PATIENCE, duration, frame, mark, on_news, refusals, title_of
from hyperbrush.app.workspace import FOLDERS
from hyperbrush.errors import UserError
from hyperbrush.translation import LANGUAGES


class Doctor:
    """A button, and what the newest look found; job: another one to show."""

    def __init__(self, site: Site, t: Messages, job: str) -> None:
        self.site, self.t = site, t
        newest = site.jobs.all(kinds=("doctor",), last=1)
        self.job = job or (newest[0].id if newest else "")
        with ui.element("section").classes("card"):
            title_of(2, t("settings.doctor"))
            ui.label(t("settings.doctor_help")).classes("soft")
            with ui.element("div").classes("bar"):
                ui.button(t("settings.doctor_run"), icon="troubleshoot", on_click=self._run).props(
                    "outline no-caps color=primary"
                )
                self.told = ui.label().props('role="status" aria-live="polite"')
            self.place = ui.element("div").classes("stack")
        on_news(site, lambda: [f"job:{self.job}"] if self.job else [], self._show)

    def _run(self) -> None:
        with refusals():
            self.job = self.site.submit("doctor", {}).id
            ui.navigate.history.replace("/settings?" + urlencode({"doctor": self.job}))
            self._show()

    def _show(self) -> None:
        t = self.t
        try:
            job = self.site.jobs.get(self.job)
        except UserError:
            return
        self.told.classes(remove="good bad")
        if job.is_open:
            self.told.set_text(t("settings.doctor_looks"))
        elif job.state == "done" and job.kind == "doctor":
            wrong = int(job.result["wrong"])
            self.told.set_text(
                t("settings.doctor_wrong", count=wrong) if wrong else t("settings.doctor_well")
            )
            self.told.classes("bad" if wrong else "good")
        else:
            self.told.set_text(t.said(job.error) or t("settings.doctor_stopped"))
            self.told.classes("bad")
        self.place.clear()
        if job.state == "done" and job.kind == "doctor":
            with self.place:
                self._report(job)

    def _report(self, job: Job) -> None:
        t = self.t
        address = f"/api/v1/jobs/{job.id}/doctor"
        about = None
        for row in job.result["rows"]:
            if row["about"] != about:
                about = row["about"]
                title_of(3, t.said(about) or t("settings.doctor_machine"))
                facts = ui.element("dl").classes("model-facts")
            with facts:
                with ui.element("dt"):
                    ui.label(t.said(row["what"]))
                with ui.element("dd"):
                    if not row["sound"]:
                        ui.label(t("settings.doctor_bad")).classes("bad")
                    ui.label(t.said(row["found"])).classes("" if row["sound"] else "bad")
        if job.result.get("picture"):
            picture = ui.element("img").classes("drawn doctor-picture")
            picture.props["src"], picture.props["alt"] = f"{address}/picture", t("settings.doctor_alt")
        link = ui.link(t("settings.doctor_page"), f"{address}/page")
        link.props["download"] = "doctor.md"


THEMES = ("auto", "light", "dark")


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/settings", response_timeout=PATIENCE)
    async def page(request: Request, saved: str = "", doctor: str = "") -> None:
        with frame(site, request, "settings") as t:
            if saved:
                with ui.element("div").classes("notice").props('role="status"'):
                    ui.label(t("settings.saved")).classes("good")
            devices = await asyncio.to_thread(choices.devices)
            Form(site, t, request, devices)
            _workers(site, t)
            Doctor(site, t, doctor)
            with ui.element("section").classes("card"):
                title_of(2, t("settings.about"))
                ui.label(t("settings.version", version=__version__))
                ui.label(t("settings.workspace", folder=str(site.workspace.root))).style(
                    "overflow-wrap: anywhere"
                )
                ui.link(t("settings.api"), "/docs")


class Form:
    """Every preference; what was changed here is saved together or not at all, the others stay as they are by then."""

    def __init__(self, site: Site, t: Messages, request: Request, devices: dict[str, str]) -> None:
        self.site, self.t = site, t
        self.now = now = site.workspace.preferences
        self.fields: dict[str, Any] = {}
        self.cookies = {name: request.cookies.get(name, "") for name in ("language", "theme")}
        with ui.element("form").on("submit.prevent", self._save).classes("settings-form"):
            with ui.element("div").classes("stack").style("gap: 1rem"):
                with ui.element("section").classes("card"):
                    title_of(2, t("settings.drawing"))
                    called = {"auto": t("settings.device_auto", device=site.device)} | {
                        name: t("settings.cpu", cores=about) if name == "cpu" else f"{name} ({about})"
                        for name, about in devices.items()
                    }
                    self._select("device", called, now.device)
                    able = {
                        name: t(f"settings.precision_{name}") for name in ("auto", "fp32", "fp16", "bf16")
                    }
                    self._select("precision", able, now.precision)
                    self.fields["device"].on_value_change(self._narrow)
                    ui.timer(0.05, self._narrow, once=True)
                    ui.label(t("settings.model", model=now.model)).classes("soft")
                    ui.link(t("settings.choose_model"), "/model")
                with ui.element("section").classes("card"):
                    title_of(2, t("settings.pages"))
                    languages = {"": t("settings.browser")} | dict(NAMES)
                    self._select("language", languages, now.language)
                    themes = {name: t(f"settings.theme_{name}") for name in THEMES}
                    self._select("theme", themes, now.theme)
                    title_of(3, t("settings.this_browser"))
                    same = {"": t("settings.as_above")}
                    self._select("own_language", same | dict(NAMES), self._own("language", LANGUAGES))
                    self._select("own_theme", same | themes, self._own("theme", THEMES))
            with ui.element("section").classes("card"):
                title_of(2, t("settings.folders"))
                ui.label(t("settings.folders_help", folder=str(site.workspace.root))).classes("soft").style(
                    "overflow-wrap: anywhere"
                )
                for name in FOLDERS:
                    field = ui.input(t(f"settings.{name}"), value=str(getattr(now, name)))
                    self.fields[name] = field.props("outlined dense spellcheck=false maxlength=1000")
            with ui.element("div").classes("bar"):
                ui.button(t("settings.save"), icon="save").props(
                    "unelevated no-caps color=primary type=submit"
                )
                self.wrong = ui.label().classes("bad grow").props('role="alert"')

    def _select(self, name: str, options: dict[str, str], value: str) -> None:
        if value not in options:  # another machine's device, say
            options = {**options, value: self.t("settings.not_here", value=value)}
        field = ui.select(options, value=value, label=self.t(f"settings.{name}"))
        self.fields[name] = field.props("outlined dense options-dense")

    def _own(self, name: str, known: tuple[str, ...]) -> str:
        return self.cookies[name] if self.cookies[name] in known else ""

    async def _narrow(self) -> None:
        """Offer the precisions that the device computes in."""
        with refusals():
            able = await asyncio.to_thread(choices.precisions, str(self.fields["device"].value))
            field = self.fields["precision"]
            options = {name: self.t(f"settings.precision_{name}") for name in able}
            field.set_options(options, value=field.value if field.value in options else "auto")

    async def _save(self) -> None:
        values = {name: str(field.value or "").strip() for name, field in self.fields.items()}
        own = {name: values.pop(f"own_{name}") for name in ("language", "theme")}
        changed = {name: value for name, value in values.items() if value != str(getattr(self.now, name))}
        self.wrong.set_text("")
        with refusals():
            try:
                await asyncio.to_thread(choices.prefer, self.site, changed)
            except UserError as error:
                others = mark(self.fields, re.split(rf"; (?=(?:{'|'.join(self.fields)}): )", str(error)))
                self.wrong.set_text(self.t.said("; ".join(others)))
                return
            mark(self.fields, ())
            texts = [
                f"{name}={value}; path=/; max-age={CHOICE_AGE if value else 0}; samesite=strict"
                for name, value in own.items()
            ]
            told = "".join(f"document.cookie = {json.dumps(text)};" for text in texts)
            ui.run_javascript(told + "location.assign('/settings?saved=1')")


def _workers(site: Site, t: Messages) -> None:
    with ui.element("section").classes("card"):
        title_of(2, t("settings.workers"))
        ui.label(t("settings.workers_help")).classes("soft")
        place = ui.element("div").classes("stack").props('aria-live="polite"')
    asked: set[int] = set()  # processes that were asked to end

    async def restart(worker: dict[str, Any]) -> None:
        with refusals():
            await asyncio.to_thread(choices.restart, site, worker["device"], now=worker["pid"] in asked)
            asked.add(worker["pid"])
            show()

    def show() -> None:
        place.clear()
        with place:
            for worker in choices.workers(site):
                with ui.element("div").classes("bar"):
                    ui.label(str(worker["device"])).classes("badge")
                    if not worker["alive"]:
                        ui.label(t("settings.starting")).classes("warn grow")
                        continue
                    since = duration(time.time() - float(worker["since"] or 0))
                    ui.label(t("settings.alive", pid=worker["pid"], since=since)).classes("good grow")
                    ending = worker["pid"] in asked
                    if ending:
                        ui.label(t("settings.ending")).classes("soft")
                    text = t("settings.end_now" if ending else "settings.restart")
                    button = ui.button(text, icon="restart_alt", on_click=lambda w=worker: restart(w))
                    button.props("outline dense no-caps color=primary")
                    button.props["aria-label"] = f"{text} ({worker['device']})"

    on_news(site, "workers", show)

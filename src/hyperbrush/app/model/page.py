"""Model: the base models there are, what each is, and which is used."""

import asyncio
from urllib.parse import urlencode

from fastapi import Request
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.model import service as base_models
from hyperbrush.app.model.service import BaseModel
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import PATIENCE, frame, on_news, refusals, title_of
from hyperbrush.errors import UserError


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/model", response_timeout=PATIENCE)
    async def page(request: Request, job: str = "") -> None:
        with frame(site, request, "model") as t:
            listed = await asyncio.to_thread(base_models.found, site.workspace)
            ModelPage(site, t, listed, job)


class ModelPage:
    """A card for each model, one of which is in use, and a field for another."""

    def __init__(self, site: Site, t: Messages, listed: list[BaseModel], job: str) -> None:
        self.site, self.t, self.job = site, t, job
        self.used = site.workspace.preferences.model
        ui.label(t("model.help", folder=site.workspace.preferences.models)).classes("soft")
        self.told = ui.element("div").props('role="status" aria-live="polite"').classes("stack")
        self.hashes: dict[str, ui.label] = {}
        with ui.element("div").classes("cards"):
            for model in listed:
                self._card(model)
        with ui.element("section").classes("card"):
            title_of(2, t("model.other"))
            ui.label(t("model.other_help")).classes("soft")
            with ui.element("div").classes("bar"):
                field = ui.input(t("model.source")).props("outlined dense spellcheck=false maxlength=1000")
                field.classes("grow").on("keydown.enter", lambda: self._use(field.value or ""))
                ui.button(t("model.use"), icon="check", on_click=lambda: self._use(field.value or "")).props(
                    "unelevated no-caps color=primary"
                )
        ui.timer(0.1, lambda: self._add_hashes(listed), once=True)
        on_news(site, lambda: [f"job:{self.job}"] if self.job else [], self._show)
        self._show()

    def _card(self, model: BaseModel) -> None:
        t = self.t
        used = model.source == self.used
        with ui.element("article").classes("card"):
            title_of(2, model.name).classes("model-name")
            with ui.element("div").classes("bar"):
                ui.label(t(f"model.form_{model.form}")).classes("badge")
                if used:
                    ui.label(t("model.in_use")).classes("badge good")
            with ui.element("dl").classes("model-facts"):
                _fact(t("model.kind"), self._kind(model))
                if model.image_size:
                    _fact(t("model.pictures"), f"{model.image_size} × {model.image_size}")
                if model.size is not None:
                    _fact(t("model.size"), _bytes(model.size))
                if model.form != "hub" and not model.error:
                    self.hashes[model.source] = _fact(t("model.hash"), t("model.hash_wait"))
                if model.source != model.name:
                    _fact(t("model.where"), model.source)
            if model.form == "hub" and model.size is None:
                ui.label(t("model.not_here")).classes("warn")
            if model.error:
                ui.label(t("model.cannot", why=t.said(model.error))).classes("bad")
            elif not used:
                button = ui.button(t("model.use"), icon="check", on_click=lambda: self._use(model.source))
                button.props("unelevated no-caps color=primary")
                button.props["aria-label"] = t("model.use_this", name=model.name)

    def _kind(self, model: BaseModel) -> str:
        if model.kind == "other":
            return self.t("model.kind_other", width=model.context or "?")
        return self.t(f"model.kind_{model.kind.replace('-', '_') or 'unknown'}")

    async def _use(self, source: str) -> None:
        source = source.strip()
        if not source:
            ui.notify(self.t("model.empty"), type="warning")
            return
        with refusals():
            job = await asyncio.to_thread(choices.use_model, self.site, source)
            ui.navigate.to("/model?" + urlencode({"job": job.id}))

    async def _add_hashes(self, listed: list[BaseModel]) -> None:
        for model in listed:
            if model.source in self.hashes:
                with refusals():
                    text = await asyncio.to_thread(base_models.hash_of, self.site.workspace, model.source)
                    self.hashes[model.source].set_text(text)

    def _show(self) -> None:
        """How the model that was chosen last opens."""
        t = self.t
        try:
            job = self.site.jobs.get(self.job)
        except UserError:
            return
        if job.kind != "try-model":
            return
        name = str(job.arguments.get("model", ""))
        if job.state == "failed":
            text, how = t("model.failed", name=name, why=t.said(job.error)), "bad"
        elif job.state == "done":
            text, how = t("model.opened", name=name, seconds=f"{job.result['seconds']:.2g}"), "good"
        elif job.is_open:
            text, how = t("model.opening", name=name), ""
        else:
            text, how = t("model.stopped", name=name), ""
        if self.used != self.site.workspace.preferences.model:  # its badge stands on another card
            ui.navigate.to("/model?" + urlencode({"job": self.job}))
            return
        self.told.clear()
        with self.told, ui.element("div").classes("notice" + (" bad" if how == "bad" else "")):
            ui.label(text).classes(how)


def _fact(name: str, value: str) -> ui.label:
    with ui.element("dt"):
        ui.label(name)
    with ui.element("dd"):
        return ui.label(value)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

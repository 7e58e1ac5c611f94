"""Styles from pictures: what a style is made from; `styles_result` shows what came of it."""

import asyncio
import json
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app import examples
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.model import service as base_models
from hyperbrush.app.requests import MOST_SEED, StyleRequest, checked, sound
from hyperbrush.app.site import Site
from hyperbrush.app.styles import generators
from hyperbrush.app.styles import service as styles
from hyperbrush.app.styles.generators import Generator
from hyperbrush.app.styles.page_result import StyleResult
from hyperbrush.app.ui.browser import Memory
from hyperbrush.app.ui.empty import lead
from hyperbrush.app.ui.frame import PATIENCE, frame, refusals, title_of
from hyperbrush.app.ui.parts import FileLines, Unseen, drop_zone, once
from hyperbrush.app.uploads import ACCEPT, MOST_BYTES
from hyperbrush.errors import UserError

MOST = 16


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/styles", response_timeout=PATIENCE)
    async def page(request: Request, job: str = "", example: str = "") -> None:
        memory, found = Memory(site, request, "style-forms"), site.jobs.find(job, "style")
        with frame(site, request, "styles") as t:
            listed = await asyncio.to_thread(generators.generators, site.workspace)
            if any(one.fits for one in listed):
                page = StylesPage(site, t, memory, [one for one in listed if one.fits], found)
                if example and found is None:
                    await page.take_example()
            else:
                _how_to_get_one(site, t, listed)


class StylesPage:
    """The form, and under it the style that is looked at."""

    def __init__(
        self, site: Site, t: Messages, memory: Memory, listed: list[Generator], job: Job | None
    ) -> None:
        self.site, self.t, self.memory = site, t, memory
        self.known = base_models.known_words(site.workspace)
        if job is None or job.id == memory.job:  # it goes on where this browser left it
            said = sound(StyleRequest, memory.form)
        else:
            said = dict(job.arguments)
        captions = list(said.get("captions", []))
        self.pictures: dict[str, str] = {  # caption by the upload's id
            str(image): str(captions[i]) if i < len(captions) else ""
            for i, image in enumerate(said.get("images", []))
            if _is_there(site, image)
        }
        with ui.element("div").classes("two"):
            self._form(said, listed)
            self.result = StyleResult(site, t, self.captions, self.take_example)
        self._show_pictures()
        if job is not None:
            self.result.follow(job.id)
        ui.timer(0.5, self._remember)

    def _remember(self) -> None:
        with refusals():
            self.memory.keep(self._values(), self.result.job)

    async def take_example(self) -> None:
        """Three pictures of the bundled style."""
        with refusals():
            self.pictures |= await asyncio.to_thread(examples.uploads, self.site)
            self._show_pictures()
            ui.navigate.history.replace("/styles")  # or a reload would do it again

    def captions(self) -> list[str]:
        """What is on each picture, in order."""
        return list(self.pictures.values())

    def _form(self, said: dict[str, Any], listed: list[Generator]) -> None:
        t = self.t
        with ui.element("section").classes("card"):
            title_of(2, t("styles.from"))
            drop_zone(
                t("styles.drop"),
                "/api/v1/uploads",
                self._uploaded,
                key="file",
                accept=ACCEPT,
                most=MOST_BYTES,
                too_large=t("styles.too_large"),
                multiple=True,
            )
            self.refused = FileLines()
            self.place = ui.element("div").classes("style-pictures")
            self.text = ui.textarea(t("styles.text"), value=str(said.get("text", "")))
            self.text.props("outlined autogrow maxlength=2000").props["hint"] = t("styles.text_hint")
            self.text.set_visibility(any(one.words for one in listed))
            with ui.expansion(t("styles.more"), icon="tune").classes("more"):
                shown = said.get("prompts") or examples.prompts(self.site.workspace.preferences.model)
                self.prompts = ui.textarea(t("styles.prompts"), value="\n".join(shown))
                self.prompts.props("outlined autogrow").props["hint"] = t("styles.prompts_hint")
                with ui.element("div").classes("bar"):
                    self.steps = _whole(t("styles.steps"), said.get("steps", 15), 1, 200)
                    self.seed = _whole(t("styles.seed"), said.get("seed", 0), 0, MOST_SEED)
                names = [one.name for one in listed]
                chosen = said.get("generator") if said.get("generator") in names else names[0]
                self.generator = ui.select(names, value=chosen, label=t("styles.generator"))
                self.generator.props("outlined options-dense").set_visibility(len(names) > 1)
            self.unseen = Unseen(t)
            for field in (self.text, self.prompts):
                field.on_value_change(self._look_at_words)
            self._look_at_words()
            generate = ui.button(t("styles.generate"), icon="auto_awesome")
            once(generate.props("unelevated no-caps color=primary"), self._generate)

    def _look_at_words(self) -> None:
        self.unseen.show(self.known, [str(field.value or "") for field in (self.text, self.prompts)])

    def _uploaded(self, said: dict[str, Any]) -> None:
        self.refused.hear(said)
        if said.get("begins"):
            return
        try:
            upload = str(json.loads(str(said.get("detail")))["id"])
            self.site.uploads.path(upload)
        except (ValueError, TypeError, KeyError):
            self.refused.end(f"{said.get('name', '')!s:.200}: {said.get('detail')!s:.500}", failed=True)
            return
        if len(self.pictures) >= MOST:
            too_many = self.t("styles.too_many", most=MOST)
            self.refused.end(f"{said.get('name', '')!s:.200}: {too_many}", failed=True)
            return
        stem = str(said.get("name", "")).rsplit(".", 1)[0]
        self.pictures[upload] = " ".join(
            stem.replace("_", " ").replace("-", " ").strip("0123456789 .").split()
        )[:200]
        self._show_pictures()

    def _show_pictures(self) -> None:
        t = self.t
        self.place.clear()
        self.result.example.set_visibility(not self.pictures and not self.result.job)

        def remove(upload: str) -> None:
            self.pictures.pop(upload, None)
            self._show_pictures()

        with self.place:
            for number, (upload, caption) in enumerate(self.pictures.items(), 1):
                with ui.element("div").classes("style-picture"):
                    picture = ui.element("img")
                    picture.props["src"] = f"/api/v1/uploads/{upload}"
                    picture.props["alt"] = t("styles.picture", number=number)
                    field = ui.input(
                        t("styles.caption", number=number),
                        value=caption,
                        on_change=lambda e, u=upload: self.pictures.update({u: str(e.value or "")}),
                    )
                    field.props("outlined dense maxlength=200").classes("grow")
                    button = ui.button(icon="close", on_click=lambda u=upload: remove(u))
                    button.props("flat round dense color=primary")
                    button.props["aria-label"] = t("styles.remove", number=number)

    def _values(self) -> dict[str, Any]:
        """Of the request."""
        return {
            "images": list(self.pictures),
            "captions": self.captions(),
            "text": self.text.value or "",
            "prompts": [line.strip() for line in (self.prompts.value or "").splitlines() if line.strip()],
            "steps": _number(self.steps),
            "seed": _number(self.seed),
            "generator": self.generator.value,
        }

    async def _generate(self) -> None:
        with refusals():
            request = checked(StyleRequest, self._values())
            job = await asyncio.to_thread(styles.begin, self.site, request)
            self.result.follow(job.id)


def _is_there(site: Site, upload: str) -> bool:
    try:
        site.uploads.path(upload)
    except UserError:  # removed meanwhile
        return False
    return True


def _whole(label: str, value: Any, least: int, most: int) -> ui.number:
    field = ui.number(label, value=value, min=least, max=most, step=1, precision=0)
    return field.props("outlined dense").classes("grow")


def _number(field: ui.number) -> int | None:
    return None if field.value is None else int(field.value)


def _how_to_get_one(site: Site, t: Messages, listed: list[Generator]) -> None:
    preferences = site.workspace.preferences
    with ui.element("section").classes("card"):
        title_of(2, t("styles.none", model=preferences.model))
        ui.label(t("styles.none_why"))
        with ui.element("ul"):
            with ui.element("li"):
                ui.label(t("styles.put", folder=preferences.generators))
            with ui.element("li"):
                ui.label(t("styles.train"))
                ui.label(
                    f"hyperbrush hyper train --data world --name maker --model {preferences.model}"
                ).classes("mono")
        lead(t("styles.other_model"), "memory", "/model").style("align-self: start")
        for one in listed:
            ui.label(
                f"{one.name}: {t.said(one.error) or t('styles.other', model=preferences.model)}"
            ).classes("warn")

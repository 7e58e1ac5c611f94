"""A hypernetwork's card: what it is, and what people write beside it, edited in place."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.service import Card
from hyperbrush.app.requests import STRONGEST
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import in_thread, refusals, size_text, title_of

NOTES = ("activation_text", "preferred_weight", "notes")


@dataclass(frozen=True)
class Actions:
    """What a card's buttons do; each is given the card."""

    inspect: Callable[[Card], Any]
    export: Callable[[Card], Any]
    rename: Callable[[Card], Any]
    preview: Callable[[Card], Any]
    delete: Callable[[Card], Any]
    choose: Callable[[Card, bool], Any]


class Field:
    """An input whose text is saved as it is typed; Escape takes back what was typed since it got the focus.

    save: is given the new value.
    """

    def __init__(self, element: Any, save: Callable[[Any], Any]) -> None:
        self.element, self._save = element, save
        self._kept = self._before = element.value
        self._focused = False
        element.props("debounce=400")
        element.on("focus", self._begin).on("blur", self._end).on("keydown.escape", self._undo)
        element.on_value_change(self._changed)

    def show(self, value: Any) -> None:
        """What stands on the disk now, unless the user is just writing."""
        if not self._focused and value != self.element.value:
            self._kept = value
            self.element.set_value(value)

    def _begin(self) -> None:
        self._focused, self._before = True, self._kept

    def _end(self) -> None:
        self._focused = False

    def _undo(self) -> None:
        self.element.set_value(self._before)

    async def _changed(self) -> None:
        value = self.element.value
        if value != self._kept:
            self._kept = value
            await self._save(value)


class NetworkCard:
    """A card on the page, kept in step with its file."""

    def __init__(self, site: Site, t: Messages, card: Card, actions: Actions) -> None:
        self.site, self.t, self.card = site, t, card
        name = card.entry.name
        with ui.element("article").classes("card network") as self.element:
            with ui.link(target=f"/?add={quote(name, safe='')}") as link:
                link.props["aria-label"] = t("networks.use", name=name)
                self.picture = ui.element("div").classes("preview")
                title_of(2, name)
            self.badges = ui.element("div").classes("bar")
            self.trouble = ui.label().classes("trouble").props("role=note")
            self.about = ui.label().classes("soft")
            notes = card.entry.notes
            with ui.element("div").classes("bar start"):
                words = ui.input(t("networks.words"), value=notes.activation_text).classes("grow")
                weight = ui.number(
                    t("networks.strength"),
                    value=notes.preferred_weight,
                    min=-STRONGEST,
                    max=STRONGEST,
                    step=0.05,
                ).classes("strength")
            text = ui.textarea(t("networks.notes"), value=notes.notes).props("autogrow")
            self._buttons(name, actions)
        self.fields = {
            key: Field(element.props("dense outlined"), self._saver(key))
            for key, element in zip(NOTES, (words, weight, text), strict=True)
        }
        self._fill()

    def show(self, card: Card) -> None:
        """The file or what is beside it may have changed."""
        if card != self.card:
            self.card = card
            self._fill()

    def _buttons(self, name: str, actions: Actions) -> None:
        t = self.t
        with ui.element("div").classes("bar actions"):
            box = ui.checkbox(on_change=lambda e: actions.choose(self.card, bool(e.value))).props("dense")
            box.props["aria-label"] = t("networks.choose", name=name)
            with box:
                ui.tooltip(t("networks.choose", name=name))
            self.saved = ui.label().classes("soft saved grow").props("role=status")
            self.looks: list[ui.button] = [
                ui.button(t("networks.inspect"), on_click=lambda: actions.inspect(self.card)),
                ui.button(t("networks.export"), on_click=lambda: actions.export(self.card)),
            ]
            for look in self.looks:
                look.props("flat dense no-caps")
            with ui.button(icon="more_vert").props("flat round dense") as more:
                more.props["aria-label"] = t("networks.more", name=name)
                with ui.menu():
                    ui.menu_item(t("networks.rename"), lambda: actions.rename(self.card))
                    ui.menu_item(t("networks.set_preview"), lambda: actions.preview(self.card))
                    ui.menu_item(t("networks.download"), self._download)
                    ui.menu_item(t("networks.delete"), lambda: actions.delete(self.card))
        self.box = box

    def _download(self) -> None:
        ui.download.from_url(f"/api/v1/hypernetworks/{self.card.id}/file")

    def _saver(self, key: str) -> Callable[[Any], Any]:
        async def save(value: Any) -> None:
            self.saved.set_text("")
            with refusals():
                if key != "preferred_weight":
                    value = value or ""
                await in_thread(networks.annotate, self.site, self.card.id, {key: value})
                self.saved.set_text(self.t("networks.saved"))

        return save

    def _fill(self) -> None:
        card, t = self.card, self.t
        entry, summary = card.entry, card.entry.summary
        self.picture.clear()
        with self.picture:
            if card.preview:
                picture = ui.element("img").props("loading=lazy")
                picture.props["src"] = f"/api/v1/hypernetworks/{card.id}/preview?{card.preview}"
                picture.props["alt"] = t("networks.preview_of", name=entry.name)
            else:
                ui.label(entry.name[:1].upper()).props('aria-hidden="true"')
        facts = [size_text(entry.size), time.strftime("%Y-%m-%d", time.localtime(card.changed))]
        if summary is not None:
            facts = [t(f"networks.kind_{summary.kind.partition(' ')[0]}"), *map(str, summary.widths), *facts]
            if summary.sites:
                facts.insert(1, t("networks.sites", count=summary.sites))
            if summary.step:
                facts.append(t("networks.step", count=summary.step))
            if summary.trained_for:
                facts.append(t("networks.trained_for", model=summary.trained_for))
        self.badges.clear()
        with self.badges:
            for tag in entry.notes.tags:
                ui.label(tag).classes("badge tag")
            for fact in facts:
                ui.label(fact).classes("badge")
            if card.fits is False and summary is not None:
                widths = ", ".join(map(str, summary.widths))
                text = t("networks.not_fit", model=self.site.workspace.preferences.model, widths=widths)
                ui.label(text).classes("badge warn")
        reason = (entry.error or entry.warning or "").replace(str(entry.path.parent) + os.sep, "")
        self.trouble.set_text(t("networks.broken", reason=t.said(reason)) if entry.error else t.said(reason))
        self.trouble.classes("bad" if entry.error else "warn", remove="warn" if entry.error else "bad")
        self.trouble.set_visibility(bool(self.trouble.text))
        self.about.set_text(entry.notes.description)
        self.about.set_visibility(bool(entry.notes.description))
        for button in self.looks:
            button.set_enabled(entry.error is None)
        self.box.set_enabled(entry.error is None)
        for key, field in self.fields.items():
            field.show(getattr(entry.notes, key))

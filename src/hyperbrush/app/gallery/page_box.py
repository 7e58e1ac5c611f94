"""A picture alone, as large as the window, the arrow keys leading to the next one; and two side by side."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from hyperbrush.app.gallery import service as gallery
from hyperbrush.app.gallery.index import Query, Shown
from hyperbrush.app.gallery.page_tile import show_star, star_button
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import in_thread, refusals, title_of
from hyperbrush.app.ui.parts import copy_button, icon_button


@dataclass(frozen=True)
class BoxActions:
    """What the large view does with its picture."""

    star: Callable[[Shown], Awaitable[None]]
    delete: Callable[[Shown], Awaitable[None]]


class Lightbox:
    """One picture large, with what it was drawn with.

    query: what is looked through.
    """

    def __init__(self, site: Site, t: Messages, query: Callable[[], Query], actions: BoxActions) -> None:
        self.site, self.t, self._query, self._actions = site, t, query, actions
        self.one: Shown | None = None
        with ui.dialog().props("maximized") as self.dialog, ui.element("div").classes("box"):
            self.dialog.props["aria-label"] = t("gallery.large")
            with ui.element("div").classes("bar"):
                self._back = self._button("chevron_left", "before", lambda: self._go(-1))
                self._on = self._button("chevron_right", "next", lambda: self._go(1))
                self._where = ui.label().classes("soft").props("role=status")
                ui.space()
                self._star = star_button(t, lambda: self._do(actions.star))
                self._button("delete", "delete", lambda: self._do(actions.delete))
                self._button("close", "close", self.dialog.close)
            self.undo = ui.element("div").props("role=status").style("display: contents")
            with ui.element("div").classes("box-field"):
                with ui.element("div").classes("fit"):
                    self._picture = ui.element("img")
                self._side = ui.element("div").classes("box-side").props("tabindex=0 role=region")
                self._side.props["aria-label"] = t("gallery.about")
        self.dialog.on("keydown", self._key, args=["key"])

    async def open(self, one: Shown) -> None:
        """Show a picture."""
        await self._show(one)
        self.dialog.open()

    def starred(self, one: Shown) -> None:
        """Its star has changed."""
        if self.one is not None and self.one.id == one.id:
            self.one = one
            show_star(self.t, self._star, one)

    async def leave(self) -> None:
        """Its picture was deleted: on to the next, or the one before."""
        one = self.one
        for step in (1, -1):
            if one is not None:
                _, other = await in_thread(self.site.gallery.beside, self._query(), one, step)
                if other is not None:
                    return await self._show(other)
        self.dialog.close()
        return None

    async def _do(self, do: Callable[[Shown], Awaitable[None]]) -> None:
        if self.one is not None:
            await do(self.one)

    async def _go(self, step: int) -> None:
        with refusals():
            if self.one is not None:
                _, other = await in_thread(self.site.gallery.beside, self._query(), self.one, step)
                if other is not None:
                    await self._show(other)

    async def _key(self, event: Any) -> None:
        key = event.args.get("key") if isinstance(event.args, dict) else None
        if key in ("ArrowLeft", "ArrowRight"):
            await self._go(1 if key == "ArrowRight" else -1)
        elif key == "Delete":
            await self._do(self._actions.delete)

    async def _show(self, one: Shown) -> None:
        query = self._query()
        with refusals():
            at, before = await in_thread(self.site.gallery.beside, query, one, -1)
            _, after = await in_thread(self.site.gallery.beside, query, one, 1)
            count, _ = await in_thread(self.site.gallery.find, query, 0, 0)
            self.one = one
            self._back.set_enabled(before is not None)
            self._on.set_enabled(after is not None)
            self._where.set_text(self.t("gallery.of", number=at + 1, count=count))
            self._picture.props["src"] = one.address
            self._picture.props["alt"] = one.prompt[:300] or self.t("gallery.no_settings")
            self._picture.update()
            show_star(self.t, self._star, one)
            self._side.clear()
            with self._side:
                About(self.t, one)

    def _button(self, icon: str, name: str, do: Any) -> ui.button:
        return icon_button(icon, self.t(f"gallery.{name}"), do)


class About:
    """What a picture was drawn with, and where it leads to."""

    def __init__(self, t: Messages, one: Shown) -> None:
        self.t, self.one = t, one
        title_of(2, one.name)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed / 1e9))
        kind = "" if one.kind == "drawing" else f" · {t(f'gallery.kind_{one.kind}')}"
        ui.label(f"{when} · {one.width}×{one.height}{kind}").classes("soft small")
        if one.prompt:
            ui.label(one.prompt).classes("box-prompt")
        if one.parameters and one.kind != "grid":
            ui.label(t("gallery.use")).classes("strong")
            with ui.element("div").classes("bar"):
                for use in gallery.USES:
                    self._link(f"use_{use}", f"/?picture={one.id}&use={use}")
        with ui.element("div").classes("bar"):
            if one.kind == "grid":
                self._link("open_compare", f"/compare?job={one.job}")
            elif one.kind == "style":
                self._link("open_style", f"/styles?job={one.job}")
            self._link("download", one.address).props["download"] = one.name
        if one.parameters:
            with ui.expansion(t("gallery.settings"), icon="notes", value=True).classes("more"):
                ui.label(one.parameters).classes("mono")
                copy_button(t, one.parameters)
        else:
            ui.label(t("gallery.no_settings")).classes("soft")

    def _link(self, name: str, target: str) -> ui.button:
        made = ui.button(self.t(f"gallery.{name}"), color=None).props("outline dense no-caps tag=a")
        made.props["href"], made.props["padding"] = target, "xs sm"
        return made.classes("quiet")


def side_by_side(t: Messages, one: Shown, other: Shown) -> None:
    """Two pictures beside each other, and what they were not drawn alike with."""
    with ui.dialog().props("maximized") as dialog, ui.element("div").classes("box"):
        dialog.props["aria-label"] = t("gallery.two")
        with ui.element("div").classes("bar"):
            title_of(2, t("gallery.two"))
            ui.space()
            icon_button("close", t("gallery.close"), dialog.close)
        with ui.element("div").classes("box-two"):
            for shown in (one, other):
                with ui.element("figure"):
                    with ui.element("div").classes("fit"):
                        picture = ui.element("img")
                        picture.props["src"] = shown.address
                        picture.props["alt"] = shown.prompt[:300] or t("gallery.no_settings")
                    with ui.element("figcaption").classes("soft small"):
                        ui.label(shown.name)
        with ui.element("div").classes("box-table").props("tabindex=0 role=region") as place:
            place.props["aria-label"] = t("gallery.differ")
            found = gallery.differences(one, other)
            ui.label(t("gallery.differ") if found else t("gallery.alike")).classes("strong")
            if found:
                _table(t, found, (one.name, other.name))
    dialog.on("hide", dialog.delete)
    dialog.open()


FACTS = {  # messages of what pictures say in English; others stay as they say them
    "Prompt": "create.prompt",
    "Negative prompt": "create.negative",
    "Sampler": "create.sampler",
    "Steps": "create.steps",
    "CFG scale": "create.guidance_scale",
    "Seed": "create.seed",
    "Size": "compare.kind_size",
    "Model": "create.model",
    "Clip skip": "create.clip_skip",
}


def _table(t: Messages, rows: list[tuple[str, str, str]], names: tuple[str, str]) -> None:
    with ui.element("table"):
        with ui.element("thead"), ui.element("tr"):
            for text in ("", *names):
                with ui.element("th" if text else "td"):
                    ui.label(text)
        with ui.element("tbody"):
            for name, first, second in rows:
                with ui.element("tr"):
                    with ui.element("th").props("scope=row"):
                        ui.label(t.get(FACTS.get(name, ""), name))
                    for text in (first, second):
                        with ui.element("td"):
                            ui.label(text or "–")

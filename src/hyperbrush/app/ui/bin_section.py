"""The bin of a page: what was deleted, back again or gone for good; and the last deletion undone."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.dialogs import sure
from hyperbrush.app.ui.frame import in_thread, on_news, refusals, size_text
from hyperbrush.trash import TrashItem

FEW = 3  # things that are named
MOST = 100  # that are listed


class BinSection:
    """The list at the end of a page, and a line at its top that undoes the last deletion.

    Args:
        undo_place: where that line goes; also: and once more, in a dialog over it.
        news: what is told of when the bin may have changed.
        items: what is in it, read in a thread, as the others are called in one.
        restore: puts the thing of an id back and returns the name it has now.
        remove: removes it for good.
    """

    def __init__(
        self,
        site: Site,
        t: Messages,
        undo_place: ui.element,
        news: str,
        *,
        items: Callable[[], Sequence[TrashItem]],
        restore: Callable[[str], str],
        remove: Callable[[str], Any],
        also: ui.element | None = None,
    ) -> None:
        self.t, self._undo_places = t, [undo_place] if also is None else [undo_place, also]
        self._items, self._put_back, self._remove = items, restore, remove
        with ui.expansion(icon="delete").classes("card network-bin") as self.section:
            ui.button(t("bin.empty"), icon="delete_forever", on_click=self._empty).props("flat dense no-caps")
            self.list = ui.element("ul").classes("network-plain")
        self.section.set_visibility(False)
        self._shown: list[TrashItem] = []
        on_news(site, news, self._show, every=0.5)

    def deleted(self, *items: TrashItem) -> None:
        """Offer to undo it."""
        text = self.t("bin.deleted", name=", ".join(item.name for item in items[:FEW]))
        if len(items) > FEW:
            text = self.t("bin.deleted_many", count=len(items))
        for place in self._undo_places:
            place.clear()
            with place, ui.element("div").classes("notice"):
                ui.label(text).classes("grow")
                ui.button(self.t("bin.undo"), on_click=lambda: self._restore(*items)).props("flat no-caps")

    async def offer(self, item: str) -> None:
        """Offer to undo the deletion of what has an id, as long as it is in the bin."""
        for found in await in_thread(self._items):
            if found.id == item:
                self.deleted(found)

    async def _restore(self, *items: TrashItem) -> None:
        with refusals():
            names = [await in_thread(self._put_back, item.id) for item in items]
            for place in self._undo_places:
                place.clear()
            text = self.t("bin.restored", name=", ".join(names))
            ui.notify(
                self.t("bin.restored_many", count=len(names)) if len(names) > FEW else text, type="positive"
            )

    async def _show(self) -> None:
        items = list(await in_thread(self._items))
        if items == self._shown:
            return
        self._shown = items
        self.section.set_text(self.t("bin.title", count=len(items)))
        self.section.set_visibility(bool(items))
        self.list.clear()
        with self.list:
            for item in items[:MOST]:
                self._row(item)
            if len(items) > MOST:
                ui.label(self.t("bin.more", count=len(items) - MOST)).classes("soft")

    def _row(self, item: TrashItem) -> None:
        t = self.t
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.deleted))
        with ui.element("li").classes("bar"):
            ui.label(item.name).classes("grow")
            ui.label(f"{when} · {size_text(item.size)}").classes("soft")
            for text, do in ((t("bin.restore"), self._restore), (t("bin.remove"), self._ask)):
                button = ui.button(text, on_click=lambda do=do: do(item)).props("flat dense no-caps")
                button.props["aria-label"] = f"{text}: {item.name}"

    async def _ask(self, item: TrashItem) -> None:
        t = self.t
        if await sure(t("bin.remove_sure", name=item.name), "", t("bin.remove"), t("bin.cancel")):
            with refusals():
                await in_thread(self._remove, item.id)

    async def _empty(self) -> None:
        """Remove for good what was there when it was asked."""
        t, items = self.t, self._shown
        text = t("bin.empty_sure", count=len(items))
        if await sure(text, "", t("bin.empty"), t("bin.cancel")):
            for item in items:
                with refusals():
                    await in_thread(self._remove, item.id)

"""The bin of a page: what was deleted, back again or gone for good; and the last deletion undone."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import in_thread, on_news, refusals, size_text, title_of
from hyperbrush.trash import TrashItem


class BinSection:
    """The list at the end of a page, and a line at its top that undoes the last deletion.

    Args:
        undo_place: where that line goes.
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
    ) -> None:
        self.t, self.undo_place = t, undo_place
        self._items, self._put_back, self._remove = items, restore, remove
        with ui.expansion(icon="delete").classes("card network-bin") as self.section:
            self.list = ui.element("ul").classes("network-plain")
        self.section.set_visibility(False)
        self._shown: list[TrashItem] | None = None
        on_news(site, news, self._show, every=0.5)

    def deleted(self, item: TrashItem) -> None:
        """Offer to undo it."""
        self.undo_place.clear()
        with self.undo_place, ui.element("div").classes("notice"):
            ui.label(self.t("bin.deleted", name=item.name)).classes("grow")
            ui.button(self.t("bin.undo"), on_click=lambda: self._restore(item)).props("flat no-caps")

    async def offer(self, item: str) -> None:
        """Offer to undo the deletion of what has an id, as long as it is in the bin."""
        for found in await in_thread(self._items):
            if found.id == item:
                self.deleted(found)

    async def _restore(self, item: TrashItem) -> None:
        with refusals():
            name = await in_thread(self._put_back, item.id)
            self.undo_place.clear()
            ui.notify(self.t("bin.restored", name=name), type="positive")

    async def _show(self) -> None:
        items = list(await in_thread(self._items))
        if items == self._shown:
            return
        self._shown = items
        self.section.set_text(self.t("bin.title", count=len(items)))
        self.section.set_visibility(bool(items))
        self.list.clear()
        with self.list:
            for item in items:
                self._row(item)

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
        question = t("bin.remove_sure", name=item.name)
        with ui.dialog() as dialog, ui.element("div").classes("card network-dialog"):
            dialog.props["aria-label"] = question
            title_of(2, question)
            with ui.element("div").classes("bar"):
                ui.button(t("bin.remove"), on_click=lambda: dialog.submit(True)).props("no-caps")
                ui.button(t("bin.cancel"), on_click=lambda: dialog.submit(False)).props("flat no-caps")
        sure = await dialog
        dialog.delete()
        if sure:
            with refusals():
                await in_thread(self._remove, item.id)

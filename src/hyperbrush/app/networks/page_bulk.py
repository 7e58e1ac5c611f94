"""What is done with several hypernetworks at once: merged, moved, tagged, exported, put into the bin."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import bulk
from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.page_dialogs import Exports, ask_export, ask_merge
from hyperbrush.app.networks.service import Card
from hyperbrush.app.site import Site
from hyperbrush.app.ui.choice import Choice
from hyperbrush.app.ui.dialogs import asking
from hyperbrush.app.ui.frame import in_thread, refusals

NAMED = 4  # of those chosen


class Bulk:
    """The bar over the cards.

    box_of: the box of a card; reread: shows the files as they are now; on_delete: is given what went into the bin.
    """

    def __init__(
        self,
        site: Site,
        t: Messages,
        box_of: Callable[[str], Any],
        exports: Exports,
        reread: Callable[[], Awaitable[None]],
    ) -> None:
        self.site, self.t, self.exports, self.reread = site, t, exports, reread
        self.on_delete: Callable[..., Any] = lambda *_: None
        self.choice: Choice[Card] = Choice(box_of, self._said, t("networks.choose_none"))
        with self.choice.buttons:
            self.merge = ui.button(t("networks.merge_chosen"), icon="merge", on_click=self._merge)
            for label, icon, do in (
                (t("networks.move"), "drive_file_move", self._move),
                (t("networks.tag"), "sell", self._tag),
                (t("networks.export_chosen"), "ios_share", self._export),
                (t("networks.delete"), "delete", self._delete),
            ):
                ui.button(label, icon=icon, on_click=do).props("flat no-caps")
            self.merge.props("flat no-caps")

    @property
    def cards(self) -> list[Card]:
        """Those chosen."""
        return list(self.choice.ones.values())

    def _said(self) -> str:
        cards = self.cards
        self.merge.set_enabled(len(cards) > 1)
        names = ", ".join(card.entry.name for card in cards[:NAMED]) + (" …" if len(cards) > NAMED else "")
        return self.t("networks.chosen", count=len(cards), names=names)

    def _merge(self) -> None:
        ask_merge(self.site, self.t, self.cards, self.choice.clear)

    def _export(self) -> None:
        ask_export(self.site, self.t, self.cards, self.exports)

    async def _delete(self) -> None:
        items: list[Any] = []
        with refusals():
            for card in self.cards:
                items.append(await in_thread(networks.delete, self.site, card.id))
                self.choice.drop(card.id)
        if items:
            self.on_delete(*items)

    async def _move(self) -> None:
        t, ids = self.t, list(self.choice.ones)
        folders = await in_thread(bulk.folders, self.site.workspace)

        async def move() -> None:
            with refusals():
                await in_thread(bulk.move, self.site, ids, str(folder.value or ""))
                self.choice.clear()
                await self.reread()  # moved ones are other cards: nobody is to choose the old ones
                dialog.close()

        with asking(t("networks.move_title"), t("networks.cancel")) as (dialog, buttons):
            folder = ui.input(t("networks.folder"), autocomplete=folders).props("outlined dense autofocus")
            folder.on("keydown.enter", move)
            ui.label(t("networks.move_help")).classes("soft")
            with buttons:
                ui.button(t("networks.move"), on_click=move).props("no-caps")

    async def _tag(self) -> None:
        t, ids = self.t, list(self.choice.ones)
        every = sorted({tag for card in self.cards for tag in card.entry.notes.tags})

        async def tag() -> None:
            with refusals():
                wanted = [text for part in str(add.value or "").split(",") if (text := part.strip())]
                await in_thread(bulk.tag, self.site, ids, wanted, list(remove.value or []))
                dialog.close()

        with asking(t("networks.tag_title"), t("networks.cancel")) as (dialog, buttons):
            add = ui.input(t("networks.tags_add")).props("outlined dense autofocus maxlength=200")
            add.on("keydown.enter", tag)
            remove = ui.select(every, value=[], label=t("networks.tags_remove"), multiple=True)
            remove.props("outlined dense use-chips").set_visibility(bool(every))
            with buttons:
                ui.button(t("networks.tag"), on_click=tag).props("no-caps")

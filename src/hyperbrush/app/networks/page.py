"""Hypernetworks: cards to search, use and edit; import, export, merge, and the bin."""

from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.page_bulk import Bulk
from hyperbrush.app.networks.page_card import Actions, NetworkCard
from hyperbrush.app.networks.page_dialogs import (
    Exports,
    ask_export,
    ask_name,
    ask_preview,
    show_inspection,
)
from hyperbrush.app.networks.service import Card
from hyperbrush.app.site import Site
from hyperbrush.app.ui.bin_section import BinSection
from hyperbrush.app.ui.empty import empty
from hyperbrush.app.ui.frame import PATIENCE, frame, in_thread, on_news, refusals
from hyperbrush.app.ui.parts import FileLines, drop_zone
from hyperbrush.hypernetworks.files import SUFFIXES

AT_ONCE = 48  # cards; a button shows more
ORDERS = {
    "name": lambda card: card.entry.name.casefold(),
    "date": lambda card: -card.changed,
    "size": lambda card: -card.entry.size,
}


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/hypernetworks", response_timeout=PATIENCE)
    def page(request: Request) -> None:
        with frame(site, request, "networks") as t:
            NetworksPage(site, t)


class NetworksPage:
    """The page as one person sees it."""

    def __init__(self, site: Site, t: Messages) -> None:
        self.site, self.t = site, t
        self.found: list[Card] | None = None
        self.shown: dict[str, NetworkCard] = {}
        self.most = AT_ONCE
        undo = ui.element("div").props("role=status").style("display: contents")
        self._import()
        self.exports = Exports(site, t)
        with ui.element("div").classes("bar").props("role=search") as self.toolbar:
            self.search = ui.input(t("networks.search"), on_change=self._find).props(
                "outlined dense clearable debounce=200 type=search"
            )
            self.search.classes("grow")
            orders = {key: t(f"networks.by_{key}") for key in ORDERS}
            self.order = ui.select(orders, value="name", label=t("networks.order"), on_change=self._arrange)
            self.order.props("outlined dense").style("min-width: 9rem")
        bulk = Bulk(site, t, self._box, self.exports, self._read)
        self.choice = bulk.choice
        self.hint = ui.label(t("networks.reading")).classes("soft").props("role=status")
        folder = site.workspace.preferences.hypernetworks
        self.first = empty(
            t("networks.empty", folder=folder), t("networks.train_one"), "model_training", "/train"
        )
        self.first.set_visibility(False)
        self.grid = ui.element("div").classes("cards network-cards")
        self.more = ui.button(on_click=self._more).props("flat no-caps")
        self.more.set_visibility(False)
        self.bin = BinSection(
            site,
            t,
            undo,
            "networks",
            items=lambda: site.workspace.trash.items("hypernetwork"),
            restore=lambda item: networks.restore(site, item).entry.name,
            remove=lambda item: networks.erase(site, item),
        )
        bulk.on_delete = self.bin.deleted
        self.actions = Actions(
            inspect=lambda card: show_inspection(site, t, card),
            export=lambda card: ask_export(site, t, [card], self.exports),
            rename=lambda card: ask_name(site, t, card),
            preview=lambda card: ask_preview(site, t, card),
            delete=self._delete,
            choose=self.choice.turn,
        )
        on_news(site, "networks", self._read)

    async def _read(self) -> None:
        with refusals():
            if self.found is None:
                names = await in_thread(lambda: self.site.workspace.library.names())
                with self.grid:
                    for name in names[: self.most]:
                        with ui.element("div").classes("card network"):
                            ui.label(name)
            found = await in_thread(networks.cards, self.site.workspace)
            if self.found is None:
                self.grid.clear()
            self.found = found
            self.choice.keep({card.id: card for card in found})
            self._arrange()

    def _find(self) -> None:
        self.most = AT_ONCE
        self._arrange()

    def _more(self) -> None:
        self.most += AT_ONCE
        self._arrange()

    def _arrange(self) -> None:
        """Show what fits the search, in order; cards that stay are kept, with what is typed in them."""
        if self.found is None:
            return
        words = (self.search.value or "").casefold().split()
        fitting = [card for card in self.found if all(word in card.searched for word in words)]
        fitting.sort(key=ORDERS[self.order.value])
        wanted = {card.id: card for card in fitting[: self.most]}
        for key in [key for key in self.shown if key not in wanted]:
            self.shown.pop(key).element.delete()
        for place, (key, card) in enumerate(wanted.items()):
            if key in self.shown:
                self.shown[key].show(card)
            else:
                with self.grid:
                    self.shown[key] = NetworkCard(self.site, self.t, card, self.actions)
                    self.shown[key].box.set_value(key in self.choice.ones)
            element = self.shown[key].element
            if self.grid.default_slot.children[place] is not element:
                element.move(target_index=place)
        self._tell(len(fitting))

    def _tell(self, fitting: int) -> None:
        t, every = self.t, len(self.found or [])
        self.first.set_visibility(not every)
        for element in (self.toolbar, self.hint):
            element.set_visibility(bool(every))
        if fitting:
            self.hint.set_text(t("networks.count", count=fitting))
        else:
            self.hint.set_text(t("networks.nothing_found", words=self.search.value))
        self.more.set_text(t("networks.show_more", count=fitting - self.most))
        self.more.set_visibility(fitting > self.most)

    def _import(self) -> None:
        t = self.t

        def heard(told: dict[str, Any]) -> None:
            name, detail = str(told.get("name", ""))[:200], str(told.get("detail", ""))[:1000]
            lines.hear(told)
            if told.get("begins"):
                lines.begin(t("networks.checking", name=name))
            elif told.get("ok"):
                lines.end(t("networks.imported", name=name, kept=detail), failed=False)
            else:
                lines.end(t("networks.refused", name=name, reason=detail), failed=True)
            summary.set_text(
                t("networks.import_so_far", kept=lines.kept, refused=lines.failed, total=told.get("of", 1))
            )
            summary.set_visibility(int(told.get("of", 1)) > 1)

        drop_zone(
            t("networks.drop"),
            "/api/v1/hypernetworks",
            heard,
            key="file",
            accept=",".join(SUFFIXES),
            most=networks.MOST_BYTES,
            too_large=t("networks.too_large", most=networks.MOST_BYTES >> 20),
            multiple=True,
        )
        summary = ui.label().props("role=status").classes("strong")
        summary.set_visibility(False)
        lines = FileLines()

    def _box(self, key: str) -> ui.checkbox | None:
        return self.shown[key].box if key in self.shown else None

    async def _delete(self, card: Card) -> None:
        with refusals():
            self.bin.deleted(await in_thread(networks.delete, self.site, card.id))

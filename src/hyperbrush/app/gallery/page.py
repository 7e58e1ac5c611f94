"""Gallery: every picture that was drawn, small, with its prompt; searched, starred, deleted, compared, used again."""

import asyncio
import math
from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import Request
from nicegui import ui

from hyperbrush.app.gallery import service as gallery
from hyperbrush.app.gallery.index import KINDS, Query, Shown
from hyperbrush.app.gallery.page_box import BoxActions, Lightbox, side_by_side
from hyperbrush.app.gallery.page_tile import Actions, Tile
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.bin_section import BinSection
from hyperbrush.app.ui.choice import Choice
from hyperbrush.app.ui.empty import empty
from hyperbrush.app.ui.frame import PATIENCE, frame, in_thread, on_news, refusals
from hyperbrush.app.ui.pictures import smoothing

AT_ONCE = 60  # pictures of a page


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/gallery", response_timeout=PATIENCE)
    async def page(request: Request) -> None:
        view = View.asked(request.query_params)
        found = await asyncio.to_thread(view.read, site)
        with frame(site, request, "gallery") as t:
            GalleryPage(site, t, request, view, found)


class View:
    """What a page shows: a query, and which of its pages, from 0."""

    def __init__(self, query: Query, number: int) -> None:
        self.query, self.number = query, number

    @classmethod
    def asked(cls, said: Mapping[str, str]) -> "View":
        """Of an address; what makes no sense there is passed over."""
        kind, number = said.get("kind", ""), said.get("page", "")
        query = Query(said.get("q", "")[:1000], kind if kind in KINDS else "", said.get("starred") == "1")
        page = int(number[:9]) if number.isascii() and number.isdecimal() else 1
        return cls(query, max(0, page - 1))

    @property
    def address(self) -> str:
        """Where it is shown."""
        query = self.query
        said = {"q": query.words, "kind": query.kind, "starred": "1" if query.starred else ""}
        said |= {"page": str(self.number + 1) if self.number else ""}
        said = {key: value for key, value in said.items() if value}
        return "/gallery" + (f"?{urlencode(said)}" if said else "")

    def read(self, site: Site) -> tuple[int, list[Shown]]:
        """How many pictures there are, and those of the page, of which there is always one."""
        count, found = site.gallery.find(self.query, self.number * AT_ONCE, AT_ONCE)
        if count and not found:
            self.number = math.ceil(count / AT_ONCE) - 1
            count, found = site.gallery.find(self.query, self.number * AT_ONCE, AT_ONCE)
        return count, found


class GalleryPage:
    """The page as one person sees it."""

    def __init__(
        self, site: Site, t: Messages, request: Request, view: View, found: tuple[int, list[Shown]]
    ) -> None:
        self.site, self.t, self.view = site, t, view
        self.shown: dict[str, Tile] = {}
        self._reading = True
        self._reads = 0  # looks at what there is
        undo = ui.element("div").props("role=status").style("display: contents")
        self._toolbar(request)
        self.choice = self._choices()
        self.hint = ui.label().classes("soft").props("role=status")
        self.first = empty(t("gallery.empty"), t("gallery.create_one"), "brush", "/")
        self.grid = ui.element("div").classes("tiles")
        with ui.element("nav").classes("bar pager") as self.pager:
            self.pager.props["aria-label"] = t("gallery.pages")
            self.before = ui.button(t("gallery.newer"), icon="chevron_left", on_click=lambda: self._turn(-1))
            self.where = ui.label().props("role=status")
            self.after = ui.button(t("gallery.older"), on_click=lambda: self._turn(1))
            for button in (self.before, self.after):
                button.props("flat no-caps")
            self.after.props("icon-right=chevron_right")
        query = lambda: self.view.query  # noqa: E731
        self.box = Lightbox(site, t, query, BoxActions(star=self._star, delete=self._delete_shown))
        self.bin = BinSection(
            site,
            t,
            undo,
            gallery.NEWS,
            items=lambda: site.workspace.trash.items("drawing"),
            restore=lambda item: gallery.restore(site, item).name,
            remove=lambda item: gallery.erase(site, item),
            also=self.box.undo,
        )
        self.actions = Actions(open=self._open, star=self._star, choose=self.choice.turn)
        self._arrange(*found)
        on_news(site, gallery.NEWS, self._read, every=0.5)
        on_news(site, "outputs", self._look, every=0.5)
        on_news(site, "jobs", self._look, every=5.0)

    def _toolbar(self, request: Request) -> None:
        t, query = self.t, self.view.query
        with ui.element("div").classes("bar").props("role=search") as self.toolbar:
            self.search = ui.input(t("gallery.search"), value=query.words, on_change=self._find)
            self.search.props("outlined dense clearable debounce=200 type=search").classes("grow")
            kinds = {"": t("gallery.all_kinds")} | {kind: t(f"gallery.kind_{kind}") for kind in KINDS}
            self.kind = ui.select(kinds, value=query.kind, label=t("gallery.kind"), on_change=self._find)
            self.kind.props("outlined dense options-dense").style("min-width: 10rem")
            self.starred = ui.switch(t("gallery.starred"), value=query.starred, on_change=self._find)
            self.starred.props["aria-label"] = t("gallery.starred")
            smoothing(t, request)

    def _choices(self) -> Choice[Shown]:
        t = self.t
        found: Choice[Shown] = Choice(self._box, self._said, t("gallery.choose_none"))
        with found.buttons:
            self.compare = ui.button(t("gallery.compare"), icon="compare", on_click=self._compare)
            remove = ui.button(t("gallery.delete"), icon="delete", on_click=self._delete_chosen)
            for button in (self.compare, remove):
                button.props("flat no-caps")
        return found

    def _box(self, key: str) -> ui.checkbox | None:
        return self.shown[key].box if key in self.shown else None

    def _said(self) -> str:
        count = len(self.choice.ones)
        self.compare.set_enabled(count == 2)
        return self.t("gallery.chosen" if count > 1 else "gallery.chosen_one", count=count)

    async def _look(self) -> None:
        """Whether something was drawn meanwhile."""
        with refusals():
            changed = await in_thread(self.site.gallery.refresh, lambda: self.site.news(gallery.NEWS))
            if changed or self._reading:
                self._reading = False
                self.site.news(gallery.NEWS)

    async def _read(self) -> None:
        self._reads += 1
        number = self._reads
        with refusals():
            found = await in_thread(self.view.read, self.site)
            if number == self._reads:  # else a later look may have been shown already
                self._arrange(*found)

    async def _find(self) -> None:
        query = Query(self.search.value or "", str(self.kind.value or ""), bool(self.starred.value))
        self.view = View(query, 0)
        ui.navigate.history.replace(self.view.address)  # before the pictures: they may be reloaded once seen
        await self._read()

    async def _turn(self, step: int) -> None:
        self.view = View(self.view.query, max(0, self.view.number + step))
        ui.navigate.history.replace(self.view.address)  # before the pictures: they may be reloaded once seen
        await self._read()
        ui.run_javascript("window.scrollTo(0, 0)")

    def _arrange(self, count: int, found: list[Shown]) -> None:
        """Show these; tiles that stay are kept."""
        wanted = {one.id: one for one in found}
        for key in [key for key, tile in self.shown.items() if _gone(tile, wanted)]:
            self.shown.pop(key).element.delete()
        for place, (key, one) in enumerate(wanted.items()):
            if key in self.shown:
                self.shown[key].show(one)
            else:
                with self.grid:
                    self.shown[key] = Tile(self.t, one, self.actions, key in self.choice.ones)
            element = self.shown[key].element
            if self.grid.default_slot.children[place] is not element:
                element.move(target_index=place)
        self._tell(count)

    def _tell(self, count: int) -> None:
        t, query = self.t, self.view.query
        if count:
            self.hint.set_text(t("gallery.count", count=count))
        elif self._reading:
            self.hint.set_text(t("gallery.reading"))
        else:
            self.hint.set_text(t("gallery.nothing_found"))
        none = not count and query == Query() and not self._reading
        self.first.set_visibility(none)
        for element in (self.toolbar, self.hint):
            element.set_visibility(not none)
        pages = math.ceil(count / AT_ONCE)
        self.pager.set_visibility(pages > 1)
        self.where.set_text(t("gallery.page_of", number=self.view.number + 1, count=pages))
        self.before.set_enabled(self.view.number > 0)
        self.after.set_enabled(self.view.number + 1 < pages)

    async def _open(self, one: Shown) -> None:
        await self.box.open(one)

    async def _star(self, one: Shown) -> None:
        with refusals():
            found = await in_thread(gallery.star, self.site, one.id, not one.starred)
            if one.id in self.shown:
                self.shown[one.id].show(found)
            self.box.starred(found)

    def _compare(self) -> None:
        one, other = self.choice.ones.values()
        side_by_side(self.t, one, other)

    async def _delete_chosen(self) -> None:
        await self._delete(list(self.choice.ones))

    async def _delete_shown(self, one: Shown) -> None:
        await self._delete([one.id])
        await self.box.leave()

    async def _delete(self, pictures: list[str]) -> None:
        with refusals():
            items = await in_thread(gallery.delete, self.site, pictures)
            self.choice.drop(*pictures)
            if items:
                self.bin.deleted(*items)
            await self._read()


def _gone(tile: Tile, wanted: Mapping[str, Shown]) -> bool:
    """Whether a tile is not wanted, or its picture has changed."""
    now = wanted.get(tile.one.id)
    return now is None or now.changed != tile.one.changed

"""The dialog that puts networks into a prompt: hypernetworks that fit the model and LoRAs, with their pictures."""

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

from nicegui import ui

from hyperbrush.app.create.page_networks import HYPERNET, LORA, added, changed, weight_of, written
from hyperbrush.app.create.page_prompts import head_of, picking
from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import loras
from hyperbrush.app.networks import service as networks
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import refusals
from hyperbrush.hypernetworks.library.notes import Notes

AT_ONCE = 48  # that are shown; the search finds the others


@dataclass(frozen=True)
class Pick:
    """One of them.

    kind: of its tag; picture: its address, "" for none; searched: what a search looks in.
    """

    kind: str
    name: str
    notes: Notes
    picture: str
    searched: str


class NetworkDialog:
    """A click puts one into the prompt, or takes it out."""

    def __init__(self, site: Site, t: Messages, prompt: ui.textarea) -> None:
        self.site, self.t, self.prompt = site, t, prompt
        self.found: list[Pick] = []
        self.left_out = 0
        self.dialog = picking(t("create.choose_networks"))
        with self.dialog, ui.element("div").classes("card network-dialog"):
            head_of(t("create.choose_networks"), t("create.close"), self.dialog)
            self.search = ui.input(t("networks.search"), on_change=self._show)
            self.search.props("outlined dense clearable debounce=150 type=search")
            self.hint = ui.label().classes("soft").props("role=status")
            self.place = ui.element("div").classes("picks")

    async def open(self) -> None:
        """Show what there is now."""
        with refusals():
            self.search.value = ""
            self.found, self.left_out = await asyncio.to_thread(_picks, self.site)
            self._show()
            self.dialog.open()

    def _show(self) -> None:
        t = self.t
        words = (self.search.value or "").casefold().split()
        fitting = [one for one in self.found if all(word in one.searched for word in words)]
        said = [] if fitting else [t("create.no_network_found" if self.found else "create.no_networks")]
        if self.left_out:
            said.append(t("create.networks_left_out", count=self.left_out))
        if len(fitting) > AT_ONCE:
            said.append(t("create.networks_more", count=len(fitting) - AT_ONCE))
        self.hint.set_text(" ".join(said))
        self.hint.set_visibility(bool(said))
        self.place.clear()
        with self.place:
            for one in fitting[:AT_ONCE]:
                self._pick(one)

    def _pick(self, one: Pick) -> None:
        with ui.element("button").props("type=button").classes("pick") as pick:
            if one.picture:
                picture = ui.element("img").props('loading=lazy alt=""')
                picture.props["src"] = one.picture
            else:
                ui.label(one.name[:1].upper()).classes("pick-letter").props("aria-hidden=true")
            ui.label(one.name).classes("pick-name")
            if one.kind == LORA:
                ui.label("LoRA").classes("badge pick-kind")

        def place() -> int | None:
            tags = written(str(self.prompt.value or ""))
            return next(
                (at for at, tag in enumerate(tags) if (tag.kind, tag.name) == (one.kind, one.name)), None
            )

        def tell() -> None:
            pick.props["aria-pressed"] = str(place() is not None).lower()

        def turn() -> None:
            text, at, notes = str(self.prompt.value or ""), place(), one.notes
            self.prompt.value = (
                added(text, one.name, notes.activation_text.strip(), weight_of(notes), one.kind)
                if at is None
                else changed(text, at, None)
            )
            tell()

        pick.on("click", turn)
        tell()


def _picks(site: Site) -> tuple[list[Pick], int]:
    """What can be put in, and how many hypernetworks do not fit the model."""
    sound = [card for card in networks.cards(site.workspace) if card.entry.error is None]
    able = [card for card in sound if card.fits is not False]
    found = [
        Pick(
            HYPERNET,
            card.entry.name,
            card.entry.notes,
            f"/api/v1/hypernetworks/{card.id}/preview?{card.preview}" if card.preview else "",
            card.searched,
        )
        for card in able
    ]
    for one in loras.listed(site.workspace):
        seen = one.preview.stat().st_mtime_ns if one.preview else 0
        picture = f"/api/v1/loras/{quote(one.name, safe='')}/preview?{seen:x}" if seen else ""
        notes = one.notes
        searched = f"{one.name} {notes.description} {notes.activation_text} {notes.notes} lora".casefold()
        found.append(Pick(LORA, one.name, notes, picture, searched))
    return found, len(sound) - len(able)

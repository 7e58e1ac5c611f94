"""Pictures of a training: chosen or dropped, captions beside them."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from hyperbrush.app.examples import SIX
from hyperbrush.app.messages import Messages
from hyperbrush.app.train.captions import LONGEST
from hyperbrush.app.train.datasets import EXAMPLE, Datasets, Picture
from hyperbrush.app.train.draft import Draft
from hyperbrush.app.train.page_captions import AllCaptions
from hyperbrush.app.ui.dialogs import asking
from hyperbrush.app.ui.empty import empty
from hyperbrush.app.ui.frame import in_thread, refusals, title_of
from hyperbrush.app.ui.parts import FileLines
from hyperbrush.app.uploads import ACCEPT

AT_ONCE = 24  # pictures of a page
CHOOSE = "() => document.querySelector('.drop input[type=file]').click()"
ACCEPTED = f"{ACCEPT},.txt,.caption,.jsonl,.csv"


class Pictures:
    """The section of the page."""

    def __init__(self, t: Messages, draft: Draft, datasets: Datasets) -> None:
        self.t, self.draft, self.datasets = t, draft, datasets
        self.start = 0
        with ui.element("section").classes("card").props("aria-labelledby=train-pictures"):
            title_of(2, t("train.pictures")).props("id=train-pictures")
            with ui.element("div").classes("bar"):
                self.choice = ui.select(
                    self._choices(), value=self._shown(), label=t("train.dataset"), on_change=self._choose
                ).classes("grow")
                self.choice.props("outlined dense")
                ui.button(t("train.new_dataset"), icon="create_new_folder", on_click=self._new).props(
                    "flat no-caps"
                )
                again = ui.button(icon="refresh", on_click=self.show).props("flat round")
                again.props["aria-label"] = t("train.look_again")
            self.drop = ui.element("label").classes("drop")
            with self.drop:
                ui.icon("add_photo_alternate", size="1.8rem").props("aria-hidden=true")
                self.says = ui.label()
                ui.label(t("train.drop_limits")).classes("soft small")
                picker = ui.element("input").props(f"type=file multiple accept={ACCEPTED}")
                picker.props["aria-label"] = t("train.add_pictures")
            self.sending = ui.label().props('role="status" aria-live="polite"').classes("soft")
            self.refused = FileLines()
            self.captions = AllCaptions(t, datasets, self.show)
            self.cut = ui.label(t("train.cut")).classes("soft small")
            self.gallery = ui.element("div").style("display: contents")
        self.frames: list[tuple[ui.element, tuple[int, int]]] = []  # of the pictures shown, with their sizes
        draft.on_change.append(self._frame)
        ui.on("train_sending", self._on_sending)
        ui.on("train_sent", self._on_sent)

    @property
    def name(self) -> str:
        """The dataset that is shown; "" for none."""
        data = self.draft.get("data") or []
        first = data[0] if isinstance(data, list) and data else {}
        name = str(first.get("path", "")) if isinstance(first, dict) else str(first)
        return name if name in self.datasets.folders() else ""

    async def show(self) -> None:
        """Read the folder again and show a page of it."""
        t, name = self.t, self.name
        self.choice.set_options(self._choices(), value=self._shown())
        self.drop.props["data-dataset"] = name
        self.says.set_text(t("train.drop_more", name=name) if name else t("train.drop_new"))
        self.drop.update()
        total, found = (await run.io_bound(self._read, name) or (0, [])) if name else (0, [])
        await self.captions.show(name if total else "")
        self.gallery.clear()
        self.frames.clear()
        self._frame()
        with self.gallery:
            if not name:
                taking = f"/train?dataset={EXAMPLE}"
                text, label = t("train.no_dataset"), t("train.take_example")
                empty(text, label, "photo_library", taking, pictures=SIX)
                return
            if not total:
                empty(t("train.empty_dataset"), t("train.add_pictures"), "add_photo_alternate", CHOOSE)
                return
            with _list(t("train.pictures")):
                for picture, size in found:
                    self._card(name, picture, size)
            self._pager(total)
        self._frame()

    def _frame(self) -> None:
        """Draw around each picture what the training will see of it."""
        shape = cut_shape(self.draft)
        found = [seen(shape, size) if shape is not None else "" for _, size in self.frames]
        for (frame, _), style in zip(self.frames, found, strict=True):
            frame.style(replace=style)
            frame.set_visibility(bool(style))
        self.cut.set_visibility(any(found))

    def _read(self, name: str) -> tuple[int, list[tuple[Picture, tuple[int, int] | None]]]:
        total, found = self.datasets.pictures(name, self.start, AT_ONCE)
        if not found and total:
            self.start = max(0, (total - 1) // AT_ONCE * AT_ONCE)
            total, found = self.datasets.pictures(name, self.start, AT_ONCE)
        files = self.datasets.files(name)
        return total, [(p, _size(files[p.index]) if p.index < len(files) else None) for p in found]

    def _card(self, name: str, picture: Picture, size: tuple[int, int] | None) -> None:
        t = self.t
        with ui.element("li").classes("train-picture"):
            if size is not None:
                version = f"{picture.changed:x}-{zlib.crc32(picture.name.encode()):x}"
                with ui.element("div").classes("whole"):
                    image = ui.element("img").props("loading=lazy width=256 height=256")
                    self.frames.append((ui.element("div").classes("frame").props("aria-hidden=true"), size))
                image.props["src"] = (
                    f"/api/v1/datasets/{quote(name, safe='')}/pictures/{picture.index}?size=256&v={version}"
                )
                image.props["alt"] = picture.caption or picture.name
            else:
                ui.label(t("train.unreadable")).classes("bad broken")
            with ui.element("div").classes("bar tight"):
                ui.label(picture.name).classes("grow soft small name")
                button = ui.button(icon="delete", on_click=lambda: self._remove(name, picture))
                button.props("flat round dense size=sm")
                button.props["aria-label"] = t("train.remove", name=picture.name)
            text = ui.textarea(value=picture.caption).props("outlined dense autogrow debounce=300")
            text.props["aria-label"] = t("train.caption_of", name=picture.name)
            text.props["maxlength"] = LONGEST
            said = ui.label(t.said(picture.problem) or t(f"train.source_{picture.source}")).classes(
                "soft small"
            )
            if picture.problem:
                said.classes("bad", remove="soft")
            text.on_value_change(lambda event: self._write(name, picture, event.value, said))

    async def _write(self, name: str, picture: Picture, caption: str, said: ui.label) -> None:
        with refusals():
            await run.io_bound(self.datasets.write_caption, name, picture.index, caption, picture.name)
            said.set_text(self.t("train.saved"))
            said.classes("soft", remove="bad")

    async def _remove(self, name: str, picture: Picture) -> None:
        with refusals():
            binned = await in_thread(self.datasets.remove, name, picture.index, picture.name)
            await self.show()
            self._offer_undo(picture.name, binned.id)

    def _offer_undo(self, shown: str, binned: str) -> None:
        async def undo() -> None:
            with refusals():
                await in_thread(self.datasets.restore, binned)
            offer.delete()
            await self.show()

        with self.gallery:
            offer = ui.element("div").classes("notice").props("role=status")
            with offer:
                ui.label(self.t("train.removed", name=shown)).classes("grow")
                ui.button(self.t("train.undo"), on_click=undo).props("flat no-caps")
        offer.move(target_index=0)

    def _pager(self, total: int) -> None:
        t, last = self.t, min(total, self.start + AT_ONCE)

        def turn(by: int) -> Callable[[], Any]:
            async def go() -> None:
                self.start = max(0, self.start + by)
                await self.show()

            return go

        with ui.element("div").classes("bar"):
            ui.label(t("train.shown", first=self.start + 1, last=last, total=total)).classes("soft grow")
            if total > AT_ONCE:
                before = ui.button(t("train.before"), icon="chevron_left", on_click=turn(-AT_ONCE))
                after = ui.button(t("train.after"), icon="chevron_right", on_click=turn(AT_ONCE))
                before.props("flat no-caps").set_enabled(self.start > 0)
                after.props("flat no-caps").set_enabled(last < total)

    async def _choose(self, event: Any) -> None:
        if event.value == self._shown():
            return
        with refusals():
            name = str(event.value or "")
            if name == EXAMPLE:
                name = str(await run.io_bound(self.datasets.example))
            await self._use(name)

    async def _use(self, name: str) -> None:
        data = self.draft.get("data") or []
        first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
        self.draft.put("data", [{**first, "path": name}, *data[1:]] if name else [])
        self.start = 0
        await self.show()

    async def _new(self) -> None:
        t = self.t
        with asking(t("train.new_dataset"), t("train.cancel")) as (dialog, buttons):
            name = ui.input(t("train.dataset_name")).props("outlined dense autofocus maxlength=100")

            async def make() -> None:
                with refusals():
                    made = self.datasets.create(name.value or "")
                    dialog.close()
                    await self._use(made)

            name.on("keydown.enter", make)
            with buttons:
                ui.button(t("train.make"), on_click=make).props("no-caps")

    def _on_sending(self, event: Any) -> None:
        self.refused.clear()
        self.sending.set_text(self.t("train.sending", done=event.args["done"], total=event.args["total"]))

    async def _on_sent(self, event: Any) -> None:
        said, t = event.args, self.t
        lines = [t("train.sent", added=said["added"], captions=said["captions"])]
        if said["present"]:
            lines.append(t("train.present", count=said["present"]))
        if said["error"]:
            lines.insert(0, str(said["error"]))
        self.sending.set_text("\n".join(lines))
        for one in said["refused"]:
            self.refused.end(f"{one['name']}: {t.said(one['reason']) or t('train.no_picture')}", failed=True)
        if (more := int(said["refused_in_all"]) - len(said["refused"])) > 0:
            self.refused.end(t("train.and_more", count=more), failed=True)
        self.sending.style("white-space: pre-line")
        if said["name"] and said["name"] != self.name:
            await self._use(str(said["name"]))
        else:
            await self.show()

    def _choices(self) -> dict[str, str]:
        named = {name: name for name in self.datasets.folders()}
        return {**named, EXAMPLE: self.t("train.example")}

    def _shown(self) -> str | None:
        return self.name or None


def _list(label: str) -> ui.element:
    """A list of cards."""
    found = ui.element("ul").classes("train-pictures")
    found.props["aria-label"] = label
    return found


def cut_shape(draft: Draft) -> tuple[int, int] | None:
    """(height, width) that every picture is cut to, up to a factor; None where they keep shapes, or are cut by chance."""
    wanted = draft.get("training.size")
    shape = tuple(wanted) if isinstance(wanted, list) else (1, 1)
    plain = (
        draft.get("training.buckets", "none") == "none" and draft.get("training.crop", "center") == "center"
    )
    sound = len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape)
    return (shape[0], shape[1]) if plain and sound else None


def seen(shape: tuple[int, int], size: tuple[int, int]) -> str:
    """CSS of the frame around what training sees of a picture (width, height), in a square that holds all of it; "" where
    it sees all.
    """
    from hyperbrush.ldm.data.augment import place

    height, width = shape
    finely = max(size) / min(height, width)  # the shape alone counts, so that rounding must not
    _, (left, top, right, bottom) = place(size, (round(height * finely), round(width * finely)), "center")
    whole, side = [size[0], size[1]], max(size)
    if right - left > whole[0] - 1 and bottom - top > whole[1] - 1:
        return ""
    edges = {
        "left": left + (side - whole[0]) / 2,
        "top": top + (side - whole[1]) / 2,
        "width": right - left,
        "height": bottom - top,
    }
    return "; ".join(f"{name}: {value / side:.2%}" for name, value in edges.items())


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) by a file's head, turned as it is shown; None where it is no picture."""
    from PIL import Image

    from hyperbrush.app.uploads import FORMATS, MOST_BYTES, MOST_PIXELS
    from hyperbrush.ldm.data.pictures import lies_on_its_side, open_bytes

    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        with open_bytes(path.read_bytes(), FORMATS) as picture:
            width, height = picture.size
            lies = lies_on_its_side(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if width * height > MOST_PIXELS:
        return None
    return (height, width) if lies else (width, height)

"""All captions of a folder at once: find and replace, words before and behind, tags by how often they stand there."""

from collections.abc import Awaitable, Callable

from nicegui import run, ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.train.caption_edits import CaptionEdit, tags
from hyperbrush.app.train.datasets import CaptionChange, CaptionFiles, Datasets
from hyperbrush.app.ui.frame import in_thread, refusals
from hyperbrush.errors import UserError

EXAMPLES = 3  # captions shown before and after
MOST_TAGS = 30
FIELDS = ("find", "replace", "prefix", "suffix")


class AllCaptions:
    """The section, closed at first.

    again: shows the pictures once more, after a change.
    """

    def __init__(self, t: Messages, datasets: Datasets, again: Callable[[], Awaitable[None]]) -> None:
        self.t, self.datasets, self.again = t, datasets, again
        self.looks = 0
        self.found: list[tuple[str, int]] = []
        self.chips: dict[str, ui.button] = {}
        self.name, self.done, self.dropped = "", "", set[str]()  # done: what the last change did
        with ui.expansion(t("train.all_captions"), icon="edit_note", on_value_change=self._look) as self.box:
            self.box.classes("more")
            with ui.element("div").classes("bar wide"):
                self.fields = {key: self._field(key) for key in FIELDS}
            ui.label(t("train.caption_tags")).classes("soft small")
            self.tags = ui.element("div").classes("bar").props("role=group")
            self.tags.props["aria-label"] = t("train.caption_tags")
            self.told = ui.label().props("role=status")
            self.examples = ui.element("ul").classes("file-lines")
            with ui.element("div").classes("bar"):
                self.button = ui.button(t("train.change_captions"), icon="done_all", on_click=self._change)
                self.button.props("no-caps")
                self.undo = ui.button(t("train.undo"), icon="undo", on_click=self._back).props("flat no-caps")
        self._keep({})

    def _field(self, key: str) -> ui.input:
        field = ui.input(self.t(f"train.caption_{key}"), on_change=self._look)
        return field.props("outlined dense debounce=300 maxlength=1000").classes("grow")

    async def show(self, name: str) -> None:
        """Follow the folder that is shown; "" for none."""
        if name != self.name:
            self.name = name
            self.done = ""
            self._keep({})
            self._clear()
        self.box.set_visibility(bool(name))
        await self._look()

    def _clear(self) -> None:
        self.dropped.clear()
        for field in self.fields.values():
            field.set_value("")

    def _edit(self) -> CaptionEdit:
        values = {key: str(field.value or "") for key, field in self.fields.items()}
        return CaptionEdit(drop=tuple(sorted(self.dropped)), **values)

    async def _look(self) -> None:
        """Tags, and what would change."""
        if not self.name or not self.box.value:
            return
        self.looks += 1
        look, name = self.looks, self.name
        _, pictures = await run.io_bound(self.datasets.pictures, name) or (0, [])
        if look != self.looks:  # something was changed since, and is looked at
            return
        self._show_tags(tags(picture.said for picture in pictures)[:MOST_TAGS])
        try:
            changes = await in_thread(self.datasets.caption_changes, name, self._edit())
            if look != self.looks:
                return
            text = self.t("train.captions_would_change", count=len(changes), total=len(pictures))
            self.done = ""
        except UserError:  # nothing is asked for yet
            changes, text = [], self.done or self.t("train.caption_help")
        self._tell(text, changes)

    def _show_tags(self, found: list[tuple[str, int]]) -> None:
        """The tags to choose from; made anew only where others are there, or a click would miss what it was meant for."""
        if found != self.found:
            self.found, self.chips = found, {}
            self.tags.clear()
            with self.tags:
                for tag, count in found:
                    chip = ui.button(f"{tag} {count}", on_click=lambda tag=tag: self._turn(tag))
                    self.chips[tag] = chip.props("no-caps dense")
        for tag, chip in self.chips.items():
            chosen = tag in self.dropped
            chip.props(remove="outline") if chosen else chip.props("outline")
            chip.props["aria-pressed"] = str(chosen).lower()

    def _tell(self, text: str, changes: list[CaptionChange]) -> None:
        self.told.set_text(text)
        self.button.set_enabled(bool(changes))
        self.examples.clear()
        self.examples.set_visibility(bool(changes))
        with self.examples:
            for change in changes[:EXAMPLES]:
                with ui.element("li"):
                    ui.label(f"{' / '.join(change.before)} → {' / '.join(change.after)}").classes(
                        "soft small"
                    )

    async def _turn(self, tag: str) -> None:
        self.dropped ^= {tag}
        await self._look()

    async def _change(self) -> None:
        self.button.set_enabled(False)  # the second click of two would change them once more
        name = self.name
        with refusals():
            changes, before = await in_thread(self.datasets.edit_captions, name, self._edit())
            if name != self.name:
                return
            self._clear()
            self.done = self.t("train.captions_changed", count=len(changes))
            self._keep(before)
            await self.again()

    async def _back(self) -> None:
        with refusals():
            await in_thread(self.datasets.restore_captions, self.before)
            self.done = ""
            self._keep({})
            await self.again()

    def _keep(self, before: CaptionFiles) -> None:
        """What undo would bring back."""
        self.before = before
        self.undo.set_visibility(bool(before))

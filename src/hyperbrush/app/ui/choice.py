"""Things chosen on a page by their boxes, and the bar that says what can be done with them."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from nicegui import ui


class Known(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """It."""


One = TypeVar("One", bound=Known)


class Choice(Generic[One]):
    """What is chosen, by id, in the order it was; the bar is there as long as there is something.

    Args:
        box_of: the box of an id, None where none is shown now.
        say: called after each change; what the bar says of those chosen.
        none: of the button that lets go of all.
    """

    def __init__(self, box_of: Callable[[str], Any], say: Callable[[], str], none: str) -> None:
        self.ones: dict[str, One] = {}
        self._box_of, self._say = box_of, say
        with ui.element("div").classes("notice network-chosen") as self.bar:
            self._told = ui.label().classes("grow").props("role=status")
            self.buttons = ui.element("div").style("display: contents")
            ui.button(none, on_click=self.clear).props("flat no-caps")
        self.bar.set_visibility(False)

    def turn(self, one: One, chosen: bool) -> None:
        """Choose one, or let go of it."""
        if chosen:
            self.ones[one.id] = one
        else:
            self.ones.pop(one.id, None)
        self.tell()

    def clear(self) -> None:
        """Let go of all."""
        for key in list(self.ones):
            if (box := self._box_of(key)) is not None:
                box.set_value(False)
        self.ones.clear()
        self.tell()

    def keep(self, there: Mapping[str, One]) -> None:
        """Let go of what is not there any more; the others may have changed."""
        self.ones = {key: there[key] for key in self.ones if key in there}
        self.tell()

    def drop(self, *ids: str) -> None:
        """Let go of these, whose boxes are gone."""
        for key in ids:
            self.ones.pop(key, None)
        self.tell()

    def tell(self) -> None:
        """Show the bar, where there is something to say."""
        self.bar.set_visibility(bool(self.ones))
        if self.ones:
            self._told.set_text(self._say())

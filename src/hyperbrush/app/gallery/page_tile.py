"""A picture among the others: small, with its prompt, a star, and a box to choose it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from hyperbrush.app.gallery.index import Shown
from hyperbrush.app.messages import Messages
from hyperbrush.app.ui.pictures import crisp

WIDE, NARROW = 192, 128  # pixels of a tile's picture, on a phone


@dataclass(frozen=True)
class Actions:
    """What a tile does; each is given the picture."""

    open: Callable[[Shown], Any]
    star: Callable[[Shown], Any]
    choose: Callable[[Shown, bool], Any]


class Tile:
    """A picture on the page."""

    def __init__(self, t: Messages, one: Shown, actions: Actions, chosen: bool) -> None:
        self.t, self.one = t, one
        said = one.prompt or t("gallery.no_settings")
        with ui.element("article").classes("tile") as self.element:
            with ui.element("button").props("type=button").classes("tile-open") as opened:
                picture = ui.element("img").props("loading=lazy decoding=async")
                picture.props["src"], picture.props["alt"] = one.thumbnail, said[:300]
                crisp(picture, one.width, one.height, WIDE, NARROW)
            opened.on("click", lambda: actions.open(self.one))
            if one.kind != "drawing":
                ui.label(t(f"gallery.kind_{one.kind}")).classes("badge tile-kind")
            words = ui.label(said).classes("tile-prompt" if one.prompt else "tile-prompt soft")
            words.props["title"] = said[:2000]
            with ui.element("div").classes("tile-bar"):
                self.box = ui.checkbox(
                    value=chosen, on_change=lambda e: actions.choose(self.one, bool(e.value))
                ).props("dense")
                self.box.props["aria-label"] = t("gallery.choose", name=one.name)
                self.star = star_button(t, lambda: actions.star(self.one))
        show_star(t, self.star, one)

    def show(self, one: Shown) -> None:
        """Its star may have changed."""
        if one != self.one:
            self.one = one
            show_star(self.t, self.star, one)


def star_button(t: Messages, do: Callable[[], Any]) -> ui.button:
    """A star to press."""
    button = ui.button(icon="star_border", on_click=do, color=None).props("flat round dense type=button")
    button.props["aria-label"] = button.props["title"] = t("gallery.star")
    return button.classes("star")


def show_star(t: Messages, button: ui.button, one: Shown) -> None:
    """Whether it is pressed."""
    button.props["aria-pressed"] = str(one.starred).lower()
    button.set_icon("star" if one.starred else "star_border")

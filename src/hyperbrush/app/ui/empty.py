"""What a page says where it has nothing to show yet, and the one button that leads on."""

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui


def empty(
    text: str, label: str, icon: str, do: str | Callable[[], Any], *, pictures: Sequence[str] = ()
) -> ui.element:
    """A word and a button in the place of what is not there yet; do: as `lead`; pictures: as `strip`."""
    with ui.element("div").classes("empty") as place:
        if pictures:
            strip(pictures)
        else:
            ui.icon(icon, size="3rem").props("aria-hidden=true")
        if text:
            ui.label(text).props("role=status")
        lead(label, icon, do)
    return place


def strip(pictures: Sequence[str]) -> ui.element:
    """Pictures of the bundled style in a row or two, for the eye alone."""
    with ui.element("div").classes("strip").props('aria-hidden="true"') as place:
        for name in pictures:
            ui.element("img").props('alt="" loading="lazy"').props["src"] = f"/examples/{name}.png"
    return place


def lead(label: str, icon: str, do: str | Callable[[], Any]) -> ui.button:
    """The button that leads on.

    do: the address that it leads to, what it does here, or as "() => …" what it does in the browser.
    """
    button = ui.button(label, icon=icon).props("unelevated no-caps type=button")
    if not isinstance(do, str):
        button.on_click(do)
    elif do.startswith("("):
        button.on("click", js_handler=do)
    else:
        button.props("tag=a").props["href"] = do
    return button

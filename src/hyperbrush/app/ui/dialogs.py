"""Dialogs, all of one form: a heading, what it is about, and the buttons at its end, the one that does it last."""

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from hyperbrush.app.ui.frame import title_of


@contextmanager
def asking(title: str, cancel: str) -> Iterator[tuple[ui.dialog, ui.element]]:
    """An open dialog with a heading; yields it and the place for its buttons. It is gone when it is closed.

    cancel: of the button that closes it.
    """
    with ui.dialog() as dialog, ui.element("div").classes("card dialog") as body:
        dialog.props["aria-label"] = title
        dialog.on("hide", dialog.delete)
        title_of(2, title)
        with ui.element("div").classes("bar end") as buttons:
            ui.button(cancel, on_click=lambda: dialog.submit(None)).props("flat no-caps")
        yield dialog, buttons
        buttons.move(body)
    dialog.open()


async def sure(title: str, text: str, yes: str, no: str) -> bool:
    """Ask before what cannot be taken back; whether the answer was yes."""
    with asking(title, no) as (dialog, buttons):
        if text:
            ui.label(text)
        with buttons:
            ui.button(yes, on_click=lambda: dialog.submit(True)).props("unelevated no-caps")
    return bool(await dialog)

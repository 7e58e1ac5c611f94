"""Pictures on pages: small ones at whole multiples of their pixels, and the choice to have them smoothed (pictures.js)."""

import json

from fastapi import Request
from nicegui import ui

from hyperbrush.app.messages import Messages

SMOOTH = "smooth"  # the cookie


def crisp(image: ui.element, width: int, height: int, wide: int, narrow: int = 0) -> None:
    """Show a picture as large as fits into a square, at a whole multiple of its pixels where it is smaller.

    wide: the square's side in pixels; narrow: on phones, the same if left out.
    """
    side = max(width, height, 1)
    if side > wide:
        return
    at_most = (wide // side, max(1, (narrow or wide) // side))
    image.classes("crisp")
    image.style(f"--wide: {at_most[0] * width}px; --narrow: {at_most[1] * width}px")


def smoothing(t: Messages, request: Request) -> ui.switch:
    """The switch, for this browser's pages."""

    def choose() -> None:
        ui.run_javascript(f"hyperbrushPictures.smooth({json.dumps(bool(switch.value))})")

    switch = ui.switch(t("gallery.smooth"), value=request.cookies.get(SMOOTH) == "yes", on_change=choose)
    switch.props["aria-label"] = t("gallery.smooth")
    return switch

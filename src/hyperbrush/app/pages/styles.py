"""To come."""

from fastapi import Request
from nicegui import ui

from hyperbrush.app.pages.frame import frame
from hyperbrush.app.site import Site


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/styles")
    def page(request: Request) -> None:
        with frame(site, request, "styles"):
            pass

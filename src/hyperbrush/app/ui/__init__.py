"""The pages: `page.add(site)` of each place of the menu; `frame` is around all of them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperbrush.app.site import Site

ROOMS = ("create", "networks", "train", "runs", "styles", "compare", "model", "settings")


def add(site: "Site") -> None:
    """Add every page."""
    for room in ROOMS:
        import_module(f"hyperbrush.app.{room}.page").add(site)

"""The pages: a module for each place of the menu, each with `add(site)`; `frame` is around all of them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperbrush.app.site import Site

ROOMS = ("create", "networks", "train", "runs", "styles", "compare", "model", "settings")


def add(site: "Site") -> None:
    """Add every page."""
    for room in ROOMS:
        import_module(f"{__name__}.{room}").add(site)

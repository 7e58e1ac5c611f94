"""Pictures beside hypernetworks: uploaded, or chosen from those that were drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.app import networks
from hyperbrush.app.errors import NotThere
from hyperbrush.app.uploads import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.app.site import Site
    from hyperbrush.app.workspace import Workspace


def set_preview(site: "Site", which: str, picture: "Image") -> networks.Card:
    """Make a picture the preview, at most 1024 pixels wide and high.

    Raises:
        UserError: as `find`, or it cannot be written.
    """
    library = networks.shelf(site.workspace)
    small = picture.convert("RGB")
    small.thumbnail((1024, 1024))
    library.set_preview(networks.find(library, which), small)
    site.news("networks")
    return networks.card(site.workspace, which)


def drawn(workspace: "Workspace", last: int | None = None) -> dict[str, Path]:
    """Drawn pictures by their place in the folder of outputs, the newest first."""
    root = workspace.folder("outputs")
    found = sorted(root.rglob("*.png"), key=lambda path: (path.parent.name, path.name), reverse=True)
    return {path.relative_to(root).as_posix(): path for path in found[:last]}


def open_drawn(workspace: "Workspace", place: str) -> "Image":
    """A drawn picture.

    Raises:
        UserError: there is none at that place, or it is damaged.
    """
    path = drawn(workspace).get(place)
    if path is None:
        raise NotThere(f"there is no drawn picture {place!r:.100}")
    return open_picture(path.read_bytes(), place)

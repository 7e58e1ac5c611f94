"""Pictures of hypernetworks: uploaded, chosen from those that were drawn, or a training's last preview."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.app.errors import NotThere
from hyperbrush.app.networks import service as networks
from hyperbrush.app.runs import pictures as run_pictures
from hyperbrush.app.uploads import decoding, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.app.site import Site
    from hyperbrush.app.workspace import Workspace


def preview(workspace: "Workspace", which: str) -> Path:
    """The picture of the network of an id or a name: its own, else the last preview of the run that made it.

    Raises:
        UserError: as `find`.
        NotThere: it has none.
    """
    library = networks.library_of(workspace)
    entry = library.entry(networks.find(library, which))
    path = run_pictures.shown(library, entry, run_pictures.made_here(workspace))
    if path is None:
        raise NotThere(f"{which!r:.100} has no preview")
    return path


def set_preview(site: "Site", which: str, picture: "Image") -> networks.Card:
    """Make a picture the preview, at most 1024 pixels wide and high.

    Raises:
        UserError: as `find`, or it cannot be written.
    """
    from hyperbrush.ldm.data.pictures import opened

    library = networks.library_of(site.workspace)
    with decoding:
        small = opened(picture, "the preview")
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

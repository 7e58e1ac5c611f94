"""Several hypernetworks changed at once."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.service import Card, annotate, find

if TYPE_CHECKING:
    from hyperbrush.app.site import Site
    from hyperbrush.app.workspace import Workspace


def folders(workspace: "Workspace") -> list[str]:
    """The folders within that of the hypernetworks, sorted, with "/" between."""
    root = workspace.folder("hypernetworks")
    found = []
    for where, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [os.path.relpath(os.path.join(where, name), root).replace(os.sep, "/") for name in inner]  # noqa: PTH118
    return sorted(found)


def move(site: "Site", which: Sequence[str], folder: str) -> list[Card]:
    """Move networks with all their files into a folder of the library; all of them or none.

    which: ids or names.

    Raises:
        UserError: as `rename.move`.
    """
    from hyperbrush.hypernetworks.library.rename import move as moved

    library = site.workspace.library
    paths = moved(library, [find(library, one) for one in which], folder)
    return [networks.kept(site, path) for path in paths]


def tag(site: "Site", which: Sequence[str], add: Sequence[str], remove: Sequence[str] = ()) -> list[Card]:
    """Give networks tags, and take others away.

    Raises:
        UserError: as `service.annotate`.
    """
    library, cards = site.workspace.library, []
    for one in which:
        notes = library.notes(find(library, one))
        tags = [text for text in dict.fromkeys([*notes.tags, *add]) if text not in remove]
        cards.append(annotate(site, one, {"other": {**notes.other, "tags": tags}}))
    return cards

"""Pictures for hypernetworks: the last preview of the run that made one, and those that were drawn to choose from."""

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.app.uploads import open_picture
from hyperbrush.errors import NotThere, UserError
from hyperbrush.hypernetworks.files import SUFFIXES

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.app.workspace import Workspace
    from hyperbrush.hypernetworks.library.library import Entry, HypernetworkLibrary

Made = dict[int, list[Path]]  # size → files


def made_here(workspace: "Workspace") -> Made:
    """What the runs have made, also those in the bin, by size: only files of one size can be the same."""
    found: Made = defaultdict(list)
    removed = (folder for item in workspace.trash.items("run") for folder in item.files)
    for run in (*workspace.folder("runs").iterdir(), *removed):
        with suppress(OSError):  # no folder, or moved just now
            for file in run.iterdir():
                if file.suffix in SUFFIXES and file.is_file():
                    found[file.stat().st_size].append(file)
    return found


def shown(library: "HypernetworkLibrary", entry: "Entry", made: Made) -> Path | None:
    """A network's picture: the one beside it, else the last preview of the run that made it, by the step it kept.

    made: of `made_here`. Files are compared by their hash, which the library keeps: a network that was renamed is still
    the run's.
    """
    if entry.preview is not None:
        return entry.preview
    for file in made.get(entry.size, []):
        try:
            if entry.sha256 and library.cache.sha256(file) == entry.sha256:
                return _last_preview(file.parent, entry.summary.step if entry.summary else None)
        except (OSError, UserError):  # it has just vanished
            continue
    return None


def _last_preview(run: Path, kept: int | None) -> Path | None:
    from hyperbrush.training.report.contact_sheet import find_previews  # brings torch

    found = find_previews(run)
    steps = [step for step in found if kept is None or step <= kept] or list(found)
    path = found[steps[-1]] if steps else None
    if path is None or not path.is_dir():
        return path
    return min((p for p in path.glob("prompt-*.png") if p.stem[7:].isdecimal()), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.stem[7:])


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

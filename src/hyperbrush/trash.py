"""The bin: what was removed (hypernetworks, runs, training pictures, drawings) until it is restored or erased.

Each item is a folder of its own: ``about.json`` (name, place, time, bytes) beside ``files/``.
"""

import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import move_all, read_json, write_json

Kind = Literal["hypernetwork", "run", "picture", "drawing"]

ABOUT = "about.json"
_FOLDERS: Mapping[Kind, str] = {  # within the bin
    "hypernetwork": "",
    "run": "runs",
    "picture": "pictures",
    "drawing": "drawings",
}


@dataclass(frozen=True)
class TrashItem:
    """What was removed at once.

    Args:
        id: of its place in the bin.
        name: as it was called.
        place: where it was, as who removed it needs it: a folder of a library, a dataset.
        deleted: seconds since 1970.
        size: bytes of all its files.
        folder: where it lies.
    """

    id: str
    name: str
    place: str
    deleted: float
    size: int
    folder: Path

    @property
    def files(self) -> list[Path]:
        """What is restored."""
        return sorted((self.folder / "files").iterdir())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: getattr(self, key) for key in ("id", "name", "place", "deleted", "size")}


class Trash:
    """Where removed things stay until they are restored or erased; folder: its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self, kind: Kind) -> list[TrashItem]:
        """What is in it, what was removed last first."""
        found = [_read(path) for path in _inside(self.folder / _FOLDERS[kind])]
        return sorted((item for item in found if item is not None), key=lambda item: (-item.deleted, item.id))

    def get(self, kind: Kind, item: str) -> TrashItem:
        """What has an id.

        Raises:
            NotThere: nothing has.
        """
        places = [path for path in _inside(self.folder / _FOLDERS[kind]) if path.name == item]
        if found := next(map(_read, places), None):
            return found
        raise NotThere(f"there is no {kind} {item!r:.100} in the bin")

    def put(self, kind: Kind, name: str, files: Iterable[Path], *, place: str = "") -> TrashItem:
        """Move files, or folders with all that is in them, into the bin.

        Raises:
            UserError: one cannot be moved (then all stay).
        """
        item = f"{int(time.time() * 1e6):014x}{secrets.token_hex(2)}"
        folder, files = self.folder / _FOLDERS[kind] / item, list(files)
        about = {"name": name, "place": place, "deleted": time.time(), "size": sum(map(_bytes, files))}
        write_json(folder / ABOUT, about)
        try:
            move_all({file: folder / "files" / file.name for file in files})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the files are back where they were
            raise
        return TrashItem(item, folder=folder, **about)  # type: ignore[arg-type]

    def restore(self, item: TrashItem, moves: Mapping[Path, Path]) -> None:
        """Move the files of an item to where they are to be, all or none.

        Raises:
            FileExistsError: something stands there already.
            UserError: one cannot be moved.
        """
        move_all(moves)
        shutil.rmtree(item.folder, ignore_errors=True)

    def erase(self, kind: Kind, item: str) -> TrashItem:
        """Remove for good.

        Raises:
            NotThere: there is nothing of that id.
            UserError: it cannot be removed.
        """
        found = self.get(kind, item)
        try:
            shutil.rmtree(found.folder)
        except OSError as error:
            raise UserError(f"cannot remove {error.filename}: {error.strerror or error}") from error
        return found


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


_UNREADABLE = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
)  # it vanished meanwhile, or was tampered with


def _read(path: Path) -> TrashItem | None:
    """An item; None for what is none."""
    about = read_json(path / ABOUT)
    if not about or not (path / "files").is_dir():
        return None
    try:
        name, place, deleted = str(about["name"]), str(about["place"]), float(about["deleted"])
        return TrashItem(path.name, name, place, deleted, int(about["size"]), path)
    except _UNREADABLE:
        return None


def _bytes(path: Path) -> int:
    files = [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)

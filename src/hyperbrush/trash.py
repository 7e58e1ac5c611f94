"""The bin: what was removed (hypernetworks, runs, training pictures, drawings) until it is restored or erased.

Each item is a folder of its own: ``about.json`` (name, place, time, bytes) beside ``files/``. Two older forms are read
as they lie: a run as the folder ``runs/DATE NAME`` itself, a picture among its files with a ``from.json``.
"""

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import move_all, read_json, write_json

Kind = Literal["hypernetwork", "run", "picture", "drawing"]

ABOUT, OLD_PICTURE = "about.json", "from.json"
_OLD_RUN = re.compile(r"(\d{8}-\d{6}) (.+)", re.DOTALL)
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
        """What is restored: files, or of a run its folder."""
        if (self.folder / ABOUT).is_file():
            return sorted((self.folder / "files").iterdir())
        if (self.folder / OLD_PICTURE).is_file():
            return sorted(path for path in self.folder.iterdir() if path.name != OLD_PICTURE)
        return [self.folder]

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
        if kind == "run":
            found += [_read_old_run(path) for path in _inside(self.folder / "runs")]
        elif kind == "picture":
            found += [_read_old_picture(path) for path in _inside(self.folder)]
        return sorted((item for item in found if item is not None), key=lambda item: (-item.deleted, item.id))

    def get(self, kind: Kind, item: str) -> TrashItem:
        """What has an id.

        Raises:
            NotThere: nothing has.
        """
        for found in self.items(kind):
            if found.id == item:
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
        size = about["size"] if "size" in about else _bytes(path / "files")
        name, place, deleted = str(about["name"]), str(about["place"]), float(about["deleted"])
        return TrashItem(path.name, name, place, deleted, int(size), path)
    except _UNREADABLE:
        return None


def _read_old_picture(path: Path) -> TrashItem | None:
    about = read_json(path / OLD_PICTURE)
    try:
        name, dataset = str(about["picture"]), str(about["dataset"])
        return TrashItem(path.name, name, dataset, (path / OLD_PICTURE).stat().st_mtime, _bytes(path), path)
    except _UNREADABLE:
        return None


def _read_old_run(path: Path) -> TrashItem | None:
    match = _OLD_RUN.fullmatch(path.name)
    if match is None or not (path / "config.yaml").is_file():
        return None
    try:
        deleted = time.mktime(time.strptime(match[1], "%Y%m%d-%H%M%S"))
        return TrashItem(path.name, match[2], "", deleted, _old_size(path, path.stat().st_mtime_ns), path)
    except _UNREADABLE:
        return None


@lru_cache(maxsize=256)
def _old_size(path: Path, _changed: int) -> int:
    return _bytes(path)


def _bytes(path: Path) -> int:
    files = [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)

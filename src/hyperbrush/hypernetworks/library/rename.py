"""A network's files moved together: renamed, taken into a library, put into a bin and back."""

import contextlib
import errno
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json
from hyperbrush.hypernetworks.files import OPTIMIZER_SUFFIX as OPTIMIZER
from hyperbrush.hypernetworks.files import SUFFIXES
from hyperbrush.hypernetworks.library.foreign_notes import FOREIGN
from hyperbrush.hypernetworks.library.library import HypernetworkLibrary
from hyperbrush.hypernetworks.library.notes import PREVIEW_SUFFIXES

# What may follow a network's stem: the network (of several, twins in other formats), then its side files.
ENDINGS = (
    *SUFFIXES,
    *(suffix + OPTIMIZER for suffix in SUFFIXES),
    ".json",
    ".txt",
    *FOREIGN,
    *(middle + suffix for middle in (".preview", "") for suffix in PREVIEW_SUFFIXES),
)
MOST_LETTERS = 120
_FORBIDDEN = re.compile(r'[/\\:<>"|?*\x00-\x1f\x7f]')  # for paths, for prompts' tags, or for Windows


def check_name(name: str) -> str:
    """A name that a file and a prompt's tag can have, in its normal form.

    Raises:
        UserError: it is empty, too long, or has a character that files or tags cannot have.
    """
    wanted = unicodedata.normalize("NFC", name).strip()
    if not wanted or len(wanted) > MOST_LETTERS or len(wanted.encode()) > 200:
        raise UserError(
            f"the name {name!r:.60} is too {'long' if wanted else 'short'}: expected 1 to 120 letters"
        )
    if _FORBIDDEN.search(wanted) or not wanted.isprintable() or wanted[0] == "." or wanted[-1] == ".":
        raise UserError(
            f"the name {name!r:.130} cannot be a file's: expected letters without / \\ : < > \" | ? *, and no dot at "
            "either end"
        )
    return wanted


def safe_name(name: str) -> str:
    """The closest name that `check_name` takes, such as for a file from outside."""
    text = unicodedata.normalize("NFC", name).rpartition("/")[2].rpartition("\\")[2]
    text = "".join(c if c.isprintable() else "_" for c in _FORBIDDEN.sub("_", text)).strip(" .")
    while len(text) > MOST_LETTERS or len(text.encode(errors="replace")) > 200:
        text = text[:-1]
    return text.strip(" .") or "hypernetwork"


def files_of(network: Path) -> list[Path]:
    """A network's file, its twins in other formats, and the side files there are, the network first."""
    found = {
        path.name[len(network.stem) :].lower(): path
        for path in sorted(network.parent.iterdir())
        if path.name.startswith(network.stem) and path.name[len(network.stem) :].lower() in ENDINGS
    }
    return sorted(found.values(), key=lambda path: path != network)


def free_name(library: HypernetworkLibrary, name: str, folder: Path | None = None) -> str:
    """``name``, or with -2, -3, … where the library has a network of that name, or the folder files of it.

    folder: of the library, its top by default.
    """
    folder = library.folder if folder is None else folder
    taken = {place.rpartition("/")[2].casefold() for place in library.names()}
    number, wanted = 1, name
    while wanted.casefold() in taken or _standing(folder, wanted):
        number += 1
        wanted = f"{name}-{number}"
    return wanted


def take_in(library: HypernetworkLibrary, file: Path, name: str) -> Path:
    """Move a file into the top of a library under a free name like ``name``; nothing is overwritten.

    Raises:
        UserError: the name is impossible, or the file cannot be moved.
    """
    name = check_name(name)
    while True:
        target = library.folder / (free_name(library, name) + file.suffix.lower())
        try:
            _move({file: target})
            return target
        except FileExistsError:  # somebody was faster: the next number
            continue


def rename(library: HypernetworkLibrary, name: str, new: str) -> Path:
    """Give a network and all its files another name, in the same folder.

    Raises:
        UserError: there is none of that name, the new one is impossible or taken, or a file cannot be moved
            (then all stay).
    """
    path, new = library.find(name), check_name(new)
    if new == path.stem:
        return path
    others = {place.rpartition("/")[2].casefold() for place in library.names()} - {_folded(path.stem)}
    if new.casefold() in others:
        raise UserError(f"a hypernetwork is called {new!r} already: choose another name")
    if new.casefold() != _folded(path.stem) and (standing := _standing(path.parent, new)):
        raise UserError(f"{standing[0].name} is there already: choose another name than {new!r}")
    moves = {file: file.with_name(new + file.name[len(path.stem) :]) for file in files_of(path)}
    try:
        _move(moves)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is there already: choose another name than {new!r}") from error
    return moves[path]


@dataclass(frozen=True)
class Binned:
    """A network in a bin.

    Args:
        id: of its place there.
        name: as it was called.
        place: of its folder in the library, "" for the top.
        deleted: seconds since 1970.
        size: bytes of all its files.
    """

    id: str
    name: str
    place: str
    deleted: float
    size: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


class Bin:
    """Where deleted networks stay until they are put back or removed for good; folder: its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self) -> list[Binned]:
        """What is in it, what was deleted last first."""
        found = [self._read(path) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((item for item in found if item is not None), key=lambda item: (-item.deleted, item.id))

    def put(self, library: HypernetworkLibrary, name: str) -> Binned:
        """Move a network with all its files out of its library into the bin.

        Raises:
            UserError: there is none of that name, or a file cannot be moved (then all stay).
        """
        path = library.find(name)
        item = f"{int(time.time() * 1e6):014x}{secrets.token_hex(2)}"
        place = path.parent.relative_to(library.folder).as_posix()
        said = {"name": path.stem, "place": "" if place == "." else place, "deleted": time.time()}
        folder = self.folder / item
        write_json(folder / "about.json", said)
        try:
            _move({file: folder / "files" / file.name for file in files_of(path)})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the files are back where they were
            raise
        found = self._read(folder)
        if found is None:
            raise UserError(f"{folder} vanished")
        return found

    def restore(self, library: HypernetworkLibrary, item: str) -> Path:
        """Put a network back to where it was, under a free name; the network's file.

        Raises:
            UserError: there is nothing of that id, or a file cannot be moved (then all stay).
        """
        found = self.get(item)
        folder = (library.folder / found.place).resolve()
        if not folder.is_relative_to(library.folder.resolve()):
            folder = library.folder.resolve()
        name = found.name if not _standing(folder, found.name) else free_name(library, found.name, folder)
        files = sorted((self.folder / found.id / "files").iterdir())
        moves = {file: folder / (name + file.name[len(found.name) :]) for file in files}
        try:
            _move(moves)
        except FileExistsError as error:
            raise UserError(f"{error.filename} is there already: move it away, then restore again") from error
        shutil.rmtree(self.folder / found.id, ignore_errors=True)
        networks = [path for path in moves.values() if path.suffix.lower() in SUFFIXES]
        return networks[-1] if networks else next(iter(moves.values()))

    def remove(self, item: str) -> Binned:
        """Remove a network for good.

        Raises:
            UserError: there is nothing of that id, or it cannot be removed.
        """
        found = self.get(item)
        try:
            shutil.rmtree(self.folder / found.id)
        except OSError as error:
            raise UserError(f"cannot remove {error.filename}: {error.strerror or error}") from error
        return found

    def get(self, item: str) -> Binned:
        """What has an id.

        Raises:
            UnknownInBin: nothing has.
        """
        for found in self.items():
            if found.id == item:
                return found
        raise UnknownInBin(f"there is nothing {item!r:.40} in the bin")

    def _read(self, folder: Path) -> Binned | None:
        said, files = read_json(folder / "about.json"), folder / "files"
        if not said or not files.is_dir():
            return None
        try:
            size = sum(path.lstat().st_size for path in files.iterdir())
            return Binned(folder.name, str(said["name"]), str(said["place"]), float(said["deleted"]), size)
        except (OSError, KeyError, TypeError, ValueError):
            return None


class UnknownInBin(UserError):
    """Nothing in the bin has that id."""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _standing(folder: Path, name: str) -> list[Path]:
    """Files in a folder that a network called ``name`` would have, whatever their case."""
    if not folder.is_dir():
        return []
    wanted = {(name + ending).casefold() for ending in ENDINGS}
    return [path for path in sorted(folder.iterdir()) if _folded(path.name) in wanted]


def _move(moves: Mapping[Path, Path]) -> None:
    """Move files, all or none; over file systems too.

    Raises:
        FileExistsError: something stands at a target.
        UserError: one cannot be moved.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _move_one(source, target)
            done.append((source, target))
    except OSError as error:
        _undo(done)
        if isinstance(error, FileExistsError):
            raise
        raise UserError(
            f"cannot move {error.filename or 'a file'}: {error.strerror or error}. Nothing was changed"
        ) from error


def _move_one(source: Path, target: Path) -> None:
    if target.exists() and not (
        source.exists() and target.samefile(source)
    ):  # water → Water on one that folds case
        raise FileExistsError(errno.EEXIST, "it exists", str(target))
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(f".{target.stem[:40]}.part-{secrets.token_hex(4)}{target.suffix}")
        try:
            shutil.copy2(source, part, follow_symlinks=False)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()


def _undo(done: Iterable[tuple[Path, Path]]) -> None:
    for source, target in reversed(list(done)):
        with contextlib.suppress(OSError):  # the first error is the one to tell
            _move_one(target, source)

"""A network's files moved together: renamed, taken into a library, put into the bin and back."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.files import move_all
from hyperbrush.hypernetworks.files import OPTIMIZER_SUFFIX as OPTIMIZER
from hyperbrush.hypernetworks.files import SUFFIXES, packed
from hyperbrush.hypernetworks.library.foreign_notes import FOREIGN
from hyperbrush.hypernetworks.library.library import HypernetworkLibrary
from hyperbrush.hypernetworks.library.notes import PREVIEW_SUFFIXES
from hyperbrush.trash import Trash, TrashItem

# What may follow a network's stem: the network (of several, twins in other formats), then its side files.
ENDINGS = (
    *SUFFIXES,
    *(suffix + OPTIMIZER for suffix in SUFFIXES),
    ".json",
    ".txt",
    *FOREIGN,
    *(middle + suffix for middle in (".preview", "") for suffix in PREVIEW_SUFFIXES),
)
MAX_LETTERS = 120
_FORBIDDEN = re.compile(r'[/\\:<>"|?*\x00-\x1f\x7f]')  # for paths, for prompts' tags, or for Windows


def check_name(name: str) -> str:
    """A name that a file and a prompt's tag can have, in its normal form.

    >>> check_name(" water [v2] ")
    'water [v2]'

    Raises:
        UserError: it is empty, too long, or has a character that files or tags cannot have.
    """
    wanted = unicodedata.normalize("NFC", name).strip()
    if not wanted or len(wanted) > MAX_LETTERS or len(wanted.encode()) > 200:
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
    """The closest name that `check_name` takes, such as for a file from outside.

    >>> safe_name("../a:b?.pt")
    'a_b_.pt'
    """
    text = unicodedata.normalize("NFC", name).rpartition("/")[2].rpartition("\\")[2]
    text = "".join(c if c.isprintable() else "_" for c in _FORBIDDEN.sub("_", text)).strip(" .")
    while len(text) > MAX_LETTERS or len(text.encode(errors="replace")) > 200:
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
    suffix = packed.SUFFIX if packed.is_pack(file) else file.suffix.lower()
    name = check_name(name.removesuffix(".pack") if packed.is_pack(file) else name)
    while True:
        target = library.folder / (free_name(library, name) + suffix)
        try:
            move_all({file: target})
            return target
        except FileExistsError:  # somebody was faster: the next number
            continue


def rename(library: HypernetworkLibrary, name: str, new: str) -> Path:
    """Give a network and all its files another name, in the same folder.

    Raises:
        UserError: there is none of that name, the new one is impossible or taken, or a file cannot be moved
            (then all stay).
    """
    path, new = _alone(library, name), check_name(new)
    if new == path.stem:
        return path
    others = {place.rpartition("/")[2].casefold() for place in library.names()} - {_folded(path.stem)}
    if new.casefold() in others:
        raise UserError(f"a hypernetwork is called {new!r} already: choose another name")
    if new.casefold() != _folded(path.stem) and (standing := _standing(path.parent, new)):
        raise UserError(f"{standing[0].name} is there already: choose another name than {new!r}")
    moves = {file: file.with_name(new + file.name[len(path.stem) :]) for file in files_of(path)}
    try:
        move_all(moves)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is there already: choose another name than {new!r}") from error
    return moves[path]


def move(library: HypernetworkLibrary, names: Sequence[str], folder: str) -> list[Path]:
    """Move networks with all their files to a folder of their library, made where it is missing; all of them or none.

    folder: within the library, "/" between folders, "" for its top.

    Raises:
        UserError: one is not there, a folder's name is impossible or leads out of the library, one of that name is there already, or a
            file cannot be moved (then all stay).
    """
    parts = [check_name(part) for part in folder.replace("\\", "/").split("/") if part.strip()]
    target = library.folder.joinpath(*parts)
    if not target.resolve().is_relative_to(library.folder.resolve()):
        raise UserError(f"the folder {folder!r:.120} leads out of {library.folder}: choose another")
    moves: dict[Path, Path] = {}
    found = []
    for path in (_alone(library, name) for name in names):
        found.append(target / path.name)
        if path.parent == target:
            continue
        if (standing := _standing(target, path.stem)) or target / path.name in moves.values():
            name = standing[0].name if standing else path.name
            raise UserError(f"{name} is in {folder or 'the top folder'} already: rename one of them first")
        moves |= {file: target / file.name for file in files_of(path)}
    try:
        target.mkdir(parents=True, exist_ok=True)
        move_all(moves)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is there already: rename one of them first") from error
    except OSError as error:
        raise UserError(f"cannot make the folder {target}: {error.strerror or error}") from error
    return found


def discard(library: HypernetworkLibrary, name: str, trash: Trash) -> TrashItem:
    """Move a network with all its files out of its library into the bin.

    Raises:
        UserError: there is none of that name, or a file cannot be moved (then all stay).
    """
    path = _alone(library, name)
    place = path.parent.relative_to(library.folder).as_posix()
    return trash.put("hypernetwork", path.stem, files_of(path), place="" if place == "." else place)


def restore(library: HypernetworkLibrary, trash: Trash, item: str) -> Path:
    """Put a network back from the bin to where it was, under a free name; the network's file.

    Raises:
        UserError: there is nothing of that id, or a file cannot be moved (then all stay).
    """
    found = trash.get("hypernetwork", item)
    folder = (library.folder / found.place).resolve()
    if not folder.is_relative_to(library.folder.resolve()):
        folder = library.folder.resolve()
    name = found.name if not _standing(folder, found.name) else free_name(library, found.name, folder)
    moves = {file: folder / (name + file.name[len(found.name) :]) for file in found.files}
    try:
        trash.restore(found, moves)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is there already: move it away, then restore again") from error
    networks = [path for path in moves.values() if path.suffix.lower() in SUFFIXES]
    return networks[-1] if networks else next(iter(moves.values()))


def _alone(library: HypernetworkLibrary, name: str) -> Path:
    """The file of one network.

    Raises:
        UserError: there is none of that name, or it stands with others in a pack.
    """
    path = library.find(name)
    if found := packed.split(path):
        raise UserError(
            f"{name!r} is one of several in the pack {found[0].name}: move or rename that file as a whole"
        )
    return path


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _standing(folder: Path, name: str) -> list[Path]:
    """Files in a folder that a network called ``name`` would have, whatever their case."""
    if not folder.is_dir():
        return []
    wanted = {(name + ending).casefold() for ending in (*ENDINGS, packed.SUFFIX)}
    return [path for path in sorted(folder.iterdir()) if _folded(path.name) in wanted]

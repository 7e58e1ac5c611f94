"""The hypernetworks of a workspace, as the page and the API see and change them."""

import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakKeyDictionary

from hyperbrush.app.model.service import describe
from hyperbrush.app.networks import pictures
from hyperbrush.app.uploads import decoding
from hyperbrush.errors import NotThere, UserError
from hyperbrush.hypernetworks.files.packed import file_of as file_holding
from hyperbrush.hypernetworks.files.packed import is_pack, members
from hyperbrush.hypernetworks.library.library import Entry, HypernetworkLibrary, UnknownHypernetwork

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.app.jobs.jobs import Job
    from hyperbrush.app.requests import ExportRequest, MergeRequest
    from hyperbrush.app.site import Site
    from hyperbrush.app.workspace import Workspace
    from hyperbrush.trash import TrashItem

MOST_BYTES = 512 << 20  # of a network that is imported
_CHUNK = 1 << 20
_noting = threading.Lock()
_entries: "WeakKeyDictionary[Workspace, tuple[object, list[Entry]]]" = (
    WeakKeyDictionary()
)  # what there was, and when
_reading = threading.Lock()  # two pages that open at once must not hash every file twice


@dataclass(frozen=True)
class Card:
    """A network as it is shown.

    Args:
        id: of its file, for addresses; `find` takes names too.
        entry: what the library says of it.
        fits: whether the preferred model has attentions of its widths; None where that cannot be told.
        changed: of its file, seconds since 1970.
        preview: a number that changes with its picture; 0 where there is none.
    """

    id: str
    entry: Entry
    changed: float
    preview: int
    fits: bool | None = None

    @property
    def prompt(self) -> str:
        """What a click puts into the prompt: the tag at the preferred strength, then the trigger words."""
        notes = self.entry.notes
        weight = 1 if notes.preferred_weight is None else notes.preferred_weight
        return f"<hypernet:{self.entry.name}:{weight:g}> {notes.activation_text}".strip()

    @property
    def searched(self) -> str:
        """What a search looks in."""
        entry, summary, notes = self.entry, self.entry.summary, self.entry.notes
        facts = [] if summary is None else [summary.kind, summary.trained_for, *map(str, summary.widths)]
        return " ".join(
            [entry.name, notes.description, notes.activation_text, notes.notes, *notes.tags, *facts]
        ).casefold()

    def as_dict(self) -> dict[str, Any]:
        """For JSON: id, changed, preview (whether there is one), prompt, and `Entry.as_dict` with the file's name."""
        said = self.entry.as_dict()
        return {
            "id": self.id,
            "changed": self.changed,
            "preview": bool(self.preview),
            "prompt": self.prompt,
            "fits": self.fits,
            "tags": list(self.entry.notes.tags),
            "file": Path(said.pop("path")).name,
            **said,
        }


def cards(workspace: "Workspace") -> list[Card]:
    """Every network, by name; hashes what is new, so it can take a while."""
    library, widths = workspace.library, _widths(workspace)
    listed = entries(workspace)
    made = pictures.made_here(workspace)
    found = [_card(library, entry, made, widths) for entry in listed]
    library.cache.save()
    return found


def entries(workspace: "Workspace") -> list[Entry]:
    """What the library has, by name; read again where a file there has changed."""
    library = workspace.library
    with _reading:
        stamp = library.stamp()
        before = _entries.get(workspace)
        if before is None or before[0] != stamp:
            before = _entries[workspace] = stamp, library.entries()
        return before[1]


def fitting(workspace: "Workspace") -> list[Entry]:
    """Those that the preferred model has attentions for, or where that is not known yet: quick, reads no network.

    What was read comes first; those that were found broken by then are left out.
    """
    widths, (_, last) = _widths(workspace), _entries.get(workspace, ((), []))
    broken = {(entry.path, entry.size) for entry in last if entry.error}
    listed = [e for e in workspace.library.entries(read=False) if (e.path, e.size) not in broken]
    listed.sort(key=lambda entry: entry.summary is None)
    return [entry for entry in listed if _fits(entry, widths) is not False]


def _widths(workspace: "Workspace") -> frozenset[int]:
    """Of the preferred model's attentions; empty where they are not known."""
    try:
        return frozenset(describe(workspace, workspace.preferences.model).widths)
    except UserError:
        return frozenset()


def _fits(entry: Entry, widths: frozenset[int]) -> bool | None:
    if not widths or entry.summary is None or not entry.summary.widths:
        return None
    return not widths.isdisjoint(entry.summary.widths)


def card(workspace: "Workspace", which: str) -> Card:
    """The network of an id or a name.

    Raises:
        UserError: there is none, or several of that name.
    """
    library = workspace.library
    made = pictures.made_here(workspace)
    return _card(library, library.entry(find(library, which)), made, _widths(workspace))


def find(library: HypernetworkLibrary, which: str) -> str:
    """The name of the network with this id or name, looked up in the listing.

    Raises:
        UserError: there is none, or several of that name.
    """
    for name, path in library.files().items():
        if _id(library, path) == which:
            return name
    library.find(which)
    return which


def file_of(workspace: "Workspace", which: str) -> Path:
    """The file of an id or a name.

    Raises:
        UserError: as `find`.
    """
    library = workspace.library
    return library.find(find(library, which))


def annotate(site: "Site", which: str, changes: Mapping[str, Any]) -> Card:
    """Change some of the notes (fields of `notes.Notes`); a strength of 0 is none, as in the webui.

    Raises:
        UserError: as `find`; a side file is damaged, or cannot be written.
    """
    library = site.workspace.library
    name = find(library, which)
    with _noting:  # two tabs that change different notes at once
        library.write_notes(name, replace(library.notes(name), **changes))
    site.news("networks")
    return card(site.workspace, which)


def take(site: "Site", content: BinaryIO, filename: str) -> Card:
    """Keep a network from outside, once it has been read whole and found sound; a taken name gets a number.

    Raises:
        UserError: of another kind, too large, broken, or it cannot be written; then nothing stays.
    """
    from hyperbrush.hypernetworks.files import SUFFIXES
    from hyperbrush.hypernetworks.files.adapters import load
    from hyperbrush.hypernetworks.files.pack import Pack
    from hyperbrush.hypernetworks.library.rename import safe_name, take_in

    name = filename.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    suffix = dot + suffix.lower()
    if suffix not in SUFFIXES or not stem:
        raise UserError(
            f"{name!r:.100} is no hypernetwork's file: expected one ending in {', '.join(SUFFIXES)}"
        )
    with _aside(site.workspace) as folder:
        file = folder / (safe_name(stem) + suffix)
        _copy(content, file, name)
        try:
            _ = Pack.load(file) if is_pack(file) else load(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), f"{name:.100}")) from error
        return kept(site, take_in(site.workspace.library, file, file.stem))


def rename(site: "Site", which: str, new: str) -> Card:
    """Another name for a network and its side files.

    Raises:
        UserError: as `rename.rename`.
    """
    from hyperbrush.hypernetworks.library import rename as moving

    library = site.workspace.library
    return kept(site, moving.rename(library, find(library, which), new))


def delete(site: "Site", which: str) -> "TrashItem":
    """Put a network into the bin.

    Raises:
        UserError: as `find`, or a file cannot be moved.
    """
    from hyperbrush.hypernetworks.library.rename import discard

    library = site.workspace.library
    item = discard(library, find(library, which), site.workspace.trash)
    site.news("networks")
    return item


def restore(site: "Site", item: str) -> Card:
    """Take a network out of the bin.

    Raises:
        UserError: there is nothing of that id, or a file cannot be moved.
    """
    from hyperbrush.hypernetworks.library import rename as moving

    return kept(site, moving.restore(site.workspace.library, site.workspace.trash, item))


def erase(site: "Site", item: str) -> "TrashItem":
    """Remove what is in the bin for good.

    Raises:
        UserError: as `Trash.erase`.
    """
    erased = site.workspace.trash.erase("hypernetwork", item)
    site.news("networks")
    return erased


def merge(site: "Site", request: "MergeRequest") -> Card:
    """Several networks in one new file; a taken name gets a number.

    Raises:
        UserError: one is not there, or as `merging.merge`.
    """
    from hyperbrush.hypernetworks.convert.merging import merge as merged
    from hyperbrush.hypernetworks.files.adapters import load
    from hyperbrush.hypernetworks.library.rename import check_name, take_in

    name, library = check_name(request.name), site.workspace.library
    sources = [(load(library.find(find(library, part.name))), part.weight) for part in request.parts]
    result = merged(sources, how=request.how, name=name)
    with _aside(site.workspace) as folder:
        return kept(site, take_in(library, result.save(folder / f"{name}.safetensors"), name))


def inspection(workspace: "Workspace", which: str) -> dict[str, Any]:
    """Everything that `hyperbrush inspect` says, as its --json has it.

    Raises:
        UserError: as `find`, or the file is broken.
    """
    from hyperbrush.hypernetworks.files.adapters import is_generated_file
    from hyperbrush.hypernetworks.library.inspection import generated_facts, inspect

    path = file_of(workspace, which)
    said = generated_facts(path) if is_generated_file(path) else inspect(path).as_dict()
    said.pop("path", None)
    return {**said, "file": path.name}


def preview(workspace: "Workspace", which: str) -> Path:
    """The picture of the network of an id or a name: its own, else the last preview of the run that made it.

    Raises:
        UserError: as `find`.
        NotThere: it has none.
    """
    library = workspace.library  # walked for a name alone: a page asks for every card's picture by its id
    known = next((entry for entry in entries(workspace) if _id(library, entry.path) == which), None)
    entry = known or library.entry(which)
    path = entry.preview or pictures.shown(library, entry, pictures.made_here(workspace))
    if path is None:
        raise NotThere(f"{which!r:.100} has no preview")
    return path


def set_preview(site: "Site", which: str, picture: "Image") -> Card:
    """Make a picture the preview, at most 1024 pixels wide and high.

    Raises:
        UserError: as `find`, or it cannot be written.
    """
    from hyperbrush.ldm.data.pictures import opened

    library = site.workspace.library
    with decoding:
        small = opened(picture, "the preview")
        small.thumbnail((1024, 1024))
    library.set_preview(find(library, which), small)
    site.news("networks")
    return card(site.workspace, which)


def export(site: "Site", which: str, request: "ExportRequest") -> "Job":
    """Submit the job that writes a network for another program.

    Raises:
        UserError: as `find`, or the queue cannot be written.
    """
    name = find(site.workspace.library, which)
    return site.submit("export", {"network": name, **request.model_dump(exclude_defaults=True)})


def exported(site: "Site", job: str) -> Path:
    """The file that an export came to.

    Raises:
        UserError: there is no such job, or it has no file (yet).
    """
    found = site.jobs.get(job)
    folder = site.jobs.folder / found.id / "export"
    files = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    path = files.get(str(found.result.get("file")))
    if found.kind != "export" or path is None:
        raise NotThere(f"job {job} has no exported file: it is {found.state}")
    return path


def _card(library: HypernetworkLibrary, entry: Entry, made: pictures.Made, widths: frozenset[int]) -> Card:
    changed, preview = 0.0, 0
    try:
        changed = file_holding(entry.path).stat().st_mtime
        picture = pictures.shown(library, entry, made)
        preview = picture.stat().st_mtime_ns if picture is not None else 0
    except (OSError, UnknownHypernetwork):  # it has just vanished
        pass
    return Card(_id(library, entry.path), entry, changed, preview, _fits(entry, widths))


def _id(library: HypernetworkLibrary, path: Path) -> str:
    return hashlib.sha256(path.relative_to(library.folder).as_posix().encode("utf-8", "replace")).hexdigest()[
        :16
    ]


def kept(site: "Site", path: Path) -> Card:
    """The card of a file that has just come or moved."""
    site.news("networks")
    path = next((path / member for member in members(path)), path) if is_pack(path) else path
    return card(site.workspace, _id(site.workspace.library, path))


@contextmanager
def _aside(workspace: "Workspace") -> Iterator[Path]:
    """A folder of its own for what is not kept yet; what killed servers left there goes too."""
    folder = workspace.state / "incoming" / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True)
        for old in folder.parent.iterdir():
            with suppress(OSError):  # another import has just ended, and took its folder away
                if time.time() - old.stat().st_mtime > 86400:
                    shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; make room") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(content: BinaryIO, file: Path, name: str) -> None:
    count = 0
    try:
        with file.open("wb") as kept:
            while chunk := content.read(_CHUNK):
                count += len(chunk)
                if count > MOST_BYTES:
                    raise UserError(
                        f"{name:.100} has more than {MOST_BYTES >> 20} MiB: no hypernetwork is that large"
                    )
                kept.write(chunk)
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror or error}. Nothing was kept; make room"
        ) from error

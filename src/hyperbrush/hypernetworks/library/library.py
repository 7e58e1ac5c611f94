"""A folder of hypernetwork files: names are looked up in its index, never joined to a path."""

import logging
import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UnknownHypernetwork as UnknownHypernetwork
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.file_cache import FileCache
from hyperbrush.hypernetworks.files import SUFFIXES, packed
from hyperbrush.hypernetworks.library.foreign_notes import FOREIGN
from hyperbrush.hypernetworks.library.notes import (
    KEYS,
    Notes,
    collect_notes,
    find_preview,
    write_notes,
    write_preview,
)
from hyperbrush.hypernetworks.library.summary import Summary, summary_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.hypernetworks.files.adapters import Adapter

SUMMARY = "summary/1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One file of a library.

    Args:
        name: what `HypernetworkLibrary.find` takes.
        path, size: the file, and its bytes; of a pack's member the pack's, with path looks.pack.safetensors/ink.
        sha256: of the file, hex digits; "" where it cannot be read.
        summary: what its header says; None for a broken file.
        notes: what people wrote beside it.
        error: why the file cannot be used.
        warning: what is wrong beside it (its side files).
        preview: the picture beside it, if there is one within the folder.
    """

    name: str
    path: Path
    size: int
    sha256: str = ""
    summary: Summary | None = None
    notes: Notes = field(default_factory=Notes)
    error: str | None = None
    warning: str | None = None
    preview: Path | None = None

    @property
    def short_hash(self) -> str:
        """The webui's: the first 10 digits of the sha256."""
        return self.sha256[:10]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; every key is always there.

        name, path, size (bytes), sha256, hash (the webui's short one), kind, format, widths, sites,
        structure, activation, layer_norm, parameters, step, trained_for (None for a broken file), then
        description, activation_text, preferred_weight, notes, error and warning (None where all is well).
        """
        summary = (
            dict.fromkeys(Summary.__dataclass_fields__) if self.summary is None else self.summary.as_dict()
        )
        return {
            "name": self.name,
            "path": str(self.path),
            "size": self.size,
            "sha256": self.sha256,
            "hash": self.short_hash,
            **summary,
            **{key: getattr(self.notes, key) for key in KEYS},
            "error": self.error,
            "warning": self.warning,
        }


class HypernetworkLibrary:
    """The .pt, .bin, .ckpt and .safetensors files of a folder and its subfolders.

    >>> from hyperbrush.hypernetworks import AttentionHypernetwork
    >>> path = AttentionHypernetwork([8]).save("styles/water.pt")
    >>> library = HypernetworkLibrary("styles")
    >>> library.names(), library.load("water").widths
    (['water'], [8])

    A file's name is its stem ("water"), or its place in the folder without suffix
    ("styles/water") where stems repeat; members of a pack are named alike, "ink" or "looks/ink", and their side files
    are the pack's. The folder is read again at each question, so new files
    are seen.

    cache: where hashes and headers are kept by file size and time; the user's cache folder by default.
    """

    def __init__(self, folder: str | Path, *, cache: FileCache | None = None) -> None:
        self.folder = Path(folder)
        self._cache = cache

    @property
    def cache(self) -> FileCache:
        """Where hashes and headers are kept."""
        if self._cache is None:
            self._cache = FileCache()
        return self._cache

    def names(self) -> list[str]:
        """Every name, sorted; repeated stems with their folder.

        Raises:
            UserError: the folder does not exist.
        """
        return sorted(self._named())

    def files(self) -> dict[str, Path]:
        """Every file by name, sorted.

        Raises:
            UserError: the folder does not exist.
        """
        return dict(sorted(self._named().items()))

    def find(self, name: str) -> Path:
        """The file called ``name``: a stem, or a place in the folder, with or without suffix.

        Raises:
            UnknownHypernetwork: no such file (with the closest names), or no folder.
            UserError: several of that stem.
        """
        wanted = _normal(name)
        by_stem = self._by_stem()
        every = [path for paths in by_stem.values() for path in paths]
        for path in every:
            if wanted in (self._place(path), _normal(path.relative_to(self.folder).as_posix())):
                return path
        same = by_stem.get(wanted) or [p for p in every if _normal(p.name) == wanted]
        if len(same) > 1:
            places = ", ".join(self._place(path) for path in same)
            raise UserError(
                f"several hypernetworks are called {name!r} in {self.folder}: say which of {places}"
            )
        if not same:
            error = unknown_name("hypernetwork", name, self.names(), hint=f"; looked in {self.folder}")
            raise UnknownHypernetwork(str(error))
        return same[0]

    def load(self, name: str) -> "Adapter":
        """Read the file called ``name``.

        Raises:
            UserError: as `find` and `files.adapters.load`.
        """
        from hyperbrush.hypernetworks.files.adapters import load  # the rest of this module does without torch

        return load(self.find(name))

    def sha256(self, name: str) -> str:
        """Hex digest of the file called ``name``, kept by its size and time.

        Raises:
            UserError: as `find`, or it cannot be read.
        """
        digest = self.cache.sha256(packed.file_of(self.find(name)))
        self.cache.save()
        return digest

    def entries(self, *, read: bool = True) -> list[Entry]:
        """Every file with what its header says, by name; a broken one with the reason.

        Numbers are read for the hash alone, and only where size or time have changed.

        read: False reads no file: what is not known of one from an earlier listing is left out.

        Raises:
            UserError: the folder does not exist.
        """
        found = [self._entry(name, path, read) for name, path in sorted(self._named().items())]
        self.cache.save()
        return [entry for entry in found if entry is not None]

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Names, sizes and times of all files in the folder: the same as long as `entries` would find the same."""
        found: list[tuple[str, int, int]] = []
        folders = [str(self.folder)]
        for folder in folders:
            try:
                with os.scandir(folder) as listed:
                    for one in listed:
                        if one.is_dir(follow_symlinks=False):
                            folders.append(one.path)
                        else:
                            about = one.stat()
                            found.append((one.path, about.st_size, about.st_mtime_ns))
            except OSError:  # no folder, a link to nothing, or moved just now
                found.append((folder, -1, len(found)))
        return tuple(sorted(found))

    def entry(self, name: str) -> Entry:
        """One file with what its header says.

        Raises:
            UserError: as `find`.
        """
        path = self.find(name)
        own = {path: name for name, path in self._named().items()}
        found = self._entry(own.get(path, name), path)
        if found is None:
            raise UnknownHypernetwork(f"{path} has just vanished")
        self.cache.save()
        return found

    def notes(self, name: str) -> Notes:
        """What people and other programs wrote beside a network; see `notes.collect_notes`.

        Raises:
            UserError: as `find`; or a side file is damaged or lies outside of the folder.
        """
        notes, wrong = collect_notes(packed.file_of(self.find(name)), self._refused)
        for side, reason in wrong:
            if side.name.endswith(tuple(FOREIGN)):  # nobody edits these here
                _log.warning("%s", reason)
            else:
                raise UserError(reason)
        return notes

    def write_notes(self, name: str, notes: Notes) -> None:
        """Write NAME.json and NAME.txt; other keys of the webui's stay if they are in ``notes.other``.

        Raises:
            UserError: as `find`; or they cannot be written.
        """
        write_notes(packed.file_of(self.find(name)), notes)

    def preview(self, name: str) -> Path | None:
        """The picture beside a network, if there is one within the folder.

        Raises:
            UserError: as `find`.
        """
        return self._preview(self.find(name))

    def set_preview(self, name: str, image: "Image") -> Path:
        """Write NAME.preview.png.

        Raises:
            UserError: as `find`; or it cannot be written.
        """
        return write_preview(packed.file_of(self.find(name)), image)

    def _preview(self, network: Path) -> Path | None:
        path = find_preview(packed.file_of(network))
        return path if path is not None and self._inside(path) else None

    def _entry(self, name: str, path: Path, read: bool = True) -> Entry | None:
        """None for a file that vanished meanwhile."""
        summary = None
        digest, error = "", None
        file, what = packed.file_of(path), SUMMARY if packed.split(path) is None else f"{SUMMARY}/{path.name}"
        try:
            state = file.stat()
        except OSError:
            return None
        try:
            if not stat.S_ISREG(state.st_mode):
                raise UserError(f"{path} is no regular file")
            if read:
                digest = self.cache.sha256(file)
                value = self.cache.get(
                    file, what, lambda _: _summary(path), lambda v: summary_from(v) is not None
                )
            else:
                value = self.cache.kept(file, what)
            summary = summary_from(value)
        except (UserError, OSError) as reason:
            error = str(reason)
        notes, wrong = collect_notes(file, self._refused)
        return Entry(
            name,
            path,
            state.st_size,
            digest,
            summary,
            notes,
            error,
            "; ".join(reason for _, reason in wrong) or None,
            self._preview(path),
        )

    def _refused(self, side: Path) -> str | None:
        """Why a side file is not looked at."""
        if self._inside(side):
            return None
        return f"{side} leads out of {self.folder}: put the file itself there"

    def _inside(self, path: Path) -> bool:
        """Of files beside ours: their folders were walked, so a link of their own alone can lead out."""
        return not path.is_symlink() or path.resolve().is_relative_to(self.folder.resolve())

    def _named(self) -> dict[str, Path]:
        return {
            _stem(path) if len(paths) == 1 else self._place(path): path
            for paths in self._by_stem().values()
            for path in paths
        }

    def _by_stem(self) -> dict[str, list[Path]]:
        """Files by stem. Of twins in one folder that differ only in suffix, the safetensors one."""
        if not self.folder.is_dir():
            raise UnknownHypernetwork(
                f"no hypernetwork folder at {self.folder}: make it and put the files there"
            )
        by_place: dict[str, Path] = {}
        for parent, folders, files in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in sorted(files):
                path = Path(parent, file)
                # A link may not carry a name out of the folder.
                if file.startswith(".") or path.suffix.lower() not in SUFFIXES or not self._inside(path):
                    continue
                for one in _adapters(path):
                    place = self._place(one)
                    twin = by_place.get(place)
                    if twin is None or (path.suffix.lower() == ".safetensors" and twin.parent == one.parent):
                        by_place[place] = one
        by_stem: dict[str, list[Path]] = {}
        for path in by_place.values():
            by_stem.setdefault(_stem(path), []).append(path)
        return by_stem

    def _place(self, path: Path) -> str:
        return _normal(packed.place_of(path.relative_to(self.folder)))


def _summary(path: Path) -> dict[str, Any]:
    from hyperbrush.hypernetworks.library.summary import summarise  # brings torch

    return summarise(path).as_dict()


def _adapters(file: Path) -> list[Path]:
    """What a file holds: itself, or the members of a pack."""
    return [file / name for name in packed.members(file)] or [file] if packed.is_pack(file) else [file]


def _stem(path: Path) -> str:
    return _normal(path.name if packed.split(path) else path.stem)


def _normal(name: str) -> str:
    """One form for names that look the same: macOS stores "é" as two characters, others as one."""
    return unicodedata.normalize("NFC", name)

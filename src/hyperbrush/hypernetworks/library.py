"""A folder of hypernetwork files: names are looked up in its index, never joined to a path."""

import os
import unicodedata
from pathlib import Path

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attention import AttentionHypernetwork
from hyperbrush.hypernetworks.formats import SUFFIXES, load


class HypernetworkLibrary:
    """The .pt, .bin, .ckpt and .safetensors files of a folder and its subfolders.

    A file's name is its stem ("water"), or its place in the folder without suffix
    ("styles/water") where stems repeat. The folder is read anew at each question, so new files
    are seen.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Every name, sorted; repeated stems with their folder.

        Raises:
            UserError: the folder does not exist.
        """
        return sorted(
            _stem(paths[0]) if len(paths) == 1 else self._place(path)
            for paths in self._by_stem().values()
            for path in paths
        )

    def find(self, name: str) -> Path:
        """The file called ``name``: a stem, or a place in the folder, with or without suffix.

        Raises:
            UserError: no such file (with the closest names), several of that stem, or no folder.
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
            raise unknown_name("hypernetwork", name, self.names(), hint=f"; looked in {self.folder}")
        return same[0]

    def load(self, name: str) -> AttentionHypernetwork:
        """Read the file called ``name``.

        Raises:
            UserError: as `find` and `formats.load`.
        """
        return load(self.find(name))

    def _by_stem(self) -> dict[str, list[Path]]:
        """Files by stem. Of twins in one folder that differ only in suffix, the safetensors one."""
        if not self.folder.is_dir():
            raise UserError(f"no hypernetwork folder at {self.folder}: make it and put the files there")
        root = self.folder.resolve()
        by_place: dict[str, Path] = {}
        for parent, folders, files in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in sorted(files):
                path = Path(parent, file)
                # A link may not carry a name out of the folder.
                if (
                    file.startswith(".")
                    or path.suffix.lower() not in SUFFIXES
                    or not path.resolve().is_relative_to(root)
                ):
                    continue
                place = self._place(path)
                if place not in by_place or path.suffix.lower() == ".safetensors":
                    by_place[place] = path
        by_stem: dict[str, list[Path]] = {}
        for path in by_place.values():
            by_stem.setdefault(_stem(path), []).append(path)
        return by_stem

    def _place(self, path: Path) -> str:
        return _normal(path.relative_to(self.folder).with_suffix("").as_posix())


def _stem(path: Path) -> str:
    return _normal(path.stem)


def _normal(name: str) -> str:
    """One form for names that look the same: macOS stores "é" as two characters, others as one."""
    return unicodedata.normalize("NFC", name)

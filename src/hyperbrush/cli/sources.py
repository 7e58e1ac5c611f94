"""Hypernetworks as a command line names them: a path, or a name of the library."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.files.adapters import Adapter


def find(source: str, folder: Path) -> Path:
    """The file meant by ``source``: a path, else a name looked up in the library at ``folder``.

    Raises:
        UserError: neither; with the closest names where the folder is there.
    """
    from hyperbrush.hypernetworks import HypernetworkLibrary
    from hyperbrush.hypernetworks.files import SUFFIXES

    path = Path(source)
    if "\0" not in source and (path.exists() or path.suffix.lower() in SUFFIXES):
        return path
    if not folder.is_dir():
        raise UserError(
            f"{source!r} is no file, and there is no hypernetwork folder at {folder} to look the name up: give a "
            "path, or --hypernetworks DIR"
        )
    return HypernetworkLibrary(folder).find(source)


def weighted(source: str, folder: Path) -> "tuple[Adapter, float]":
    """FILE:WEIGHT (or NAME:WEIGHT) as a hypernetwork, or generated weights, and its weight; without one, 1.

    Raises:
        UserError: the weight is no number; or as `find` and `load`.
    """
    from hyperbrush.hypernetworks.attention.strengths import finite
    from hyperbrush.hypernetworks.files.adapters import load

    name, colon, text = source.rpartition(":")
    if not colon or Path(source).exists() or set(text) & {"/", "\\"}:
        return load(find(source, folder)), 1.0
    try:
        weight = finite(text)
    except UserError as error:
        raise UserError(f"{source!r}: the weight {text!r} is no finite number; write FILE:0.5") from error
    return load(find(name, folder)), weight

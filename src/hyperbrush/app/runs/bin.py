"""Runs that were removed: what lies in the bin (.hyperbrush/bin/runs), back from it, gone for good."""

import re
import shutil
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hyperbrush.app.errors import NotThere
from hyperbrush.app.runs.run import Run
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError

WHEN = "%Y%m%d-%H%M%S"  # before each folder's name
_NAMED = re.compile(r"(\d{8}-\d{6}) (.+)", re.DOTALL)


@dataclass(frozen=True)
class BinnedRun:
    """A run in the bin.

    Args:
        id: of its place there.
        name: as it was called.
        deleted: seconds since 1970.
        size: bytes of all its files.
    """

    id: str
    name: str
    deleted: float
    size: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def folder(workspace: Workspace) -> Path:
    """Where removed runs are."""
    return workspace.state / "bin" / "runs"


def place(workspace: Workspace, name: str) -> Path:
    """Where a run that is removed now goes; the last part is its id."""
    return folder(workspace) / f"{time.strftime(WHEN)} {name}"


def items(workspace: Workspace) -> list[BinnedRun]:
    """What is in the bin, what was removed last first."""
    root = folder(workspace)
    found = [_read(path) for path in root.iterdir()] if root.is_dir() else []
    return sorted((item for item in found if item is not None), key=lambda item: item.id, reverse=True)


def restore(site: Site, item: str) -> Run:
    """Put a run back to where it was.

    Raises:
        NotThere: there is nothing of that id.
        UserError: another run has its name now, or it cannot be moved.
    """
    with site.runs.changing:
        found = _get(site.workspace, item)
        target = site.workspace.folder("runs") / found.name
        if target.exists():  # under another name its file would meet that run's
            raise UserError(
                f"there is another run {found.name!r} now: remove that first, then restore this one"
            )
        _move(folder(site.workspace) / found.id, target)
    site.news("runs", f"run:{found.name}")
    return site.runs.get(found.name)


def remove(site: Site, item: str) -> BinnedRun:
    """Remove a run for good.

    Raises:
        NotThere: there is nothing of that id.
        UserError: it cannot be removed.
    """
    with site.runs.changing:
        found = _get(site.workspace, item)
        try:
            shutil.rmtree(folder(site.workspace) / found.id)
        except OSError as error:
            raise UserError(f"cannot remove {error.filename}: {error.strerror or error}") from error
    site.news("runs")
    return found


def _get(workspace: Workspace, item: str) -> BinnedRun:
    for found in items(workspace):
        if found.id == item:
            return found
    raise NotThere(f"there is no run {item!r:.100} in the bin")


def _read(path: Path) -> BinnedRun | None:
    said = _NAMED.fullmatch(path.name)
    try:
        if said is None or not (path / "config.yaml").is_file():
            return None
        deleted = time.mktime(time.strptime(said[1], WHEN))
        return BinnedRun(path.name, said[2], deleted, _size(path, path.stat().st_mtime_ns))
    except (OSError, ValueError, OverflowError):  # it vanished meanwhile, or somebody renamed it
        return None


@lru_cache(maxsize=256)
def _size(path: Path, _changed: int) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _move(source: Path, target: Path) -> None:
    try:
        shutil.move(source, target)
    except OSError as error:
        raise UserError(f"cannot move {source} to {target}: {error.strerror or error}") from error

"""What is known of files by their size and time, kept between runs: sha256 of large files above all."""

import json
import logging
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import sha256, write_text

MIN_AGE_NS = 2_000_000_000  # ns; a file younger than this can change again without its time telling
MAX_FILES = 20_000
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where this system keeps what a program can make again: XDG_CACHE_HOME wherever it is set."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given, "hyperbrush")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hyperbrush"
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"], "hyperbrush", "Cache")
    return Path.home() / ".cache" / "hyperbrush"


class FileCache:
    """Values by file, each good for as long as the file's size and time of change stay.

    path: the JSON file it is kept in; one in `cache_folder` by default. A broken one is as good as none, and
    one that cannot be written costs time only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else cache_folder() / "files.json"
        self._files = self._read()
        self._new: dict[str, dict[str, Any]] = {}
        self._folders: dict[Path, Path] = {}  # and where they lie, links followed

    def get(self, file: Path, what: str, make: Callable[[Path], Any], valid: Callable[[Any], bool]) -> Any:
        """The value called ``what`` of a file: the one kept if it is ``valid``, else made (JSON only).

        Raises:
            OSError: there is no such file; and whatever ``make`` raises.
        """
        before = _state(file)
        key = self._key(file)
        record = self._files.get(key)
        if record is None or any(record.get(k) != v for k, v in before.items()):
            record = dict(before)
        if what in record and valid(record[what]):
            return record[what]
        value = make(file)
        settled = time.time_ns() - before["mtime_ns"] > MIN_AGE_NS
        if settled and _state(file) == before:
            self._files[key] = self._new[key] = {**record, what: value}
        return value

    def kept(self, file: Path, what: str) -> Any:
        """The value called ``what`` of a file as it stands, None where none is kept.

        Raises:
            OSError: there is no such file.
        """
        record = self._files.get(self._key(file), {})
        return record.get(what) if all(record.get(k) == v for k, v in _state(file).items()) else None

    def sha256(self, file: Path) -> str:
        """Hex digest of a file's content.

        Raises:
            UserError: it is no regular file (reading a pipe would never end), or cannot be read.
        """
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise UserError(f"{file} is no regular file")
            found: str = self.get(file, "sha256", sha256, _is_sha256)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}") from error
        return found

    def save(self) -> None:
        """Write what is new, beside what other processes wrote meanwhile."""
        if not self._new:
            return
        files = self._read() | self._new
        kept = dict(list(files.items())[-MAX_FILES:])
        try:
            write_text(self.path, json.dumps({"version": 1, "files": kept}))
        except UserError as error:
            _log.info("hashes are not kept: %s", error)
        self._new = {}

    def _key(self, file: Path) -> str:
        """Its path with links followed; a folder's are followed once."""
        if file.is_symlink():
            return str(file.resolve())
        if file.parent not in self._folders:
            self._folders[file.parent] = file.parent.resolve()
        return str(self._folders[file.parent] / file.name)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            files = json.loads(self.path.read_text(encoding="utf-8"))["files"]
            return {key: dict(record) for key, record in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def _state(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64

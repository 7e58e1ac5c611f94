"""Files and folders that are whole or absent: temporary name, flush, fsync, rename."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError

PART = ".part-"  # in the names of what is not whole yet


@contextlib.contextmanager
def atomic_path(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, else it vanishes.

    sync: force it to the disk; without, readers still see all of it or nothing, but a power cut may lose it.

    Raises:
        UserError: the file cannot be written (disk full, no permission); what stood there is kept.
    """
    from safetensors import SafetensorError  # how safetensors reports a full disk

    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last, since writers choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}{PART}", suffix=path.suffix, dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        if sync:
            fsync(temporary)
        temporary.replace(path)
        temporary = None
        if sync:
            fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it takes the place of ``path``, else it vanishes.

    Raises:
        UserError: the folder cannot be written (disk full, no permission); what stood there is kept.
    """
    from safetensors import SafetensorError

    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{PART}", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_UMASK)
        for file in temporary.rglob("*"):
            if file.is_file():
                fsync(file)
        _take_place(temporary, path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, path: Path) -> None:
    """Rename a folder over another, which no system does in one step."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_name(new.name + ".old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clear_parts(folder: Path) -> None:
    """Delete what killed writers left half-written in a folder; only for whoever alone writes there."""
    for left in folder.glob(f".*{PART}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write {path}: {reason}. Nothing was changed; make room or choose another place")


def _umask() -> int:
    """The process's, which can only be read by setting it: once, before there are threads."""
    value = os.umask(0o077)
    os.umask(value)
    return value


_UMASK = _umask()


def fsync(path: Path) -> None:
    """Force the content of one file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str, *, sync: bool = True) -> None:
    """Write a text file atomically, UTF-8; sync: see `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, *, sync: bool = True) -> None:
    """Write a JSON file atomically; sync: see `atomic_path`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", sync=sync)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is no such file, or it holds anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

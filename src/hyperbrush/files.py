"""Files and folders that are whole or absent: temporary name, flush, fsync, rename."""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError

PART = ".part-"  # in the names of what is not whole yet: .STEM.part-MACHINE-PROCESS-CHANCE.SUFFIX
OLD = ".old"  # ends the names of folders that are being replaced
FORGOTTEN = 24 * 3600.0  # seconds after which what another machine left half-written counts as left
_visited: set[Path] = set()  # folders this process has written to
if hasattr(os, "register_at_fork"):  # a forked one is another process
    os.register_at_fork(after_in_child=_visited.clear)


@contextlib.contextmanager
def atomic_path(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, else it vanishes.

    >>> with atomic_path("note.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> Path("note.txt").read_text()
    'whole'

    sync: force it to the disk; without, readers still see all of it or nothing, but a power cut may lose it.

    Raises:
        UserError: the file cannot be written (disk full, no permission); what stood there is kept.
    """
    from safetensors import SafetensorError  # how safetensors reports a full disk

    path = Path(path)
    temporary: Path | None = None
    try:
        _visit(path.parent)
        # The suffix stays last, since writers choose the format by it.
        handle, name = tempfile.mkstemp(
            prefix=f".{_short(path.stem)}{_mark()}", suffix=path.suffix, dir=path.parent
        )
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
        _visit(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{_mark()}", dir=path.parent))
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
    old = new.with_name(new.name + OLD)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clear_parts(folder: Path, *, shared: bool = False, deep: bool = False) -> None:
    """Delete what killed writers left half-written in a folder; what cannot be deleted stays.

    A folder that was being replaced, and whose place is empty, takes its place again.

    shared: others may be writing there now: only what a process of this machine left that lives no more,
        or what is `FORGOTTEN`; without, the caller alone writes there, and all of it goes.
    deep: in the folders inside too, but not in those that are links.
    """
    with contextlib.suppress(OSError):
        for found in list(os.scandir(folder)):
            if found.name.startswith(".") and PART in found.name:
                _clear(Path(found.path), shared)
            elif deep and found.is_dir(follow_symlinks=False):
                clear_parts(Path(found.path), shared=shared, deep=True)


def _clear(left: Path, shared: bool) -> None:
    whole = left.with_name(left.name[1:].rpartition(PART)[0])
    with contextlib.suppress(OSError):
        if shared and not _is_left(left):
            return
        if left.name.endswith(OLD) and left.is_dir() and not whole.exists():
            left.rename(whole)
        elif left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_left(part: Path) -> bool:
    """Whether nobody writes a part any more."""
    import psutil

    machine, _, rest = part.name.rpartition(PART)[2].partition("-")
    number = rest.partition("-")[0]
    if machine == _machine() and number.isdecimal():
        try:
            return bool(psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False
    newest = part.lstat().st_mtime
    for inside in part.rglob("*") if part.is_dir() else ():
        newest = max(newest, inside.lstat().st_mtime)
    return time.time() - newest > FORGOTTEN


def _visit(folder: Path) -> None:
    """Make a folder to write to; what dead processes left half-written there goes, once in a process."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.absolute()
    if place not in _visited:
        _visited.add(place)
        clear_parts(folder, shared=True)


def _short(stem: str) -> str:
    """So much of a name that the part's own, longer one is a file's too."""
    return stem.encode()[:150].decode(errors="ignore")


def _mark() -> str:
    return f"{PART}{_machine()}-{os.getpid()}-"


@functools.cache
def _machine() -> str:
    """Where this process's number means something: the machine since its start, or a container of it."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone has these
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def check_place(folder: str | Path, setting: str) -> None:
    """Look whether files could be written into a folder, before the long work whose result is to go there.

    Nothing is made: where the folder is not there yet, the one it would be made in is looked at.

    Raises:
        UserError: they could not; names ``setting``, which says where they go.
    """
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {there}: {error.strerror or error}; expected a folder for the finished file "
            f"({setting})"
        ) from error


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
    """A JSON file's object; an empty one where there is no such file, or it holds anything else.

    >>> write_json("a.json", {"step": 3})
    >>> read_json("a.json"), read_json("none.json")
    ({'step': 3}, {})
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """A value that JSON can hold: NaN and inf become None, at any depth; what YAML alone has becomes a text."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def tail(path: Path, characters: int) -> str:
    """The end of a text file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4 * characters))
            return file.read().decode("utf-8", "replace")[-characters:]
    except OSError:
        return ""


def move_all(moves: Mapping[Path, Path]) -> None:
    """Move files or folders, all or none; over file systems too.

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
        _copy_over(source, target)


def _copy_over(source: Path, target: Path) -> None:
    """Move to another file system: whole there before anything is gone here."""
    part, gone = (
        path.with_name(f".{_short(path.stem)}{_mark()}{secrets.token_hex(4)}{path.suffix}")
        for path in (target, source)
    )
    try:
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, part, symlinks=True)
        else:
            shutil.copy2(source, part, follow_symlinks=False)
        part.rename(target)
    finally:
        _clear(part, shared=False)
    try:
        source.rename(gone)
    except OSError:
        _clear(target, shared=False)
        raise
    _clear(gone, shared=False)


def _undo(done: Iterable[tuple[Path, Path]]) -> None:
    for source, target in reversed(list(done)):
        with contextlib.suppress(OSError):  # the first error is the one to tell
            _move_one(target, source)

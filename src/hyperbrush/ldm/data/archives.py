"""Pictures inside one file: tar archives such as WebDataset's, Parquet and Arrow tables; what is inside has a path too."""

import functools
import os
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError

TARS = (".tar",)
TABLES = (".parquet", ".arrow")  # .arrow: as `save_to_disk` of Hugging Face's datasets writes them
METADATA_TABLE = "metadata.parquet"  # captions of the files beside it, no pictures
INSTALL = "pip install 'hyperbrush[parquet]'"
# Columns by what they hold; the first of these names that a table has counts.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp", "image_bytes")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")


def is_archive(path: Path) -> bool:
    """Whether a file holds pictures, by its ending."""
    if path.name == METADATA_TABLE or (path.suffix == ".arrow" and path.name.startswith("cache-")):
        return False
    return path.suffix.lower() in TARS + TABLES and path.is_file()


def is_source(path: str | Path) -> bool:
    """Whether a place holds pictures to train on, as far as it shows from outside: a folder, a tar, a table."""
    place = Path(path).expanduser()
    return place.is_dir() or is_archive(place)


def files_in(
    folder: Path, unreadable: Callable[[Path, str], None] = lambda path, reason: None
) -> Iterator[Path]:
    """Every file in a folder, nested ones and members of tars too; names that begin with a dot are passed over.

    Links to folders are followed. A table comes as one file; `rows_of` has what is in it.

    unreadable: told of folders and archives that cannot be listed, and why.
    """
    if is_archive(folder):
        yield from _inside(folder, unreadable)
        return

    def report(error: OSError) -> None:
        unreadable(Path(error.filename), f"cannot be listed: {error.strerror}")

    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=report, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(where, name)
            if path.suffix.lower() in TARS and path.is_file():
                yield from _inside(path, unreadable)
            else:
                yield path


def _inside(archive: Path, unreadable: Callable[[Path, str], None]) -> Iterator[Path]:
    if archive.suffix.lower() in TABLES:
        yield archive
        return
    try:
        members = _members(archive, *_stamp(archive))
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        unreadable(archive, f"is no tar archive that can be read: {error}")
        return
    for name in members:
        if not any(part.startswith(".") for part in name.split("/")):
            yield archive / name


def content_of(path: str | Path) -> bytes:
    """Bytes of a file, or of what is inside an archive.

    Raises:
        OSError: it cannot be read.
        UserError: a table asks for an extra that is not installed.
    """
    try:
        return Path(path).read_bytes()
    except (NotADirectoryError, FileNotFoundError):
        for archive in Path(path).parents:
            if is_archive(archive):
                return _content(archive, Path(path).relative_to(archive).as_posix())
        raise


def _content(archive: Path, name: str) -> bytes:
    missing = FileNotFoundError(2, "No such file in the archive", str(archive / name))
    if archive.suffix.lower() in TARS:
        try:
            found = _members(archive, *_stamp(archive)).get(name)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise OSError(f"is no tar archive that can be read: {error}") from error
        if found is None:
            raise missing
        start, size = found
        with archive.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise OSError("the archive is truncated")
        return content
    number = Path(name).stem
    table = _table(archive, *_stamp(archive))
    if not number.isdecimal() or int(number) >= table.rows:
        raise missing
    return _bytes_of(table.image(int(number)), archive)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=4096)
def _members(archive: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Place and length in bytes of each plain file in a tar; of one name the last counts, as for tar."""
    with tarfile.open(archive, "r:") as tar:  # uncompressed: others have no places to go to
        return {
            os.path.normpath(m.name).replace(os.sep, "/").lstrip("/"): (m.offset_data, m.size)
            for m in tar
            if m.isreg() and not m.issparse()
        }


@dataclass(frozen=True)
class Row:
    """A picture of a table: its path inside, and its captions; none where the table has no such column."""

    path: Path
    captions: tuple[str, ...] | None


def rows_of(archive: Path) -> list[Row]:
    """The pictures of a table, in order.

    Raises:
        UserError: the extra is missing; the table cannot be read; it has no column of pictures; a caption is no text.
    """
    table = _table(archive, *_stamp(archive))
    # A suffix of its own: the row's number is no file's name to make a caption of.
    paths = [archive / f"{number:08d}.row" for number in range(table.rows)]
    said = table.captions()
    return [Row(path, None if said is None else texts_of(said[i], path)) for i, path in enumerate(paths)]


def texts_of(value: Any, where: object) -> tuple[str, ...]:
    """Captions in a cell: a text, or a list of several; white space collapsed.

    Raises:
        UserError: it is neither.
    """
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not several or not all(isinstance(t, str) for t in several):
        raise UserError(f"the caption of {where} is {value!r:.80}; expected a text, or a list of several")
    return tuple(" ".join(text.split()) for text in several)


class _Table:
    """A Parquet or Arrow file, read a group of rows at a time."""

    def __init__(self, archive: Path) -> None:
        if find_spec("pyarrow") is None:
            raise UserError(f"{archive} is read with an extra: {INSTALL}")
        import pyarrow
        import pyarrow.parquet

        self.archive, self._lock = archive, threading.Lock()
        self._groups: dict[int, Any] = {}
        try:
            if archive.suffix.lower() == ".parquet":
                self._file: Any = pyarrow.parquet.ParquetFile(archive)
                self.columns = list(self._file.schema_arrow.names)
                sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            else:
                source = pyarrow.memory_map(str(archive))
                try:
                    self._file = pyarrow.ipc.open_stream(source).read_all()
                except pyarrow.ArrowInvalid:
                    self._file = pyarrow.ipc.open_file(source).read_all()
                self.columns, sizes = list(self._file.column_names), [self._file.num_rows]
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{archive} is no table that can be read: {error!s:.200}") from error
        *self.starts, self.rows = accumulate(sizes, initial=0)

    def image(self, row: int) -> Any:
        """The cell of a picture."""
        column = self._named(IMAGE_COLUMNS)
        if column is None:
            raise UserError(
                f"{self.archive} has no column of pictures among {', '.join(self.columns)}; expected one named "
                f"{' or '.join(IMAGE_COLUMNS[:3])}"
            )
        group = bisect_right(self.starts, row) - 1
        with self._lock:
            if group not in self._groups:
                # Tables are read in order: what was read last is what is asked for next.
                self._groups = {group: self._read(column, group)}
            return self._groups[group][row - self.starts[group]].as_py()

    def captions(self) -> list[Any] | None:
        """The cells of the captions; None where there are none."""
        if self.rows:
            self.image(0)
        column = self._named(CAPTION_COLUMNS)
        if column is None:
            return None
        with self._lock:
            found: list[Any] = []
            for group in range(len(self.starts)):
                found += self._read(column, group).to_pylist()
            return found

    def _read(self, column: str, group: int) -> Any:
        table = self._file
        if self.archive.suffix.lower() == ".parquet":
            table = self._file.read_row_group(group, columns=[column])
        return table.column(column)

    def _named(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.columns), None)


@functools.lru_cache(maxsize=64)
def _table(archive: Path, changed: int, size: int) -> _Table:
    return _Table(archive)


def undecoded(value: Any) -> Any:
    """A file's bytes or path of a mapping {"bytes", "path"}, as Hugging Face has pictures; anything else as it is."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


def _bytes_of(cell: Any, archive: Path) -> bytes:
    """The picture file in a cell: its bytes, or {"bytes", "path"}, or a path beside the table."""
    cell = undecoded(cell)
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        return (archive.parent / cell).read_bytes()
    raise OSError(f"the table has {cell!r:.40} for a picture; expected the bytes of its file, or its path")


def metadata_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metadata.parquet.

    Raises:
        UserError: the extra is missing, or the table cannot be read.
    """
    table = _Table(path)
    found: list[dict[str, Any]] = []
    for group in range(len(table.starts)):
        found += table._file.read_row_group(group).to_pylist()
    return found

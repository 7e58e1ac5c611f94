"""Where a picture's caption comes from: a file of metadata, a text file of the same name, the file name."""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.archives import METADATA_TABLE, content_of, metadata_rows
from hyperbrush.ldm.data.pictures import suffixes

SOURCES = ("auto", "metadata", "text", "filename", "none")
METADATA = (METADATA_TABLE, "metadata.csv", "metadata.jsonl")  # in one folder, the last of these counts
TEXTS = (".txt", ".caption")  # of a picture's name; the first of these counts


class CaptionError(ValueError):
    """Why a picture has no usable caption; becomes a problem of the scan."""


@dataclass
class Metadata:
    """What a folder's files of metadata say.

    alternatives: by picture, its path relative to the folder, posix, NFC: all captions of its row.
    bad: pictures whose row is unusable; they have a caption that cannot be told.
    problems: (path of the metadata file, reason with its line number).
    """

    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    problems: list[tuple[Path, str]] = field(default_factory=list)


def nfc(text: str) -> str:
    """Give text one spelling: macOS writes "é" in file names as two characters, others as one."""
    return unicodedata.normalize("NFC", text)


def caption_from_name(path: Path) -> str:
    """Words of a file name: ``red_panda-face.png`` is "red panda face"."""
    return FileNames().caption(path)


@dataclass(frozen=True)
class FileNames:
    """How a file name becomes a caption, as the webui's settings of the same purpose have it.

    drop_number: leading digits and dashes count for nothing: ``0012-red cat.png`` is "red cat".
    words: a regular expression; what it finds in the name (its group, if it has one) are the words.
        Without one, ``-`` and ``_`` are spaces; ``.+`` takes the name as it is.
    join: between the words found.

    >>> FileNames(drop_number=True, words="[a-z]+", join=", ").caption(Path("007-cat_face2.png"))
    'cat, face'

    Raises:
        UserError: ``words`` is no regular expression, or has several groups.
    """

    drop_number: bool = False
    words: str = ""
    join: str = " "

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.words).groups
        except re.error as error:
            raise UserError(f"words is {self.words!r}, no regular expression: {error}") from error
        if groups > 1:
            raise UserError(f"words is {self.words!r} with {groups} groups; expected one at most, the word")

    def caption(self, path: Path) -> str:
        """Caption in a picture's file name; it may be empty."""
        stem = nfc(path.stem)
        if self.drop_number:
            stem = re.sub(r"^[-\d]+[\s_]*", "", stem)
        if not self.words:
            return " ".join(stem.replace("_", " ").replace("-", " ").split())
        return " ".join(self.join.join(re.findall(self.words, stem)).split())


def caption_from_text(path: Path) -> str:
    """Caption in a text file, white space collapsed; an empty file is an empty caption.

    Raises:
        CaptionError: the file cannot be read or is not UTF-8.
    """
    return " ".join(_text(path).split())


def captions_from_lines(path: Path) -> tuple[str, ...]:
    """Captions in a text file, one a line, white space collapsed; an empty file is one empty caption.

    Raises:
        CaptionError: the file cannot be read or is not UTF-8.
    """
    lines = (" ".join(line.split()) for line in _text(path).splitlines())
    return tuple(filter(None, lines)) or ("",)


def captions_from_json(path: Path) -> tuple[str, ...]:
    """Captions in a JSON object beside a picture, as img2dataset writes it: "text" or "caption", one or a list.

    Empty where it has none: other programs keep other things of a picture there.

    Raises:
        CaptionError: the file cannot be read.
    """
    try:
        row = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"not JSON: {error}") from error
    return _captions(row) if isinstance(row, dict) and {"text", "caption"} & row.keys() else ()


def _text(path: Path) -> str:
    try:
        text = content_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"the caption is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise CaptionError(f"the caption cannot be read: {error.strerror or error}") from error
    if "\0" in text:
        raise CaptionError("the caption is not UTF-8 (it holds zero bytes); save the file as UTF-8")
    return text


def read_metadata(folder: Path, files: Iterable[Path], pictures: Iterable[str]) -> Metadata:
    """Read files of metadata as the Hugging Face imagefolder layout has them: `METADATA`.

    Each row has ``file_name``, relative to the file's folder, and ``text`` (or ``caption``): a string, or, but in a
    CSV file, a list of several captions. A file nearer to a picture beats one further up.

    folder: what paths are relative to.
    pictures: every picture's path relative to the folder, posix, NFC.

    Raises:
        UserError: a Parquet file asks for an extra that is not installed.
    """
    known = set(pictures)
    found = Metadata()
    for file in sorted(files, key=lambda f: (len(f.parts), METADATA.index(f.name), f.as_posix())):
        base = nfc(file.parent.relative_to(folder).as_posix())
        first_line: dict[str, str] = {}
        for number, row in _rows(file, found.problems):
            try:
                if isinstance(row, CaptionError):
                    raise row
                name = _named(row, base, known)
            except CaptionError as error:
                found.problems.append((file, f"{number}: {error}"))
                continue
            try:
                if name in first_line:
                    raise CaptionError(f"a second row for {name!r}, after {first_line[name]}")
                first_line[name] = number
                found.alternatives[name] = _captions(row)
                found.bad.discard(name)
            except CaptionError as error:
                found.problems.append((file, f"{number}: {error}"))
                found.bad.add(name)
    return found


def _rows(
    file: Path, problems: list[tuple[Path, str]]
) -> Iterator[tuple[str, dict[str, Any] | CaptionError]]:
    """Rows of a file of metadata, or why one cannot be read, and how a person finds it."""
    try:
        if file.name == METADATA_TABLE:
            yield from ((f"row {number}", row) for number, row in enumerate(metadata_rows(file), start=1))
            return
        content = content_of(file).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        problems.append((file, f"cannot be read: {error.strerror or error}"))
        return
    if file.name == "metadata.csv":
        try:
            lines = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""), strict=True)
            # A row with more cells than the head has them under None.
            yield from (
                (f"line {lines.line_num}", {str(k): v for k, v in row.items() if v is not None})
                for row in lines
            )
        except UnicodeDecodeError as error:
            problems.append((file, f"not UTF-8 (byte {error.start}); save the file as UTF-8"))
        except csv.Error as error:
            problems.append((file, f"no CSV file that can be read: {error}"))
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", _row(line)
            except CaptionError as error:
                yield f"line {number}", error


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CaptionError("not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CaptionError(f"is a JSON {type(row).__name__}; expected an object with file_name")
    return row


def _named(row: dict[str, Any], base: str, known: set[str]) -> str:
    """The picture that a row is about."""
    written = row.get("file_name")
    if not isinstance(written, str) or not written:
        raise CaptionError(f"file_name is {written!r}; expected a path relative to this file")
    for spelling in (written, written.replace("\\", "/")):
        name = posixpath.normpath(posixpath.join(base, nfc(spelling)))
        if name in known:
            return name
    if Path(written).suffix.lower() not in suffixes():
        raise CaptionError(f"{written!r} is not a picture; expected one of {' '.join(suffixes())}")
    raise CaptionError(f"there is no picture {written!r}")


def _captions(row: dict[str, Any]) -> tuple[str, ...]:
    for key in ("text", "caption"):
        if isinstance(value := row.get(key), str):
            return (" ".join(value.split()),)
        if isinstance(value, list):
            if not value:
                raise CaptionError(f'"{key}" is an empty list; expected a string, or a list of one or more')
            for number, one in enumerate(value, start=1):
                if not isinstance(one, str):
                    raise CaptionError(f'"{key}" has {one!r} as caption {number}; expected a string')
            return tuple(" ".join(one.split()) for one in value)
    shown = ", ".join(map(str, row)) or "nothing"
    raise CaptionError(f'no "text" or "caption" with a string (the row has {shown})')

"""Where a picture's caption comes from: ``metadata.jsonl``, a same-stem ``.txt``, the file name."""

import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.pictures import SUFFIXES

SOURCES = ("auto", "metadata", "text", "filename", "none")


class CaptionError(ValueError):
    """Why a picture has no usable caption; becomes a problem of the scan."""


@dataclass
class Metadata:
    """What a folder's ``metadata.jsonl`` files say.

    captions: by picture, its path relative to the folder, posix, NFC; the first where a row has several.
    alternatives: in the same way all captions of a row, the first included.
    bad: pictures whose row is unusable; they have a caption that cannot be told.
    problems: (path of the metadata file, reason with its line number).
    """

    captions: dict[str, str] = field(default_factory=dict)
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


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
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
    """Read ``metadata.jsonl`` files as the Hugging Face imagefolder layout has them.

    Each line is an object with ``file_name``, relative to the metadata file's folder, and ``text``
    (or ``caption``): a string, or a list of several captions. A metadata file nearer to a picture beats one further up.

    folder: what paths are relative to.
    pictures: every picture's path relative to the folder, posix, NFC.
    """
    known = set(pictures)
    found = Metadata()
    for file in sorted(files, key=lambda f: (len(f.parts), f.as_posix())):
        try:
            lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            found.problems.append((file, f"cannot be read: {error.strerror or error}"))
            continue
        base = nfc(file.parent.relative_to(folder).as_posix())
        first_line: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, row = _row(line, base, known)
            except CaptionError as error:
                found.problems.append((file, f"line {number}: {error}"))
                continue
            try:
                if name in first_line:
                    raise CaptionError(f"a second row for {name!r}, after line {first_line[name]}")
                first_line[name] = number
                found.alternatives[name] = said = _captions(row)
                found.captions[name] = said[0]
                found.bad.discard(name)
            except CaptionError as error:
                found.problems.append((file, f"line {number}: {error}"))
                found.bad.add(name)
    return found


def _row(line: bytes, base: str, known: set[str]) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CaptionError("not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CaptionError(f"is a JSON {type(row).__name__}; expected an object with file_name")
    written = row.get("file_name")
    if not isinstance(written, str) or not written:
        raise CaptionError(f"file_name is {written!r}; expected a path relative to this file")
    for spelling in (written, written.replace("\\", "/")):
        name = posixpath.normpath(posixpath.join(base, nfc(spelling)))
        if name in known:
            return name, row
    if Path(written).suffix.lower() not in SUFFIXES:
        raise CaptionError(f"{written!r} is not a picture; expected one of {' '.join(SUFFIXES)}")
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

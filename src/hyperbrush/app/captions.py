"""Captions of a folder of pictures, read where training reads them and written back to the same place."""

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, write_text

LONGEST = 20_000  # characters
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Caption:
    """What a picture's caption is.

    Args:
        text: the caption.
        source: metadata, text or filename.
        problem: why what is written cannot be used; training leaves the picture out.
    """

    text: str
    source: str
    problem: str = ""


def read(folder: Path, wanted: Sequence[Path], pictures: Sequence[Path]) -> list[Caption]:
    """Captions of the wanted among all pictures of a folder."""
    from hyperbrush.ldm.data.captions import CaptionError, caption_from_name, caption_from_text, read_metadata

    rows = list(folder.rglob(METADATA))
    metadata = read_metadata(folder, rows, (place(folder, path) for path in pictures)) if rows else None
    found = []
    for path in wanted:
        name, text = place(folder, path), text_of(path)
        if metadata is not None and name in metadata.bad:
            found.append(Caption("", "metadata", f"its row in {METADATA} cannot be used"))
        elif metadata is not None and name in metadata.captions:
            found.append(Caption(metadata.captions[name], "metadata"))
        elif text is None:
            found.append(Caption(caption_from_name(path), "filename"))
        else:
            try:
                found.append(Caption(caption_from_text(text), "text"))
            except CaptionError as error:
                found.append(Caption("", "text", str(error)))
    return found


def write(folder: Path, path: Path, caption: str) -> None:
    """Write a picture's caption: into its row of a metadata.jsonl where it has one, else into NAME.txt.

    Of several captions in a row it is the first; the others stay.

    Raises:
        UserError: too long, or it cannot be written.
    """
    text = " ".join(caption.split())
    if len(text) > LONGEST or "\0" in text:
        raise UserError(f"a caption of {len(text)} characters; {LONGEST} without zero bytes are the most")

    def told(row: Mapping[str, Any]) -> dict[str, Any]:
        key = "caption" if "text" not in row else "text"
        others = row[key][1:] if isinstance(row.get(key), list) else []
        return {**row, key: [text, *others] if others else text}

    if not _in_rows(folder, path, told):
        write_text(text_of(path) or path.with_suffix(".txt"), text + "\n")


def without_row(folder: Path, path: Path) -> bool:
    """Take a picture's rows out of the metadata.jsonl files; whether there was one.

    Raises:
        UserError: a file cannot be written.
    """
    return _in_rows(folder, path, lambda _: None)


def place(folder: Path, path: Path) -> str:
    """A picture as metadata.jsonl names it: relative to the folder, posix, NFC."""
    from hyperbrush.ldm.data.captions import nfc

    return nfc(path.relative_to(folder).as_posix())


def text_of(path: Path) -> Path | None:
    """The text file of a picture's name; None where there is none."""
    from hyperbrush.ldm.data.captions import nfc

    plain = path.with_suffix(".txt")
    if plain.is_file():
        return plain
    stem = nfc(path.stem)
    same = (p for p in path.parent.iterdir() if p.suffix.lower() == ".txt" and nfc(p.stem) == stem)
    return next(same, None)


def _in_rows(
    folder: Path, path: Path, change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
) -> bool:
    """Change a picture's rows in the metadata files above it, the others to the byte as they were."""
    from hyperbrush.ldm.data.captions import nfc

    name, changed = place(folder, path), False
    for parent in (path.parent, *path.parent.parents):
        file = parent / METADATA
        if file.is_file():
            base = nfc(parent.relative_to(folder).as_posix())
            lines, found = [], False
            for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
                row = _row(line)
                written = nfc(str(row.get("file_name", ""))).replace("\\", "/")
                if row and posixpath.normpath(posixpath.join(base, written)) == name:
                    found, new = True, change(row)
                    if new is None:
                        continue
                    line = json.dumps(new, ensure_ascii=False).encode()
                lines.append(line)
            if found:
                with atomic_path(file) as temporary:
                    temporary.write_bytes(b"\n".join(lines))
                changed = True
        if parent == folder:
            break
    return changed


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}

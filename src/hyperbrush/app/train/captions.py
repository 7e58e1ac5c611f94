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
        several: all captions of a row, or lines of a text, where there are several.
    """

    text: str
    source: str
    problem: str = ""
    several: tuple[str, ...] = ()


def read(folder: Path, wanted: Sequence[Path], pictures: Sequence[Path]) -> list[Caption]:
    """Captions of the wanted among all pictures of a folder."""
    from hyperbrush.ldm.data.captions import CaptionError, caption_from_name

    metadata = _metadata(folder, pictures)
    found = []
    for path in wanted:
        name, text = place(folder, path), text_of(path)
        if name in metadata.bad:
            found.append(Caption("", "metadata", f"its row in {METADATA} cannot be used"))
            continue
        try:
            source = "filename"
            said: tuple[str, ...] = (caption_from_name(path),)
            if name in metadata.alternatives:
                source, said = "metadata", metadata.alternatives[name]
            elif (read_text := _said_beside(path, text)) is not None:
                source, said = read_text
        except CaptionError as error:
            found.append(Caption("", "text", str(error)))
            continue
        shown = " ".join(said) if source == "text" else said[0]
        found.append(Caption(shown, source, several=said if len(said) > 1 else ()))
    return found


def _metadata(folder: Path, pictures: Sequence[Path]) -> Any:
    """What the files of metadata in a folder say of pictures; of one, those above it alone are looked at."""
    from hyperbrush.ldm.data.captions import METADATA as NAMES
    from hyperbrush.ldm.data.captions import read_metadata

    if len(pictures) == 1:
        above = [p for p in pictures[0].parents if p == folder or folder in p.parents]
        rows = [p / name for p in above for name in NAMES if (p / name).is_file()]
    else:
        rows = [path for name in NAMES for path in folder.rglob(name)]
    return read_metadata(folder, rows, (place(folder, path) for path in pictures) if rows else ())


def _said_beside(path: Path, text: Path | None) -> tuple[str, tuple[str, ...]] | None:
    """The source and captions of a picture's own text or JSON file; None where it has none."""
    from hyperbrush.ldm.data.captions import captions_from_json, captions_from_lines

    if text is not None:
        return "text", captions_from_lines(text)
    object_ = path.with_suffix(".json")
    said = captions_from_json(object_) if object_.is_file() else ()
    return ("metadata", said) if said else None


def write(folder: Path, path: Path, caption: str) -> None:
    """Write a picture's caption: into its row of a metadata.jsonl where it has one, else into NAME.txt.

    Of several captions in a row it is the first; the others stay. A row of a metadata.csv or .parquet stays as it is,
    and one in a metadata.jsonl beside the picture, which counts before it, is written.

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

    if _in_rows(folder, path, told):
        return
    if (said := _metadata(folder, [path]).alternatives.get(place(folder, path))) is not None:
        write_rows(folder, {path: (text, *said[1:])})
    else:
        write_text(text_of(path) or path.with_suffix(".txt"), text + "\n")


def write_lines(folder: Path, path: Path, lines: Sequence[str]) -> None:
    """Write a picture's text as it was given, in lines; as `write` where one has its caption elsewhere.

    Raises:
        UserError: as `write`.
    """
    kept = [line for line in (" ".join(line.split()) for line in lines) if line]
    text = text_of(path) or path.with_suffix(".txt")
    if len(kept) < 2 or _metadata(folder, [path]).alternatives:
        write(folder, path, " ".join(kept))
        return
    if sum(map(len, kept)) > LONGEST or any("\0" in line for line in kept):
        raise UserError(f"captions of more than {LONGEST} characters, or with zero bytes")
    write_text(text, "\n".join(kept) + "\n")


def contents_with(
    folder: Path, said: Mapping[Path, Sequence[str]], pictures: Sequence[Path]
) -> dict[Path, bytes]:
    """What caption files hold once some of the pictures have these captions in place of all they had.

    Each caption stays where it is: in its row, else in lines of NAME.txt. Nothing is written.

    Raises:
        UserError: as `write`.
    """
    from hyperbrush.ldm.data.captions import nfc

    for texts in said.values():
        if sum(map(len, texts)) > LONGEST or any("\0" in text for text in texts):
            raise UserError(f"captions of more than {LONGEST} characters, or with zero bytes")
    left = {place(folder, path): path for path in said}
    found: dict[Path, bytes] = {}

    def told(name: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if name not in left:
            return row
        texts, key = said[left[name]], "caption" if "text" not in row else "text"
        return {**row, key: texts[0] if len(texts) == 1 else list(texts)}

    done: set[str] = set()
    for file in folder.rglob(METADATA):
        content, names = _with_rows_changed(file.read_bytes(), place(folder, file.parent), told)
        if names:
            found[file] = content
            done |= names
    rest = [path for name, path in left.items() if name not in done]
    elsewhere = _metadata(folder, pictures).alternatives if rest else {}
    texts_of: dict[Path, dict[str, Path]] = {}
    for path in rest:
        texts = said[path]
        if place(folder, path) in elsewhere:
            file = path.parent / METADATA
            before = found.get(file, file.read_bytes() if file.is_file() else b"")
            found[file] = _with_rows(before, {place(path.parent, path): texts})
            continue
        if path.parent not in texts_of:
            texts_of[path.parent] = _texts_in(path.parent)
        file = texts_of[path.parent].get(nfc(path.stem), path.with_suffix(".txt"))
        found[file] = "".join(f"{text}\n" for text in texts).encode()
    return found


def write_rows(folder: Path, said: Mapping[Path, Sequence[str]]) -> None:
    """Write rows of pictures' captions, in place of those they have, into a metadata.jsonl beside each.

    Raises:
        UserError: a file cannot be written.
    """
    by_folder: dict[Path, dict[str, Sequence[str]]] = {}
    for path, texts in said.items():
        by_folder.setdefault(path.parent, {})[place(path.parent, path)] = texts
    for parent, rows in by_folder.items():
        file = parent / METADATA
        content = _with_rows(file.read_bytes() if file.is_file() else b"", rows)
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)


def _with_rows(before: bytes, rows: Mapping[str, Sequence[str]]) -> bytes:
    """A metadata.jsonl with these rows, by the picture's name, in place of those that were about them."""
    kept = before.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = [line for line in kept if line.strip() and _about(line) not in rows]
    for name, texts in rows.items():
        lines.append(_line({"file_name": name, "text": texts[0] if len(texts) == 1 else list(texts)}))
    return b"\n".join([*lines, b""])


def _line(row: Mapping[str, Any]) -> bytes:
    """A row as JSON, readable unless it holds half a character."""
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()


def _texts_in(folder: Path) -> dict[str, Path]:
    """The text file of each name in a folder; see `text_of`."""
    from hyperbrush.ldm.data.captions import TEXTS, nfc

    found = [p for p in folder.iterdir() if p.suffix.lower() in TEXTS]
    return {nfc(p.stem): p for p in sorted(found, key=lambda p: -TEXTS.index(p.suffix.lower()))}


def _about(line: bytes) -> str:
    """The picture that a line of metadata.jsonl is about, relative to the file."""
    from hyperbrush.ldm.data.captions import nfc

    return posixpath.normpath(nfc(str(_row(line).get("file_name", ""))).replace("\\", "/"))


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
    """The text file of a picture's name (.txt, else .caption); None where there is none."""
    from hyperbrush.ldm.data.captions import TEXTS, nfc

    plain = path.with_suffix(".txt")
    if plain.is_file():
        return plain
    stem = nfc(path.stem)
    same = [p for p in path.parent.iterdir() if p.suffix.lower() in TEXTS and nfc(p.stem) == stem]
    return min(same, key=lambda one: TEXTS.index(one.suffix.lower()), default=None)


def _in_rows(
    folder: Path, path: Path, change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
) -> bool:
    """Change a picture's rows in the metadata files above it, the others to the byte as they were."""
    name, changed = place(folder, path), False
    for parent in (path.parent, *path.parent.parents):
        file = parent / METADATA
        if file.is_file():
            content, names = _with_rows_changed(
                file.read_bytes(),
                place(folder, parent),
                lambda about, row: change(row) if about == name else row,
            )
            if names:
                with atomic_path(file) as temporary:
                    temporary.write_bytes(content)
                changed = True
        if parent == folder:
            break
    return changed


def _with_rows_changed(
    content: bytes, base: str, change: Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]
) -> tuple[bytes, set[str]]:
    """A metadata.jsonl with some rows changed, the others to the byte as they were; and the pictures of those.

    base: its folder within the dataset. change: gets a picture's name and row, and gives the row itself to leave it as
    it is, another one, or None to take it out.
    """
    from hyperbrush.ldm.data.captions import nfc

    lines, names = [], set()
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if row := _row(line):
            written = nfc(str(row.get("file_name", ""))).replace("\\", "/")
            name = posixpath.normpath(posixpath.join(base, written))
            new = change(name, row)
            if new is not row:
                names.add(name)
                if new is None:
                    continue
                line = _line(new)
        lines.append(line)
    return b"\n".join(lines), names


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}

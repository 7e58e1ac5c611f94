"""Everything a folder holds, looked at before training starts: usable pictures and problems."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.captions import (
    SOURCES,
    CaptionError,
    FileNames,
    Metadata,
    caption_from_name,
    caption_from_text,
    captions_from_lines,
    nfc,
    read_metadata,
)


@dataclass(frozen=True)
class Item:
    """One usable picture; width and height in pixels, upright; where its caption was found.

    alternatives: all of its captions, the first included, where it has several; else empty.
    """

    path: Path
    caption: str
    width: int
    height: int
    transparent: bool = False
    source: str = ""
    alternatives: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[str, ...]:
        """Every caption of the picture, one or more."""
        return self.alternatives or (self.caption,)


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used, and why; ``kind`` says what of a picture fails."""

    path: Path
    reason: str
    kind: Literal["picture", "caption", "mask"] = "picture"


@dataclass(frozen=True)
class Scan:
    """What is in a folder: ``items`` in the order of their paths, and ``problems``."""

    folder: Path
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]

    def report(self, limit: int = 20) -> str:
        """Problems, one a line: the first ``limit`` in full, then a count; empty if none."""
        lines = []
        for problem in self.problems[:limit]:
            name = os.path.relpath(problem.path, self.folder)
            # Names that are not UTF-8 must not break the terminal that shows them.
            shown = os.fsencode(name).decode("utf-8", "replace")
            lines.append(f"  {shown}: {problem.reason}")
        if more := len(self.problems) - limit:
            lines += [f"  … and {more} more"] if more > 0 else []
        return "\n".join(lines)


def scan(
    folder: str | Path,
    captions: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    *,
    file_names: FileNames | None = None,
    caption_lines: bool = False,
    exclude: str | Path | None = None,
    look: Callable[[Path], pictures.Look] | None = None,
) -> Scan:
    """Find every picture under a folder, decode it, find its caption; name everything that fails.

    Nested folders and links to folders are followed; names that begin with a dot are passed over,
    and so is ``NAME.mask.png`` beside a picture NAME.

    captions: "auto" takes ``metadata.jsonl``, else a same-stem ``.txt``, else the file name;
        "metadata", "text" or "filename" take that one alone; "none" leaves captions empty.
    progress: called with (pictures done, pictures in all).
    file_names: how a file name becomes a caption.
    caption_lines: each line of a ``.txt`` is a caption of its own; otherwise its lines are joined.
    exclude: a folder to pass over, such as one of masks in the folder of pictures.
    look: called in threads with each path in place of ``pictures.look``, to learn more on the way.

    Raises:
        UserError: the folder is missing, is no folder or holds no picture; unknown ``captions``.
    """
    if captions not in SOURCES:
        raise unknown_name("source of captions", captions, SOURCES)
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; expected a folder of pictures")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder of pictures")
    problems: list[Problem] = []
    files = [p for p in _files(folder, problems) if exclude is None or Path(exclude) not in p.parents]
    shown = [p for p in files if p.suffix.lower() in pictures.SUFFIXES]
    unread = [p for p in files if p.suffix.lower() in pictures.UNREAD]
    problems += [
        Problem(p, f"{p.suffix.lower()} files are not read; save it as PNG, JPEG or WebP") for p in unread
    ]
    stems = {(p.parent, nfc(p.stem)) for p in shown}
    found = sorted(
        (nfc(p.relative_to(folder).as_posix()), p)
        for p in shown
        if not (p.stem.endswith(".mask") and (p.parent, nfc(p.stem).removesuffix(".mask")) in stems)
    )
    if not found:
        raise UserError(
            f"no picture in {folder} or the folders in it; looked for {' '.join(pictures.SUFFIXES)}"
            + (f"; {len(unread)} files such as {unread[0].name} are not read" if unread else "")
        )
    texts = {(p.parent, nfc(p.stem)): p for p in files if p.suffix.lower() == ".txt"}
    metadata = Metadata()
    if captions in ("auto", "metadata"):
        rows = [p for p in files if p.name == "metadata.jsonl"]
        metadata = read_metadata(folder, rows, (name for name, _ in found))
        problems += [Problem(path, reason, "caption") for path, reason in metadata.problems]
    items = []
    # Pillow decodes without the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda path: _look_or_reason(path, look), (path for _, path in found))
        for done, ((name, path), seen) in enumerate(zip(found, looks, strict=True), start=1):
            if progress is not None:
                progress(done, len(found))
            if isinstance(seen, str):
                problems.append(Problem(path, seen))
                continue
            if name in metadata.bad:  # a problem already named
                continue
            text = texts.get((path.parent, nfc(path.stem)))
            try:
                source, said = _captions(captions, name, path, text, metadata, caption_lines)
            except CaptionError as error:
                problems.append(Problem(text or path, str(error), "caption"))
                continue
            if source == "filename" and file_names is not None:
                said = (file_names.caption(path),)
            several = said if len(said) > 1 else ()
            items.append(Item(path, said[0], seen.width, seen.height, seen.transparent, source, several))
    return Scan(folder, tuple(items), tuple(problems))


def _files(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"cannot be listed: {error.strerror}"))

    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))


def _look_or_reason(path: Path, look: Callable[[Path], pictures.Look] | None) -> pictures.Look | str:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return "the file name is not UTF-8; rename it"
    try:
        return pictures.look(path)[0] if look is None else look(path)
    except Exception as error:  # noqa: BLE001 (Pillow's decoders raise anything on a broken file)
        return pictures.explain(error)


def _captions(
    source: str, name: str, path: Path, text: Path | None, metadata: Metadata, lines: bool
) -> tuple[str, tuple[str, ...]]:
    """Where one picture's captions are, and the captions."""
    if source in ("auto", "metadata") and name in metadata.alternatives:
        return "metadata", metadata.alternatives[name]
    if source == "metadata":
        raise CaptionError("no metadata.jsonl has a row for it")
    if source in ("auto", "text") and text is not None:
        return "text", captions_from_lines(text) if lines else (caption_from_text(text),)
    if source == "text":
        raise CaptionError(f"no caption; expected {path.stem}.txt beside it")
    return ("none", ("",)) if source == "none" else ("filename", (caption_from_name(path),))

"""Everything a folder holds, looked at before training starts: usable pictures and problems."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.archives import TABLES, content_of, files_in, is_archive, rows_of
from hyperbrush.ldm.data.captions import (
    METADATA,
    SOURCES,
    TEXTS,
    CaptionError,
    FileNames,
    Metadata,
    caption_from_text,
    captions_from_json,
    captions_from_lines,
    nfc,
    read_metadata,
)
from hyperbrush.stopping import may_stop_here

# What lies in a folder beside pictures and is no picture: files of a generator's styles (`training.styles`).
# and of Hugging Face's datasets.
BESIDE = ("style.txt", "adapter.safetensors", "lora.safetensors", "dataset_info.json", "state.json")


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
    """One file that cannot be used, and why; ``kind`` says what of a picture fails.

    "unread" files are no pictures, as far as their names tell: they are told, and stop nothing.
    """

    path: Path
    reason: str
    kind: Literal["picture", "caption", "mask", "unread"] = "picture"


@dataclass(frozen=True)
class Scan:
    """What is in a folder: ``items`` in the order of their paths, and ``problems``."""

    folder: Path
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]

    @property
    def unread(self) -> "Scan":
        """The same with those files as problems that are not read at all, such as films and captions of no picture."""
        return Scan(self.folder, self.items, tuple(p for p in self.problems if p.kind == "unread"))

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
    and so is ``NAME.mask.png`` beside a picture NAME. Tars are looked into as if they were folders, and tables
    (Parquet, Arrow) have a picture and its caption in each row. Files that are none of this are named.

    folder: also one tar or table.
    captions: "auto" takes a file of metadata (``metadata.jsonl``, ``.csv`` or ``.parquet``), else a text of the
        picture's name (``.txt`` or ``.caption``), else a ``.json`` of its name with "text" or "caption", else the
        file name; "metadata" (the ``.json`` is some), "text" or "filename" take that one alone; "none" leaves
        captions empty.
    progress: called with (pictures done, pictures in all).
    file_names: how a file name becomes a caption.
    caption_lines: each line of a ``.txt`` is a caption of its own; otherwise its lines are joined.
    exclude: a folder to pass over, such as one of masks in the folder of pictures.
    look: called in threads with each path in place of ``pictures.look``, to learn more on the way.

    Raises:
        UserError: the folder is missing, is no folder or holds no picture; unknown ``captions``; an extra is missing.
    """
    if captions not in SOURCES:
        raise unknown_name("source of captions", captions, SOURCES)
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; expected a folder of pictures")
    if not folder.is_dir() and not is_archive(folder):
        raise UserError(f"{folder} is a file; expected a folder of pictures, a .tar or a .parquet")
    problems: list[Problem] = []
    listed = files_in(folder, lambda path, reason: problems.append(Problem(path, reason)))
    files = [p for p in listed if exclude is None or Path(exclude).expanduser() not in p.parents]
    read = pictures.suffixes()
    shown = [p for p in files if p.suffix.lower() in read]
    stems = {_key(p) for p in shown}
    named = sorted((_name(p, folder), p) for p in shown if not _is_mask(p, stems))
    beside = _Beside(captions, caption_lines, file_names or FileNames(), files)
    if captions in ("auto", "metadata"):
        rows = [p for p in files if p.name in METADATA]
        beside.metadata = read_metadata(folder, rows, (name for name, _ in named))
        problems += [Problem(path, reason, "caption") for path, reason in beside.metadata.problems]
    for table in (p for p in files if p.suffix.lower() in TABLES and is_archive(p)):
        for row in rows_of(table):
            named.append((_name(row.path, folder), row.path))
            if row.captions is not None and captions in ("auto", "metadata"):
                beside.metadata.alternatives[named[-1][0]] = row.captions
    problems += _unread(files, stems, beside.texts, {*read, *TABLES})
    if not named:
        report = Scan(folder, (), tuple(problems)).report(3)
        raise UserError(
            f"no picture in {folder} or the folders in it; looked for {' '.join(read)}, .tar and .parquet"
            + (f"; {len(problems)} files are not read:\n{report}" if report else "")
        )
    items = []
    for (name, path), seen in zip(named, _looks([path for _, path in named], look, progress), strict=True):
        if isinstance(seen, str):
            problems.append(Problem(path, seen))
        elif name not in beside.metadata.bad:  # else a problem already named
            try:
                source, texts = beside.captions(name, path)
            except CaptionError as error:
                problems.append(Problem(beside.file(path) or path, str(error), "caption"))
                continue
            several = texts if len(texts) > 1 else ()
            items.append(Item(path, texts[0], seen.width, seen.height, seen.transparent, source, several))
    return Scan(folder, tuple(items), tuple(problems))


def _key(path: Path) -> tuple[Path, str]:
    """What a picture and the files of its name share."""
    return path.parent, nfc(path.stem)


def _name(path: Path, folder: Path) -> str:
    return nfc(path.relative_to(folder).as_posix())


def _is_mask(path: Path, stems: set[tuple[Path, str]]) -> bool:
    """Whether a picture is the mask of another beside it."""
    folder, stem = _key(path)
    return stem.endswith(".mask") and (folder, stem.removesuffix(".mask")) in stems


class _Beside:
    """Where the captions of a folder's pictures are: files of metadata, and files of the pictures' names.

    source, lines, file_names: as for `scan`.
    """

    def __init__(self, source: str, lines: bool, file_names: FileNames, files: Sequence[Path]) -> None:
        self.source, self.lines, self.file_names = source, lines, file_names
        self.metadata = Metadata()
        self.texts: dict[tuple[Path, str], Path] = {}
        for path in sorted((p for p in files if p.suffix.lower() in TEXTS), key=_text_order):
            self.texts.setdefault(_key(path), path)
        self.objects = {_key(p): p for p in files if p.suffix.lower() == ".json"}

    def file(self, path: Path) -> Path | None:
        """The file of a picture's name that may hold its caption."""
        return self.texts.get(_key(path)) or self.objects.get(_key(path))

    def captions(self, name: str, path: Path) -> tuple[str, tuple[str, ...]]:
        """Where one picture's captions are, and the captions; name: its path within the folder.

        Raises:
            CaptionError: it has none, or they cannot be read.
        """
        source, text, described = self.source, self.texts.get(_key(path)), self.objects.get(_key(path))
        if source in ("auto", "metadata") and name in self.metadata.alternatives:
            return "metadata", self.metadata.alternatives[name]
        if source in ("auto", "text") and text is not None:
            return "text", captions_from_lines(text) if self.lines else (caption_from_text(text),)
        if source in ("auto", "metadata") and described and (texts := captions_from_json(described)):
            return "metadata", texts
        if source == "metadata":
            raise CaptionError("no metadata.jsonl has a row for it, nor a metadata.csv or metadata.parquet")
        if source == "text":
            raise CaptionError(f"no caption; expected {path.stem}.txt (or .caption) beside it")
        if source == "none":
            return "none", ("",)
        if path.suffix == ".row":
            raise CaptionError(
                "its table has no column text or caption, and a row has no name to take for one"
            )
        return "filename", (self.file_names.caption(path),)


def _looks(
    paths: Sequence[Path],
    look: Callable[[Path], pictures.Look] | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[pictures.Look | str]:
    """What each picture is, or why it cannot be read."""
    # Pillow decodes without the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda path: _look_or_reason(path, look), paths)
        for done, seen in enumerate(looks, start=1):
            _stop_here(pool)
            if progress is not None:
                progress(done, len(paths))
            yield seen


def _stop_here(pool: ThreadPoolExecutor) -> None:
    """As `may_stop_here`; what the threads have not begun is not waited for."""
    try:
        may_stop_here()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _text_order(path: Path) -> tuple[int, Path]:
    return TEXTS.index(path.suffix.lower()), path


def _unread(
    files: list[Path], shown: set[tuple[Path, str]], texts: dict[tuple[Path, str], Path], read: set[str]
) -> list[Problem]:
    """Files that are neither pictures nor anything of a picture, and why they are not read; shown: pictures' names."""
    beside = {_key(path) for path in files if path.suffix.lower() not in TEXTS}
    found = []
    for path in files:
        suffix, key = path.suffix.lower(), _key(path)
        if suffix in read or path.name in METADATA or path.name in BESIDE:
            continue
        if suffix == ".json" and key in shown:
            continue  # a caption, or what another program keeps of its picture
        if suffix not in TEXTS:
            found.append(Problem(path, pictures.why_unread(path, _begin(path)), "unread"))
        elif key not in beside:
            found.append(Problem(path, f"a caption of no picture; there is none named {path.stem}", "unread"))
        elif texts[key] != path:
            found.append(Problem(path, f"not read beside {texts[key].name}", "unread"))
    return found


def _begin(path: Path) -> bytes:
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4096)
        return content_of(path)[:4096]
    except OSError:
        return b""


def _look_or_reason(path: Path, look: Callable[[Path], pictures.Look] | None) -> pictures.Look | str:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return "the file name is not UTF-8; rename it"
    try:
        return pictures.look(path)[0] if look is None else look(path)
    except Exception as error:  # noqa: BLE001 (Pillow's decoders raise anything on a broken file)
        return pictures.explain(error)

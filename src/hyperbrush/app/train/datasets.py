"""Training pictures: the folders in the workspace's `datasets`, what is put into them and taken out."""

import glob
import os
import re
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hyperbrush.app.errors import NotThere
from hyperbrush.app.train import captions, thumbnails
from hyperbrush.app.uploads import FORMATS, MOST_BYTES, open_picture
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder, atomic_path, write_text
from hyperbrush.trash import TrashItem

EXAMPLE = "fluent-high-contrast"
MOST_PICTURES = 20_000  # in a dataset
MOST_TEXT = 256 << 10  # bytes of a caption's file
LONGEST_NAME = 100

writing = threading.Lock()  # names are chosen and taken one at a time


@dataclass(frozen=True)
class Picture:
    """One picture of a dataset: its place in the listing, file name, caption (see `captions.Caption`), bytes.

    several: its captions where it has several; mask: bytes of its mask file, 0 without one.
    """

    index: int
    name: str
    caption: str
    source: str
    problem: str
    bytes: int
    changed: int
    several: tuple[str, ...] = ()
    mask: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Added:
    """What came of files that were put into a dataset: names, and why others were not."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    captions: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plain_name(name: str, what: str) -> str:
    """A name that can be a folder's, here and on other systems.

    Raises:
        UserError: it cannot.
    """
    name = unicodedata.normalize("NFC", name).strip()
    bad = re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]', name)
    if (
        not name
        or bad
        or name.startswith(".")
        or name.endswith(".")
        or len(name.encode("utf-8", "replace")) > 150
    ):
        raise UserError(
            f"{ascii(name) if bad else repr(name):.120} cannot be the name of a {what}; expected up to "
            f'{LONGEST_NAME} characters without / \\ : * ? " < > |, and no dot at the ends'
        )
    return name


class Datasets:
    """The folders of pictures of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def folders(self) -> dict[str, Path]:
        """Datasets by name, sorted."""
        root = self.workspace.folder("datasets")
        return {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}

    def folder(self, name: str) -> Path:
        """A dataset's folder, found among those there are.

        Raises:
            NotThere: there is none of that name.
        """
        found = self.folders()
        if name not in found:
            raise NotThere(f"there is no dataset {name!a:.120}")
        return found[name]

    def create(self, name: str = "") -> str:
        """Make an empty dataset; without a name, a free one.

        Raises:
            UserError: the name cannot be one, or is taken; it cannot be written.
        """
        with writing:
            taken = {known.casefold() for known in self.folders()}
            name = plain_name(name, "dataset") if name else _free("pictures", taken)
            if name.casefold() in taken:
                raise UserError(f"there is a dataset {name!r} already: choose another name")
            try:
                (self.workspace.folder("datasets") / name).mkdir()
            except OSError as error:
                raise UserError(f"cannot make the dataset {name!r}: {error.strerror or error}") from error
        return name

    def example(self) -> str:
        """The bundled style set as a dataset, copied when it is first asked for."""
        from hyperbrush.assets import style_folder

        with writing:
            if EXAMPLE not in self.folders():
                with atomic_folder(self.workspace.folder("datasets") / EXAMPLE) as folder:
                    shutil.copytree(style_folder() / "train", folder, dirs_exist_ok=True)
        return EXAMPLE

    def files(self, name: str) -> list[Path]:
        """Every picture of a dataset, in the order training has them, whether it can be read or not.

        Raises:
            NotThere: there is no such dataset.
        """
        from hyperbrush.ldm.data.pictures import suffixes

        read = suffixes()
        folder, found, seen = self.folder(name), [], set()
        for where, folders, names in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(where)) in seen:  # a link back up would never end
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [f for f in folders if not f.startswith(".")]
            shown = [
                Path(where, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in read
            ]
            stems = {p.stem for p in shown}
            found += [
                p for p in shown if not (p.stem.endswith(".mask") and p.stem.removesuffix(".mask") in stems)
            ]
        return sorted(found, key=lambda path: captions.place(folder, path))

    def pictures(self, name: str, start: int = 0, count: int | None = None) -> tuple[int, list[Picture]]:
        """(pictures in all, those from `start` on) with their captions.

        Raises:
            NotThere: there is no such dataset.
        """
        folder, files = self.folder(name), self.files(name)
        wanted = files[start : None if count is None else start + count]
        read = captions.read(folder, wanted, files)
        masks = _masks_in({path.parent for path in wanted})
        found = []
        for index, (path, caption) in enumerate(zip(wanted, read, strict=True), start):
            stat = path.stat()
            shown = captions.place(folder, path)
            found.append(
                Picture(
                    index,
                    shown,
                    caption.text,
                    caption.source,
                    caption.problem,
                    stat.st_size,
                    stat.st_mtime_ns,
                    caption.several,
                    masks.get((path.parent, path.stem), 0),
                )
            )
        return len(files), found

    def picture(self, name: str, index: int, expected: str = "") -> Path:
        """A picture's file by its index in the listing.

        expected: the name it had there, so that nobody changes another one after the listing has changed.

        Raises:
            NotThere: no such dataset or index.
            UserError: another picture has that index now.
        """
        files = self.files(name)
        if not 0 <= index < len(files):
            raise NotThere(f"dataset {name!r} has {len(files)} pictures, none of index {index}")
        found = captions.place(self.folder(name), files[index])
        if expected and found != expected:
            raise UserError(
                f"picture {index} is {found!r} now, not {expected!a:.120}: look at the list again"
            )
        return files[index]

    def add(self, name: str, files: Iterable[tuple[str, IO[bytes]]]) -> Added:
        """Put pictures into a dataset, with captions (NAME.txt, .caption) and masks (NAME.mask.png) of their names, and
        captions in files of metadata (metadata.jsonl, .csv, .parquet).

        Folders in the names are kept, so that pictures of one name keep their own captions and masks. What could
        belong to several pictures is refused.

        Raises:
            NotThere: there is no such dataset.
            UserError: none of them can be used, or the disk is full.
        """
        folder, done = self.folder(name), Added()
        beside: list[tuple[PurePosixPath, IO[bytes]]] = []  # masks and captions, once the pictures are there
        rows: list[tuple[PurePosixPath, IO[bytes]]] = []
        came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]] = {}
        with writing:
            present = self.files(name)
            for given, file in files:
                shown = _place(given)
                if shown.name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
                    rows.append((shown, file))
                elif _is_text(shown) or shown.stem.endswith(".mask"):
                    beside.append((shown, file))
                else:
                    self._add_picture(folder, present, shown, file, came, done)
            for shown, file in sorted(beside, key=lambda one: _is_text(one[0])):
                is_text = _is_text(shown)
                if not is_text and not _owners(folder, present, shown, came):
                    self._add_picture(folder, present, shown, file, came, done)  # a picture of such a name
                    continue
                twice = [one for one, _ in beside if _key(one) == _key(shown) and _is_text(one) == is_text]
                try:
                    pictures = _sure_owners(folder, present, shown, came, len(twice))
                    for picture in pictures:
                        if is_text:
                            _write_text(folder, picture, file)
                            file.seek(0)
                        else:
                            done.added += _write_mask(folder, picture, file)
                            file.seek(0)
                    done.captions += len(pictures) if is_text else 0
                except UserError as error:
                    done.refused.append({"name": str(shown), "reason": str(error)})
            if rows:
                _add_rows(folder, present, rows, came, done)
        if done.refused and not (done.added or done.present or done.captions):
            raise UserError("; ".join(f"{r['name']}: {r['reason']}" for r in done.refused[:5]))
        return done

    def _add_picture(
        self,
        folder: Path,
        present: list[Path],
        shown: PurePosixPath,
        file: IO[bytes],
        came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]],
        done: Added,
    ) -> None:
        content = file.read(MOST_BYTES + 1)
        try:
            if len(present) + len(done.added) >= MOST_PICTURES:
                raise UserError(f"a dataset has {MOST_PICTURES} pictures at most")
            suffix = _suffix(content, str(shown))
        except UserError as error:
            done.refused.append({"name": str(shown), "reason": str(error)})
            return
        where, stem = folder / shown.parent, _stem(shown.name)
        same = re.compile(re.escape(stem) + r"(-\d+)?" + re.escape(suffix))  # renamed ones included
        there = [p for p in present if p.parent == where and same.fullmatch(p.name)]
        path = next((p for p in there if p.read_bytes() == content), None)
        if path is not None:
            done.present.append(captions.place(folder, path))
        else:
            mine = [*present, *(one for some in came.values() for _, one in some)]
            taken = {other.stem.casefold() for other in mine if other.parent == where}
            path = where / f"{_free(stem, taken)}{suffix}"
            where.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            done.added.append(captions.place(folder, path))
        came.setdefault(_key(shown), []).append((shown, path))

    def write_caption(self, name: str, index: int, caption: str, expected: str = "") -> None:
        """Write a picture's caption; see `captions.write` and `picture`."""
        with writing:  # metadata.jsonl is read and written whole: two at once would lose one
            captions.write(self.folder(name), self.picture(name, index, expected), caption)

    def remove(self, name: str, index: int, expected: str = "") -> TrashItem:
        """Put a picture with its caption and mask into the bin.

        Raises:
            UserError: as `picture`; it cannot be moved (then all stays as it was).
        """
        with writing:
            folder, path = self.folder(name), self.picture(name, index, expected)
            shown = captions.place(folder, path)
            caption = captions.read(folder, [path], [path])[0]
            text = captions.text_of(path)
            own = self._own_files(name, path, text)
            try:
                item = self.workspace.trash.put("picture", shown, own, place=name)
                kept = item.folder / "files"
                try:
                    if text is None and caption.source == "metadata":
                        write_text(kept / f"{path.stem}.txt", caption.text)
                    captions.without_row(folder, path)
                except (OSError, UserError):
                    self.workspace.trash.restore(item, {kept / file.name: file for file in own})
                    raise
            except (OSError, UserError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise UserError(f"cannot move {shown!r} to the bin: {reason}") from error
        return item

    def _own_files(self, name: str, path: Path, text: Path | None) -> list[Path]:
        """A picture's own files: caption and mask too, unless another of its name needs them."""
        if any(p != path and p.stem == path.stem for p in self.files(name) if p.parent == path.parent):
            return [path]
        beside = [one for one in (text, path.with_suffix(".json")) if one is not None and one.is_file()]
        return [
            path,
            *beside,
            *sorted(_masks(path)),
        ]  # a mask left behind would be a training picture of its own

    def restore(self, item: str) -> TrashItem:
        """Bring a picture back from the bin.

        Raises:
            NotThere: its dataset is gone.
            UserError: it is not in the bin, its place is taken, or it cannot be moved.
        """
        with writing:
            found = self.workspace.trash.get("picture", item)
            target = (self.folder(found.place) / found.name).parent
            try:
                self.workspace.trash.restore(found, {path: target / path.name for path in found.files})
            except FileExistsError as error:
                raise UserError(f"there is another {found.name!r} now") from error
            except UserError as error:
                raise UserError(f"cannot bring {found.name!r} back: {error}") from error
        return found

    def thumbnail(self, name: str, index: int, side: int) -> Path:
        """A small copy of a picture; see `thumbnails.thumbnail`.

        Raises:
            NotThere: no such dataset or index.
            UserError: the picture cannot be read.
        """
        path = self.picture(name, index)
        shown = captions.place(self.folder(name), path)
        return thumbnails.thumbnail(self.workspace.state / "thumbnails", path, side, shown)


def _suffix(content: bytes, name: str) -> str:
    """The suffix of a picture's true format; it is decoded once, within the limits."""
    from hyperbrush.ldm.data.pictures import FORMATS as SUFFIX
    from hyperbrush.ldm.data.pictures import open_bytes

    if len(content) > MOST_BYTES:
        raise UserError(f"it has more than {MOST_BYTES >> 20} MiB")
    open_picture(content, name)
    with open_bytes(content, FORMATS) as picture:
        return SUFFIX[str(picture.format)]


def _place(given: str) -> PurePosixPath:
    """A file's place as a browser or client gave it, in folders that can be on a disk; one that leads elsewhere
    (absolute, or upwards) is left with its last part.
    """
    parts = unicodedata.normalize("NFC", given).replace("\\", "/").split("/")
    folders = [] if ".." in parts or not parts[0] or parts[0].endswith(":") else parts[:-1]
    kept = [_stem(f"{part}.") for part in folders if part not in ("", ".")]
    return PurePosixPath(*kept, parts[-1] or "picture")


def _is_text(shown: PurePosixPath) -> bool:
    return shown.suffix.lower() in (".txt", ".caption")


def _key(shown: PurePosixPath) -> PurePosixPath:
    """The folder and name that a picture, its caption and its mask share."""
    stem = shown.stem if _is_text(shown) else shown.stem.removesuffix(".mask")
    return shown.parent / stem


def _owners(
    folder: Path,
    present: list[Path],
    shown: PurePosixPath,
    came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]],
) -> list[tuple[PurePosixPath, Path]]:
    """Pictures that a caption or mask may belong to, with the names they were given under: of those that came
    along, else of those there are, renamed ones (NAME-2) included.
    """
    key = _key(shown)
    if key in came:
        return came[key]
    where, stem = folder / key.parent, _stem(f"{key.name}.x")
    there = [path for path in present if path.parent == where]
    if not any(path.stem == stem for path in there):
        return []
    same = re.compile(re.escape(stem) + r"(-\d+)?")
    return [(key, path) for path in there if same.fullmatch(path.stem)]


def _sure_owners(
    folder: Path,
    present: list[Path],
    shown: PurePosixPath,
    came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]],
    number: int,
) -> list[Path]:
    """The pictures of a caption or mask: one, or those of one name in several formats.

    Raises:
        UserError: there is none, or nobody can tell which.
    """
    owners = _owners(folder, present, shown, came)
    if not owners:
        raise UserError("there is no picture of that name")
    paths = list(dict.fromkeys(path for _, path in owners))
    formats = {given for given, _ in owners}
    if len(paths) > 1 and len(formats) < len(paths):
        raise UserError(
            f"it may belong to {', '.join(captions.place(folder, path) for path in paths[:4])}: send it together "
            "with its picture, and keep folders in the names (a/1.png, a/1.txt, b/1.png, b/1.txt)"
        )
    if number > 1:
        raise UserError(f"{number} files of this name came for {captions.place(folder, paths[0])}: send one")
    return paths


def _write_text(folder: Path, picture: Path, file: IO[bytes]) -> None:
    content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise UserError(f"a caption of more than {MOST_TEXT >> 10} KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the caption is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    captions.write_lines(folder, picture, text.splitlines())


def _add_rows(
    folder: Path,
    present: list[Path],
    files: list[tuple[PurePosixPath, IO[bytes]]],
    came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]],
    done: Added,
) -> None:
    """Write the captions of files of metadata that came, for pictures that came along or are there."""
    from hyperbrush.ldm.data.captions import nfc, read_metadata

    pictures = {captions.place(folder, path): path for path in present}
    pictures |= {nfc(str(shown)): path for some in came.values() for shown, path in some}
    with tempfile.TemporaryDirectory() as temporary:
        root, names = Path(temporary), {}
        for shown, file in files:
            content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                done.refused.append(
                    {"name": str(shown), "reason": f"it has more than {MOST_BYTES >> 20} MiB"}
                )
                continue
            path = root / shown
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            names[path] = str(shown)
        try:
            found = read_metadata(root, names, pictures)
        except UserError as error:
            done.refused += [{"name": name, "reason": str(error)} for name in names.values()]
            return
        done.refused += [{"name": names[path], "reason": reason} for path, reason in found.problems]
    captions.write_rows(folder, {pictures[name]: said for name, said in found.alternatives.items()})
    done.captions += len(found.alternatives)


def _masks_in(folders: Iterable[Path]) -> dict[tuple[Path, str], int]:
    """Bytes of the mask of each picture, by its folder and stem."""
    found: dict[tuple[Path, str], int] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem = Path(entry.name).stem
                if stem.endswith(".mask"):
                    found[folder, stem.removesuffix(".mask")] = entry.stat().st_size
    return found


def _masks(picture: Path) -> list[Path]:
    """The mask files of a picture: one, as it should be."""
    return list(picture.parent.glob(glob.escape(f"{picture.stem}.mask") + ".*"))


def _write_mask(folder: Path, picture: Path, file: IO[bytes]) -> list[str]:
    """Put a mask beside its picture; its place where it is new."""
    content = file.read(MOST_BYTES + 1)
    path = picture.with_name(f"{picture.stem}.mask{_suffix(content, 'the mask')}")
    before = _masks(picture)
    if any(p.read_bytes() == content for p in before):
        return []
    if before:
        raise UserError(f"{captions.place(folder, picture)} has another mask already: {before[0].name}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return [captions.place(folder, path)]


def _stem(name: str) -> str:
    """A stem for the disk: the words stay, since they are the caption where no other is written."""
    stem = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]+', " ", Path(name).stem).strip(" .")
    return stem.encode()[:LONGEST_NAME].decode("utf-8", "ignore").strip(" .") or "picture"


def _free(name: str, taken: set[str]) -> str:
    """The name, or the first of name-2, name-3, … that is free."""
    if name.casefold() not in taken:
        return name
    number = 2
    while f"{name}-{number}".casefold() in taken:
        number += 1
    return f"{name}-{number}"

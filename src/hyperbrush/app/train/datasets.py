"""Training pictures: the folders in the workspace's `datasets`, what is put into them and taken out."""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from hyperbrush.app.names import free_name, plain_name
from hyperbrush.app.train import captions
from hyperbrush.app.train.adding import Added, Adding, masks_of
from hyperbrush.app.train.caption_edits import CaptionEdit
from hyperbrush.app.uploads import MOST_BYTES, decoding, open_picture
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import atomic_folder, atomic_path, write_text
from hyperbrush.trash import TrashItem

EXAMPLE = "fluent-high-contrast"

SIDES = (128, 256, 512, 1024)  # of thumbnails in pixels; few, so that asking for many sizes fills no disk

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

    @property
    def said(self) -> tuple[str, ...]:
        """All its captions."""
        return self.several or (self.caption,)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CaptionChange:
    """A picture's captions before and after an edit."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]


# What was in each caption file (None: there was none), and what is in it now.
CaptionFiles = dict[Path, tuple[bytes | None, bytes]]


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
            name = plain_name(name, "dataset") if name else free_name("pictures", taken)
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
        folder = self.folder(name)
        with writing:
            return Adding(folder, self.files(name)).add(files)

    def write_caption(self, name: str, index: int, caption: str, expected: str = "") -> None:
        """Write a picture's caption; see `captions.write` and `picture`."""
        with writing:  # metadata.jsonl is read and written whole: two at once would lose one
            captions.write(self.folder(name), self.picture(name, index, expected), caption)

    def caption_changes(self, name: str, edit: CaptionEdit) -> list[CaptionChange]:
        """What an edit would make of a dataset's captions, those alone that it changes; nothing is written.

        Raises:
            NotThere: there is no such dataset.
        """
        _, found = self.pictures(name)
        changes = []
        for picture in found:
            after = tuple(map(edit.apply, picture.said))
            if after != picture.said and not picture.problem:
                changes.append(CaptionChange(picture.name, picture.said, after))
        return changes

    def edit_captions(self, name: str, edit: CaptionEdit) -> tuple[list[CaptionChange], CaptionFiles]:
        """Change a dataset's captions, all or none; what changed, and what `restore_captions` takes.

        Raises:
            NotThere: there is no such dataset.
            UserError: a caption would be too long, or a file cannot be written.
        """
        with writing:
            folder, files = self.folder(name), self.files(name)
            changes = self.caption_changes(name, edit)
            paths = {captions.place(folder, path): path for path in files}
            said = {paths[change.name]: change.after for change in changes}
            after = captions.contents_with(folder, said, files)
            kept = {file: (_content(file), content) for file, content in after.items()}
            try:
                for file, content in after.items():
                    _put(file, content)
            except BaseException:
                for file, (before, _) in kept.items():
                    with contextlib.suppress(OSError, UserError):
                        _put(file, before)
                raise
        return changes, kept

    def restore_captions(self, kept: CaptionFiles) -> None:
        """Undo `edit_captions`: its files as they were.

        Raises:
            UserError: a caption was changed since, or a file cannot be written.
        """
        with writing:
            for file, (_, after) in kept.items():
                if _content(file) != after:
                    raise UserError(f"{file.name} was changed since: the captions stay as they are")
            for file, (before, _) in kept.items():
                _put(file, before)

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
            *sorted(masks_of(path)),
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
        """A small copy of a picture; see `thumbnail`.

        Raises:
            NotThere: no such dataset or index.
            UserError: the picture cannot be read.
        """
        path = self.picture(name, index)
        shown = captions.place(self.folder(name), path)
        return thumbnail(self.workspace.state / "thumbnails", path, side, shown)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _put(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
        return
    with atomic_path(file, sync=False) as temporary:  # there may be thousands
        temporary.write_bytes(content)


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


def thumbnail(kept: Path, path: Path, side: int, shown: str) -> Path:
    """A copy (WebP) that fits a square of the next of `SIDES`, transparency on white.

    Args:
        kept: folder of the copies.
        path, shown: the picture, and its name for the user.

    Raises:
        UserError: the picture cannot be read, or the copy cannot be written.
    """
    from hyperbrush.ldm.data.pictures import opened

    side = next((s for s in SIDES if s >= side), SIDES[-1])
    stat = path.stat()
    key = f"{path}|{stat.st_mtime_ns}|{stat.st_size}".encode("utf-8", "surrogateescape")
    copy = kept / str(side) / f"{hashlib.sha256(key).hexdigest()[:32]}.webp"
    if not copy.is_file():
        with decoding:
            with path.open("rb") as file:
                picture = opened(open_picture(file.read(MOST_BYTES + 1), shown), shown)
            picture.thumbnail((side, side))
        with atomic_path(copy, sync=False) as temporary:
            picture.save(temporary, "WEBP", quality=82)
    return copy

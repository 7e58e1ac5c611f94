"""Files put into a dataset: pictures first, then the masks, captions and files of metadata that belong to them."""

import glob
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hyperbrush.app.names import LONGEST_NAME, free_name
from hyperbrush.app.train import captions
from hyperbrush.app.uploads import FORMATS, MOST_BYTES, open_picture
from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path

MOST_PICTURES = 20_000  # in a dataset
MOST_TEXT = 256 << 10  # bytes of a caption's file
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

File = tuple[PurePosixPath, IO[bytes]]  # its place as it was given, and its content


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


class Adding:
    """Files being put into a dataset's folder; present: the pictures it has."""

    def __init__(self, folder: Path, present: list[Path]) -> None:
        self.folder, self.present, self.done = folder, present, Added()
        self.came: dict[PurePosixPath, list[tuple[PurePosixPath, Path]]] = {}  # pictures, by their `_key`

    def add(self, files: Iterable[tuple[str, IO[bytes]]]) -> Added:
        """Put them in; see `Datasets.add`.

        Raises:
            UserError: none of them can be used, or the disk is full.
        """
        beside: list[File] = []  # masks and captions, once the pictures are there
        rows: list[File] = []
        for given, file in files:
            shown = _place(given)
            if shown.name in METADATA:
                rows.append((shown, file))
            elif _is_text(shown) or shown.stem.endswith(".mask"):
                beside.append((shown, file))
            else:
                self._add_picture(shown, file)
        for shown, file in sorted(beside, key=lambda one: _is_text(one[0])):
            same = [one for one, _ in beside if (_key(one), _is_text(one)) == (_key(shown), _is_text(shown))]
            self._add_beside(shown, file, len(same))
        if rows:
            self._add_rows(rows)
        done = self.done
        if done.refused and not (done.added or done.present or done.captions):
            raise UserError("; ".join(f"{r['name']}: {r['reason']}" for r in done.refused[:5]))
        return done

    def _refuse(self, shown: object, reason: object) -> None:
        self.done.refused.append({"name": str(shown), "reason": str(reason)})

    def _add_picture(self, shown: PurePosixPath, file: IO[bytes]) -> None:
        content = file.read(MOST_BYTES + 1)
        try:
            if len(self.present) + len(self.done.added) >= MOST_PICTURES:
                raise UserError(f"a dataset has {MOST_PICTURES} pictures at most")
            suffix = _suffix(content, str(shown))
        except UserError as error:
            self._refuse(shown, error)
            return
        where, stem = self.folder / shown.parent, _stem(shown.name)
        same = re.compile(re.escape(stem) + r"(-\d+)?" + re.escape(suffix))  # renamed ones included
        there = [p for p in self.present if p.parent == where and same.fullmatch(p.name)]
        path = next((p for p in there if p.read_bytes() == content), None)
        if path is not None:
            self.done.present.append(captions.place(self.folder, path))
        else:
            mine = [*self.present, *(one for some in self.came.values() for _, one in some)]
            taken = {other.stem.casefold() for other in mine if other.parent == where}
            path = where / f"{free_name(stem, taken)}{suffix}"
            where.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            self.done.added.append(captions.place(self.folder, path))
        self.came.setdefault(_key(shown), []).append((shown, path))

    def _add_beside(self, shown: PurePosixPath, file: IO[bytes], number: int) -> None:
        """A caption or mask; number: files of its name that came."""
        is_text = _is_text(shown)
        if not is_text and not self._owners(shown):
            self._add_picture(shown, file)  # a picture of such a name
            return
        try:
            pictures = self._sure_owners(shown, number)
            for picture in pictures:
                if is_text:
                    _write_text(self.folder, picture, file)
                else:
                    self.done.added += _write_mask(self.folder, picture, file)
                file.seek(0)
            self.done.captions += len(pictures) if is_text else 0
        except UserError as error:
            self._refuse(shown, error)

    def _owners(self, shown: PurePosixPath) -> list[tuple[PurePosixPath, Path]]:
        """Pictures that a caption or mask may belong to, with the names they were given under: of those that came
        along, else of those there are, renamed ones (NAME-2) included.
        """
        key = _key(shown)
        if key in self.came:
            return self.came[key]
        where, stem = self.folder / key.parent, _stem(f"{key.name}.x")
        there = [path for path in self.present if path.parent == where]
        if not any(path.stem == stem for path in there):
            return []
        same = re.compile(re.escape(stem) + r"(-\d+)?")
        return [(key, path) for path in there if same.fullmatch(path.stem)]

    def _sure_owners(self, shown: PurePosixPath, number: int) -> list[Path]:
        """The pictures of a caption or mask: one, or those of one name in several formats.

        Raises:
            UserError: there is none, or nobody can tell which.
        """
        owners = self._owners(shown)
        if not owners:
            raise UserError("there is no picture of that name")
        paths = list(dict.fromkeys(path for _, path in owners))
        formats = {given for given, _ in owners}
        if len(paths) > 1 and len(formats) < len(paths):
            raise UserError(
                f"it may belong to {', '.join(captions.place(self.folder, path) for path in paths[:4])}: send it "
                "together with its picture, and keep folders in the names (a/1.png, a/1.txt, b/1.png, b/1.txt)"
            )
        if number > 1:
            raise UserError(
                f"{number} files of this name came for {captions.place(self.folder, paths[0])}: send one"
            )
        return paths

    def _add_rows(self, files: list[File]) -> None:
        """Write the captions of files of metadata that came, for pictures that came along or are there."""
        from hyperbrush.ldm.data.captions import nfc, read_metadata

        pictures = {captions.place(self.folder, path): path for path in self.present}
        pictures |= {nfc(str(shown)): path for some in self.came.values() for shown, path in some}
        with tempfile.TemporaryDirectory() as temporary:
            root, names = Path(temporary), {}
            for shown, file in files:
                content = file.read(MOST_BYTES + 1)
                if len(content) > MOST_BYTES:
                    self._refuse(shown, f"it has more than {MOST_BYTES >> 20} MiB")
                    continue
                path = root / shown
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                names[path] = str(shown)
            try:
                found = read_metadata(root, names, pictures)
            except UserError as error:
                for name in names.values():
                    self._refuse(name, error)
                return
            for path, reason in found.problems:
                self._refuse(names[path], reason)
        captions.write_rows(self.folder, {pictures[name]: said for name, said in found.alternatives.items()})
        self.done.captions += len(found.alternatives)


def masks_of(picture: Path) -> list[Path]:
    """The mask files of a picture: one, as it should be."""
    return list(picture.parent.glob(glob.escape(f"{picture.stem}.mask") + ".*"))


def _write_mask(folder: Path, picture: Path, file: IO[bytes]) -> list[str]:
    """Put a mask beside its picture; its place where it is new."""
    content = file.read(MOST_BYTES + 1)
    path = picture.with_name(f"{picture.stem}.mask{_suffix(content, 'the mask')}")
    before = masks_of(picture)
    if any(p.read_bytes() == content for p in before):
        return []
    if before:
        raise UserError(f"{captions.place(folder, picture)} has another mask already: {before[0].name}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return [captions.place(folder, path)]


def _write_text(folder: Path, picture: Path, file: IO[bytes]) -> None:
    content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise UserError(f"a caption of more than {MOST_TEXT >> 10} KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the caption is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    captions.write_lines(folder, picture, text.splitlines())


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


def _stem(name: str) -> str:
    """A stem for the disk: the words stay, since they are the caption where no other is written."""
    stem = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]+', " ", Path(name).stem).strip(" .")
    return stem.encode()[:LONGEST_NAME].decode("utf-8", "ignore").strip(" .") or "picture"

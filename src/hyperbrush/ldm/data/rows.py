"""Datasets of one's own: torch datasets, lists of mappings, Hugging Face's, streams; seen as a folder of pictures is."""

import hashlib
import itertools
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.archives import CAPTION_COLUMNS, IMAGE_COLUMNS, content_of, texts_of, undecoded
from hyperbrush.ldm.data.captions import FileNames
from hyperbrush.ldm.data.folder import ImageFolder
from hyperbrush.ldm.data.masks import find_masks
from hyperbrush.ldm.data.scan import Item, Problem, Scan
from hyperbrush.stopping import may_stop_here

IMAGES = (*IMAGE_COLUMNS, "jpeg")
CAPTIONS = (*CAPTION_COLUMNS, "txt")
MOST_STREAMED = 100_000  # examples of a stream; one that gives more may never end


def is_rows(source: Any) -> bool:
    """Whether something may be a dataset for `PictureRows`: it has examples by number, or gives them one by one."""
    if isinstance(source, str | bytes | Path | Mapping | Image.Image | np.ndarray | torch.Tensor):
        return False
    return isinstance(source, Iterable) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))


class PictureRows(ImageFolder):
    """A dataset of one's own, with everything that `ImageFolder` does to pictures and captions.

    rows: a torch ``Dataset`` or ``IterableDataset``, a list, a ``Dataset`` of Hugging Face's datasets, WebDataset's, or
        anything that gives examples by number or one by one. An example is a mapping, or a pair (image, caption).
        What gives them one by one is read once, into a temporary folder.
    image, caption: names in the mappings; by default the first of `IMAGES` and `CAPTIONS` that is there. An image is
        a PIL image, a path, a file's bytes, uint8 or a float from 0 to 1: an array (height, width[, channels]) or a
        tensor (channels, height, width). A caption is a text, or a list of several. "mask", of the same forms, is
        what ``masks`` "files" takes.
    name: of the dataset, in paths and errors.
    options: as for `ImageFolder`, but ``folder``. ``captions`` is "auto", "filename" (of paths) or "none".

    Examples must be the same whenever they are asked for: that is what a training that goes on relies on. What changes
    at random belongs into flip, crop, jitter, rotate and transform, which are drawn by (seed, epoch, index).

    Raises:
        UserError: as `ImageFolder`; an example is none of this, or another when it is asked for again; a stream of more
            than `MOST_STREAMED` examples.
    """

    def __init__(
        self, rows: Any, *, image: str = "", caption: str = "", name: str = "", **options: Any
    ) -> None:
        if isinstance(rows, Mapping):
            raise UserError(
                f"a {type(rows).__name__} with {', '.join(map(str, rows))[:200]}: expected one dataset, such as "
                f"dataset[{next(iter(rows), 'train')!r}]"
            )
        if not is_rows(rows):
            raise UserError(
                f"dataset: expected examples by number or one by one, got {type(rows).__name__} {rows!r:.80}"
            )
        if options.get("captions", "auto") not in ("auto", "filename", "none"):
            raise UserError(
                f"captions is {options['captions']!r}, which looks for files of captions; a dataset's examples bring "
                "their own: leave it at auto, or take none"
            )
        masks = options.get("masks")
        if masks is not None and masks.folder is not None:
            raise UserError(
                "a folder of masks is for folders of pictures; a dataset's examples bring theirs as 'mask'"
            )
        self._name = name or type(rows).__name__
        self._keys = image, caption
        self._asking = _Lock()
        self._spool: _Spool | None = None
        self._rows: Any = rows
        if isinstance(rows, IterableDataset) or not (
            hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
        ):
            self._spool = _Spool()
            self._rows = list(_streamed(rows, self._spool.folder, self._keys))
            self._keys = "image", ""
        self._digests: list[bytes] = []
        self._mask_digests: dict[int, bytes] = {}
        self._numbers: list[int] = []
        super().__init__(self._name, **options)

    def digest(self, index: int) -> bytes:
        """SHA-256 of an example's picture."""
        return self._digests[index]

    def mask_digest(self, index: int) -> bytes:
        """SHA-256 of an example's mask file, or of the picture whose transparency it is."""
        if self.mask_files[index] is None:
            return hashlib.sha256(b"").digest()
        assert self.masks is not None
        return self._digests[index] if self.masks.source == "alpha" else self._mask_digests[index]

    def _found(self, folder: str | Path, options: Mapping[str, Any]) -> tuple[Scan, list[Path | None]]:
        """Each example once: its size, captions and digest."""
        items: list[Item] = []
        problems: list[Problem] = []
        masks: list[Path | None] = []
        count = len(self._rows)
        for number in range(count):
            may_stop_here()
            try:
                row = self._row(number)
                image = picture_of(row.image)
                flat = pictures.eight_bits(image)
                said, source = self._said(row, options)
                digest = _digest(row.image, image)
                mask = None if row.mask is None or self._alpha else _digest(row.mask, picture_of(row.mask))
            except UserError as error:
                problems.append(Problem(Path(self._name, f"{number:08d}"), str(error)))
                continue
            except Exception as error:  # noqa: BLE001 (Pillow's decoders raise anything on a broken file)
                problems.append(Problem(Path(self._name, f"{number:08d}"), pictures.explain(error)))
                continue
            finally:
                if (progress := options["progress"]) is not None:
                    progress(number + 1, count)
            alpha = flat.getchannel("A").getextrema()[0] != 255 if flat.mode in ("RGBA", "LA") else False
            # The digest in the name tells a run that goes on whether the example is still the same.
            path = Path(self._name, f"{number:08d}-{digest.hex()[:8]}")
            items.append(Item(path, said[0], *flat.size, bool(alpha), source, said if len(said) > 1 else ()))
            if mask is not None:
                self._mask_digests[len(self._numbers)] = mask
            masks.append(path if (alpha if self._alpha else mask is not None) else None)
            self._numbers.append(number)
            self._digests.append(digest)
        if not count:
            raise UserError(f"{self._name} has no examples; expected 1 or more")
        for index in {0, len(items) // 2, len(items) - 1} if items else ():
            self._picture(index)  # or says that it is another one now
        if self.masks is not None and self.masks.needed and items and not any(masks):
            if self._alpha:
                find_masks(self.masks, Path(self._name), items)  # which says what is missing
            raise UserError(f"no example of {self._name} has a mask; expected 'mask' in some of them")
        return Scan(Path(self._name), tuple(items), tuple(problems)), masks

    @property
    def _alpha(self) -> bool:
        return self.masks is not None and self.masks.source == "alpha"

    def _row(self, number: int) -> "_Row":
        with self._asking:
            row = self._rows[number]
        return _row(row, self._keys)

    def _said(self, row: "_Row", options: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
        if options["captions"] == "none":
            return ("",), "none"
        if row.captions is not None and options["captions"] == "auto":
            said = row.captions
            if options["caption_lines"]:
                said = tuple(part for text in said for part in text.splitlines() if part.strip()) or ("",)
            return texts_of(list(said), "an example"), "metadata"
        if isinstance(row.image, str | Path):
            return ((options["file_names"] or FileNames()).caption(Path(row.image)),), "filename"
        raise UserError(
            "no caption and no file name; expected "
            + (f"{self._keys[1]!r}" if self._keys[1] else f"one of {', '.join(CAPTIONS)}")
            + ", or captions='none'"
        )

    def _picture(self, index: int) -> Image.Image:
        row = self._row(self._numbers[index])
        try:
            image = picture_of(row.image)
            same = _digest(row.image, image) == self._digests[index]
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise anything on a broken file
            raise UserError(f"cannot read {self.paths_of(index)}: {pictures.explain(error)}") from error
        if not same:
            raise UserError(
                f"example {self._numbers[index]} of {self._name} is another picture when it is asked for again: such a "
                "training could not be resumed exactly. A dataset gives the same picture for the same number; what "
                "changes at random belongs into flip, crop, jitter, rotate or transform, which are drawn by (seed, "
                "epoch, index)"
            )
        return pictures.flatten(image, self.background)

    def paths_of(self, index: int) -> str:
        """How a person finds an example."""
        return f"{self._name}[{self._numbers[index]}]"

    def _read_mask(self, index: int, size: tuple[int, int]) -> Image.Image:
        row = self._row(self._numbers[index])
        try:
            if not self._alpha:
                grey = pictures.brightness(picture_of(row.mask))
            else:
                grey = pictures.eight_bits(picture_of(row.image)).getchannel("A")
        except Exception as error:  # Pillow's decoders raise anything on a broken file
            raise UserError(
                f"cannot read the mask of {self.paths_of(index)}: {pictures.explain(error)}"
            ) from error
        return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)


class _Lock:
    """A lock that a copy in another process has anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Lock, ()


class _Spool:
    """A temporary folder for as long as a dataset or a copy of it is there."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hyperbrush-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def __reduce__(self) -> tuple[Any, ...]:  # another process reads it and does not remove it
        return type(None), ()


@dataclass(frozen=True)
class _Row:
    """One example as it was given."""

    image: Any
    captions: tuple[str, ...] | None
    mask: Any = None


def _row(row: Any, keys: tuple[str, str]) -> _Row:
    """Read an example.

    Raises:
        UserError: it is none.
    """
    if isinstance(row, Image.Image):
        return _Row(row, None)
    if isinstance(row, tuple | list) and len(row) == 2:
        row = dict(zip(("image", "text"), row, strict=True))
        keys = "image", "text"
    if not isinstance(row, Mapping):
        raise UserError(
            f"an example is a {type(row).__name__}; expected a mapping with image and text, or a pair (image, caption)"
        )
    names = ", ".join(map(str, row)) or "nothing"
    for key in filter(None, keys):
        if key not in row:
            raise UserError(f"an example has no {key!r} (it has {names})")
    image = keys[0] or next((name for name in IMAGES if name in row), None)
    if image is None:
        raise UserError(
            f"an example has no picture among {names}; expected 'image', or say which with PictureRows(…, image=NAME)"
        )
    caption = keys[1] or next((name for name in CAPTIONS if name in row), None)
    said = None if caption is None else row[caption]
    if isinstance(said, bytes):
        said = said.decode("utf-8")
    if said is not None and not isinstance(said, str | list | tuple):
        raise UserError(
            f"the caption {said!r:.80} is a {type(said).__name__}; expected a text, or a list of several"
        )
    several = (said,) if isinstance(said, str) else said
    if several is not None and (not several or not all(isinstance(one, str) for one in several)):
        raise UserError(f"the captions are {said!r:.80}; expected a text, or a list of one or more")
    return _Row(row[image], None if several is None else tuple(several), row.get("mask"))


def picture_of(value: Any) -> Image.Image:
    """A picture in any of the forms that an example may have, upright, its mode kept.

    Raises:
        UserError: it is none of them.
        Exception: whatever Pillow raises on a broken file.
    """
    value = undecoded(value)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str | Path):
        return pictures.upright(content_of(value))
    if isinstance(value, bytes):
        return pictures.upright(value)
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise UserError(
            f"a picture is {value!r:.60} ({type(value).__name__}); expected a PIL image, a path, bytes, an array or a "
            "tensor"
        )
    return Image.fromarray(_bytes(array, value.shape))


def _bytes(array: Any, shape: Any) -> Any:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or not array.size:
        raise UserError(
            f"a picture has shape {tuple(shape)}; expected an array (height, width, channels) or a tensor (channels, "
            "height, width) with 1, 3 or 4 channels"
        )
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"a picture has numbers of type {array.dtype}; expected uint8, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"a picture's floats go from {low:g} to {high:g}; expected 0 to 1 (undo a Normalize), or uint8"
        )
    return np.round(array * 255).astype(np.uint8)


def _digest(value: Any, image: Image.Image) -> bytes:
    """SHA-256 of a picture: of its file where it is one, so that caches of folders serve it too; else of its pixels."""
    value = undecoded(value)
    if isinstance(value, str | Path):
        return hashlib.sha256(content_of(value)).digest()
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    about = f"{image.mode} {image.size} {image.getexif().get(0x0112)}".encode()
    return hashlib.sha256(about + image.tobytes()).digest()


def _streamed(rows: Iterable[Any], folder: Path, keys: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Examples that come one by one, kept in a folder: files as they are, pictures without loss."""
    for number, given in enumerate(itertools.islice(rows, MOST_STREAMED + 1)):
        if number == MOST_STREAMED:
            raise UserError(
                f"a stream has given {MOST_STREAMED} examples and goes on: an endless one could not be resumed exactly. "
                "Cut it, as with itertools.islice or .take, or give a dataset that has examples by number"
            )
        may_stop_here()
        row = _row(given, keys)
        found: dict[str, Any] = {"image": _kept(row.image, folder / f"{number:08d}")}
        if row.captions is not None:
            found["caption"] = list(row.captions)
        if row.mask is not None:
            found["mask"] = _kept(row.mask, folder / f"{number:08d}.mask")
        yield found


def _kept(value: Any, path: Path) -> Any:
    """The path of a picture that is a file already, or that is written now; what is none stays, to be told later."""
    value = undecoded(value)
    if isinstance(value, str | Path):
        return value
    if isinstance(value, bytes):
        path.write_bytes(value)
        return {"path": str(path)}
    try:
        image = pictures.eight_bits(picture_of(value))
    except (UserError, ValueError):
        return value
    image.save(path, "PNG", compress_level=1)
    return {"path": str(path)}

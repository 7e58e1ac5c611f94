"""A folder of captioned pictures as a dataset; an example depends on (seed, epoch, index) alone."""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data import augment, pictures
from hyperbrush.ldm.data.buckets import Buckets, OriginalSizes
from hyperbrush.ldm.data.cache import content_digest
from hyperbrush.ldm.data.captioning import Captioning
from hyperbrush.ldm.data.captions import FileNames
from hyperbrush.ldm.data.examples import CaptionedPictures
from hyperbrush.ldm.data.masks import Masks, coverage, find_masks, read_mask
from hyperbrush.ldm.data.scan import Problem, Scan, scan

log = logging.getLogger(__name__)
_counting = threading.Lock()
Fitted = tuple[augment.Pixels, augment.Pixels | None]  # a picture (h, w, 3) and its mask (h, w)


class ImageFolder(CaptionedPictures):
    """Pictures of a folder, nested folders too, with captions.

    folder: where the pictures are; see ``scan`` for what is found and how captions are.
    size: side, or (height, width), in pixels; with buckets, they say the shapes instead.
    crop: "center", "random" (once per epoch and picture, along the longer side), or "none": the
        whole picture, squeezed into the shape.
    crop_variants: with crop="random", each epoch takes one of so many fixed crops of a picture, which
        can be cached as latents; None: anywhere.
    flip: probability of mirroring left and right.
    jitter: brightness, contrast and saturation are each scaled by 1 ± jitter at most, in [0, 1].
    rotate: largest angle in degrees, either way, in [0, 180].
    transform: called last with the picture (RGB, at its final size) and a generator keyed by
        (seed, epoch, index); gives a picture of the same size. It does not see the mask. Transforms that take the
        picture alone, such as torchvision's, go into ``augment.Seeded``.
    buckets: aspect-ratio buckets or original sizes; ``groups`` says which picture is in which.
    background: colour behind transparent pictures and rotated corners.
    captions, file_names, caption_lines: as in ``scan``.
    captioning: what is done to captions: one of several, templates, shuffled tags.
    masks: where pictures count; examples then have ``mask``. Rotated corners count nowhere.
    on_problem: "raise" names every unusable file in one error, and logs those that are not read at all; "skip"
        leaves both out and keeps ``problems``.
    memory_limit: bytes of decoded, resized pictures kept in memory; 0 keeps none.
    progress: called with (pictures looked at, pictures in all) while the folder is scanned.
    look: as in ``scan``.

    captions, paths: of each example, in the order of the paths; captions as they are written, the first
        where there are several.
    alternatives: of each example all captions, the first included.
    groups: shape (height, width) of each example, for ``BatchOrder``.
    mask_files: of each example, the file its mask is in; None where all of it counts.
    problems: what was left out.

    Raises:
        UserError: an option out of range; a folder that is missing, holds no picture or no usable
            one; masks asked for and none there; with on_problem="raise", any problem.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | tuple[int, int] = 64,
        crop: augment.Crop = "center",
        crop_variants: int | None = None,
        flip: float = 0.0,
        jitter: float = 0.0,
        rotate: float = 0.0,
        transform: augment.Transform | None = None,
        buckets: Buckets | OriginalSizes | None = None,
        background: str = "white",
        seed: int = 0,
        captions: str = "auto",
        file_names: FileNames | None = None,
        caption_lines: bool = False,
        captioning: Captioning | None = None,
        masks: Masks | None = None,
        on_problem: Literal["raise", "skip"] = "raise",
        memory_limit: int = 512 * 2**20,
        progress: Callable[[int, int], None] | None = None,
        look: Callable[[Path], pictures.Look] | None = None,
    ) -> None:
        if crop not in augment.CROPS:
            raise unknown_name("crop", crop, augment.CROPS)
        if on_problem not in ("raise", "skip"):
            raise unknown_name("on_problem", on_problem, ("raise", "skip"))
        for name, value, top in (("flip", flip, 1), ("jitter", jitter, 1), ("rotate", rotate, 180)):
            if not 0 <= value <= top:
                raise UserError(f"{name} is {value}; expected a number from 0 to {top}")
        if crop_variants is not None and (crop_variants < 1 or crop != "random"):
            raise UserError(
                f"crop_variants is {crop_variants} with crop={crop!r}; expected 1 or more, and crop='random'"
            )
        shape = (size, size) if isinstance(size, int) else (size[0], size[1])
        if min(shape) < 1:
            raise UserError(f"size is {size}; expected pixels, 1 or more")
        self.seed, self.crop, self.crop_variants, self.flip = seed, crop, crop_variants, flip
        self.jitter, self.rotate, self.transform = jitter, rotate, transform
        self.background = pictures.background_colour(background)
        self.captioning, self.masks = captioning or Captioning(), masks
        self.slack = buckets.slack if buckets else 0
        how = {
            "captions": captions,
            "file_names": file_names,
            "caption_lines": caption_lines,
            "progress": progress,
            "look": look,
        }
        found, self.mask_files = self._found(folder, how)
        self.folder, items, problems = found.folder, found.items, found.problems
        wrong = tuple(p for p in problems if p.kind != "unread")
        if not items or (wrong and on_problem == "raise"):
            report = Scan(found.folder, items, wrong or problems).report()
            raise UserError(_problem_report(len(items), report, folder))
        if on_problem == "raise" and (unread := found.unread).problems:
            log.warning(
                "%d files in %s are not read:\n%s", len(unread.problems), found.folder, unread.report(5)
            )
        self.problems: tuple[Problem, ...] = problems
        self.captions = [item.caption for item in items]
        self.alternatives = [item.written for item in items]
        self.paths = [str(item.path) for item in items]
        self.sizes = [(item.width, item.height) for item in items]
        self.groups = [buckets.assign(*size) if buckets else shape for size in self.sizes]
        if masks:
            masks.check_shapes(self.groups)
        self._memory: dict[int, Fitted] = {}
        self._memory_left = memory_limit

    def _found(self, folder: str | Path, how: Mapping[str, Any]) -> tuple[Scan, list[Path | None]]:
        """What there is, and the mask file of each item; how: of ``scan``."""
        masks = self.masks
        found = scan(folder, exclude=masks.folder if masks else None, **how)
        if not masks or not found.items:
            return found, [None] * len(found.items)
        items, files, bad = find_masks(masks, found.folder, found.items)
        return Scan(found.folder, items, (*found.problems, *bad)), files

    def digest(self, index: int) -> bytes:
        """SHA-256 of the content of an example's picture.

        Raises:
            UserError: it has become unreadable.
        """
        return content_digest(self.paths[index])

    def mask_digest(self, index: int) -> bytes:
        """SHA-256 of the content of an example's mask; of nothing where it has none.

        Raises:
            UserError: it has become unreadable.
        """
        path = self.mask_files[index]
        return content_digest(b"" if path is None else str(path))

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """Give one example, the same whenever it is asked for the same (seed, epoch, index).

        Returns ``image``: float32 (3, height, width) in [-1, 1]; ``caption``; ``path``; with masks,
        ``mask``: float32 (1, height / downscale, width / downscale), weights of the loss.

        Raises:
            IndexError: no such example.
            UserError: the picture has become unreadable; the transform gave no picture, or one of
                another size.
        """
        index = range(len(self))[index]
        chance = self.crop == "random" or self.flip or self._recolours
        pixels, mask = self._augmented(index, epoch) if chance else self._fitted(index)
        found = {
            "image": augment.to_tensor(pixels),
            "caption": self.caption(index, epoch),
            "path": self.paths[index],
        }
        if self.masks is not None and mask is not None:
            found["mask"] = self.masks.weights(coverage(mask, self.masks.downscale))
        return found

    def picture(self, index: int, *, flipped: bool = False, variant: int = 0) -> Tensor:
        """One picture without chance, mirrored if asked: float32 (3, height, width) in [-1, 1].

        variant: which of its fixed crops, with ``crop_variants``. With crop="random" and none, it is
        the resized picture before the crop.
        """
        pixels, _ = self._viewed(index, flipped, self._corner(index, variant))
        return augment.to_tensor(pixels)

    def mask(self, index: int, *, flipped: bool = False, variant: int = 0) -> Tensor:
        """Coverage (1, h, w) in [0, 1] of one picture's mask, in the view that ``picture`` shows.

        Raises:
            UserError: the dataset has no masks; the mask has become unreadable.
        """
        _, mask = self._viewed(index, flipped, self._corner(index, variant))
        if self.masks is None or mask is None:
            raise UserError(f"{self.folder} was opened without masks; give masks=Masks(…)")
        return coverage(mask, self.masks.downscale)

    def window(self, index: int, variant: int) -> tuple[int, int] | None:
        """(top, left) of one of the fixed crops, in pixels of the resized picture; None without any."""
        if (corner := self._corner(index, variant)) is None:
            return None
        (down, right), shape = corner, self.groups[index]
        (width, height), _ = augment.place(self.sizes[index], shape, self.crop, self.slack)
        return int(down * (height - shape[0] + 1)), int(right * (width - shape[1] + 1))

    def without_chance(self) -> "ImageFolder":
        """The same pictures, always alike, as held-out ones should be: no flips, jitter or shuffled tags.

        A random crop becomes the middle; of captions and templates the first stays, of the words
        appended the first or the heaviest.
        """
        same = copy.copy(self)
        same.flip = same.jitter = same.rotate = 0.0
        same.transform, same.crop_variants = None, None
        same.crop = "center" if self.crop == "random" else self.crop
        same.captioning = self.captioning.without_chance()
        return same

    @property
    def repaints(self) -> bool:
        """Whether its pictures are others each time, so that they cannot be encoded once."""
        return self._recolours or (self.crop == "random" and self.crop_variants is None)

    @property
    def _recolours(self) -> bool:
        return bool(self.jitter or self.rotate or self.transform)

    def _fitted(self, index: int) -> Fitted:
        """Everything before chance comes in, from memory where it is there."""
        if (kept := self._memory.get(index)) is not None:
            return kept
        shape = self.groups[index]
        image = self._picture(index)
        pixels = np.array(augment.fit(image, shape, self.crop, slack=self.slack))
        found: Fitted = pixels, self._mask(index, image.size)
        # What came first stays: an epoch visits all, so evicting would only trade one for another.
        size = sum(part.nbytes for part in found if part is not None)
        with _counting:  # threads decode ahead of the step
            if size <= self._memory_left and index not in self._memory:
                self._memory[index] = found
                self._memory_left -= size
        return found

    def _picture(self, index: int) -> Image.Image:
        """A picture as it is, RGB."""
        return pictures.read(Path(self.paths[index]), self.background)

    def _read_mask(self, index: int, size: tuple[int, int]) -> Image.Image:
        """A mask as it is, grey, of its picture's size (width, height)."""
        path = self.mask_files[index]
        assert self.masks is not None
        assert path is not None
        return read_mask(path, self.masks.source, size)

    def _mask(self, index: int, size: tuple[int, int]) -> augment.Pixels | None:
        if self.masks is None:
            return None
        linear, none = Image.Resampling.BILINEAR, self.mask_files[index] is None
        image = Image.new("L", size, 255) if none else self._read_mask(index, size)
        fitted = augment.fit(image, self.groups[index], self.crop, slack=self.slack, resampling=linear)
        return np.array(fitted)

    def _corner(self, index: int, variant: int) -> tuple[float, float] | None:
        return None if self.crop_variants is None else augment.corner(self.seed, index, variant)

    def _viewed(self, index: int, flipped: bool, corner: tuple[float, float] | None) -> Fitted:
        """A picture and its mask, cut out where ``corner`` says (down and right, in [0, 1)), and mirrored."""
        shape = self.groups[index]

        def seen(pixels: augment.Pixels) -> augment.Pixels:
            cut = pixels if corner is None else augment.crop_at(pixels, shape, *corner)
            return cut[:, ::-1] if flipped else cut

        pixels, mask = self._fitted(index)
        return seen(pixels), None if mask is None else seen(mask)

    def _augmented(self, index: int, epoch: int) -> Fitted:
        chances, generator = augment.draws(self.seed, epoch, index)
        down, right, _, angle, *colours = chances
        variant, flipped = augment.view(self.seed, epoch, index, flip=self.flip, variants=self.crop_variants)
        corner = self._corner(index, variant)
        if self.crop == "random" and corner is None:
            corner = down, right
        pixels, mask = self._viewed(index, flipped, corner)
        if not self._recolours:
            return pixels, mask
        shape, image = self.groups[index], Image.fromarray(np.ascontiguousarray(pixels))
        if self.rotate:
            degrees = self.rotate * (2 * angle - 1)
            image = augment.turn(image, degrees, self.background)
            if mask is not None:
                grey = Image.fromarray(np.ascontiguousarray(mask))
                mask = np.asarray(augment.turn(grey, degrees, 0))
        if self.jitter:
            image = augment.recolour(image, *(1 + self.jitter * (2 * c - 1) for c in colours))
        if self.transform is not None:
            image = self.transform(image, generator)
            if not isinstance(image, Image.Image):
                raise UserError(
                    f"the transform gave a {type(image).__name__} for {self.paths[index]}; "
                    "expected a PIL.Image"
                )
            if image.size != (shape[1], shape[0]):
                raise UserError(
                    f"the transform made {self.paths[index]} {image.width}×{image.height} pixels; "
                    f"expected {shape[1]}×{shape[0]}, the size it was given"
                )
        return np.asarray(image.convert("RGB")), mask

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get the paths, not half a gigabyte of pixels.
        kept = sum(part.nbytes for found in self._memory.values() for part in found if part is not None)
        return self.__dict__ | {"_memory": {}, "_memory_left": self._memory_left + kept}


def _problem_report(usable: int, report: str, folder: str | Path) -> str:
    if not usable:
        return f"no picture in {folder} can be used:\n{report}\nMend them or choose another folder"
    return (
        f"pictures or captions in {folder} cannot be used ({usable} pictures can):\n{report}\n"
        'Mend or remove them, or leave them out with on_problem="skip"'
    )

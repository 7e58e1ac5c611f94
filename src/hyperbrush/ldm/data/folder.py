"""A folder of captioned pictures as a dataset; an example depends on (seed, epoch, index) alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data import augment, pictures
from hyperbrush.ldm.data.buckets import Buckets
from hyperbrush.ldm.data.scan import Problem, scan


class ImageFolder(Dataset[dict[str, Any]]):
    """Pictures of a folder, nested folders too, with captions.

    folder: where the pictures are; see ``scan`` for what is found and how captions are.
    size: side, or (height, width), in pixels; with buckets, they say the shapes instead.
    crop: "center", "random" (once per epoch and picture, along the longer side), or "none": the
        whole picture, squeezed into the shape.
    flip: probability of mirroring left and right.
    jitter: brightness, contrast and saturation are each scaled by 1 ± jitter at most, in [0, 1].
    rotate: largest angle in degrees, either way, in [0, 180].
    transform: called last with the picture (RGB, at its final size) and a generator keyed by
        (seed, epoch, index); gives a picture of the same size.
    buckets: aspect-ratio buckets; ``groups`` says which picture is in which.
    background: colour behind transparent pictures and rotated corners.
    captions: as in ``scan``.
    on_problem: "raise" names every unusable file in one error; "skip" leaves those out and keeps
        ``problems``.
    memory_limit: bytes of decoded, resized pictures kept in memory; 0 keeps none.
    progress: called with (pictures looked at, pictures in all) while the folder is scanned.

    captions, paths: of each example, in the order of the paths.
    groups: shape (height, width) of each example, for ``BatchOrder``.
    problems: what was left out.

    Raises:
        UserError: an option out of range; a folder that is missing, holds no picture or no usable
            one; with on_problem="raise", any problem.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | tuple[int, int] = 64,
        crop: augment.Crop = "center",
        flip: float = 0.0,
        jitter: float = 0.0,
        rotate: float = 0.0,
        transform: augment.Transform | None = None,
        buckets: Buckets | None = None,
        background: str = "white",
        seed: int = 0,
        captions: str = "auto",
        on_problem: Literal["raise", "skip"] = "raise",
        memory_limit: int = 512 * 2**20,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if crop not in augment.CROPS:
            raise unknown_name("crop", crop, augment.CROPS)
        if on_problem not in ("raise", "skip"):
            raise unknown_name("on_problem", on_problem, ("raise", "skip"))
        for name, value, top in (("flip", flip, 1), ("jitter", jitter, 1), ("rotate", rotate, 180)):
            if not 0 <= value <= top:
                raise UserError(f"{name} is {value}; expected a number from 0 to {top}")
        shape = (size, size) if isinstance(size, int) else (size[0], size[1])
        if min(shape) < 1:
            raise UserError(f"size is {size}; expected pixels, 1 or more")
        self.seed, self.crop, self.flip = seed, crop, flip
        self.jitter, self.rotate, self.transform = jitter, rotate, transform
        self.background = pictures.background_colour(background)
        found = scan(folder, captions, progress)
        if not found.items or (found.problems and on_problem == "raise"):
            raise UserError(_problem_report(len(found.items), found.report(), folder))
        self.folder = found.folder
        self.problems: tuple[Problem, ...] = found.problems
        self.captions = [item.caption for item in found.items]
        self.paths = [str(item.path) for item in found.items]
        self.groups = [buckets.assign(item.width, item.height) if buckets else shape for item in found.items]
        self._memory: dict[int, augment.Pixels] = {}
        self._memory_left = memory_limit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, epoch=0)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """Give one example, the same whenever it is asked for the same (seed, epoch, index).

        Returns ``image``: float32 (3, height, width) in [-1, 1]; ``caption``; ``path``.

        Raises:
            IndexError: no such example.
            UserError: the picture has become unreadable; the transform gave no picture, or one of
                another size.
        """
        index = range(len(self))[index]
        pixels = self._fitted(index)
        if self.crop == "random" or self.flip or self._repaints:
            pixels = self._augmented(pixels, index, epoch)
        return {
            "image": augment.to_tensor(pixels),
            "caption": self.captions[index],
            "path": self.paths[index],
        }

    def picture(self, index: int, *, flipped: bool = False) -> Tensor:
        """One picture without chance, mirrored if asked: float32 (3, height, width) in [-1, 1].

        With crop="random" it is the resized picture before the crop.
        """
        pixels = self._fitted(index)
        return augment.to_tensor(pixels[:, ::-1] if flipped else pixels)

    @property
    def _repaints(self) -> bool:
        return bool(self.jitter or self.rotate or self.transform)

    def _fitted(self, index: int) -> augment.Pixels:
        """Everything before chance comes in, from memory where it is there."""
        if (kept := self._memory.get(index)) is not None:
            return kept
        image = pictures.read(Path(self.paths[index]), self.background)
        pixels = np.array(augment.fit(image, self.groups[index], self.crop))
        # What came first stays: an epoch visits all, so evicting would only trade one for another.
        if pixels.nbytes <= self._memory_left:
            self._memory[index] = pixels
            self._memory_left -= pixels.nbytes
        return pixels

    def _augmented(self, pixels: augment.Pixels, index: int, epoch: int) -> augment.Pixels:
        chances, generator = augment.draws(self.seed, epoch, index)
        down, right, flip, angle, *colours = chances
        shape = self.groups[index]
        if self.crop == "random":
            pixels = augment.crop_at(pixels, shape, down, right)
        if flip < self.flip:
            pixels = pixels[:, ::-1]
        if not self._repaints:
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.rotate:
            image = augment.turn(image, self.rotate * (2 * angle - 1), self.background)
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
        return np.asarray(image.convert("RGB"))

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get the paths, not half a gigabyte of pixels.
        kept = sum(pixels.nbytes for pixels in self._memory.values())
        return self.__dict__ | {"_memory": {}, "_memory_left": self._memory_left + kept}


def _problem_report(usable: int, report: str, folder: str | Path) -> str:
    if not usable:
        return f"no picture in {folder} can be used:\n{report}\nMend them or choose another folder"
    return (
        f"pictures or captions in {folder} cannot be used ({usable} pictures can):\n{report}\n"
        'Mend or remove them, or leave them out with on_problem="skip"'
    )

"""What happens to a picture on its way to a shape: resize, crop, flip, rotation, colour jitter."""

import random
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from hyperbrush.ldm.util import keyed_generator

Crop = Literal["center", "random", "none"]
Transform = Callable[[Image.Image, torch.Generator], Image.Image]
Pixels = NDArray[np.uint8]  # (height, width, 3), or (height, width) of a mask

CROPS = ("center", "random", "none")

# Of a very long picture, a random crop sees this many times the wanted width: a 1×20000 strip
# resized as a whole would fill the memory.
_RANDOM_CROP_REACH = 8


def draws(seed: int, epoch: int, index: int) -> tuple[list[float], torch.Generator]:
    """All of one example's chances, uniform in [0, 1), and a generator for what comes after.

    In order: crop down, crop right, flip, angle, brightness, contrast, saturation. All are drawn
    whether used or not, so turning one option on leaves the others' chances as they were.
    """
    generator = keyed_generator(seed, "example", epoch, index)
    return torch.rand(7, generator=generator, dtype=torch.float64).tolist(), generator


def place(
    size: tuple[int, int], shape: tuple[int, int], crop: Crop, slack: int = 0
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """(width, height) that ``fit`` brings a picture to, and the box it takes of it, in its pixels.

    size: (width, height) of the picture.
    """
    height, width = shape
    whole = 0.0, 0.0, float(size[0]), float(size[1])
    if crop == "none":
        return (width, height), whole
    over = size[0] - width, size[1] - height
    fits = max(over) <= slack and min(over) >= 0
    scale = 1.0 if fits else max(height / size[1], width / size[0])
    reach = 1 if crop == "center" else _RANDOM_CROP_REACH
    full = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    scaled = min(full[0], width * reach), min(full[1], height * reach)
    # Whole pixels of the result, so a picture of the right size is not blurred by half one.
    left = (full[0] - scaled[0]) // 2 * size[0] / full[0]
    top = (full[1] - scaled[1]) // 2 * size[1] / full[1]
    right = min(float(size[0]), left + scaled[0] * size[0] / full[0])
    bottom = min(float(size[1]), top + scaled[1] * size[1] / full[1])
    return scaled, (left, top, right, bottom)


def view(
    seed: int, epoch: int, index: int, *, flip: float = 0.0, variants: int | None = None
) -> tuple[int, bool]:
    """(crop, mirrored?) of an example in an epoch; pictures and cached latents agree on both.

    flip: probability of mirroring; variants: number of crops to choose from.
    """
    if not flip and not variants:
        return 0, False
    chances, _ = draws(seed, epoch, index)
    return int(chances[0] * (variants or 1)), chances[2] < flip


def corner(seed: int, index: int, variant: int) -> tuple[float, float]:
    """(down, right) in [0, 1) of the ``variant``-th of a picture's fixed crops, for ``crop_at``."""
    down, right = torch.rand(
        2, generator=keyed_generator(seed, "crop", index, variant), dtype=torch.float64
    ).tolist()
    return down, right


def fit(
    image: Image.Image,
    shape: tuple[int, int],
    crop: Crop,
    *,
    slack: int = 0,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Resize a picture to a shape (height, width), once, with Lanczos' filter by default.

    "center": the shape exactly, the middle of the picture. "random": the picture covers the shape
    and its longer side sticks out, for ``crop_at``. "none": the shape exactly, all of the picture,
    its aspect ratio lost.

    slack: a picture with at most so many pixels too many a side is cut, never resized.
    """
    scaled, box = place(image.size, shape, crop, slack)
    if scaled == image.size and box == (0.0, 0.0, *map(float, image.size)):
        return image
    return image.resize(scaled, resampling, box=box)


def crop_at(pixels: Pixels, shape: tuple[int, int], down: float, right: float) -> Pixels:
    """Cut a shape (height, width) out; ``down`` and ``right`` in [0, 1) say where."""
    top = int(down * (pixels.shape[0] - shape[0] + 1))
    left = int(right * (pixels.shape[1] - shape[1] + 1))
    return pixels[top : top + shape[0], left : left + shape[1]]


def turn(image: Image.Image, degrees: float, background: tuple[int, int, int] | int) -> Image.Image:
    """Rotate about the middle, counter-clockwise; corners show the background (a grey for masks)."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=background)


def recolour(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Scale brightness, contrast and saturation; 1.0 each leaves the picture as it is."""
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    return ImageEnhance.Color(image).enhance(saturation)


class Seeded:
    """A transform that draws from the global generators, such as torchvision's v2, as one that `ImageFolder` takes: what
    it draws depends on (seed, epoch, index) alone, and the generators of Python, NumPy and torch stay as they were.

    transform: called with a picture (RGB), gives a picture.
    """

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """The transformed picture."""
        seed = int(torch.randint(2**31, (), generator=generator))
        state, numbers = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            try:
                return self.transform(image)
            finally:
                random.setstate(state)
                np.random.set_state(numbers)


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """Bytes (height, width, 3) to float32 (3, height, width) in [-1, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return planes.to(torch.float32).div_(127.5).sub_(1.0)

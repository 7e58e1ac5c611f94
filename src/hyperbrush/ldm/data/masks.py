"""Loss masks: where a picture counts, from its own transparency or from mask files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data import pictures
from hyperbrush.ldm.data.archives import content_of, files_in, is_source
from hyperbrush.ldm.data.augment import Pixels
from hyperbrush.ldm.data.captions import nfc
from hyperbrush.ldm.data.scan import Item, Problem

SOURCES = ("alpha", "files")
ORPHAN = "a mask of no usable picture"


@dataclass(frozen=True)
class Masks:
    """Where masks come from and what they become; white (or opaque) counts, black does not.

    source: "alpha", the pictures' own transparency; "files", a grey picture ``NAME.mask.png`` beside
        the picture, or, with a folder, a picture of the same name (relative path without its ending)
        in there. A mask of another size than its picture is stretched over it.
    downscale: pixels of a picture, down and across, for each place of the latent map.
    floor: weight where the mask is black, in [0, 1], so that what is around is not wholly forgotten.
    normalise: each example's weights are divided by their mean, as the webui does, so that a small
        mask teaches as much as a large one. ``LatentDiffusion.losses`` does this by itself: leave it
        off there.
    needed: refuse a folder without any mask. Without, as for one folder of several, its pictures count everywhere.

    Raises:
        UserError: an unknown source, a folder with "alpha", a number out of range.
    """

    source: Literal["alpha", "files"] = "alpha"
    folder: str | Path | None = None
    downscale: int = 8
    floor: float = 0.0
    normalise: bool = False
    needed: bool = True

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown_name("source of masks", self.source, SOURCES)
        if self.source == "alpha" and self.folder is not None:
            raise UserError(f'masks from "alpha" and from the folder {self.folder}; expected one of them')
        if self.downscale < 1:
            raise UserError(f"downscale of masks is {self.downscale}; expected 1 or more pixels")
        if not 0 <= self.floor <= 1:
            raise UserError(f"floor of masks is {self.floor}; expected a number from 0 to 1")

    def check_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        """See that shapes (height, width) in pixels have a whole number of latent places.

        Raises:
            UserError: one has not.
        """
        for shape in sorted(set(shapes)):
            if shape[0] % self.downscale or shape[1] % self.downscale:
                raise UserError(
                    f"masks for pictures of {shape[1]}×{shape[0]} pixels and a latent map {self.downscale} "
                    f"times smaller; expected multiples of {self.downscale}, the first stage's downscale"
                )

    def weights(self, coverage: Tensor) -> Tensor:
        """What the loss is multiplied with, of a mask's coverage (1, h, w) in [0, 1]."""
        found = self.floor + (1 - self.floor) * coverage
        return found / found.mean().clamp_min(1e-6) if self.normalise else found


def find_masks(
    masks: Masks, folder: Path, items: Sequence[Item]
) -> tuple[tuple[Item, ...], list[Path | None], list[Problem]]:
    """Usable pictures, the mask file of each (None: it counts everywhere), and what is wrong.

    A mask that cannot be read, or is black all over, sets its picture aside.

    Raises:
        UserError: the folder of masks is missing; not a single picture has a mask, and one is ``needed``.
    """
    if masks.source == "alpha":
        if masks.needed and not any(item.transparent for item in items):
            raise UserError(
                f'masks="alpha", but no picture in {folder} is transparent anywhere; save them with an '
                'alpha channel, or give mask files (source "files")'
            )
        return tuple(items), [item.path if item.transparent else None for item in items], []
    files = _mask_files(masks, folder)
    names = {_name(item.path, folder) for item in items}
    kept: list[Item] = []
    found: list[Path | None] = []
    problems: list[Problem] = []
    for item in items:
        path = files.get(_name(item.path, folder))
        reason = None if path is None else _unusable(path)
        if path is not None and reason is not None:
            problems.append(Problem(path, f"the mask of {item.path.name} cannot be used: {reason}", "mask"))
        else:
            kept.append(item)
            found.append(path)
    where = masks.folder if masks.folder is not None else folder
    if masks.needed and not any(found) and not problems:
        example = _name(items[0].path, folder) + (".png" if masks.folder is not None else ".mask.png")
        raise UserError(f"no picture has a mask in {where}; expected files such as {example}")
    # A folder of masks for several folders of pictures has those of the others too.
    alone = masks.needed or masks.folder is None
    problems += [Problem(path, ORPHAN, "mask") for name, path in files.items() if alone and name not in names]
    return tuple(kept), found, problems


def read_mask(path: Path, source: str, size: tuple[int, int]) -> Image.Image:
    """One mask as a grey picture (mode L) of its picture's size (width, height), upright.

    Raises:
        UserError: it cannot be read (any more).
    """
    try:
        content = content_of(path)
        image = pictures.decode_alpha(content) if source == "alpha" else _grey(content)
    except Exception as error:  # Pillow's decoders raise anything on a broken file
        raise UserError(f"cannot read the mask {path}: {pictures.explain(error)}") from error
    if image is None:
        return Image.new("L", size, 255)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def coverage(pixels: Pixels, downscale: int) -> Tensor:
    """Mean of a mask's bytes (height, width) over each latent place: float32 (1, h, w) in [0, 1]."""
    height, width = pixels.shape
    places = pixels.reshape(height // downscale, downscale, width // downscale, downscale)
    # Whole numbers: mirrored pixels give exactly the mirrored mask.
    sums = places.astype(np.int64).sum(axis=(1, 3))
    return torch.from_numpy((sums / (255.0 * downscale**2)).astype(np.float32))[None]


def _grey(content: bytes) -> Image.Image:
    """A mask file's brightness; of a picture that is all black but transparent, its opacity."""
    alpha, grey = pictures.decode_alpha(content), pictures.brightness(pictures.upright(content))
    drawn_by_alpha = alpha is not None and grey.getextrema()[1] == 0 and alpha.getextrema()[0] != 255
    return alpha if alpha is not None and drawn_by_alpha else grey


def _unusable(path: Path) -> str | None:
    try:
        image = _grey(content_of(path))
    except Exception as error:  # noqa: BLE001 (Pillow's decoders raise anything on a broken file)
        return pictures.explain(error)
    return "it is black all over, so nothing would count" if image.getextrema()[1] == 0 else None


def _mask_files(masks: Masks, folder: Path) -> dict[str, Path]:
    """Mask files by the name of their picture, relative to the folder, without its ending."""
    root = folder if masks.folder is None else Path(masks.folder).expanduser()
    read = pictures.suffixes()
    if not is_source(root):
        raise UserError(f"there is no folder of masks {root}")
    ending = "" if masks.folder is not None else ".mask"
    return {
        _name(path, root).removesuffix(ending): path
        for path in sorted(files_in(root))
        if path.suffix.lower() in read and path.stem.endswith(ending)
    }


def _name(path: Path, folder: Path) -> str:
    return nfc(path.relative_to(folder).with_suffix("").as_posix())

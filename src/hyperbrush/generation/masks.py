"""Masks of what is drawn anew: soft edges, and a region drawn alone and put back, the webui's "Only masked".

The region is found as in the webui's modules/masking.py (get_crop_region, expand_crop_region).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError
from hyperbrush.generation.settings import MASK_BLUR

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class MaskedRegion:
    """A picture, and the box (left, top, right, bottom) of it that is drawn anew, in pixels.

    mask: grey, of the picture's size: white where it is drawn anew.
    """

    picture: "Image"
    mask: "Image"
    box: Box

    @property
    def image_inside(self) -> "Image":
        """The picture in the box."""
        return self.picture.crop(self.box)

    @property
    def mask_inside(self) -> "Image":
        """The mask in the box."""
        return self.mask.crop(self.box)

    def put_back(self, drawn: "Image") -> "Image":
        """The whole picture with what was drawn (of any size) in its box; beyond the mask it keeps its every bit."""
        from PIL.Image import Resampling

        left, top, right, bottom = self.box
        size = (right - left, bottom - top)
        # The drawing fades into the picture already: its soft edge comes along whole.
        changed = soft_edged(self.mask_inside, (drawn.height, drawn.width)).point(lambda v: 255 if v else 0)
        out = self.picture.copy()
        out.paste(
            drawn.resize(size, Resampling.LANCZOS), (left, top), changed.resize(size, Resampling.NEAREST)
        )
        return out


def soft_edged(mask: "Image", size: Sequence[int]) -> "Image":
    """A grey mask for a drawing of (height, width) pixels, its edges softened by `MASK_BLUR`.

    Raises:
        UserError: it is black everywhere.
    """
    from PIL import ImageFilter
    from PIL.Image import Resampling

    _not_black(mask)
    if mask.size != (size[1], size[0]):
        mask = mask.resize((size[1], size[0]), Resampling.BOX)
    return mask.filter(ImageFilter.GaussianBlur(MASK_BLUR * min(size)))


def masked_region(picture: "Image", mask: "Image", padding: int, size: tuple[int, int]) -> MaskedRegion:
    """Where a mask is not black, with ``padding`` pixels of the picture around it, in the proportions of a drawing.

    mask: grey, of any size; it is scaled to the picture's.  size: (height, width) of the drawing.  At the picture's
    edges the box is shifted inwards; a picture too narrow for the proportions is taken over its whole width.

    Raises:
        UserError: the mask is black everywhere.
    """
    from PIL.Image import Resampling

    if mask.size != picture.size:
        mask = mask.resize(picture.size, Resampling.BOX)
    found = _not_black(mask)
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(picture.width, found[2] + padding), min(picture.height, found[3] + padding)
    height, width = size
    left, right = _widened(left, right, round((bottom - top) * width / height), picture.width)
    top, bottom = _widened(top, bottom, round((right - left) * height / width), picture.height)
    return MaskedRegion(picture, mask, (left, top, right, bottom))


def _not_black(mask: "Image") -> Box:
    box = mask.getbbox()
    if box is None:
        raise UserError(
            "the mask is black everywhere: nothing would be drawn; make white what is to be drawn anew"
        )
    return box


def _widened(low: int, high: int, length: int, end: int) -> tuple[int, int]:
    """An interval of at least a length around another, within 0 and an end."""
    length = min(max(length, high - low), end)
    low = min(max(0, low - (length - (high - low)) // 2), end - length)
    return low, low + length

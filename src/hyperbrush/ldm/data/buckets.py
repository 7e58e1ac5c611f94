"""Buckets: pictures of like shape train together, little of each is cut off."""

import math
from dataclasses import dataclass, field

from hyperbrush.errors import UserError


@dataclass(frozen=True)
class Buckets:
    """Shapes of about the same area, as in NovelAI's aspect ratio bucketing.

    size: side of the square bucket in pixels; every bucket has at most size² pixels.
    step: what heights and widths are multiples of, in pixels (64 suits Stable Diffusion; a model
        with a downscale of f needs a multiple of f).
    max_ratio: of the longer to the shorter side.
    shapes: the buckets, (height, width) each, from the widest to the tallest.

    >>> Buckets(64, step=8).shapes
    ((48, 80), (56, 72), (64, 64), (72, 56), (80, 48))

    Raises:
        UserError: a number out of range, or a size that is no multiple of the step.
    """

    size: int
    step: int = 64
    max_ratio: float = 2.0
    shapes: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 1 or self.step < 1 or not 1 <= self.max_ratio < math.inf:
            raise UserError(
                f"buckets with size {self.size}, step {self.step} and max_ratio {self.max_ratio}; "
                "expected a size and a step of 1 or more and a ratio of 1 or more"
            )
        if self.size % self.step:
            near = max(1, round(self.size / self.step)) * self.step
            raise UserError(
                f"buckets of size {self.size} with step {self.step}; expected a size that is a "
                f"multiple of the step, such as {near}"
            )
        shapes = set()
        for short in range(self.step, self.size + 1, self.step):
            long = self.size**2 // short // self.step * self.step
            if long <= short * self.max_ratio:
                shapes |= {(short, long), (long, short)}
        object.__setattr__(self, "shapes", tuple(sorted(shapes)))

    @property
    def slack(self) -> int:
        """Pixels a side that are cut rather than resized away: none."""
        return 0

    def assign(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the bucket whose aspect ratio is nearest to a picture's.

        Raises:
            UserError: a side of zero or less.
        """
        if width < 1 or height < 1:
            raise UserError(f"a picture of {width}×{height} pixels; expected sides of 1 or more")
        wanted = math.log(height / width)
        return min(self.shapes, key=lambda s: (abs(math.log(s[0] / s[1]) - wanted), -s[0] * s[1]))


@dataclass(frozen=True)
class OriginalSizes:
    """Pictures at their own sizes: each shape is a bucket of its own, nothing is resized that need not.

    multiple: what heights and widths are multiples of, in pixels; up to multiple - 1 pixels a side are
        cut off. A model with a downscale of f needs a multiple of f, and of its UNet's too: 64 for
        Stable Diffusion is always right.
    largest: a side in pixels; pictures of more than largest² pixels are made smaller, to as many.
        None: no limit but the memory.

    A shape that few pictures have fills its batches with the same ones again (see ``BatchOrder``):
    a batch_size of 1 fits folders of many shapes.

    >>> OriginalSizes(8).assign(97, 130)
    (128, 96)
    >>> OriginalSizes(8, largest=64).assign(97, 130)
    (72, 48)

    Raises:
        UserError: a number out of range.
    """

    multiple: int = 64
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.multiple < 1 or (self.largest is not None and self.largest < self.multiple):
            raise UserError(
                f"original sizes with multiple {self.multiple} and largest {self.largest}; expected 1 or "
                "more, and a largest side of at least the multiple"
            )

    @property
    def slack(self) -> int:
        """Pixels a side that are cut rather than resized away."""
        return self.multiple - 1

    def assign(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of a picture's own bucket; one smaller than the multiple is enlarged to it.

        Raises:
            UserError: a side of zero or less.
        """
        if width < 1 or height < 1:
            raise UserError(f"a picture of {width}×{height} pixels; expected sides of 1 or more")
        shrink = 1.0 if self.largest is None else min(1.0, self.largest / math.sqrt(width * height))
        sides = (int(side * shrink) // self.multiple * self.multiple for side in (height, width))
        found_height, found_width = (max(self.multiple, side) for side in sides)
        return found_height, found_width

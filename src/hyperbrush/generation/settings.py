"""How pictures are drawn, and what the numbers may be."""

import math
from dataclasses import dataclass, replace
from typing import Any

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.sampling.names import UPSCALERS, usual_sampler

MAX_SEED = 2**64 - 1  # what torch takes, and ComfyUI draws
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_CLIP_SKIP = 100
MAX_PADDING = 4096
MAX_HIRES = 8.0
MASK_BLUR = 1 / 128  # of the picture's shorter side: the webui's 4 pixels at 512


@dataclass(frozen=True)
class Settings:
    """How pictures of one batch are drawn; all that is not a picture's own.

    Args:
        negative: what guidance moves away from.
        steps, sampler, guidance_scale, discretisation: see `ldm.sampling`; sampler: "" for the model's usual one.
        size: (height, width) in pixels, the model's own by default.
        clip_skip: n reads the text states before the last n - 1 layers of the text encoder.
        image: a picture to start from, or its path, taken as the user sees it: upright, on white; image_strength: the share of the steps that is then run.
        mask: with `image`, a picture of any size, or its path: white is drawn anew, black (and what is transparent) is kept, grey is a
            share. Its edges are softened by `MASK_BLUR`.
        mask_padding: with `mask`, only its white region with so many pixels of the picture around it is drawn, at `size`,
            and put back into the picture, whose size stays: the webui's "Only masked".
        subseed_strength: how far the noise of a picture's seed goes to that of its subseed, 0 to 1: the webui's variation
            strength (`ldm.sampling.noise`).
        hires_scale: draws on, so many times as wide and high, in a second pass (`ldm.sampling.second_pass`), the webui's hires fix; for
            pictures from noise alone. hires_strength: how much noise it begins with; hires_steps: that it runs, 0 for as
            many as `steps`; hires_upscaler: what enlarges before it, one of `names.UPSCALERS`.

    Raises:
        UserError: a number out of its range, an unknown sampler or discretisation, an unreadable picture.
    """

    negative: str = ""
    steps: int = 25
    sampler: str = ""
    guidance_scale: float = 4.0
    size: tuple[int, int] | None = None
    clip_skip: int = 1
    discretisation: str = "diffusers"
    image: Any = None  # a picture or its path; a picture from __post_init__ on
    image_strength: float = 0.75
    mask: Any = None  # as image
    mask_padding: int | None = None
    subseed_strength: float = 0.0
    hires_scale: float | None = None
    hires_strength: float = 0.7
    hires_steps: int = 0
    hires_upscaler: str = "Latent"

    def __post_init__(self) -> None:
        from hyperbrush.ldm.data.pictures import opened
        from hyperbrush.ldm.sampling.samplers import DISCRETISATIONS, find_sampler

        whole("steps", self.steps, 1, MAX_STEPS)
        whole("clip_skip", self.clip_skip, 1, MAX_CLIP_SKIP)
        number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        number("image_strength", self.image_strength, 0, 1)
        number("subseed_strength", self.subseed_strength, 0, 1)
        if self.hires_scale is not None:
            self._check_second()
        if self.mask is not None and self.image is None:
            raise UserError("a mask needs an image to start from, of which it keeps a part")
        if self.mask_padding is not None:
            whole("mask_padding", self.mask_padding, 0, MAX_PADDING)
            if self.mask is None:
                raise UserError("mask_padding needs a mask, whose region alone is drawn")
        if self.size is not None:
            if not isinstance(self.size, tuple | list) or len(self.size) != 2:
                raise UserError(f"size must be (height, width) in pixels, got {self.size!r}")
            for side in self.size:
                whole("a side of the picture", side, 1, 16384)
        if self.discretisation not in DISCRETISATIONS:
            raise unknown_name("discretisation", self.discretisation, DISCRETISATIONS)
        if self.sampler:
            object.__setattr__(self, "sampler", find_sampler(self.sampler).name)
        if self.image is not None:
            object.__setattr__(self, "image", opened(self.image, "image"))
        if self.mask is not None:
            object.__setattr__(self, "mask", opened(self.mask, "mask", mask=True))

    def _check_second(self) -> None:
        """Refuse a second pass that cannot be."""
        number("hires_scale", self.hires_scale, 1.05, MAX_HIRES)
        number("hires_strength", self.hires_strength, 0.01, 1)
        whole("hires_steps", self.hires_steps, 0, MAX_STEPS)
        if self.hires_upscaler not in UPSCALERS:
            raise unknown_name("upscaler", self.hires_upscaler, UPSCALERS)
        check_second_pass(self.hires_scale, self.image)

    def with_sampler(self, prediction: str) -> "Settings":
        """With the usual sampler of a model, by what it predicts, where none was named."""
        return self if self.sampler else replace(self, sampler=usual_sampler(prediction))

    def written(self) -> dict[str, Any]:
        """Fields of an `Infotext` that are the same for every picture drawn so; its size is the picture's own."""
        return {
            "negative": self.negative.strip(),
            "steps": self.steps,
            "sampler": self.sampler,
            "guidance_scale": float(self.guidance_scale),
            "clip_skip": self.clip_skip if self.clip_skip > 1 else None,
        }


def check_subseed(subseed: int | None, strength: float) -> None:
    """Refuse a variation seed that would change nothing.

    Raises:
        UserError: there is no strength.
    """
    if subseed is not None and not strength:
        raise UserError("a subseed changes nothing without subseed_strength: give one above 0, up to 1")


def check_second_pass(scale: float | None, image: object) -> None:
    """Refuse a second pass of a picture from a picture.

    Raises:
        UserError: there is one.
    """
    if scale is not None and image:
        raise UserError(
            "hires_scale draws a picture from noise larger in a second pass; one from an image is drawn at the size given"
        )


def check_text(text: str) -> None:
    """Refuse what cannot be written into a picture.

    Raises:
        UserError: it is no text, or holds halves of characters (from a terminal of another encoding).
    """
    if not isinstance(text, str):
        raise UserError(f"a prompt is a text, got {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text!r:.60} holds bytes that are no UTF-8 text") from error


def whole(what: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number in a range.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{what} must be a whole number, {least} to {most}, got {value!r:.60}")


def number(what: str, value: Any, least: float, most: float) -> None:
    """Refuse what is no finite number in a range.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{what} must be a number, {least:g} to {most:g}, got {value!r:.60}")
    if not least <= value <= most:
        raise UserError(f"{what} must be from {least:g} to {most:g}, got {value:g}")

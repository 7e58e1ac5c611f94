"""A family of picture styles by number: each is a seeded chain of simple operations on 64×64 icons on white.

`style_of(number)` draws its kind, colours and strengths from the number alone, so that a corpus is described by a
range of numbers.  Pictures are uint8 arrays (height, width, 3).
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Chance = np.random.Generator


@dataclass(frozen=True)
class Style:
    """A number of the family: what it is called, and what it does to a picture."""

    number: int
    name: str
    apply: Callable[[Pixels], Pixels]


def style_of(number: int) -> Style:
    """The style of a number; the same on every machine."""
    chance = np.random.default_rng([20261121, number])
    kinds = sorted(KINDS)
    kind = kinds[number % len(kinds)]
    main = KINDS[kind](chance)
    after = paper(chance) if kind in PAPERED and chance.random() < 0.6 else None

    def apply(picture: Pixels) -> Pixels:
        if after is not None:  # the background is found in the picture as it came
            return after(main(picture), background_of(picture))
        return main(picture)

    return Style(number, f"{number:03d}-{kind}", apply)


def background_of(picture: Pixels) -> NDArray[np.bool_]:
    """What is reached from the corners without leaving near-white: (height, width)."""
    image = Image.fromarray(picture)
    marked = (255, 0, 254)
    for corner in ((0, 0), (image.width - 1, 0), (0, image.height - 1), (image.width - 1, image.height - 1)):
        if min(image.getpixel(corner)) > 235:  # type: ignore[type-var, arg-type]
            ImageDraw.floodfill(image, corner, marked, thresh=40)
    found: NDArray[np.bool_] = (np.asarray(image) == marked).all(-1)
    return found


def luminance(picture: Pixels) -> NDArray[np.float64]:
    """(height, width) in [0, 1], ITU-R BT.601."""
    found: NDArray[np.float64] = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    return found


def colour(
    chance: Chance, *, value: tuple[float, float], saturation: tuple[float, float] = (0.4, 1.0)
) -> Colour:
    """A random colour of a lightness and saturation range."""
    rgb = colorsys.hsv_to_rgb(chance.random(), chance.uniform(*saturation), chance.uniform(*value))
    return tuple(round(255 * c) for c in rgb)  # type: ignore[return-value]


def two_colours(chance: Chance) -> tuple[Colour, Colour]:
    """A dark and a light one, or the other way round."""
    dark, light = colour(chance, value=(0.1, 0.5)), colour(chance, value=(0.85, 1.0), saturation=(0.05, 0.5))
    return (light, dark) if chance.random() < 0.25 else (dark, light)


def mixed(share: NDArray[np.float64], low: Colour, high: Colour) -> Pixels:
    """Low where the share is 0, high where it is 1."""
    s = np.clip(share, 0, 1)[..., None]
    return np.round(np.array(low) * (1 - s) + np.array(high) * s).astype(np.uint8)


def duotone(chance: Chance) -> Callable[[Pixels], Pixels]:
    low, high = two_colours(chance)
    power = chance.uniform(0.6, 1.6)
    return lambda p: mixed(luminance(p) ** power, low, high)


def tritone(chance: Chance) -> Callable[[Pixels], Pixels]:
    low, high = two_colours(chance)
    middle = colour(chance, value=(0.5, 0.9))

    def apply(p: Pixels) -> Pixels:
        y = luminance(p)
        return np.where((y < 0.5)[..., None], mixed(2 * y, low, middle), mixed(2 * y - 1, middle, high))

    return apply


def palette(chance: Chance) -> Callable[[Pixels], Pixels]:
    colours = np.array(
        [colour(chance, value=(0.2, 1.0), saturation=(0.1, 1.0)) for _ in range(int(chance.integers(3, 7)))]
        + [colour(chance, value=(0.9, 1.0), saturation=(0.0, 0.2))]
    )
    return lambda p: colours[((p[..., None, :].astype(int) - colours) ** 2).sum(-1).argmin(-1)].astype(
        np.uint8
    )


def lines(chance: Chance) -> Callable[[Pixels], Pixels]:
    ink, page = two_colours(chance)
    gain, wide = chance.uniform(3, 9), int(chance.integers(0, 2))

    def apply(p: Pixels) -> Pixels:
        y = luminance(p)
        across, down = np.gradient(y)
        edge = np.clip(np.hypot(across, down) * gain, 0, 1)
        if wide:
            edge = (
                np.asarray(Image.fromarray((edge * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3)))
                / 255
            )
        return mixed(edge, page, ink)

    return apply


def posterise(chance: Chance) -> Callable[[Pixels], Pixels]:
    levels, saturation = int(chance.integers(2, 5)), chance.uniform(0.3, 2.2)

    def apply(p: Pixels) -> Pixels:
        y = luminance(p)[..., None] * 255
        vivid = np.clip(y + saturation * (p - y), 0, 255)
        return np.round(np.round(vivid / 255 * (levels - 1)) / (levels - 1) * 255).astype(np.uint8)

    return apply


def blur(chance: Chance) -> Callable[[Pixels], Pixels]:
    radius, wash = chance.uniform(1.0, 3.0), chance.uniform(0.0, 0.4)

    def apply(p: Pixels) -> Pixels:
        soft = np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(radius)))
        return np.round(soft * (1 - wash) + 255 * wash).astype(np.uint8)

    return apply


def emboss(chance: Chance) -> Callable[[Pixels], Pixels]:
    angle, depth, base = (
        chance.uniform(0, 2 * np.pi),
        chance.uniform(1.5, 4),
        colour(chance, value=(0.5, 0.9)),
    )

    def apply(p: Pixels) -> Pixels:
        down, across = np.gradient(luminance(p))
        light = (np.cos(angle) * across + np.sin(angle) * down) * depth
        return np.clip(np.array(base) + 255 * light[..., None], 0, 255).astype(np.uint8)

    return apply


def halftone(chance: Chance) -> Callable[[Pixels], Pixels]:
    ink, page = two_colours(chance)
    step, angle = chance.uniform(4, 8), chance.uniform(0, np.pi / 2)

    def apply(p: Pixels) -> Pixels:
        rows, columns = np.mgrid[: p.shape[0], : p.shape[1]]
        u = (np.cos(angle) * columns + np.sin(angle) * rows) * 2 * np.pi / step
        v = (np.cos(angle) * rows - np.sin(angle) * columns) * 2 * np.pi / step
        screen = (np.cos(u) * np.cos(v) + 1) / 2
        return mixed(np.clip((luminance(p) - screen) * 4 + 0.5, 0, 1), ink, page)

    return apply


def hatching(chance: Chance) -> Callable[[Pixels], Pixels]:
    ink, page = two_colours(chance)
    step, angle = chance.uniform(3.5, 7), chance.uniform(0, np.pi)

    def apply(p: Pixels) -> Pixels:
        rows, columns = np.mgrid[: p.shape[0], : p.shape[1]]
        wave = (np.cos((np.cos(angle) * columns + np.sin(angle) * rows) * 2 * np.pi / step) + 1) / 2
        return mixed(np.clip((luminance(p) - wave) * 3 + 0.5, 0, 1), ink, page)

    return apply


def pixelate(chance: Chance) -> Callable[[Pixels], Pixels]:
    block, saturation = int(chance.choice([4, 8])), chance.uniform(0.2, 1.8)

    def apply(p: Pixels) -> Pixels:
        small = Image.fromarray(p).resize((p.shape[1] // block, p.shape[0] // block), Image.Resampling.BOX)
        big = np.asarray(small.resize((p.shape[1], p.shape[0]), Image.Resampling.NEAREST)).astype(np.float64)
        y = luminance(big.astype(np.uint8))[..., None] * 255
        return np.clip(y + saturation * (big - y), 0, 255).astype(np.uint8)

    return apply


def hue(chance: Chance) -> Callable[[Pixels], Pixels]:
    turn, saturation = int(chance.integers(32, 224)), chance.uniform(0.6, 1.8)

    def apply(p: Pixels) -> Pixels:
        hsv = np.asarray(Image.fromarray(p).convert("HSV")).astype(int)
        hsv[..., 0] = (hsv[..., 0] + turn) % 256
        hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
        return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))

    return apply


def negative(chance: Chance) -> Callable[[Pixels], Pixels]:
    tint = np.array(colour(chance, value=(0.8, 1.0), saturation=(0.0, 0.6))) / 255
    return lambda p: np.round((255 - p) * tint).astype(np.uint8)


def grey(chance: Chance) -> Callable[[Pixels], Pixels]:
    tint = np.array(colour(chance, value=(0.85, 1.0), saturation=(0.0, 0.45)))
    contrast = chance.uniform(0.5, 1.8)
    return lambda p: (
        np.clip((luminance(p)[..., None] - 0.5) * contrast + 0.5, 0, 1).__mul__(tint).astype(np.uint8)
    )


def silhouette(chance: Chance) -> Callable[[Pixels], Pixels]:
    ink, page = two_colours(chance)
    inner = chance.uniform(0.0, 0.35)

    def apply(p: Pixels) -> Pixels:
        back = background_of(p)
        return mixed(np.where(back, 1.0, inner * luminance(p)), ink, page)

    return apply


def outline(chance: Chance) -> Callable[[Pixels], Pixels]:
    stroke, wide = colour(chance, value=(0.0, 0.8), saturation=(0.0, 1.0)), int(chance.choice([3, 5]))

    def apply(p: Pixels) -> Pixels:
        figure = Image.fromarray((~background_of(p) * 255).astype(np.uint8))
        ring = np.asarray(figure.filter(ImageFilter.MaxFilter(wide))) > np.asarray(figure)
        return np.where(ring[..., None], np.array(stroke), p).astype(np.uint8)

    return apply


def grain(chance: Chance) -> Callable[[Pixels], Pixels]:
    strength, tint = (
        chance.uniform(25, 60),
        np.array(colour(chance, value=(0.8, 1.0), saturation=(0.0, 0.5))) / 255,
    )

    def apply(p: Pixels) -> Pixels:
        own = np.random.default_rng(int(p.astype(np.int64).sum()))  # a grain of each picture's own
        return np.clip((p + strength * own.standard_normal(p.shape[:2])[..., None]) * tint, 0, 255).astype(
            np.uint8
        )

    return apply


def shifted(chance: Chance) -> Callable[[Pixels], Pixels]:
    moves = [(int(chance.integers(-4, 5)), int(chance.integers(-4, 5))) for _ in range(3)]

    def apply(p: Pixels) -> Pixels:
        return np.stack([np.roll(p[..., c], moves[c], (0, 1)) for c in range(3)], -1)

    return apply


def threshold(chance: Chance) -> Callable[[Pixels], Pixels]:
    ink, page = two_colours(chance)
    level = chance.uniform(0.45, 0.8)
    return lambda p: mixed((luminance(p) > level).astype(np.float64), ink, page)


def solarise(chance: Chance) -> Callable[[Pixels], Pixels]:
    level, tint = (
        chance.uniform(90, 170),
        np.array(colour(chance, value=(0.8, 1.0), saturation=(0.0, 0.5))) / 255,
    )
    return lambda p: (np.where(p > level, 255 - p, p) * tint).astype(np.uint8)


def pastel(chance: Chance) -> Callable[[Pixels], Pixels]:
    tint, share = (
        np.array(colour(chance, value=(0.8, 1.0), saturation=(0.2, 0.7))),
        chance.uniform(0.35, 0.65),
    )
    return lambda p: np.round(p * (1 - share) + tint * share).astype(np.uint8)


def paper(chance: Chance) -> Callable[[Pixels, NDArray[np.bool_]], Pixels]:
    """Another background: plain, or running from one colour to another."""
    top = np.array(colour(chance, value=(0.2, 1.0), saturation=(0.1, 0.9)), dtype=np.float64)
    bottom = top if chance.random() < 0.6 else np.array(colour(chance, value=(0.2, 1.0)), dtype=np.float64)

    def apply(p: Pixels, back: NDArray[np.bool_]) -> Pixels:
        s = np.linspace(0, 1, p.shape[0])[:, None, None]
        page = np.broadcast_to(top * (1 - s) + bottom * s, p.shape)
        return np.where(back[..., None], page, p).astype(np.uint8)

    return apply


KINDS: dict[str, Callable[[Chance], Callable[[Pixels], Pixels]]] = {
    f.__name__: f
    for f in (
        *(
            duotone,
            tritone,
            palette,
            lines,
            posterise,
            blur,
            emboss,
            halftone,
            hatching,
            pixelate,
            hue,
            negative,
        ),
        *(grey, silhouette, outline, grain, shifted, threshold, solarise, pastel),
    )
}
PAPERED = {"palette", "posterise", "pixelate", "hue", "outline", "shifted", "pastel", "solarise"}

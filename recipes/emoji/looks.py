"""Looks made from Noto's drawings: black ink, contours, a stencil, two colours.

    python recipes/emoji/looks.py WORK

leaves WORK/icons/LOOK/train and /everyday beside the sets', with the names and captions of Noto's.  The same drawing in
several looks tells the UNet what a look changes and what it does not; sets drawn by different hands do not.  Names held
out and sets kept unseen are not touched.
"""

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from icons import SIZE, chosen, drawn, link_everyday
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter as blur
from sets import LOOKS
from things import Things

Pixels = NDArray[np.float64]
LARGE = 4 * SIZE  # pixels of a side while a look is made
LUMINANCE = (0.3, 0.59, 0.11)


def edges(pixels: Pixels, alpha: Pixels, width: float) -> Pixels:
    """(H, W) in [0, 1]: 1 where one area meets another, lines of about 3·width pixels.

    pixels: (H, W, 3) on white, alpha: (H, W), both in [0, 1], as everywhere here.
    """
    found = np.zeros_like(alpha)
    for plane in (*np.moveaxis(pixels, -1, 0), alpha):
        down, across = np.gradient(blur(plane, width))
        found = np.maximum(found, np.hypot(down, across))
    return np.clip((blur(found, 1.5) - 0.022) * 60, 0, 1)


def ink(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Dark areas black, light ones white, with contours."""
    light = pixels @ LUMINANCE
    low, high = np.percentile(light[alpha > 0.5], (5, 95))
    middle = np.clip((low + high) / 2, 0.25, 0.6)
    dark = alpha / (1 + np.exp((light - middle) * 30))
    return 1 - np.maximum(dark, edges(pixels, alpha, 1.6))


def contour(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Black lines around every area."""
    return 1 - edges(pixels, alpha, 1.2)


def stencil(pixels: Pixels, alpha: Pixels) -> Pixels:
    """All black, with white lines between the areas."""
    inside = blur(alpha, 3) > 0.93
    return 1 - alpha * (1 - edges(pixels, np.ones_like(alpha), 1.2) * inside)


def two_colours(pixels: Pixels, alpha: Pixels, dark: tuple[float, ...], light: tuple[float, ...]) -> Pixels:
    """Shades between two colours (RGB in [0, 1]) on a page of the light one."""
    shade = (pixels @ LUMINANCE)[..., None]
    return np.asarray(dark) * (1 - shade) + np.asarray(light) * shade


CHANGES: dict[str, Callable[[Pixels, Pixels], Pixels]] = {
    "noto-ink": ink,
    "noto-contour": contour,
    "noto-stencil": stencil,
    "noto-blue-on-cream": partial(two_colours, dark=(0.1, 0.15, 0.45), light=(1, 0.95, 0.8)),
    "noto-white-on-purple": partial(two_colours, dark=(1, 1, 1), light=(0.36, 0.2, 0.6)),
    "noto-green-on-black": partial(two_colours, dark=(0.35, 1, 0.45), light=(0.03, 0.05, 0.04)),
    "noto-brown-on-pink": partial(two_colours, dark=(0.35, 0.14, 0.1), light=(1, 0.8, 0.82)),
}


def make(job: tuple[str, dict[str, Path]]) -> None:
    """One drawing in every look."""
    svg, files = job
    values = np.asarray(drawn(svg, LARGE)) / 255
    alpha = values[..., 3]
    pixels = values[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    for look, path in files.items():
        changed = np.clip(CHANGES[look](pixels, alpha), 0, 1)
        picture = Image.fromarray((changed * 255).round().astype(np.uint8)).convert("RGB")
        picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(path)


def main(work: Path) -> None:
    icons = work / "icons"
    drawings = chosen(work, Things(work / "node_modules"))["noto"]
    for look in LOOKS:
        shutil.rmtree(icons / look, ignore_errors=True)
        (icons / look / "train").mkdir(parents=True)
        shutil.copy(icons / "noto/train/metadata.jsonl", icons / look / "train")
    rows = (icons / "noto/train/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    files = {row["text"][0]: row["file_name"] for row in map(json.loads, rows)}
    jobs = [
        (drawings[name], {look: icons / look / "train" / file for look in LOOKS})
        for name, file in files.items()
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(make, jobs, chunksize=16))
    rows = (icons / "noto/everyday/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    everyday = {json.loads(row)["text"][0] for row in rows}
    for look in LOOKS:
        link_everyday(icons / look, everyday)
    print(f"{len(jobs)} drawings in {len(LOOKS)} looks")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "recipes/emoji/work"))

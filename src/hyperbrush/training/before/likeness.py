"""Pictures that are the same, or nearly: perceptual hashes, colours, and every pair that is close."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hyperbrush.ldm.data.archives import content_of
from hyperbrush.stopping import may_stop_here

SIDE = 64  # pixels; what is hashed is this large at most
COLOURS = 8  # places a side at which colours are compared
COLOUR_LIMIT = (
    24.0  # mean difference of 0 … 255; a hash sees no colours, so a red and a blue disc are one to it
)
_ROWS = 1024  # of the table of distances at a time


@dataclass(frozen=True)
class Fingerprint:
    """A picture and its mirror image: 64 bits of a perceptual hash and 8×8 colours each.

    bits: (2, 64) bool; colours: (2, 192) float32 in 0 … 255; digest: of the file.
    """

    bits: NDArray[np.bool_]
    colours: NDArray[np.float32]
    digest: bytes


@dataclass(frozen=True)
class Pair:
    """Two pictures that are alike, by their places in the sequences compared."""

    one: int
    other: int
    distance: int
    text: str


def fingerprint(image: Image.Image, path: Path) -> Fingerprint:
    """What tells whether a picture is like another; `image` is the file's, RGB, small."""
    from imagehash import phash  # loads scipy and PyWavelets

    both = image, ImageOps.mirror(image)
    bits = np.stack([phash(one, hash_size=8).hash.reshape(-1) for one in both])
    small = [one.resize((COLOURS, COLOURS), Image.Resampling.BOX) for one in both]
    colours = np.stack([np.asarray(one, np.float32).reshape(-1) for one in small])
    return Fingerprint(bits, colours, hashlib.sha256(content_of(path)).digest())


def alike(ones: Sequence[Fingerprint], others: Sequence[Fingerprint] | None, distance: int) -> list[Pair]:
    """Every pair with at most `distance` different bits and like colours, the closest first.

    others: what `ones` are compared with; None: with each other, each pair once.
    """
    within = others is None
    others = ones if others is None else others
    if not ones or not others:
        return []
    signs = _signs(ones, 0)
    pairs: dict[tuple[int, int], Pair] = {}
    for mirrored in (0, 1):
        columns = _signs(others, mirrored)
        for start in range(0, len(ones), _ROWS):
            may_stop_here()
            # Of signs ±1 the product counts equal bits less different ones.
            distances = (64 - signs[start : start + _ROWS] @ columns.T) / 2
            for row, column in np.argwhere(distances <= distance):
                one, other = start + int(row), int(column)
                if (within and one >= other) or (one, other) in pairs:
                    continue
                difference = np.abs(ones[one].colours[0] - others[other].colours[mirrored]).mean()
                if difference <= COLOUR_LIMIT:
                    bits = int(distances[row, column])
                    said = f"distance {bits}" + (", mirrored" if mirrored else "")
                    if ones[one].digest == others[other].digest:
                        said = "the same file"
                    pairs[one, other] = Pair(one, other, bits, said)
    return sorted(pairs.values(), key=lambda pair: (pair.distance, pair.one, pair.other))


def _signs(prints: Sequence[Fingerprint], mirrored: int) -> NDArray[np.float32]:
    return np.stack([p.bits[mirrored] for p in prints]).astype(np.float32) * 2 - 1

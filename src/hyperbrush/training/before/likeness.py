"""Pictures that are the same, or nearly: perceptual hashes, colours, and what each is closest to."""

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
# Of the table of distances at a time, and pairs whose colours are compared at a time.
_ROWS, _COLUMNS, _CANDIDATES = 128, 2048, 16384


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
    """Each of `others` with the one most like it, at most `distance` different bits and like colours; the closest first.

    others: what `ones` are compared with; None: with each other, each with those before it.  So there are as many
    pairs as pictures at most, also where all of them are the same.
    """
    within = others is None
    others = ones if others is None else others
    if not ones or not others:
        return []
    # Of each of `others`: different bits (65: none found), the one, and whether mirrored.
    best = np.full(len(others), 65), np.zeros(len(others), np.int64), np.zeros(len(others), np.int64)
    hashes, columns = _hashes(ones, 0), [_hashes(others, mirrored) for mirrored in (0, 1)]
    colours = np.stack([p.colours for p in ones]), np.stack([p.colours for p in others])
    for start in range(0, len(ones), _ROWS):
        rows = hashes[start : start + _ROWS]
        for first in range(start if within else 0, len(others), _COLUMNS):
            may_stop_here()
            for mirrored, of in enumerate(columns):
                _nearer(best, rows, of, colours, (start, first, mirrored), distance, within)
    pairs = []
    for other in map(int, np.flatnonzero(best[0] <= distance)):
        bits, one, mirrored = (int(values[other]) for values in best)
        said = f"distance {bits}" + (", mirrored" if mirrored else "")
        if ones[one].digest == others[other].digest:
            said = "the same file"
        pairs.append(Pair(one, other, bits, said))
    return sorted(pairs, key=lambda pair: (pair.distance, pair.one, pair.other))


def _nearer(
    best: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    colours: tuple[NDArray[np.float32], NDArray[np.float32]],
    at: tuple[int, int, int],
    distance: int,
    within: bool,
) -> None:
    """Take into `best` what one piece of the table of distances has that is nearer."""
    start, first, mirrored = at
    bits, which, turned = best
    piece = slice(first, first + _COLUMNS)
    distances = np.bitwise_count(rows[:, None] ^ columns[None, piece])
    one, other = np.nonzero(distances < np.minimum(distance + 1, bits[piece]).astype(np.uint8))
    found, one, other = distances[one, other].astype(np.int64), one + start, other + first
    if within:
        before = one < other
        found, one, other = found[before], one[before], other[before]
    order = np.lexsort((one, found))
    for some in np.array_split(order, -(-len(order) // _CANDIDATES)) if len(order) else ():
        some = some[found[some] < bits[other[some]]]
        difference = np.abs(colours[0][one[some], 0] - colours[1][other[some], mirrored]).mean(axis=1)
        some = some[difference <= COLOUR_LIMIT]
        other_once, at_first = np.unique(other[some], return_index=True)  # the nearest comes first
        some = some[at_first]
        bits[other_once], which[other_once], turned[other_once] = found[some], one[some], mirrored


def _hashes(prints: Sequence[Fingerprint], mirrored: int) -> NDArray[np.uint64]:
    return np.packbits([p.bits[mirrored] for p in prints], axis=1).view(np.uint64)[:, 0]

"""The style world the generator learns from: icon sets times seeded transformations, as folders of pictures.

    python recipes/generator/corpus.py ICONS OUT [--styles 400] [--pictures 48]

ICONS is the folder recipes/emoji/icons.py leaves.  Writes OUT/train/STYLE/NAME.png (nine of ten transformations, on seen
sets, names that are not held out) to train on; OUT/held_out/STYLE (the tenth transformations) and OUT/real/SET (Fluent High
Contrast, Streamline, FxEmoji as they are), each with references/ (names that are not held out) and targets/ (held-out
names), to judge by.  A name is held out for all styles alike: one in ten by hash, those the embedded model never saw
among them.  The file name is the caption; all names are ones that Noto has, so that the words are known.
"""

import argparse
import hashlib
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from transformations import style_of

SEEN = ("noto", "twemoji", "emojione", "fluent-flat", "fluent-3d", "noto-v1", "emojione-monotone")
REAL = ("fluent-emoji-high-contrast", "streamline-emojis", "fxemoji")
TARGETS = 64  # pictures of held-out names a style is judged by, where there are so many


def held_out(name: str) -> bool:
    """One name in ten; those of recipes/emoji (one in twenty by the same hash) are among them."""
    return int(hashlib.sha256(name.replace("-", " ").encode()).hexdigest(), 16) % 10 == 0


def names_of(icons: Path, name: str) -> dict[str, Path]:
    """Icon name → its file, of a set; only names that Noto has."""
    noto = {path.stem for path in (icons / "noto").rglob("*.png")}
    return {path.stem: path for path in sorted((icons / name).rglob("*.png")) if path.stem in noto}


def ordered(names: list[str], style: str) -> list[str]:
    """The names in an order of this style's own."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{style} {name}".encode()).digest())


def write(job: tuple[int | None, list[tuple[Path, Path]]]) -> None:
    """Pictures of one style: (from, to) each; None: as they are."""
    number, pairs = job
    for source, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        if number is None:
            shutil.copy(source, path)
            continue
        pixels = np.asarray(Image.open(source).convert("RGB"))
        Image.fromarray(style_of(number).apply(pixels)).save(path)


def jobs(
    icons: Path, out: Path, styles: int, pictures: int
) -> list[tuple[int | None, list[tuple[Path, Path]]]]:
    sets = {name: names_of(icons, name) for name in (*SEEN, *REAL)}
    if empty := [name for name, files in sets.items() if not files]:
        sys.exit(f"{icons} has no pictures of {', '.join(empty)}: make them with recipes/emoji/make.py icons")
    found: list[tuple[int | None, list[tuple[Path, Path]]]] = []

    def judged(folder: Path, files: dict[str, Path], key: str) -> list[tuple[Path, Path]]:
        own = ordered([n for n in files if not held_out(n)], key)[:pictures]
        new = ordered([n for n in files if held_out(n)], key)[:TARGETS]
        return [(files[n], folder / "references" / f"{n}.png") for n in own] + [
            (files[n], folder / "targets" / f"{n}.png") for n in new
        ]

    for number in range(styles):
        chance = np.random.default_rng([7, number])
        files = sets[SEEN[int(chance.integers(len(SEEN)))]]
        name = style_of(number).name
        if number // 20 % 10 == 9:  # a whole round of the kinds: every kind is among them
            found.append((number, judged(out / "held_out" / name, files, name)))
        else:
            kept = ordered([n for n in files if not held_out(n)], name)[:pictures]
            found.append((number, [(files[n], out / "train" / name / f"{n}.png") for n in kept]))
    for name in REAL:
        found.append((None, judged(out / "real" / name, sets[name], name)))
    for name in SEEN:  # the sets themselves are styles too
        kept = ordered([n for n in sets[name] if not held_out(n)], name)[:pictures]
        found.append((None, [(sets[name][n], out / "train" / name / f"{n}.png") for n in kept]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("icons", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--styles", type=int, default=400)
    parser.add_argument("--pictures", type=int, default=48, help="of each style to train on or refer to")
    given = parser.parse_args()
    todo = jobs(given.icons, given.out, given.styles, given.pictures)
    with ProcessPoolExecutor() as pool:
        list(pool.map(write, todo))
    for part in ("train", "held_out", "real"):
        folders = [path for path in (given.out / part).iterdir() if path.is_dir()]
        print(f"{part}: {len(folders)} styles, {sum(1 for _ in (given.out / part).rglob('*.png'))} pictures")


if __name__ == "__main__":
    main()

"""Choose the demo's style set out of Fluent Emoji High Contrast: 48 pictures to train on, 64 to validate.

    python recipes/emoji/style.py [WORK] [OUT]

All names are ones the UNet saw in Noto's style, so that the figure measures the style and not the words.
"""

import hashlib
import shutil
import sys
from pathlib import Path

TRAIN, VALIDATION = 48, 64
# Prompts the demo shows; kept out of the 48, so that the style is seen on what it was not trained on.
SHOWN = {
    "cat-face",
    "rocket",
    "red-apple",
    "mushroom",
    "house",
    "slice-of-pizza",
    "pizza",
    "red-heart",
    "three-oclock",
    "woman",
    "hourglass-done",
    "grinning-face",
    "guitar",
    "umbrella",
    "hammer",
    "anchor",
}


def main(work: Path, out: Path) -> None:
    style = {p.stem: p for p in (work / "icons/fluent-emoji-high-contrast/train").glob("*.png")}
    known = {p.stem for p in (work / "icons/noto/train").glob("*.png")}
    names = sorted(
        (style.keys() & known) - SHOWN, key=lambda n: hashlib.sha256(f"style {n}".encode()).digest()
    )
    shutil.rmtree(out, ignore_errors=True)
    for folder, chosen in (("train", names[:TRAIN]), ("validation", names[TRAIN : TRAIN + VALIDATION])):
        (out / folder).mkdir(parents=True)
        for name in chosen:
            shutil.copy(style[name], out / folder)
    print(f"{out}: {TRAIN} to train on, {VALIDATION} to validate")


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    main(*(given + [Path("recipes/emoji/work"), Path("src/hyperbrush/assets/style")][len(given) :]))

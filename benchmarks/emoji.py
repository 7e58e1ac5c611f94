"""Figures of the embedded model: PSNR, recognisability, understanding, validation loss, one grid.

    python benchmarks/emoji.py --work recipes/emoji/work [--model emoji] [--out benchmarks/results]

Needs the rendered icons (python recipes/emoji/icons.py).  Writes emoji.json and emoji-grid.png.
"""

import argparse
import platform
import random
import time
from pathlib import Path

import torch

from hyperbrush.evaluation import mean_psnr
from hyperbrush.files import write_json
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.pictures import grid, to_pictures
from hyperbrush.ldm.util import count_parameters, keyed_generator
from hyperbrush.training.ldm import make_batch, validation_losses

SETS = (
    "noto",
    "noto-v1",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "twemoji",
    "emojione",
    "emojione-monotone",
    "streamline-emojis",
    "fxemoji",
)


def latents_of(model: LatentDiffusion, data: ImageFolder) -> torch.Tensor:
    """Scaled latents of all pictures: (n, c, h, w)."""
    found = []
    for start in range(0, len(data), 64):
        images = make_batch(data, [(0, i) for i in range(start, min(len(data), start + 64))])["images"]
        found.append(model.encode(images.to(model.device)).cpu())
    return torch.cat(found)


def recognisability(
    model: LatentDiffusion, data: ImageFolder, *, names: int, steps: int, sampler: str, guidance: float
) -> dict[str, float]:
    """Share of fixed training names whose drawn picture is nearest to its own training picture in latent
    space (Euclidean), among the first 1 and 5 of all training pictures (either way round: flips count).
    """
    chosen = sorted(random.Random(0).sample(range(len(data)), names))
    train = latents_of(model, data)
    both = torch.stack([train.flatten(1), train.flip(-1).flatten(1)])
    first = five = 0
    for start in range(0, names, 50):
        part = chosen[start : start + 50]
        drawn = model.sample(
            [data.captions[i] for i in part],
            seeds=[1000 + i for i in part],
            steps=steps,
            sampler=sampler,
            guidance_scale=guidance,
        )
        own = model.encode(drawn.to(model.device) * 2 - 1).cpu().flatten(1)
        distance = torch.cdist(own, both).amin(0)
        rank = (distance < distance[torch.arange(len(part)), part][:, None]).sum(1)
        first, five = first + int((rank == 0).sum()), five + int((rank < 5).sum())
    return {"first": first / names, "five": five / names}


@torch.no_grad()
def understanding(
    model: LatentDiffusion,
    folders: list[ImageFolder],
    *,
    pictures: int,
    others: int = 19,
) -> dict[str, float]:
    """For held-out pictures: does the true caption have a lower denoising loss than each of 19 random
    ones (of other held-out pictures), and its mean rank?  The same noise and timesteps for all.
    """
    chance = random.Random(1)
    items = [(data, i) for data in folders for i in range(len(data))]
    chance.shuffle(items)
    items = items[:pictures]
    every = sorted({c for data in folders for c in data.captions})
    shares = (0.3, 0.45, 0.6, 0.75)
    best, ranks = 0, []
    for number, (data, i) in enumerate(items):
        example = data.example(i, 0)
        wrong = chance.sample([c for c in every if c != example["caption"]], others)
        captions = [example["caption"], *wrong]
        latent = model.encode(example["image"][None].to(model.device))
        states = model.encode_text(captions)
        total = torch.zeros(len(captions))
        for j, share in enumerate(shares):
            noise = torch.randn(latent.shape, generator=keyed_generator(2, number, j)).to(latent)
            steps = torch.full(
                (len(captions),), int(share * len(model.diffusion.schedule)), device=latent.device
            )
            total += model.diffusion.losses(
                latent.expand(len(captions), -1, -1, -1),
                noise.expand(len(captions), -1, -1, -1),
                steps,
                states,
            ).cpu()
        rank = 1 + int((total[1:] <= total[0]).sum())
        ranks.append(rank)
        best += rank == 1
    return {"pictures": len(items), "share_first": best / len(items), "mean_rank": sum(ranks) / len(ranks)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work"))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--sampler", default="DPM++ 2M Karras")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--names", type=int, default=200)
    parser.add_argument("--only", default="", help="one of psnr, recognisability, understanding, loss, grid")
    given = parser.parse_args()
    torch.manual_seed(0)
    begin = time.monotonic()
    model = LatentDiffusion.from_pretrained(given.model)
    icons = given.work / "icons"
    train = ImageFolder(icons / "noto/train")
    held_out = ImageFolder(icons / "noto/held_out")
    wanted = [given.only] if given.only else ["psnr", "recognisability", "understanding", "loss", "grid"]
    found: dict[str, object] = {
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
        if "psnr" in wanted:
            by_set = {name: mean_psnr(model, ImageFolder(icons / name / "held_out"), 10**6) for name in SETS}
            sizes = {name: len(list((icons / name / "held_out").glob("*.png"))) for name in SETS}
            found["psnr_by_set"] = by_set
            found["psnr"] = sum(by_set[n] * sizes[n] for n in SETS) / sum(sizes.values())
        if "recognisability" in wanted:
            found["recognisability"] = recognisability(
                model,
                train,
                names=given.names,
                steps=given.steps,
                sampler=given.sampler,
                guidance=given.guidance,
            )
        if "understanding" in wanted:
            # Noto holds out 74 names; 200 pictures take in the older Noto and Twemoji with the same names.
            folders = [held_out, *(ImageFolder(icons / name / "held_out") for name in ("noto-v1", "twemoji"))]
            found["understanding"] = understanding(model, folders, pictures=200)
            found["understanding_noto"] = understanding(model, [held_out], pictures=200)
        if "loss" in wanted:
            data = _Latents(model, held_out)
            found["validation_loss"] = float(validation_losses(model, data).mean())
            found["training_loss"] = float(validation_losses(model, _Latents(model, train), limit=512).mean())
        if "grid" in wanted:
            chosen = sorted(random.Random(3).sample(range(len(train)), 64))
            made = model.sample(
                [train.captions[i] for i in chosen],
                seeds=chosen,
                steps=given.steps,
                sampler=given.sampler,
                guidance_scale=given.guidance,
            )
            grid(to_pictures(made), columns=8).save(given.out / "emoji-grid.png")
            (given.out / "emoji-grid.txt").write_text("\n".join(train.captions[i] for i in chosen) + "\n")
    found["seconds"] = round(time.monotonic() - begin)
    name = f"emoji-{given.only}.json" if given.only else "emoji.json"
    write_json(given.out / name, found)
    print((given.out / name).read_text())


class _Latents:
    """A folder's pictures as latents, for `validation_losses`."""

    def __init__(self, model: LatentDiffusion, data: ImageFolder) -> None:
        self.latents, self.captions = latents_of(model, data), data.captions

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int, epoch: int) -> dict[str, object]:
        return {"latent": self.latents[index], "caption": self.captions[index]}


if __name__ == "__main__":
    main()

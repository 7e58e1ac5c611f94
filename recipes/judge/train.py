"""Train the judge of pictures (`hyperbrush.picture_judge`) on all icon sets, unseen ones and held-out names included.

    python recipes/judge/train.py [--work recipes/emoji/work] [--steps 1600] [--out FILE]

Needs the rendered icons (python recipes/emoji/icons.py).  Goes on where it was stopped; leaves its run in
WORK/runs/judge and its figures beside the weights.  Its own held-out pictures: one in twelve of the (name, set) pairs
whose name three sets or more show; it is then asked for names in sets it was not shown that name in.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
from sets import SETS
from words import sentence_vectors

from hyperbrush.assets import FOLDER
from hyperbrush.files import write_json
from hyperbrush.ldm.data import BatchOrder
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.picture_judge import PictureJudge
from hyperbrush.training.loop.config import OptimizerConfig, TrainerConfig
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.trainer import Trainer


class World:
    """Every rendered picture with its name and set: images (n, 3, 64, 64) uint8."""

    def __init__(self, icons: Path) -> None:
        rows = []
        for key in SETS:
            for file in sorted((icons / key).glob("*/metadata.jsonl")):
                for line in file.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    rows.append((file.parent / row["file_name"], row["text"][0], key))
        counts = Counter(name for _, name, _ in rows)
        noto = {name for _, name, key in rows if key == "noto"}
        self.names = sorted(n for n, count in counts.items() if count >= 4 or n in noto)
        self.sets = list(SETS)
        place = {name: i for i, name in enumerate(self.names)}
        self.rows = [(path, name, key) for path, name, key in rows if name in place]
        self.name_ids = torch.tensor([place[name] for _, name, _ in self.rows])
        self.set_ids = torch.tensor([self.sets.index(key) for _, _, key in self.rows])
        self.images = torch.stack(
            [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _, _ in self.rows]
        )
        held = [
            counts[name] >= 3
            and int(hashlib.sha256(f"judge/{name}/{key}".encode()).hexdigest(), 16) % 12 == 0
            for _, name, key in self.rows
        ]
        self.held_out = torch.tensor(held).nonzero()[:, 0]
        self.train = (~torch.tensor(held)).nonzero()[:, 0]


class JudgeObjective(Objective):
    """Names and sets by cross-entropy, on pictures moved, scaled, mirrored, blurred and noised a little."""

    def __init__(self, model: PictureJudge, world: World, seed: int = 0) -> None:
        super().__init__()
        self.model, self.world, self.seed = model, world, seed
        self.order: BatchOrder | None = None

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Pictures of a step and what is done to them."""
        if self.order is None:
            self.order = BatchOrder(len(self.world.train), batch_size, self.seed)
        chosen = self.world.train[[index for _, index in self.order.pairs(step)]]
        generator = keyed_generator(self.seed, "judge", step)
        pictures = self.world.images[chosen].float() / 127.5 - 1
        return {
            "pictures": augmented(pictures, generator),
            "name_ids": self.world.name_ids[chosen],
            "set_ids": self.world.set_ids[chosen],
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropies."""
        names, sets = self.model(batch["pictures"])
        by_name = F.cross_entropy(names, batch["name_ids"])
        by_set = F.cross_entropy(sets, batch["set_ids"], label_smoothing=0.05)
        return {"loss": by_name + 0.5 * by_set, "names": by_name.detach(), "sets": by_set.detach()}

    def validate(self) -> dict[str, float]:
        """On its held-out pictures: name first and in five among 200 names and among all, set first."""
        return figures(self.model, self.world)

    def save(self, folder: Path) -> Path:
        """One file."""
        self.model.save(folder / "judge.safetensors")
        return folder / "judge.safetensors"


def begin_by_meaning(model: PictureJudge) -> None:
    """Name vectors begin as principal components of MiniLM's sentence vectors: like names near each other."""
    vectors = sentence_vectors(model.names)
    vectors = vectors - vectors.mean(0)
    _, _, components = torch.pca_lowrank(vectors, q=model.name_vectors.shape[1], center=False, niter=8)
    with torch.no_grad():
        model.name_vectors.copy_(F.normalize(vectors @ components, dim=1))


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, moved by up to five pixels, scaled by 0.85 to 1.1; some blurred, all with a little noise."""
    count = len(pictures)
    chance = torch.rand(5, count, generator=generator)
    scale = 1 / (0.85 + 0.25 * chance[0])
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * torch.where(chance[1] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = (torch.rand(count, 2, generator=generator) * 2 - 1) * 5 / 32
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # white beyond the edges
    blurred = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2.0, mode="bilinear")
    share = (chance[2] * (chance[3] < 0.4))[:, None, None, None]
    noise = torch.randn(moved.shape, generator=generator) * 0.1 * chance[4][:, None, None, None]
    return moved + share * (blurred - moved) + noise


@torch.no_grad()
def figures(model: PictureJudge, world: World) -> dict[str, float]:
    """How well it knows its held-out pictures."""
    held = world.held_out
    pictures = world.images[held].float() / 127.5 - 1
    names, sets = model.logits(pictures)
    own = names.gather(1, world.name_ids[held][:, None])
    generator = keyed_generator(0, "among")
    rank = (names > own).sum(1)
    others = torch.randint(len(world.names), (len(held), 199), generator=generator)
    among = (names.gather(1, others) > own).sum(1)
    return {
        "first_of_200": float((among == 0).float().mean()),
        "five_of_200": float((among < 5).float().mean()),
        "first_of_all": float((rank == 0).float().mean()),
        "sets": float((sets.argmax(1) == world.set_ids[held]).float().mean()),
        "loss": float(F.cross_entropy(names, world.name_ids[held])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("recipes/emoji/work"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--out", type=Path, default=FOLDER / "judge" / "judge.safetensors")
    given = parser.parse_args()
    world = World(given.work / "icons")
    torch.manual_seed(0)
    model = PictureJudge(world.names, world.sets)
    begin_by_meaning(model)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{len(world.rows)} pictures, {len(world.names)} names, {len(world.sets)} sets; {size:,} parameters"
    )
    config = TrainerConfig(
        steps=given.steps,
        batch_size=128,
        optimizer=OptimizerConfig(
            learning_rate=0.003, schedule="cosine", warmup_steps=100, weight_decay=0.05
        ),
        ema_decay=0.995,
        checkpoint_every=200,
        validate_every=400,
        log_every=50,
    )
    run = given.work / "runs" / "judge"
    trainer = Trainer(
        JudgeObjective(model, world), config, run, on_progress=lambda p: told(p.step, p.losses, p.validation)
    )
    trainer.train(resume=any((run / "checkpoints").glob("step-*.safetensors")))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(given.out)
    found = figures(PictureJudge.load(given.out), world)
    about = {"pictures": len(world.rows), "held_out": len(world.held_out), "parameters": size}
    write_json(given.out.with_suffix(".json"), about | {k: round(v, 4) for k, v in found.items()})
    print(given.out.with_suffix(".json").read_text())


def told(step: int, losses: dict[str, float], validation: dict[str, float]) -> None:
    if validation or step % 50 == 0:
        shown = {k: round(v, 3) for k, v in (losses | validation).items()}
        print(step, shown, flush=True)


if __name__ == "__main__":
    main()

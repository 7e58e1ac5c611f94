"""Augmentation from settings and from Python: what is shown, by (seed, epoch, index), resumed to the bit; own learning rates."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.data.augment import Seeded
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.training import HypernetworkTrainer, Trainer
from hyperbrush.training.ldm.run import build, read_config
from hyperbrush.training.loop.objectives import trained_tensors
from hyperbrush.training.loop.trainer import Interrupted

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 4,
    "checkpoint_every": 2,
    "validate_every": 2,
    "validation_share": 0.2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "jitter": 0.4,
    "rotate": 20.0,
    "flip": 0.5,
}


def network(model: LatentDiffusion) -> AttentionHypernetwork:
    torch.manual_seed(3)
    return AttentionHypernetwork.for_unet(model.unet, name="ink")


def values(hn: AttentionHypernetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in hn.parameters()])


class Shifted:
    """A transform of one's own that draws from the global generators, as torchvision's do."""

    def __call__(self, image: Image.Image) -> Image.Image:
        image = ImageEnhance.Brightness(image).enhance(0.5 + float(torch.rand(())))
        image = ImageOps.posterize(image, random.randint(3, 6))
        return ImageEnhance.Contrast(image).enhance(1 + np.random.rand())


def test_a_hypernetwork_sees_other_pictures_each_time(
    tiny: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    objective = HypernetworkTrainer(network(tiny), SETTINGS, run=tmp_path / "run").objective(tiny, pictures)
    batch = objective.batch(2, 4)
    assert "latent_means" not in batch
    assert torch.equal(objective.batch(2, 4)["images"], batch["images"])
    folder = ImageFolder(pictures, size=32, flip=0.5, jitter=0.4, rotate=20.0)
    by_path = {path: i for i, path in enumerate(folder.paths)}
    pairs = objective.order.pairs(2)
    for row, (epoch, _) in enumerate(pairs):
        expected = folder.example(by_path[batch["paths"][row]], epoch)["image"]
        torch.testing.assert_close(batch["images"][row], expected)
    first = folder.example(0, 0)["image"]
    assert not torch.equal(first, folder.example(0, 1)["image"])
    assert not torch.equal(first, ImageFolder(pictures, size=32, flip=0.5).example(0, 0)["image"])
    assert objective.held_out is not None
    assert "latent_mean" in objective.held_out.example(0, 0)  # what is judged by stays alike, and is kept
    objective.close()


def test_resuming_is_exact(tiny: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    def train(run: Path, stop: int | None = None, data: Any = pictures, **how: Any) -> torch.Tensor:
        hn, seen = network(tiny), [0]
        more = {} if data is pictures else {"jitter": 0.0, "rotate": 0.0, "flip": 0.0}
        trainer = HypernetworkTrainer(
            hn,
            SETTINGS | more,
            run=run,
            learning_rate=lambda step: 1e-2 / (1 + step),
            on_progress=lambda p: seen.append(p.step),
            should_stop=lambda: stop is not None and seen[-1] >= stop,
        )
        trainer.train(tiny, data, **how)
        return values(hn)

    def own() -> ImageFolder:
        return ImageFolder(pictures, size=32, transform=Seeded(Shifted()))

    for name, make in (("settings", lambda: pictures), ("own", own)):
        whole = train(tmp_path / name, data=make())
        with pytest.raises(Interrupted):
            train(tmp_path / f"{name} cut", stop=2, data=make())
        random.seed(7)
        np.random.seed(7)
        assert torch.equal(train(tmp_path / f"{name} cut", data=make(), resume=True), whole)


def test_transforms_of_ones_own(pictures: Path) -> None:
    folder = ImageFolder(pictures, size=32, transform=Seeded(Shifted()))
    first = folder.example(0, 0)["image"]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(folder.example(0, 0)["image"], first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.equal(folder.example(0, 1)["image"], first)
    other = ImageFolder(pictures, size=32, transform=Seeded(Shifted()), seed=1)
    assert not torch.equal(other.example(0, 0)["image"], first)


def test_draws_from_the_posterior_are_refused(tiny: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"latent_sampling": "random"}
    with pytest.raises(UserError, match="latent_sampling 'random' is of latents that are kept"):
        HypernetworkTrainer(network(tiny), settings, run=tmp_path / "run").objective(tiny, pictures)


@pytest.mark.parametrize("kind", ["first_stage", "diffusion"])
def test_ldm_train(kind: str, pictures: Path, tmp_path: Path) -> None:
    data = {"size": 32, "folders": [str(pictures)], "jitter": 0.3, "rotate": 10, "crop": "random"}
    training = {"steps": 3, "batch_size": 2, "checkpoint_every": 1}
    config: dict[str, Any] = {"kind": kind, "data": data, "training": training}
    if kind == "first_stage":
        config |= {"model": {"channels": [8, 16]}}
    else:
        first_stage("kl", channels=[8, 16], sample_size=32).save_pretrained(tmp_path / "stage")  # type: ignore[operator]
        unet = {"channels": [32, 64], "attention_resolutions": [8], "num_heads": 4, "layers_per_block": 1}
        config |= {"conditioning": "none", "first_stage": str(tmp_path / "stage"), "unet": unet}

    def train(steps: int, run: Path, **how: Any) -> torch.Tensor:
        made = read_config(config | {"training": training | {"steps": steps}})
        objective = build(made, run, resume=how.get("resume", False))
        assert "images" in objective.batch(0, 2)
        Trainer(objective, made.training, run).train(**how)
        return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])

    whole = train(3, tmp_path / "whole")
    train(1, tmp_path / "cut")
    assert torch.equal(train(3, tmp_path / "cut", resume=True), whole)
    data["jitter"] = 0.0
    assert not torch.equal(train(3, tmp_path / "plain"), whole)
    with pytest.raises(UserError, match="rotate"):
        read_config(config | {"data": data | {"rotate": 200}})


def test_learning_rates_of_ones_own(tiny: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    def train(run: str, of: Callable[[int], float] | None, **more: Any) -> torch.Tensor:
        hn = network(tiny)
        plain = {"jitter": 0.0, "rotate": 0.0, "max_steps": 2}
        HypernetworkTrainer(hn, SETTINGS | plain | more, run=tmp_path / run, learning_rate=of).train(
            tiny, pictures
        )
        return values(hn)

    constant = train("constant", None, schedule="constant")
    assert torch.equal(train("same", lambda step: 1e-2), constant)
    assert not torch.equal(train("falling", lambda step: 1e-2 / (step + 1)), constant)
    with pytest.raises(UserError, match=r"learning_rate\(1\) gave nan; expected a number from 0 up"):
        train("broken", lambda step: float("nan") if step else 1e-2)

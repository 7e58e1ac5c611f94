"""Training on inpainting models and on tiny first stages: what a step is shown, and that resuming is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.commands.evaluation import evaluate_folder
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.generator import Hypernetwork, TargetNetwork
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.diffusion_model import build_unet
from hyperbrush.training import HypernetworkTrainer, Trainer
from hyperbrush.training.before.plan import _trial_objective
from hyperbrush.training.ldm.run import build, read_config
from hyperbrush.training.loop.trainer import Interrupted

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 4,
    "checkpoint_every": 2,
    "validate_every": 2,
    "preview_every": 4,
    "preview_steps": 2,
    "prompts": ["red square"],
    "flip": 0.5,
    "validation_share": 0.2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
}


@pytest.fixture
def painter(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    torch.manual_seed(1)
    unet = build_unet(
        latent_dim=4,
        sample_size=16,
        channels=(32, 64),
        attention_resolutions=[8],
        num_heads=4,
        layers_per_block=1,
        context_dim=32,
        extra_channels=5,
    )
    return make_tiny(unet=unet)


@pytest.fixture
def small(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    torch.manual_seed(2)
    stage = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return make_tiny(first_stage=stage)


def network(model: LatentDiffusion) -> AttentionHypernetwork:
    torch.manual_seed(3)
    return AttentionHypernetwork.for_unet(model.unet, name="ink")


def values(hn: AttentionHypernetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in hn.parameters()])


def test_the_batch_shows_latents_picture_and_mask_of_one_view(
    painter: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    trainer = HypernetworkTrainer(network(painter), SETTINGS, run=tmp_path / "run")
    objective = trainer.objective(painter, pictures)
    batch = objective.batch(5, 4)
    assert batch["images"].shape == (4, 3, 32, 32)
    assert batch["inpaint_masks"].shape == (4, 1, 32, 32)
    with torch.no_grad():  # flips among them: the pictures are those the latents are of
        torch.testing.assert_close(painter.moments(batch["images"])["mean"], batch["latent_means"])
    assert torch.equal(objective.batch(5, 4)["inpaint_masks"], batch["inpaint_masks"])
    assert not torch.equal(objective.batch(6, 4)["inpaint_masks"], batch["inpaint_masks"])
    other = HypernetworkTrainer(network(painter), SETTINGS | {"seed": 1}, run=tmp_path / "other")
    assert not torch.equal(
        other.objective(painter, pictures).batch(5, 4)["inpaint_masks"], batch["inpaint_masks"]
    )
    halves = [
        painter.losses({key: value[part] for key, value in batch.items() if isinstance(value, torch.Tensor)})
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.cat(halves), painter.losses(batch))
    objective.close()


def test_it_learns_resumes_and_is_judged(painter: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    def train(run: Path, **how: Any) -> AttentionHypernetwork:
        hn = network(painter)
        stop = how.pop("stop", None)
        seen = []
        trainer = HypernetworkTrainer(
            hn,
            SETTINGS,
            run=run,
            on_progress=lambda p: seen.append(p.step),
            should_stop=lambda: stop is not None and bool(seen) and seen[-1] >= stop,
        )
        trainer.train(painter, pictures, **how)
        return hn

    whole = values(train(tmp_path / "whole"))
    assert not torch.equal(whole, values(network(painter)))
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=2)
    assert torch.equal(values(train(tmp_path / "cut", resume=True)), whole)
    assert list((tmp_path / "whole" / "previews").rglob("*.png"))
    assert "validation_loss" in (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_masks_of_ones_own(
    painter: LatentDiffusion, small: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    for path in pictures.glob("*.png"):
        pixels = np.zeros((32, 32), np.uint8)
        pixels[3:17, 5:11] = 255
        Image.fromarray(pixels).save(tmp_path / "masks" / path.name)
    own = {"missing": "masks", "masks": "files", "mask_folder": str(tmp_path / "masks"), "flip": 1.0}
    objective = HypernetworkTrainer(network(painter), SETTINGS | own, run=tmp_path / "run").objective(
        painter, pictures
    )
    batch = objective.batch(0, 4)
    expected = torch.zeros(32, 32)
    expected[3:17, 32 - 11 : 32 - 5] = 1  # mirrored with its picture
    assert torch.equal(batch["inpaint_masks"][0, 0], expected)
    assert batch["masks"].shape == (4, 1, 16, 16)  # they weigh the loss too
    objective.close()
    with pytest.raises(UserError, match=r"there are none: expected masks 'alpha' or 'files'"):
        HypernetworkTrainer(network(painter), SETTINGS | {"missing": "masks"}, run=tmp_path / "a").objective(
            painter, pictures
        )
    with pytest.raises(UserError, match="this model is none for inpainting"):
        HypernetworkTrainer(network(small), SETTINGS | own, run=tmp_path / "b").objective(small, pictures)


def test_plans_evaluation_and_what_is_refused(
    painter: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    trainer = HypernetworkTrainer(network(painter), SETTINGS)
    planned = _trial_objective(trainer.hypernetwork, trainer.config, painter, (32, 32))  # type: ignore[arg-type]
    assert planned(planned.batch(0, 4))["loss"].isfinite()
    planned.close()
    painter.save_pretrained(tmp_path / "model")
    network(painter).save(tmp_path / "ink.safetensors")
    lines = list(
        evaluate_folder(
            pictures, model=str(tmp_path / "model"), hypernetwork=str(tmp_path / "ink.safetensors")
        )
    )
    assert "denoising loss with ink" in lines[-1]
    net = Hypernetwork(["attn2"], target=TargetNetwork(painter), embedding_dim=8, hidden_dim=8, rank=1)
    with pytest.raises(UserError, match="this one is told masks"):
        HypernetworkTrainer(net, {}, run=tmp_path / "hyper").objective(painter, pictures)


def test_ldm_train_goes_on_with_an_inpainting_model(
    painter: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    painter.save_pretrained(tmp_path / "model")
    config = read_config(
        {
            "kind": "diffusion",
            "data": {"size": 32, "folders": [str(pictures)], "held_out": [str(pictures)]},
            "start_from": str(tmp_path / "model"),
            "prompts": ["red square"],
            "training": {"steps": 2, "batch_size": 2, "validate_every": 2, "preview_every": 2},
        }
    )
    objective = build(config, tmp_path / "run")
    Trainer(objective, config.training, tmp_path / "run").train()
    again = LatentDiffusion.from_pretrained(tmp_path / "run" / "model")
    assert again.inpaints
    assert not torch.equal(next(again.unet.parameters()), next(painter.unet.parameters()))


def test_a_tiny_first_stage(small: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    hn = network(small)
    before = values(hn)
    HypernetworkTrainer(hn, SETTINGS, run=tmp_path / "run").train(small, pictures)
    assert not torch.equal(values(hn), before)
    assert list((tmp_path / "run" / "previews").rglob("*.png"))
    small.save_pretrained(tmp_path / "model")
    lines = list(evaluate_folder(pictures, model=str(tmp_path / "model")))
    assert "PSNR" in lines[0]
    config = read_config(
        {
            "kind": "diffusion",
            "data": {"size": 32, "folders": [str(pictures)]},
            "start_from": str(tmp_path / "model"),
            "training": {"steps": 1, "batch_size": 2},
        }
    )
    Trainer(build(config, tmp_path / "ldm"), config.training, tmp_path / "ldm").train()
    again = LatentDiffusion.from_pretrained(tmp_path / "ldm" / "model")
    assert type(again.first_stage) is diffusers.AutoencoderTiny

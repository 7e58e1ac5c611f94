"""Configs of a training: what they refuse, and that what they ask for is done."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion, text
from hyperbrush.training import Trainer
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.run import build, captions_of, open_folders
from hyperbrush.training.loop.objectives import Objective, trained_tensors

TRAINING: dict[str, Any] = {
    "steps": 4,
    "batch_size": 2,
    "checkpoint_every": 2,
    "validate_every": 4,
    "preview_every": 4,
    "keep_best": True,
    "ema_decay": 0.9,
}


def values(pictures: Path, **more: Any) -> dict[str, Any]:
    data = {
        "size": 32,
        "flip": 0.5,
        "folders": [{"path": str(pictures)}],
        "held_out": [{"path": str(pictures)}],
    }
    return {"kind": "first_stage", "data": data, "model": {"channels": [8, 16]}, "training": TRAINING} | more


def weights(objective: Objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


def train(config: Any, run: Path, **how: Any) -> torch.Tensor:
    objective = build(config, run)
    Trainer(objective, config.training, run).train(**how)
    return weights(objective)


def test_captions_follow_their_settings(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for path in sorted(pictures.glob("*.png"))[:2]:
        shutil.copy(path, folder)
        (folder / path.name).with_suffix(".txt").write_text("a thing\nan object\n")

    def both(**data: Any) -> tuple[set[str], set[str]]:
        own = values(folder)
        own["data"] |= data
        config = read_config(own)
        assert read_config(config.model_dump(mode="json")) == config
        train, held = (open_folders(config.data, held_out, 0) for held_out in (False, True))
        told = {train.caption(i, epoch) for i in range(2) for epoch in range(80)}
        assert told == set(captions_of(train))
        return told, {held.caption(i, epoch) for i in range(2) for epoch in range(20)}

    name = both(captions="filename")[0]
    assert len(name) == 2
    assert both() == ({"a thing an object"}, {"a thing an object"})
    assert both(caption_lines=True) == ({"a thing", "an object"}, {"a thing"})
    assert both(caption_lines=True, first_caption=1)[0] == {"a thing"}
    appended = {"a thing, flat", "a thing, 3D", "an object, flat", "an object, 3D"}
    assert both(caption_lines=True, append={", flat": 1, ", 3D": 2}) == (appended, {"a thing, 3D"})
    per_folder = [{"path": str(folder), "append": [" by a", ""], "caption_suffix": "!"}]
    ends = {"a thing an object by a!", "a thing an object!"}
    assert both(folders=per_folder, append=[", flat"]) == (ends, {"a thing an object, flat"})
    told, held = both(templates="style_filewords", trigger="anna", caption_lines=True)
    assert len(told) > 2
    assert len(held) == 1
    assert all("anna" in caption for caption in told | held)


@pytest.mark.parametrize(
    "wrong",
    [{"lpips": 1.0}, {"l1": -1.0}, {"l1": 0, "mse": 0}, {"adversarial_adaptive": True}],
    ids=str,
)
def test_a_loss_that_cannot_work_is_refused(pictures: Path, wrong: dict) -> None:
    with pytest.raises(
        UserError,
        match=r"unknown setting 'loss.lpips'|loss.l1: |one of l1, mse and log_mse|adversarial_weight, which is 0",
    ):
        read_config(values(pictures, loss=wrong))


def test_the_closest_setting_is_sought_beside_the_wrong_one_first(pictures: Path) -> None:
    bad = values(pictures, sise=3)
    bad["data"] = {"folders": [{"path": str(pictures), "repeat": 2}], "szie": 32}
    bad["training"] = {"flip": 0.5, "optimizer": {"betaz": [0.5, 0.5]}}
    with pytest.raises(UserError) as caught:
        read_config(bad)
    text = str(caught.value)
    assert "unknown setting 'data.folders.0.repeat', did you mean 'repeats'?" in text
    assert "unknown setting 'data.szie', did you mean 'size'?" in text
    assert "unknown setting 'training.flip', did you mean 'data.flip'?" in text
    assert "unknown setting 'training.optimizer.betaz', did you mean 'betas'?" in text
    assert "unknown setting 'sise', did you mean 'data.size'?" in text


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"first_stage": "somewhere"}, "first_stage"),
        ({"unet": {"num_heads": 2}}, "unet"),
        ({"text": {"width": 64}, "process": {"prediction": "epsilon"}}, r"text, process\.prediction"),
    ],
    ids=str,
)
def test_a_model_to_go_on_from_brings_its_own_parts(pictures: Path, more: dict, named: str) -> None:
    config = {"kind": "diffusion", "data": {"folders": [{"path": str(pictures)}]}, "start_from": "emoji"}
    with pytest.raises(UserError, match=rf"start_from brings its own {named}; leave that out"):
        read_config(config | more)
    read_config(config | {"process": {"weighting": "min_snr"}})


def test_gradient_checkpointing_reaches_the_first_stage(pictures: Path, tmp_path: Path) -> None:
    spared = values(pictures, training=TRAINING | {"gradient_checkpointing": True})
    objective = build(read_config(spared), tmp_path)
    assert objective.model.is_gradient_checkpointing
    assert not build(read_config(values(pictures)), tmp_path).model.is_gradient_checkpointing
    with pytest.raises(UserError, match="VQ autoencoder has none"):
        build(read_config(spared | {"model": {"channels": [8, 16], "type": "vq"}}), tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"training": TRAINING | {"channels_last": True}},
        {"model": {"channels": [8, 16], "type": "vq", "codebook": 16, "mid_attention": True}},
        {
            "training": TRAINING
            | {"channels_last": True, "mixed_precision": "bf16", "gradient_accumulation": 2}
        },
    ],
    ids=["channels last", "vq", "bf16 in parts"],
)
def test_a_resume_from_disk_is_exact(pictures: Path, tmp_path: Path, more: dict) -> None:
    """With channels_last the weights lie in memory otherwise than in the file."""
    config = read_config(values(pictures, **more))
    whole = train(config, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000004.safetensors").unlink()
    assert torch.equal(whole, train(config, tmp_path / "run", resume=True))


def test_the_tokenizer_of_a_run_is_trained_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties between pairs of letters are broken differently each time, and tokens would change their numbers."""
    first = tmp_path / "first_stage"
    stage = build(read_config(values(pictures)), tmp_path / "stage")
    stage.model.save_pretrained(first)
    settings = values(pictures) | {"kind": "diffusion", "first_stage": str(first)}
    settings.pop("model")
    settings["unet"] = {"channels": [8, 16], "attention_resolutions": [8]}
    settings["data"]["append"] = ["", ", zigzag"]
    config = read_config(settings)
    built = build(config, tmp_path / "run").model
    known = built.tokenizer
    assert "zigzag" in built.known_words
    assert "zigzag</w>" in known.get_vocab()
    monkeypatch.setattr(text, "train_tokenizer", lambda *_, **__: pytest.fail("trained again"))
    again = build(config, tmp_path / "run").model.tokenizer
    assert again.get_vocab() == known.get_vocab()
    assert again("a red heart").input_ids == known("a red heart").input_ids
    assert again.model_max_length == known.model_max_length


def diffusion(pictures: Path, stage: Path, **data: Any) -> dict[str, Any]:
    return {
        "kind": "diffusion",
        "data": {"size": 32, "folders": [{"path": str(pictures)}]} | data,
        "first_stage": str(stage),
        "text": {"width": 32, "layers": 1, "vocabulary": 600},
        "unet": {"channels": [32, 64], "attention_resolutions": [8], "layers_per_block": 1},
        "training": TRAINING,
    }


def test_what_a_run_began_with_stays(
    pictures: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path
) -> None:
    """Scale factor and tokenizer are those of the begin, also after pictures came; a new run has its own."""
    make_tiny().first_stage.save_pretrained(tmp_path / "stage")
    sizes: list[int] = []
    real = LatentDiffusion.moments

    def moments(self: LatentDiffusion, images: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(images))
        return real(self, images)

    values = diffusion(pictures, tmp_path / "stage")
    for number in range(60):
        shutil.copy(pictures / "red-square-0.png", pictures / f"red-square-{100 + number}.png")
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentDiffusion, "moments", moments)
        first = build(read_config(values), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is the caller's"
    assert max(sizes) <= 32, "measured in small batches"
    for number in range(20):
        Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(pictures / f"purple-zebra-{number}.png")
    same = build(read_config(values), tmp_path / "run", resume=True)
    assert same.model.scale_factor == first.model.scale_factor
    assert same.model.tokenizer.get_vocab() == first.model.tokenizer.get_vocab()
    other = build(read_config(values), tmp_path / "run")
    assert other.model.scale_factor != first.model.scale_factor
    assert "zebra</w>" in other.model.tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["first_stage", "diffusion"])
def test_sizes_that_cannot_be_halved_are_refused(
    pictures: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path, kind: str
) -> None:
    if kind == "first_stage":
        config = values(pictures)
        config["data"]["size"] = 31
    else:
        make_tiny().first_stage.save_pretrained(tmp_path / "stage")
        config = diffusion(pictures, tmp_path / "stage", size=30)
    with pytest.raises(
        UserError, match=r"data\.size is 3[01]; .* expected a multiple of [24], such as (32|28)"
    ):
        build(read_config(config), tmp_path / "run")

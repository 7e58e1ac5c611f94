"""The embedded model: opens everywhere, gives the same picture everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hyperbrush.assets import model_folder, style_folder
from hyperbrush.generation import generate
from hyperbrush.ldm.models import LatentDiffusion

EMOJI = model_folder("emoji")


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M Karras"])
def test_plain_diffusers_gives_the_same_picture(sampler: str) -> None:
    from diffusers import StableDiffusionPipeline

    from hyperbrush.ldm.sampling.samplers import make_scheduler

    pipe = StableDiffusionPipeline.from_pretrained(EMOJI, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if sampler != "DDIM":  # the folder's own
        pipe.scheduler = make_scheduler(sampler, dict(pipe.scheduler.config))
    there = pipe(
        "slice of pizza",
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    [here] = generate("slice of pizza", seed=7, steps=6, sampler=sampler)
    assert np.abs(np.asarray(there).astype(int) - np.asarray(here.image)).max() <= 1


def test_files_are_small_half_precision_and_readable_by_older_programs() -> None:
    assert sum(p.stat().st_size for p in EMOJI.rglob("*") if p.is_file()) < 40 * 2**20
    for path in EMOJI.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"F16"}  # noqa: SIM118
    with safe_open(EMOJI / "text_encoder/model.safetensors", framework="pt") as file:
        assert all(k.startswith("text_model.") for k in file.keys())  # noqa: SIM118
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (EMOJI / "tokenizer" / name).is_file()
    assert json.loads((EMOJI / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_it_knows_words_and_its_captions_matter() -> None:
    model = LatentDiffusion.from_pretrained("emoji")
    assert model.known_words
    assert {"cat", "pizza", "rocket"} <= model.known_words
    states = model.encode_text(["red heart", "rocket"])
    assert (states[0] - states[1]).abs().max() > 0.1


def test_card_says_what_it_must() -> None:
    card = (EMOJI / "README.md").read_text(encoding="utf-8")
    assert "{" not in card, "an unfilled figure"
    for part in (
        "licence",
        "PSNR",
        "judge",
        "understanding",
        "held-out",
        "recipes/emoji",
        "Noto",
        "seen",
    ):
        assert part.lower() in card.lower(), part


def test_style_set() -> None:
    train = {p.name for p in (style_folder() / "train").glob("*.png")}
    held = {p.name for p in (style_folder() / "validation").glob("*.png")}
    assert (len(train), len(held)) == (48, 64)
    assert not train & held
    from hyperbrush.commands.demo import PROMPTS

    shown = {Path(p.replace(" ", "-") + ".png").name for p in PROMPTS}
    assert not shown & (train | held)

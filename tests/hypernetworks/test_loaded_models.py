"""Adapters on what a caller has loaded already, and generated weights given by their file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.cli.sources import find
from hyperbrush.commands.evaluation import evaluate_folder
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, find_targets
from hyperbrush.ldm.models import LatentDiffusion

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


def test_tags_act_on_a_loaded_pipeline(tiny: LatentDiffusion, make_network: Make, tmp_path: Path) -> None:
    make_network(tiny.unet, name="ink").save(tmp_path / "ink.pt")
    pipe = tiny.pipeline()
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    settings: dict[str, Any] = {"seed": 3, "steps": 2, "hypernetworks": tmp_path}
    [picture] = hb.generate("cat face <hypernet:ink:0.7>", model=pipe, **settings)
    [expected] = hb.generate("cat face <hypernet:ink:0.7>", model=tiny, **settings)
    [bare] = hb.generate("cat face", model=pipe, **settings)
    assert picture.image.tobytes() == expected.image.tobytes()
    assert picture.image.tobytes() != bare.image.tobytes()
    assert "projections reached" in picture.notes[0]
    assert all(torch.equal(state[k], v) for k, v in pipe.unet.state_dict().items())
    with pytest.raises(UserError, match="object has no UNet and VAE"):
        hb.generate("cat", model=object())  # type: ignore[call-overload, unused-ignore, arg-type]


def test_a_pipeline_of_a_folder_has_its_name(tiny: LatentDiffusion, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    tiny.save_pretrained(tmp_path / "water-model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "water-model")
    [named] = hb.generate("cat", model=pipe, seed=3, steps=1)
    [opened] = hb.generate("cat", model=tmp_path / "water-model", seed=3, steps=1)
    assert "Model: water-model" in named.parameters
    assert named.parameters == opened.parameters


def test_generated_weights_are_evaluated_by_file(
    tiny: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    made = {
        t.name: Factors(torch.randn(2, t.in_width), torch.randn(t.out_width, 2))
        for t in find_targets(tiny.unet)
    }
    file = GeneratedWeights(made, name="ink").save(tmp_path / "ink.safetensors")
    losses = []
    for given in (file, find("ink", tmp_path)):
        *_, line = evaluate_folder(pictures, model=str(tmp_path / "model"), hypernetwork=given, limit=4)
        losses.append(line)
    assert losses[0] == losses[1]
    change = re.fullmatch(r"denoising loss with ink: .* ± .*, ([+-][\d.]+)%", losses[0])
    assert change is not None
    assert abs(float(change[1])) > 0.1

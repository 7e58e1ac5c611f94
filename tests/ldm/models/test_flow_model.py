"""A model trained by flow matching: its loss, its folder in plain diffusers and back, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json
from hyperbrush.ldm.models import LatentDiffusion

Make = Callable[..., LatentDiffusion]
DRAWING: dict[str, Any] = {"seeds": [7], "steps": 3, "guidance_scale": 3.0, "output": "latents"}


@pytest.fixture(scope="module")
def model(make_tiny: Make) -> LatentDiffusion:
    return make_tiny(prediction="flow_prediction", shift=3.0).eval()


@pytest.fixture(scope="module")
def folder(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "model"
    model.save_pretrained(path)
    return path


@torch.no_grad()
def test_the_loss_is_that_of_the_velocity(model: LatentDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 16, 16, generator=generator)
    timesteps = torch.tensor([0, 399, 999])
    context = model.encode_text(["a red square"] * 3)
    found = model.diffusion.losses(x0, noise, timesteps, context)
    weighted = model.diffusion.losses(x0, noise, timesteps, context, weighting="cosmap")
    for i, u in enumerate((0.001, 0.4, 1.0)):
        sigma = 3 * u / (1 + 2 * u)
        x = (1 - sigma) * x0[i : i + 1] + sigma * noise[i : i + 1]
        output = model.unet(x, torch.tensor([1000 * sigma]), encoder_hidden_states=context[:1]).sample
        error = (output - (noise[i] - x0[i])).pow(2).mean()
        assert float(found[i]) == pytest.approx(float(error), rel=1e-4)
        weight = 2 / (torch.pi * (1 - 2 * sigma + 2 * sigma**2))
        assert float(weighted[i]) == pytest.approx(weight * float(error), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Accessing config attribute `init_noise_sigma`")
def test_plain_diffusers_draws_the_same_from_the_folder(model: LatentDiffusion, folder: Path) -> None:
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        StableDiffusionPipeline,
    )

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipe.scheduler.config.shift == 3

    def theirs() -> torch.Tensor:
        return pipe(
            "a red square",
            num_inference_steps=3,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(7),
            height=32,
            width=32,
            output_type="latent",
        ).images

    usual = model.sample("a red square", **DRAWING)
    assert torch.equal(usual, model.sample("a red square", sampler="Flow Euler", **DRAWING))
    assert (theirs() - usual).abs().max() < 1e-5
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    other = model.sample("a red square", sampler="DPM++ 2M", **DRAWING)
    assert (theirs() - other).abs().max() < 1e-5
    assert (other - usual).abs().max() > 1e-3
    again = LatentDiffusion.from_pretrained(folder)
    assert again.diffusion.prediction == "flow_prediction"
    assert again.diffusion.scheduler_config == model.diffusion.scheduler_config
    assert torch.equal(again.sample("a red square", **DRAWING), usual)
    wrapped = model.pipeline()
    assert wrapped.scheduler.config.shift == 3
    from hyperbrush.ldm.models.loading import from_pipeline

    for one in (pipe, wrapped):  # a scheduler swapped in, and its own
        opened = from_pipeline(LatentDiffusion, one)
        assert opened.diffusion.scheduler_config == model.diffusion.scheduler_config


@pytest.mark.parametrize("sampler", ["Flow Euler", "Flow Heun", "DPM++ 2M"])
def test_a_strength_follows_the_steps(
    model: LatentDiffusion, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperbrush.hypernetworks.attaching.progress import Progress

    progress, seen = Progress(model), []
    forward = model.unet.forward

    def watch(sample: Any, timestep: Any, *rest: Any, **options: Any) -> Any:
        progress.see(timestep)
        seen.append(progress.at(timestep))
        return forward(sample, timestep, *rest, **options)

    monkeypatch.setattr(model.unet, "forward", watch)
    model.sample("a red square", sampler=sampler, seeds=[0], steps=3, guidance_scale=1.0)
    assert seen == {"Flow Heun": [0, 0.5, 0.5, 1, 1]}.get(sampler, [0, 0.5, 1])


def test_a_folder_of_others_is_read_or_refused(folder: Path, tmp_path: Path) -> None:
    """As another program writes it: the class alone says that it is a flow."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "hyperbrush.json").unlink()
    config = other / "scheduler/scheduler_config.json"
    write_json(config, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    opened = LatentDiffusion.from_pretrained(other)
    assert (
        opened.diffusion.scheduler_config
        == LatentDiffusion.from_pretrained(folder).diffusion.scheduler_config
    )
    write_json(config, read_json(config) | {"use_dynamic_shifting": True})
    with pytest.raises(UserError, match="the model's scheduler has use_dynamic_shifting True"):
        LatentDiffusion.from_pretrained(other)


def test_what_a_flow_does_not_have_is_refused_by_name(model: LatentDiffusion, make_tiny: Make) -> None:
    for wrong, message in (
        ({"zero_terminal_snr": True}, "zero_terminal_snr is of a variance-preserving process"),
        ({"schedule": "linear"}, "a noise schedule is of a variance-preserving process"),
        ({"shift": -1.0}, "shift must be a number above 0"),
    ):
        with pytest.raises(UserError, match=message):
            make_tiny(prediction="flow_prediction", **wrong)
    with pytest.raises(UserError, match="shift 3 is of prediction 'flow_prediction' alone"):
        make_tiny(shift=3.0)
    with pytest.raises(UserError, match="'DDIM' cannot use a model that predicts 'flow_prediction'"):
        model.sample("a red square", sampler="DDIM", steps=1)
    with pytest.raises(UserError, match="'Flow Heun' cannot use a model that predicts 'v_prediction'"):
        make_tiny().sample("a red square", sampler="Flow Heun", steps=1)
    with pytest.raises(UserError, match="'min_snr' is not defined for a model trained by flow matching"):
        model({"images": torch.zeros(1, 3, 32, 32), "captions": ["x"]}, weighting="min_snr")

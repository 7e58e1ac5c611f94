"""A transformer as the denoiser: diffusers' own call and pipeline, its folder, a hypernetwork on it, what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_helpers import merge

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.files import read_json
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.device import set_attention
from hyperbrush.ldm.models.transformer import build_transformer

Make = Callable[..., LatentDiffusion]
SHAPE: dict[str, Any] = {
    "latent_dim": 4,
    "sample_size": 16,
    "context_dim": 32,
    "width": 16,
    "layers": 2,
    "num_heads": 2,
}
DRAWING: dict[str, Any] = {"seeds": [7], "steps": 3, "guidance_scale": 3.0, "output": "latents"}


def learned(**settings: Any) -> torch.nn.Module:
    """With weights everywhere: a fresh one gives 0 and reads no text."""
    torch.manual_seed(1)
    made = build_transformer(**(SHAPE | settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture(scope="module", params=["v_prediction", "flow_prediction"])
def model(request: pytest.FixtureRequest, make_tiny: Make) -> LatentDiffusion:
    return make_tiny(unet=learned(), prediction=request.param).eval()


@pytest.fixture(scope="module")
def folder(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer") / "model"
    model.save_pretrained(path)
    return path


@torch.no_grad()
def test_a_fresh_one_begins_as_pixart_does() -> None:
    torch.manual_seed(0)
    made: Any = build_transformer(**SHAPE)
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 32)
    assert made(x, encoder_hidden_states=text, timestep=torch.tensor([3])).sample.abs().max() == 0
    torch.nn.init.normal_(made.proj_out.weight)
    one, other = (made(x, encoder_hidden_states=t, timestep=torch.tensor([3])).sample for t in (text, -text))
    assert torch.equal(one, other), "no text yet"
    assert one.abs().max() > 0
    assert 0.015 < float(made.adaln_single.linear.weight.std()) < 0.025


@torch.no_grad()
def test_the_loss_is_that_of_diffusers_own_call(model: LatentDiffusion) -> None:
    x0, noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context, timesteps = model.encode_text(["a red square", ""]), torch.tensor([0, 700])
    if model.diffusion.prediction == "flow_prediction":
        share = torch.tensor([0.001, 0.701])  # σ of both
        told, signal, goal = share * 1000, 1 - share, noise - x0
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)[timesteps]
        signal, share = alphas.sqrt().float(), (1 - alphas).sqrt().float()
        told = timesteps
        goal = signal.view(-1, 1, 1, 1) * noise - share.view(-1, 1, 1, 1) * x0
    noisy = signal.view(-1, 1, 1, 1) * x0 + share.view(-1, 1, 1, 1) * noise
    out = model.unet(noisy, encoder_hidden_states=context, timestep=told).sample
    found = model.diffusion.losses(x0, noise, timesteps, context)
    assert torch.allclose(found, ((out - goal) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_gradients_reach_every_weight(model: LatentDiffusion) -> None:
    batch = {"latents": torch.randn(2, 4, 16, 16), "captions": ["a red square", "a circle"]}
    model(batch, torch.Generator().manual_seed(0)).backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for n, p in model.unet.named_parameters()
        if "attn1.to_k.bias" not in n and "attn2.to_k.bias" not in n
    )
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_its_folder_opens_in_plain_diffusers_and_here(model: LatentDiffusion, folder: Path) -> None:
    from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, PixArtSigmaPipeline

    assert read_json(folder / "model_index.json")["transformer"] == ["diffusers", "PixArtTransformer2DModel"]
    assert not (folder / "unet").exists()
    again = LatentDiffusion.from_pretrained(folder)
    assert torch.equal(again.sample(["a red square"], **DRAWING), model.sample(["a red square"], **DRAWING))
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipe) is PixArtSigmaPipeline
    assert type(model.pipeline()) is PixArtSigmaPipeline
    flows = model.diffusion.prediction == "flow_prediction"
    kind = DPMSolverMultistepScheduler if flows else DDIMScheduler
    pipe.scheduler = kind.from_config(
        pipe.scheduler.config
    )  # FlowMatchEuler has not what PixArt's pipeline calls
    pipe.set_progress_bar_config(disable=True)
    text, empty = model.encode_text(["a red square"]), model.encode_text([""])
    every = torch.ones(text.shape[:2])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    made = pipe(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=text,
        prompt_attention_mask=every,
        negative_prompt_embeds=empty,
        negative_prompt_attention_mask=every,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
        use_resolution_binning=False,
    ).images
    if flows:
        assert made.isfinite().all()
        return
    ours = model.sample(["a red square"], sampler="DDIM", **DRAWING)
    assert torch.allclose(ours, made, atol=1e-4 * float(made.abs().max()))


@torch.no_grad()
def test_a_hypernetwork_acts_on_it(model: LatentDiffusion) -> None:
    hn = hb.AttentionHypernetwork.for_transformer(model.unet, name="mine", layer_structure=(1, 2, 1))
    for parameter in hn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bare = model.sample(["a red square"], **DRAWING)
    with hb.attach(model, hn) as attached:
        assert "4 of 4" in str(attached.applied)
        changed = model.sample(["a red square"], **DRAWING)
        attached.set_strengths([0.0])
        assert torch.equal(model.sample(["a red square"], **DRAWING), bare)
    assert not torch.allclose(changed, bare, atol=1e-2)
    assert torch.equal(model.sample(["a red square"], **DRAWING), bare)


@torch.no_grad()
def test_generated_weights_act_on_it(model: LatentDiffusion) -> None:
    target = hb.TargetNetwork(model)
    net = hb.Hypernetwork(None, 16, 16, target=target, rank=2, heads=2, depth=1)
    for parameter in net.decoder.parameters():  # every change begins at 0
        torch.nn.init.normal_(parameter, std=0.3)
    weights = net.generate_weights("a red square")
    assert weights.metadata["family"] == "PixArt"
    bare = model.sample(["a red square"], **DRAWING)
    with hb.attach(model, weights):
        changed = model.sample(["a red square"], **DRAWING)
    other = copy.deepcopy(model)
    merge(other.unet, weights)
    expected = other.sample(["a red square"], **DRAWING)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed, bare, atol=1e-2)
    assert torch.equal(model.sample(["a red square"], **DRAWING), bare)


def test_what_it_cannot_is_refused_by_name(model: LatentDiffusion, make_tiny: Make) -> None:
    from diffusers import SD3Transformer2DModel

    for wrong, message in (
        ({"conditioning": "class", "num_classes": 3}, "reads text alone, not conditioning 'class'"),
        ({"conditioning": "none"}, "reads text alone, not conditioning 'none'"),
    ):
        with pytest.raises(UserError, match=message):
            make_tiny(unet=learned(), **wrong)
    with pytest.raises(UserError, match="width 30 is not divisible by 4 heads"):
        build_transformer(**(SHAPE | {"width": 30, "num_heads": 4}))
    with pytest.raises(UserError, match="width 18 is not divisible by 4, for the positions"):
        build_transformer(**(SHAPE | {"width": 18}))
    with pytest.raises(UserError, match="patches of 3 do not fit latents 16 wide"):
        build_transformer(**(SHAPE | {"patch_size": 3}))
    sd3 = SD3Transformer2DModel(
        sample_size=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    with pytest.raises(UserError, match="SD3Transformer2DModel cannot be the denoiser"):
        make_tiny(unet=sd3)
    with pytest.raises(UserError, match="has no attention 'sliced'"):
        set_attention(model.unet, "sliced")
    with pytest.raises(UserError, match="multiples of its patches' side 2"):
        model.diffusion(torch.zeros(1, 4, 15, 16), torch.tensor(3), torch.zeros(1, 5, 32))

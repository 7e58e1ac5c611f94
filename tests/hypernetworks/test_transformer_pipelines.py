"""Attaching to pipelines of transformers, and what is refused there."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformer_helpers import MODELS, TEXT, run

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.convert.lora import to_lora
from hyperbrush.hypernetworks.files.modelspec import architecture
from hyperbrush.ldm.modules.transformer_sites import LAYOUTS


def flux(dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    transformer = MODELS["Flux"][0]().to(dtype)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.FluxPipeline(scheduler, None, None, None, None, None, transformer)
    texts = {
        "prompt_embeds": torch.ones(1, TEXT, 12, dtype=dtype),
        "pooled_prompt_embeds": torch.ones(1, 10, dtype=dtype),
    }
    return pipe, texts | {"guidance_scale": 1.0}


def z_image(dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    transformer = MODELS["ZImage"][0]().to(dtype)
    pipe = diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, transformer
    )
    texts = {
        "prompt_embeds": [torch.ones(5, 12, dtype=dtype)],
        "negative_prompt_embeds": [torch.zeros(3, 12, dtype=dtype)],
    }
    return pipe, texts | {"guidance_scale": 3.0}


@pytest.mark.parametrize("make", [flux, z_image])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_schedules_follow_a_pipelines_steps(make: Any, dtype: torch.dtype) -> None:
    pipe, settings = make(dtype)
    pipe.set_progress_bar_config(disable=True)
    settings |= {"num_inference_steps": 5, "output_type": "latent", "height": 32, "width": 32}
    network = AttentionHypernetwork.for_transformer(pipe.transformer, weight_init="XavierNormal", name="mine")

    def draw() -> torch.Tensor:
        out: torch.Tensor = pipe(**settings, generator=torch.Generator().manual_seed(1)).images
        return out

    bare, seen = draw(), []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return progress

    with attach(pipe, (network, schedule)) as attached:
        changed = draw()
        assert str(attached.applied).startswith(f"{len(network.sites)} of {len(network.sites)} sites reached")
    assert not torch.equal(changed, bare)
    assert torch.equal(draw(), bare)
    assert list(dict.fromkeys(seen))[-5:] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_the_page_on_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.S)[:1]:  # the next: test_generator_pipelines
        exec(compile(block, "models.md", "exec"), {"pipe": flux(torch.float32)[0]})
        shown = capsys.readouterr().out.splitlines()
        assert f"print(attached.applied)  # {shown[0]}" in block
    for layout in LAYOUTS:
        assert f"| `{layout}` |" in page
    assert hb.load("mine.safetensors").name == "mine"
    assert architecture(hb.load("mine.safetensors")) == "latent-diffusion"


def test_an_old_file_explains_itself(tmp_path: Path) -> None:
    path = AttentionHypernetwork(name="water").save(tmp_path / "water.pt")
    with pytest.raises(UserError) as caught:
        attach(MODELS["Flux"][0](), hb.load(path))
    assert str(caught.value) == (
        "'water' reaches none of this Flux.1 transformer's 4 sites: it has networks for widths 320, 640, 768, 1280, but "
        "the contexts are 16 wide. The file is likely for Stable Diffusion 1.x. Use a hypernetwork made for this model, "
        "or the model it was made for"
    )


def test_one_width_is_one_pair_for_every_stream() -> None:
    model, call = MODELS["Flux"][0](), MODELS["Flux"][1]()
    shared = AttentionHypernetwork([16], layer_structure=(1, 2, 1), weight_init="XavierNormal", name="wide")
    with torch.no_grad(), attach(model, shared) as attached:
        assert str(attached.applied) == "4 of 4 sites reached: 2 of the picture, 2 of the text; widths 16"
        together = run(model, call)
    each = AttentionHypernetwork.for_transformer(model, layer_structure=(1, 2, 1))
    for _, pair in each.pairs():
        pair.load_state_dict(shared.network_for(16).state_dict())  # type: ignore[union-attr]
    with torch.no_grad(), attach(model, each):
        torch.testing.assert_close(run(model, call), together)


def test_what_is_refused() -> None:
    model = MODELS["Flux"][0]()
    network = AttentionHypernetwork.for_transformer(model, name="mine")
    with pytest.raises(UserError, match="use AttentionHypernetwork.for_transformer"):
        AttentionHypernetwork.for_unet(model)
    with pytest.raises(UserError, match="FluxPipeline is no torch module: hand over its unet or transformer"):
        AttentionHypernetwork.for_transformer(flux(torch.float32)[0])
    with (
        attach(model, network) as attached,
        pytest.raises(UserError, match="cannot fuse hypernetworks into Flux.1"),
    ):
        attached.fuse()
    with pytest.raises(UserError, match="cannot be told apart on transformers"):
        attach(model, network, guidance="conditional")
    with pytest.raises(UserError, match=r"unknown kind of attention 'words'.*text"):
        attach(model, network, attn=["words"])
    with pytest.raises(UserError, match=r"unknown block 'up'.*single_transformer_blocks"):
        attach(model, network, blocks=["up"])
    soft = AttentionHypernetwork([16], activation="softmax", name="soft")
    with pytest.raises(UserError, match="'soft' has the activation 'softmax'"):
        attach(model, soft)
    with pytest.raises(UserError, match="Flux.1, Flux.2"):
        attach(torch.nn.ModuleDict({"a": model, "b": MODELS["Flux2"][0]()}), network)
    with pytest.raises(
        UserError, match=r"does not know the attentions of: expected a UNet, or a transformer of PixArt, "
    ):
        attach(
            diffusers.DiTTransformer2DModel(1, 16, num_layers=1, sample_size=8, norm_num_groups=4), network
        )
    for given in (model, flux(torch.float32)[0]):
        with pytest.raises(UserError, match="expected a (diffusers )?UNet2DConditionModel"):
            to_lora(network, given)
    model.fuse_qkv_projections()
    with pytest.raises(UserError, match="has fused projections, so that"):
        attach(model, network)


@torch.no_grad()
def test_z_images_several_pictures_a_prompt_are_refused() -> None:
    model, call = MODELS["ZImage"][0](), MODELS["ZImage"][1]()
    call |= {"x": [[x] for x in call["x"]], "cap_feats": [[c] for c in call["cap_feats"]]}
    network = AttentionHypernetwork.for_transformer(model)
    with attach(model, network), pytest.raises(UserError, match="Z-Image's omni mode"):
        run(model, call)


@torch.no_grad()
def test_compiled() -> None:
    model, call = MODELS["Flux"][0](), MODELS["Flux"][1]()
    network = AttentionHypernetwork.for_transformer(model, weight_init="XavierNormal")
    with attach(model, (network, 0.7)) as attached:
        expected = run(model, call)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(run(compiled, call), expected, rtol=1e-4, atol=1e-4)
        attached.set_strengths(0.2)
        torch.testing.assert_close(run(compiled, call), run(model, call), rtol=1e-4, atol=1e-4)

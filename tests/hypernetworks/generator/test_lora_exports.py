"""Exported adapters in plain diffusers, in PEFT and in kohya's layout: the same UNet output as in place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TargetNetwork

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5


@pytest.mark.parametrize("form", ["lora-diffusers", "lora-peft", "lora-kohya"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_same_output_as_in_place(
    form: str,
    family: str,
    make_pipe: Make,
    make_weights: Make,
    call: Make,
    relative: Make,
    tmp_path: Path,
) -> None:
    pipe = make_pipe("text", family)
    weights = make_weights(pipe.unet, rank=3)
    bare = call(pipe.unet)
    with TargetNetwork(pipe).apply_weights(weights):
        expected = call(pipe.unet)
    name = "ink" if form == "lora-peft" else "ink.safetensors"
    path = weights.save(tmp_path / name, form)
    if form == "lora-peft":
        from peft import PeftModel

        out = call(PeftModel.from_pretrained(pipe.unet, str(path)))
    else:
        pipe.load_lora_weights(tmp_path, weight_name=name)
        out = call(pipe.unet)
    assert relative(out, expected) < BOUND
    assert relative(out, bare) > 1e-2
    again = GeneratedWeights.load(path)
    assert set(again.layers) == set(weights.layers)
    for layer in weights.layers:
        assert torch.allclose(again.delta(layer), weights.delta(layer), atol=1e-5)


def test_kohyas_layout_by_hand(make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    """W + up·down·alpha/rank under kohya's names, as its own loader has it."""
    unet = make_unet()
    weights = make_weights(unet, rank=3)
    state = load_file(weights.save(tmp_path / "ink.safetensors", "lora-kohya"))
    assert len(state) == 3 * len(weights.layers)
    for layer in weights.layers:
        name = "lora_unet_" + layer.replace(".", "_")
        alpha, down, up = (
            state[f"{name}.{part}"] for part in ("alpha", "lora_down.weight", "lora_up.weight")
        )
        assert torch.allclose(up @ down * (alpha / len(down)), weights.delta(layer), atol=1e-5)


def test_several_ranks_and_dtype(
    make_pipe: Make, make_weights: Make, call: Make, relative: Make, tmp_path: Path
) -> None:
    pipe = make_pipe()
    mixed = make_weights(pipe.unet) + make_weights(pipe.unet, seed=1, layers=["attn2"])
    with TargetNetwork(pipe).apply_weights(mixed):
        expected = call(pipe.unet)
    for form, dtype, bound in (("lora-diffusers", None, BOUND), ("lora-kohya", torch.float16, 1e-2)):
        path = mixed.save(tmp_path / "ink.safetensors", form, dtype=dtype)
        assert {v.dtype for k, v in load_file(path).items()} == {dtype or torch.float32}
        pipe.load_lora_weights(tmp_path, weight_name="ink.safetensors")
        assert relative(call(pipe.unet), expected) < bound
        pipe.unload_lora_weights()


def test_other_peoples_files(make_unet: Make, tmp_path: Path) -> None:
    """alpha other than the rank, as PEFT's config and kohya's files have it."""
    unet = make_unet()
    layer = TargetNetwork(unet, ["mid.attn2.to_v"]).targets[0]
    down, up = torch.randn(2, layer.in_width), torch.randn(layer.out_width, 2)
    kohya = "lora_unet_" + layer.name.replace(".", "_")
    save_file(
        {
            f"{kohya}.lora_down.weight": down,
            f"{kohya}.lora_up.weight": up,
            f"{kohya}.alpha": torch.tensor(1.0),
        },
        tmp_path / "kohya.safetensors",
    )
    folder = tmp_path / "peft"
    folder.mkdir()
    name = f"base_model.model.{layer.name}"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, "alpha_pattern": None}))
    old = {
        f"unet.{layer.name}.lora.down.weight": down,
        f"unet.{layer.name}.lora.up.weight": up * 0.5,
    }
    save_file(old, tmp_path / "old.safetensors")
    for path in (tmp_path / "kohya.safetensors", folder, tmp_path / "old.safetensors"):
        found = GeneratedWeights.load(path)
        assert torch.allclose(found.delta(layer.name), 0.5 * up @ down, atol=1e-6), path
        assert found.name == path.stem


def test_what_is_no_lora_of_attentions(make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    weights = GeneratedWeights({"768.key.layers.0": Factors(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(UserError, match="a LoRA changes a UNet's attentions"):
        weights.save(tmp_path / "a.safetensors", "lora-kohya")
    with pytest.raises(UserError, match="is a folder; name one without a suffix"):
        make_weights(make_unet()).save(tmp_path / "a.safetensors", "lora-peft")
    text = "text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({text: torch.ones(1, 4)}, tmp_path / "b.safetensors")
    with pytest.raises(
        UserError, match="neither generated weights nor a LoRA of a UNet's attentions: it has 1"
    ):
        GeneratedWeights.load(tmp_path / "b.safetensors")
    half = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    save_file({half: torch.ones(1, 4)}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="lacks one of its two matrices"):
        GeneratedWeights.load(tmp_path / "c.safetensors")

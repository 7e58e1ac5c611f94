"""LoRA files of other people: PEFT's own scales, and files that change more than attentions."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import GeneratedWeights, TargetNetwork

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5
ATTENTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
SITE = "mid_block.attentions.0.transformer_blocks.0"
SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 2, "lora_alpha": 5},
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True},
    "whole names": {"alpha_pattern": {f"{SITE}.attn2.to_k": 9.0}},
    "the end of a name": {"alpha_pattern": {"to_k": 9.0, "attn2.to_v": 0.5}},
    "regular expressions": {"alpha_pattern": {r"up_blocks\\.\\d+\\..*to_q": 7, ".*attn1.to_(k|v)": 3}},
    "the first that fits": {"alpha_pattern": {"attn1.to_k": 2, "to_k": 9, "mid_block.*to_k": 5}},
    "ends within a word": {"alpha_pattern": {"_k": 9, "o_v": 9, "k": 9}},
    "ranks too": {
        "rank_pattern": {"attn1.to_k": 4, "attn2.to_v": 1},
        "alpha_pattern": {"to_k": 6},
        "use_rslora": True,
    },
    "gaussian": {"init_lora_weights": "gaussian", "lora_alpha": 1.5},
}


def adapted(unet: Any, settings: dict[str, Any], targets: list[str]) -> Any:
    """PEFT's model with a LoRA that changes something."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(unet, LoraConfig(**{"r": 2, "target_modules": targets} | settings))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_peft_folders_as_peft_computes_them(
    name: str, make_unet: Make, call: Make, relative: Make, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapted(make_unet(), SETTINGS[name], ATTENTIONS).save_pretrained(tmp_path / "ink")
    # Not as it was before it was saved: PEFT sorts the patterns, of which the first counts.
    expected = call(PeftModel.from_pretrained(make_unet(), str(tmp_path / "ink")))
    unet = make_unet()
    bare = call(unet)
    with TargetNetwork(unet).apply_weights(GeneratedWeights.load(tmp_path / "ink")):
        assert relative(call(unet), expected) < BOUND
    assert relative(bare, expected) > 1e-2


@pytest.mark.parametrize("name", SETTINGS)
def test_diffusers_files_with_settings(
    name: str, make_pipe: Make, call: Make, relative: Make, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = make_pipe()
    pipe.unet.add_adapter(LoraConfig(**{"r": 2, "target_modules": ATTENTIONS} | SETTINGS[name]))
    torch.manual_seed(5)
    for key, parameter in pipe.unet.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)),
        weight_name="ink.safetensors",
        **_collate_lora_metadata({"unet": pipe.unet}),
    )
    pipe = make_pipe()
    pipe.load_lora_weights(tmp_path, weight_name="ink.safetensors")
    expected = call(pipe.unet)
    pipe = make_pipe()
    with TargetNetwork(pipe).apply_weights(GeneratedWeights.load(tmp_path / "ink.safetensors")):
        assert relative(call(pipe.unet), expected) < BOUND


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, "was begun with init_lora_weights 'pissa'"),
    "unknown start": ({"init_lora_weights": "of_2027"}, "'of_2027', which changes the model's own weights"),
    "dora": ({"use_dora": True}, "has use_dora"),
    "bias": ({"lora_bias": True}, "has lora_bias, with which B·A alone is not the change"),
    "a variant": ({"use_bdlora": {"nblocks": 2}}, "has use_bdlora"),
    "alpha of text": ({"lora_alpha": "much"}, "settings are damaged"),
    "alpha of NaN": ({"lora_alpha": float("nan")}, "settings are damaged"),
    "pattern of a list": ({"alpha_pattern": ["to_k"]}, "settings are damaged"),
    "no expression": ({"alpha_pattern": {"to_(k": 2}}, r"'to_\(k' is no regular expression"),
    "one without end": ({"alpha_pattern": {"(a*)*b": 2}}, "is too involved"),
    "a long one": ({"alpha_pattern": {"a" * 400: 2}}, "is too involved"),
    "many repeats": ({"alpha_pattern": {".*.*.*.*x": 2}}, "is too involved"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_mean_something_else(name: str, make_unet: Make, tmp_path: Path) -> None:
    settings, message = BAD[name]
    adapted(make_unet(), {}, ATTENTIONS).save_pretrained(tmp_path / "ink")
    config = tmp_path / "ink/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        GeneratedWeights.load(tmp_path / "ink")
    for text in ("[1]", "{", "nothing", '"x"'):
        config.write_text(text)
        with pytest.raises(UserError, match="settings are damaged"):
            GeneratedWeights.load(tmp_path / "ink")


def test_the_attentions_of_a_larger_lora(
    make_unet: Make, call: Make, relative: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT's LoRA of attentions and feed-forward layers: the same without its feed-forward matrices."""
    model = adapted(make_unet(), {"lora_alpha": 5}, [*ATTENTIONS, "ff.net.0.proj", "ff.net.2", "proj_in"])
    model.save_pretrained(tmp_path / "ink")
    for name, parameter in model.named_parameters():
        if "lora_B" in name and ".attn" not in name:
            parameter.data.zero_()
    expected = call(model)
    with caplog.at_level(logging.WARNING, "hyperbrush"):
        weights = GeneratedWeights.load(tmp_path / "ink")
    unet = make_unet()
    with TargetNetwork(unet).apply_weights(weights):
        assert relative(call(unet), expected) < BOUND
    assert "layers of attentions; left out" in caplog.text
    assert "(feed-forward)" in caplog.text
    assert "(projections around attentions)" in caplog.text


TEXT = {
    "kohya": "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "kohya of XL": "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.alpha",
    "diffusers": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "diffusers of XL": "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
}


@pytest.mark.parametrize("name", TEXT)
def test_a_text_encoder_beside_it(
    name: str, make_unet: Make, make_weights: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = make_weights(make_unet(), rank=2)
    path = weights.save(tmp_path / "ink.safetensors", "lora-kohya" if "kohya" in name else "lora-diffusers")
    tensors = load_file(path) | {TEXT[name]: torch.ones(2, 4)}
    save_file(tensors, path)
    with caplog.at_level(logging.WARNING, "hyperbrush"):
        again = GeneratedWeights.load(path)
    assert "1 (text encoder)" in caplog.text
    assert TEXT[name][:60] in caplog.text
    for layer in weights.layers:
        assert torch.allclose(again.delta(layer), weights.delta(layer), atol=1e-5)
    caplog.clear()
    GeneratedWeights.load(weights.save(tmp_path / "plain.safetensors", "lora-kohya"))
    assert not caplog.text


@pytest.mark.parametrize(
    "part",
    [
        "dora_scale",
        "hada_w1_a",
        "lokr_w1",
        "diff",
        "lora_magnitude_vector",
        "lora_B.bias",
        "diff_b",
        "weight",
    ],
)
def test_attentions_changed_in_another_way(
    part: str, make_unet: Make, make_weights: Make, tmp_path: Path
) -> None:
    weights = make_weights(make_unet(), rank=2)
    for form in ("lora-kohya", "lora-diffusers"):
        path = weights.save(tmp_path / "ink.safetensors", form)
        tensors = load_file(path)
        layer = next(iter(tensors)).partition(".lora_")[0].removesuffix(".alpha")
        save_file(tensors | {f"{layer}.{part}": torch.ones(4)}, path)
        with pytest.raises(UserError, match="changes attentions by more than two matrices each"):
            GeneratedWeights.load(path)


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.tensor(float("nan"))])
def test_an_alpha_that_is_no_number(
    alpha: torch.Tensor, make_unet: Make, make_weights: Make, tmp_path: Path
) -> None:
    path = make_weights(make_unet(), rank=2).save(tmp_path / "ink.safetensors", "lora-kohya")
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith(".alpha"))
    save_file(tensors | {name: alpha}, path)
    with pytest.raises(UserError, match="the alpha of .* is no finite number"):
        GeneratedWeights.load(path)


def test_the_layouts_of_2023(make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    """LoRA in diffusers' attention processors, an alpha beside diffusers' names."""
    weights = make_weights(make_unet(), rank=2)
    processors, beside = {}, {}
    for layer, factors in weights.folded().factors.items():
        path, _, projection = layer.removesuffix(".0").rpartition(".")
        for part, value in (("down", factors.down), ("up", factors.up)):
            processors[f"unet.{path}.processor.{projection}_lora.{part}.weight"] = value.contiguous()
        beside[f"unet.{layer}.lora_A.weight"] = factors.down.contiguous()
        beside[f"unet.{layer}.lora_B.weight"] = (factors.up * 4).contiguous()
        beside[f"unet.{layer}.alpha"] = torch.tensor(0.5)
    for name, tensors in (("processors", processors), ("beside", beside)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        again = GeneratedWeights.load(tmp_path / f"{name}.safetensors")
        assert set(again.layers) == set(weights.layers)
        for layer in weights.layers:
            assert torch.allclose(again.delta(layer), weights.delta(layer), atol=1e-5)


def test_kohyas_names_for_xl(tmp_path: Path) -> None:
    """The original blocks' names, as diffusers' own converter maps them."""
    places = {
        "input_blocks_4_1": "down_blocks.1.attentions.0",
        "input_blocks_5_1": "down_blocks.1.attentions.1",
        "input_blocks_7_1": "down_blocks.2.attentions.0",
        "input_blocks_8_1": "down_blocks.2.attentions.1",
        "middle_block_1": "mid_block.attentions.0",
        "output_blocks_0_1": "up_blocks.0.attentions.0",
        "output_blocks_2_1": "up_blocks.0.attentions.2",
        "output_blocks_3_1": "up_blocks.1.attentions.0",
        "output_blocks_5_1": "up_blocks.1.attentions.2",
    }
    tensors = {}
    for place in places:
        name = f"lora_unet_{place}_transformer_blocks_3_attn2_to_out_0"
        tensors[f"{name}.lora_down.weight"] = torch.ones(1, 4)
        tensors[f"{name}.lora_up.weight"] = torch.ones(4, 1)
        tensors[f"{name}.alpha"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "xl.safetensors")
    found = GeneratedWeights.load(tmp_path / "xl.safetensors")
    assert found.layers == [f"{p}.transformer_blocks.3.attn2.to_out.0" for p in places.values()]
    assert all(torch.equal(delta, torch.full((4, 4), 0.5)) for delta in found.delta().values())

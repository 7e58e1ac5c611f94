"""Inspection: everything a file says, and what its numbers do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.files import sha256
from hyperbrush.hypernetworks import AttentionHypernetwork, load, save
from hyperbrush.hypernetworks.files.optimizer import write_optimizer
from hyperbrush.hypernetworks.files.torch_writing import foreign_members
from hyperbrush.hypernetworks.files.webui import content_of
from hyperbrush.hypernetworks.library.inspection import inspect

SD1 = (320, 640, 768, 1280)


def make(widths: Any = (8, 12), name: str = "net", **settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(widths, **{"weight_init": "XavierNormal", "name": name} | settings)


def saved(hn: AttentionHypernetwork, folder: Path, suffix: str = ".safetensors") -> Path:
    return save(hn, folder / f"{hn.name}{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_everything_about_a_file(suffix: str, tmp_path: Path) -> None:
    hn = make(
        layer_structure=(1, 2, 3, 1), step=700, metadata={"sd_checkpoint_name": "sd-v1-5"}, activation="elu"
    )
    path = saved(hn, tmp_path, suffix)
    found = inspect(path)
    told = found.as_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == json.loads(json.dumps(told))
    assert told["kind"] == "attention hypernetwork"
    assert told["format"] == {".pt": "webui", ".safetensors": "safetensors"}[suffix]
    assert (told["widths"], told["structure"], told["activation"]) == ([8, 12], [1, 2, 3, 1], "elu")
    assert told["size"] == path.stat().st_size
    assert told["sha256"] == sha256(path)
    assert told["hash"] == sha256(path)[:10]
    assert told["parameters"] == sum(p.numel() for p in hn.parameters())
    assert told["step"] == 700
    assert told["trained_for"] == "sd-v1-5"
    assert told["metadata"]["sd_checkpoint_name"] == "sd-v1-5"
    assert told["dtypes"] == ["float32"]
    assert told["activate_output_given"] is True
    assert not told["affine"]
    assert told["optimizer"] is None
    assert "hyperbrush" in told["writer"] or "a program that writes its format" in told["writer"]
    assert len(told["networks"]) == 4
    network, facts = hn.network_for(8), found.networks[0]
    assert network is not None
    weight: Any = network.key.layers[1].linear.weight  # type: ignore[union-attr]
    assert facts.name == "width 8, keys"
    assert facts.layers == ((8, 16), (16, 24), (24, 8))
    assert facts.norms[1] == pytest.approx(float(weight.detach().norm()), rel=1e-6)


def test_the_effect_is_that_on_contexts_of_unit_variance(tmp_path: Path) -> None:
    hn = make((64,), activation=None, layer_structure=(1, 1))
    with torch.no_grad():
        for _, pair in hn.pairs():
            for network, scale in ((pair.key, 0.25), (pair.value, -3.0)):
                network.layers[0].linear.weight.copy_(scale * torch.eye(64))  # type: ignore[union-attr, operator]
    found = inspect(saved(hn, tmp_path))
    assert [n.effect for n in found.networks] == pytest.approx([0.25, 3.0])
    assert found.affine
    assert "exactly" in found.readers["LoRA"]
    [strong] = [odd for odd in found.odd if "stronger" in odd]
    assert "width 64, values adds 3.0 times" in strong


def test_dead_units_zeros_and_no_effect(tmp_path: Path) -> None:
    hn = make((8,), name="dead")
    with torch.no_grad():
        for _, pair in hn.pairs():
            pair.key.layers[0].linear.bias[:12] = -1e6  # type: ignore[index, union-attr, operator]
    found = inspect(saved(hn, tmp_path))
    assert [n.dead for n in found.networks] == [(0.75,), (0.0,)]
    assert any("dead units: 75%" in odd for odd in found.odd)
    start = inspect(saved(make((8,), name="start", weight_init="zero"), tmp_path))
    assert any("no network changes anything" in odd for odd in start.odd)
    with torch.no_grad():
        for parameter in next(hn.pairs())[1].value.parameters():
            parameter.zero_()
    hn.name = "half"
    half = inspect(saved(hn, tmp_path))
    assert any("nothing but zeros in width 8, values" in odd for odd in half.odd)
    assert any("without effect: width 8, values" in odd for odd in half.odd)


@pytest.mark.parametrize(
    ("widths", "family", "message"),
    [
        (SD1, "Stable Diffusion 1.x", None),
        ((768,), "Stable Diffusion 1.x", "also has contexts 320, 640, 1280 wide"),
        ((320, 640, 1024, 1280), "Stable Diffusion 2.x", None),
        (
            (320, 640, 1280, 2048),
            "Stable Diffusion XL",
            "networks for 320 fit nothing in Stable Diffusion XL",
        ),
        ((768, 1024), "", "cross-attention of Stable Diffusion 1.x and Stable Diffusion 2.x"),
        ((320, 640), "", "no network for cross-attention"),
        ((100,), "", "no Stable Diffusion has contexts 100 wide"),
    ],
)
def test_the_family_by_its_widths(widths: Any, family: str, message: str | None, tmp_path: Path) -> None:
    hn = make(widths, activation=None, layer_structure=(1, 1), weight_init="Normal")
    found = inspect(saved(hn.half(), tmp_path))
    assert found.summary.trained_for == family
    assert found.dtypes == ("float16",)
    if message is None:
        assert not found.odd
    else:
        assert any(message in odd for odd in found.odd)


def test_settings_that_deserve_a_look(tmp_path: Path) -> None:
    hn = make(name="inside", use_dropout=True, layer_norm=True, layer_structure=(1, 2, 2, 1))
    path = save(hn, tmp_path / "outside.pt")
    write_optimizer(path, "AdamW", torch.optim.AdamW(hn.parameters()).state_dict())
    found = inspect(path)
    for message in ("name inside is 'inside'", "dropout", "LayerNorm"):
        assert any(message in odd for odd in found.odd)
    assert found.optimizer == "outside.pt.optim (AdamW)"
    hn.step = 5
    save(hn, path)
    assert any("another save" in odd or "hash" in odd for odd in inspect(path).odd)
    (tmp_path / "outside.pt.optim").write_bytes(b"nothing")
    assert any("optimizer" in odd and "damaged" in odd for odd in inspect(path).odd)
    assert found.as_dict()["dropout_structure"] == [0.0, 0.3, 0.0, 0.0]
    assert "LayerNorm" in found.readers["ComfyUI"]


def test_files_that_the_webuis_check_refuses(tmp_path: Path) -> None:
    hn = make((8,), name="w", activation="relu")
    path = tmp_path / "w.pt"
    torch.save(content_of(hn), path)
    if not foreign_members(path):
        pytest.skip("this torch is so old that the webui opens what it writes")
    assert inspect(path).readers["webui"].startswith("no: its check refuses")
    assert inspect(path).readers["ComfyUI"] == "yes"
    save(load(path), path)
    assert inspect(path).readers["webui"] == "yes"
    state = write_optimizer(path, "AdamW", torch.optim.AdamW(hn.parameters()).state_dict())
    assert not [odd for odd in inspect(path).odd if "refuses it" in odd]
    torch.save(torch.load(state, weights_only=True), state)
    assert [odd for odd in inspect(path).odd if "w.pt.optim is of a newer torch: the webui refuses it" in odd]
    save(hn.to(torch.bfloat16), path)
    assert inspect(path).readers["webui"] == "since 2023, for its bfloat16 numbers"


def test_a_file_changed_by_another_program(tmp_path: Path) -> None:
    path = saved(make((8,)), tmp_path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert any("changed by another program" in odd for odd in inspect(path).odd)


def test_writers_by_what_they_left_out(tmp_path: Path) -> None:
    def written(content: Any, name: str) -> Any:
        torch.save(content, tmp_path / name)
        return inspect(tmp_path / name)

    content = content_of(make((8,), name="n", activation="relu"))
    for key in ("skip_connection", "upsample_linear"):
        del content[key]
    assert written(content, "n.pt").written.writer == "the webui of 2023 or later"
    del content["dropout_structure"]
    assert "late 2022" in written(content, "n.pt").written.writer
    del content["activate_output"]
    found = written(content, "n.pt")
    assert "autumn 2022" in found.written.writer
    assert not found.activate_output_given
    assert found.as_dict()["activate_output"] is True
    assert any("does not say activate_output" in odd for odd in found.odd)
    assert "differently" in found.readers["ComfyUI"]
    bare = {8: content[8]}
    assert "first format" in written(bare, "bare.pt").written.writer
    assert "kohya" in written({8: list(content[8])}, "bare.pt").written.writer
    residual = make((8,), name="r", skip_connection=True)
    assert "MonkeyPatch" in inspect(saved(residual, tmp_path, ".pt")).written.writer
    torch.save(content, tmp_path / "n.pt", _use_new_zipfile_serialization=False)
    assert inspect(tmp_path / "n.pt").written.legacy_zip


@pytest.mark.parametrize(
    ("settings", "suffix", "program", "words"),
    [
        ({}, ".pt", "webui", "yes"),
        ({}, ".ckpt", "webui", "name ends in .pt"),
        ({}, ".safetensors", "webui", "--to webui"),
        ({"skip_connection": True}, ".pt", "webui", "MonkeyPatch"),
        (
            {"widths": {"mid_block.attentions.0.transformer_blocks.0.attn2": 8}},
            ".safetensors",
            "webui",
            "per site",
        ),
        ({}, ".pt", "ComfyUI", "yes"),
        ({}, ".safetensors", "ComfyUI", "--to comfyui"),
        ({"activation": "gelu"}, ".pt", "ComfyUI", "no activation 'gelu'"),
        ({"dropout_structure": (0, 0.2, 0)}, ".pt", "ComfyUI", "dropout"),
        ({"activation": "hardswish"}, ".pt", "ComfyUI", "swish"),
        ({}, ".pt", "diffusers", "yes"),
        ({}, ".pt", "LoRA", "approximately"),
        ({"activation": "linear"}, ".pt", "LoRA", "exactly"),
        ({"activation": "softmax"}, ".pt", "LoRA", "no: softmax"),
        (
            {"widths": {"layers.0.attention.text": 8}, "activation": "linear"},
            ".safetensors",
            "LoRA",
            "no: it is for a transformer",
        ),
    ],
)
def test_who_reads_it(settings: Any, suffix: str, program: str, words: str, tmp_path: Path) -> None:
    assert words in inspect(saved(make(**settings), tmp_path, suffix)).readers[program]


def test_other_kinds_of_file_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    one = torch.ones(2)
    save_file({"lora_unet_x.lora_up.weight": one}, tmp_path / "lora.safetensors")
    torch.save({"string_to_param": {"*": one}}, tmp_path / "inversion.pt")
    torch.save({"state_dict": {"model.diffusion_model.x": one}}, tmp_path / "model.ckpt")
    for name, words in (
        ("lora.safetensors", "it is a LoRA"),
        ("inversion.pt", "it is a textual inversion"),
        ("model.ckpt", "it is a whole checkpoint"),
        ("nothing.pt", "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            inspect(tmp_path / name)

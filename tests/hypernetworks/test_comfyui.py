"""Files for ComfyUI: read by the two programs' own rules, told apart here, they compute the same.

The rules are those of the facts (shared/FACTS.md, section 1), written anew; `ours` is neither of them.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, load
from hyperbrush.hypernetworks.files.comfyui import ACTIVATIONS, comfyui_reason, write_comfyui

FUNCTIONS = {
    "linear": lambda x: x,
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "elu": F.elu,
    "swish": F.hardswish,  # in both programs
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "mish": F.mish,
}
STRENGTHS = (0.0, 0.7, 1.0, -0.5, 1.6)


def pairs_of(state: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weight, bias) in the order of the file."""
    tensors = list(state.values())
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def webui(content: dict[Any, Any], width: int, use: int, x: torch.Tensor, strength: float) -> torch.Tensor:
    """The webui's reading: a missing activate_output is True; no dropout outside training."""
    parts = iter(pairs_of(content[width][use]))
    layers = len(content["layer_structure"]) - 1
    y = x
    for layer in range(layers):
        y = F.linear(y, *next(parts))
        if layer < layers - 1 or content.get("activate_output", True):
            y = FUNCTIONS[content["activation_func"]](y)
        if content.get("is_layer_norm", False):
            weight, bias = next(parts)
            y = F.layer_norm(y, weight.shape, weight, bias)
    return x + strength * y


def comfyui(content: dict[Any, Any], width: int, use: int, x: torch.Tensor, strength: float) -> torch.Tensor:
    """ComfyUI's reading: a missing activate_output is False; with LayerNorm, the last layer is not seen as the
    last; dropout of 0.3 acts always; every key that is a number is a width."""
    for key in content:
        assert isinstance(key, int) or not key.lstrip("-").isdigit()
    norm = content.get("is_layer_norm", False)
    parts = pairs_of(content[width][use])
    last = len(parts) - 1
    y = x
    for place in range(0, len(parts), 2 if norm else 1):
        y = F.linear(y, *parts[place])
        if place != last or content.get("activate_output", False):
            y = FUNCTIONS[content["activation_func"]](y)
        if norm:
            weight, bias = parts[place + 1]
            y = F.layer_norm(y, weight.shape, weight, bias)
        hidden = place < last - 1 or (place == last - 1 and content.get("last_layer_dropout", False))
        if content.get("use_dropout", False) and hidden:
            y = F.dropout(y, 0.3)
    return x + strength * y


def network(**settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(**{"widths": [8, 12], "weight_init": "XavierNormal"} | settings)


def alike(path: Path) -> bool:
    """Whether both rules give the same, at every width, use and strength."""
    content = torch.load(path, weights_only=True)
    same = True
    for width in (key for key in content if isinstance(key, int)):
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
        for use in (0, 1):
            for strength in STRENGTHS:
                a, b = (rule(content, width, use, x, strength) for rule in (webui, comfyui))
                same &= torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    return same


def agrees_with_ours(hn: AttentionHypernetwork, path: Path) -> bool:
    content = torch.load(path, weights_only=True)
    same = True
    for width in hn.widths:
        x = torch.randn(2, 5, width)
        for strength in STRENGTHS:
            for use, ours in enumerate(hn.transform(x, strength)):
                theirs = comfyui(content, width, use, x, strength)
                same &= bool((ours - theirs).norm() <= 1e-5 * ours.norm())
    return same


@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 2, 1)])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "hardswish", None])
def test_both_programs_compute_ours(
    activation: str | None, structure: tuple[float, ...], activate_output: bool, tmp_path: Path
) -> None:
    hn = network(activation=activation, layer_structure=structure, activate_output=activate_output)
    assert comfyui_reason(hn) is None
    path = write_comfyui(hn, tmp_path / "w.pt")
    assert alike(path)
    assert agrees_with_ours(hn, path)
    back = load(path)
    x = torch.randn(1, 4, 8)
    assert torch.equal(back.transform(x)[0], hn.transform(x)[0])


def test_layer_norm_without_activation(tmp_path: Path) -> None:
    hn = network(activation="linear", layer_norm=True, layer_structure=(1, 2, 2, 1))
    path = write_comfyui(hn, tmp_path / "w.pt")
    assert alike(path)
    assert agrees_with_ours(hn, path)


def test_dropout_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hn = network(use_dropout=True, last_layer_dropout=True, layer_structure=(1, 2, 2, 1))
    hn.save(tmp_path / "plain.pt")
    assert not alike(tmp_path / "plain.pt")  # what the rule above is for
    with caplog.at_level(logging.WARNING, "hyperbrush"):
        path = write_comfyui(hn, tmp_path / "w.pt")
    assert "dropout only acts in training" in caplog.text
    assert alike(path)
    assert agrees_with_ours(hn, path)
    assert not load(path).use_dropout
    caplog.clear()
    write_comfyui(network(), tmp_path / "w.pt")
    assert not caplog.text


def webui_names(content: dict[Any, Any]) -> list[str]:
    """The webui's own numbers: Linear, activation, LayerNorm and Dropout count, in this order."""
    names, number = [], 0
    layers = len(content["layer_structure"]) - 1
    for layer in range(layers):
        names += [f"linear.{number}.weight", f"linear.{number}.bias"]
        number += 1
        if content["activation_func"] != "linear" and (layer < layers - 1 or content["activate_output"]):
            number += 1
        if content["is_layer_norm"]:
            names += [f"linear.{number}.weight", f"linear.{number}.bias"]
            number += 1
        number += content["dropout_structure"][layer + 1] > 0
    return names


@pytest.mark.parametrize("legacy_zip", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 2, 2, 1), (1, 1.5, 2, 1.5, 1)])
@pytest.mark.parametrize("dropout", [None, 0.3])
@pytest.mark.parametrize(("norm", "activation", "output"), [
    (False, "relu", False), (False, "tanh", True), (True, "relu", True), (True, "linear", False),
])  # fmt: skip
def test_the_names_are_those_the_webui_gives(
    norm: bool,
    activation: str,
    output: bool,
    dropout: float | None,
    structure: tuple[float, ...],
    legacy_zip: bool,
    tmp_path: Path,
) -> None:
    rates = None if dropout is None else (0, *[dropout] * (len(structure) - 2), 0)
    hn = network(
        activation=activation,
        layer_norm=norm,
        layer_structure=structure,
        dropout_structure=rates,
        activate_output=output,
    )
    written = write_comfyui(hn, tmp_path / "w.pt", legacy_zip=legacy_zip)
    assert written.read_bytes().startswith(b"PK") is not legacy_zip
    for path in (written, hn.save(tmp_path / "plain.pt")):
        content = torch.load(path, weights_only=True)
        for width in (8, 12):
            for state in content[width]:
                assert list(state) == webui_names(content)
    assert alike(written)
    assert agrees_with_ours(hn, written)


def test_files_of_numbers_for_names(tmp_path: Path) -> None:
    hn = network(name="water", step=5, metadata={"123": "a", "state_dict": "b", "sd_checkpoint": "c"})
    path = write_comfyui(hn, tmp_path / "w.pt")
    content = torch.load(path, weights_only=True)
    assert "123" not in content
    assert "state_dict" not in content
    assert (content["sd_checkpoint"], content["name"], content["step"]) == ("c", "water", 5)
    assert content["use_dropout"] is False
    assert content["activate_output"] is False
    assert alike(path)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"activation": "gelu"}, "ComfyUI has no activation 'gelu'; it has linear, relu"),
    "prelu": ({"activation": "prelu"}, "no activation 'prelu'"),
    "norm": ({"layer_norm": True, "activation": "relu"}, "LayerNorm and the activation 'relu'"),
    "norm and dropout": (
        {"layer_norm": True, "activation": "tanh", "use_dropout": True, "layer_structure": (1, 2, 2, 1)},
        "LayerNorm and the activation 'tanh'",
    ),
    "residual": ({"skip_connection": True}, "MonkeyPatch"),
    "sites": ({"widths": {"mid_block.attentions.0.transformer_blocks.0.attn2": 8}}, "per site"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str, tmp_path: Path) -> None:
    settings, message = REASONS[name]
    hn = network(**settings)
    reason = comfyui_reason(hn)
    assert reason is not None
    assert message in reason
    with pytest.raises(
        UserError, match="cannot be written so that ComfyUI and the webui read it alike"
    ) as error:
        write_comfyui(hn, tmp_path / "w.pt")
    assert reason in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_refused_layer_norm_would_differ(tmp_path: Path) -> None:
    network(layer_norm=True, activation="relu").save(tmp_path / "w.pt")
    assert not alike(tmp_path / "w.pt")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suffix \.pt, not '\.safetensors'"):
        write_comfyui(network(), tmp_path / "w.safetensors")

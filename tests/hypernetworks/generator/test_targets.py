from collections.abc import Callable
from typing import Any

import pytest

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import TargetNetwork, find_targets, sd15_targets, select
from hyperbrush.hypernetworks.weights.layers import from_rows, to_rows

Make = Callable[..., Any]


def test_stable_diffusion_15_without_a_unet() -> None:
    targets = sd15_targets()
    assert len(targets) == 128
    assert sum(t.in_width + t.out_width for t in targets) == 199_296
    assert [t.in_width for t in sd15_targets(["attn2.to_k"])] == [768] * 16


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_full_size_layers(kind: str) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from hyperbrush.assets import FOLDER

    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(str(FOLDER / "configs" / kind / "unet"))
        targets = find_targets(UNet2DConditionModel.from_config(config))
    assert len(targets) == {"sd1": 128, "sd2": 128, "sdxl": 560}[kind]
    if kind == "sd1":
        assert targets == sd15_targets()


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        ("attn1", lambda t: t.kind == "attn1"),
        ("to_k", lambda t: t.projection == "to_k"),
        ("to_out", lambda t: t.projection == "to_out.0"),
        ("to_out.0", lambda t: t.projection == "to_out.0"),
        ("up", lambda t: t.block.startswith("up")),
        ("down.1", lambda t: t.block == "down.1"),
        ("mid", lambda t: t.block == "mid"),
        ("up.attn2.to_v", lambda t: t.block[:2] == "up" and t.kind == "attn2" and t.projection == "to_v"),
        ("attn2.down.1", lambda t: t.block == "down.1" and t.kind == "attn2"),
        ("mid_block", lambda t: t.block == "mid"),
        ("*.attentions.1.*.to_q", lambda t: ".attentions.1." in t.name and t.projection == "to_q"),
        (sd15_targets()[5].name, lambda t: t == sd15_targets()[5]),
    ],
)
def test_patterns(pattern: str, holds: Any) -> None:
    targets = sd15_targets()
    assert select(targets, [pattern]) == [t for t in targets if holds(t)] != []


def test_patterns_add_up_in_the_layers_order() -> None:
    chosen = sd15_targets(["mid", "down.0.attn1", "mid.attn1"])
    assert len(chosen) == 8 + 8
    assert [t.block for t in chosen] == ["down.0"] * 8 + ["mid"] * 8


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["attn3"], "unknown target layer 'attn3'; did you mean .*attn"),
        (["attn2", "down.7"], "unknown target layer 'down.7'"),
        (["up.0.to_q"], "unknown target layer"),
        ("attn1", r"must be a list, not the text 'attn1': \['attn1'\]"),
        ([], "empty"),
    ],
)
def test_what_matches_nothing(layers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sd15_targets(layers)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_target_network(family: str, make_unet: Make) -> None:
    unet = make_unet(family)
    target = TargetNetwork(unet, ["attn2.to_k"])
    assert target.layers
    assert {t.in_width for t in target.targets} == {unet.config.cross_attention_dim}
    assert all(unet.get_submodule(t.name).weight.shape == (t.out_width, t.in_width) for t in target.targets)
    with pytest.raises(UserError, match="has no UNet"):
        TargetNetwork("unet")


def test_rows_of_a_file() -> None:
    targets = sd15_targets(["mid"])
    assert from_rows(to_rows(targets)) == targets
    for broken in ([], None, [["a"]], to_rows(targets) * 2, [["n", "attn1", "to_q", "mid", 0, -1, 4]], 5):
        with pytest.raises(UserError, match="damaged"):
            from_rows(broken)

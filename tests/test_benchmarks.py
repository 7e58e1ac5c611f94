"""The benchmarks' own parts on a tiny UNet: that what they time is what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hyperbrush as hb

TINY = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


@pytest.fixture(scope="module")
def inference(open_script: Callable[[str], ModuleType]) -> ModuleType:
    return open_script("benchmarks/inference.py")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)


@pytest.fixture
def unet(inference: ModuleType, config: Path) -> Any:
    torch.manual_seed(0)
    return inference.build_unet(config, torch.float32, "cpu")


def test_ours_computes_what_the_plain_way_computes(
    inference: ModuleType, unet: Any, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ways, facts, _ = inference.make_ways(unet, inputs, floor=1.1)
    bare = inference.Way("bare", unet, inputs).step()
    steps = {way.name: way.step() for way in ways}
    plain = steps["plain, as the webui does it"]
    assert (plain - bare).norm() > 1e-3 * bare.norm()
    for name in ("ours, all widths", "ours, all widths, first step", "ours, all widths, fp32 networks"):
        assert (steps[name] - plain).norm() < 1e-5 * plain.norm()
    for name in ("ours, cross-attention only", "ours, fused exactly", "ours, fused approximately"):
        assert (steps[name] - bare).norm() > 1e-4 * bare.norm()
    changing = next(way for way in ways if way.name == "ours, another strength every step")
    assert not torch.equal(changing.step(), steps[changing.name])
    assert all(seconds > 0 for seconds in facts.values())


def test_the_floor_is_self_attentions_networks(
    inference: ModuleType, unet: Any, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    bare = inference.flops(unet.to("meta"), inputs)
    tokens = {16: 2 * 64, 32: 2 * 16}  # of the two levels; 1,2,1 is twice w·2w, for keys and for values
    sites = [m.to_k.in_features for n, m in unet.named_modules() if n.endswith("attn1")]
    networks = sum(2 * 2 * 2 * tokens[w] * w * 2 * w for w in sites)
    assert inference.floor_of_flops(unet, inputs) == pytest.approx(1 + networks / bare, rel=1e-12)


def test_trees_share_weights_but_not_hooks(inference: ModuleType, unet: Any) -> None:
    tree = inference.tree_over_same_weights(unet)
    assert [p.data_ptr() for p in tree.parameters()] == [p.data_ptr() for p in unet.parameters()]
    with hb.attach(tree, hb.AttentionHypernetwork.for_unet(tree)):
        assert any(m._forward_pre_hooks for m in tree.modules())
        assert not any(m._forward_pre_hooks for m in unet.modules())


def test_first_steps_compute_cross_attention_again(
    inference: ModuleType, unet: Any, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ways, _, _ = inference.make_ways(unet, inputs, floor=1.1)
    calls: dict[str, int] = {}
    for way in ways:
        if way.name in ("ours, all widths", "ours, all widths, first step"):
            way.step()
            hidden = way.unet.mid_block.attentions[0].transformer_blocks[0].attn2
            calls[way.name] = 0

            def counted(module: Any, x: Any, name: str = way.name, wanted: Any = hidden.to_k) -> Any:
                calls[name] += module is wanted
                return torch.nn.functional.linear(x, module.weight, module.bias)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.nn.Linear, "forward", counted)
                way.step()
    assert calls == {"ours, all widths": 0, "ours, all widths, first step": 1}


def test_interval_holds_the_median_and_narrows(inference: ModuleType) -> None:
    few, many = inference.interval([1.0, 2.0, 3.0, 4.0]), inference.interval([1.0, 2.0, 3.0, 4.0] * 50)
    assert few["low"] <= few["median"] == 2.5 <= few["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]


def test_one_run_writes_and_prints_all_rows(
    inference: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    try:
        inference.main(
            [
                *("--pairs=2", "--threads=1", "--latents=8", "--dtype=float32", "--device=cpu"),
                *(f"--config={config}", f"--out={tmp_path}"),
            ]
        )
    finally:
        torch.set_num_threads(before)
    found = json.loads((tmp_path / "inference.json").read_text())
    shown = capsys.readouterr().out
    assert len(found["eager"]["ways"]) == 9
    for name in found["eager"]["ways"]:
        assert f"| {name} |" in shown
    for what in ("attach", "detach", "fuse", "unfuse"):
        assert f"| {what} |" in shown
    assert found["eager"]["difference_ours_to_plain"] < 1e-5
    assert found["floor_of_flops"] > 1


def test_no_round_begins_after_the_time_is_up(
    inference: ModuleType, unet: Any, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    bare, way = inference.Way("bare", unet, inputs), inference.Way("again", unet, inputs)
    seconds = inference.measure(bare, [way], 5, 1, minutes=0)
    assert len(way.ratios["wall"]) == len(way.ratios["cpu"]) == len(seconds["wall"]) == 1
    inference.measure(bare, [way], 2, 1, minutes=5)
    assert len(way.ratios["wall"]) == 3


@pytest.mark.slow
def test_compiled_ways_are_timed_too(
    inference: ModuleType,
    unet: Any,
    inputs: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, mode, **given: compiled(module, backend="eager", **given)
    )
    found = inference._run_mode(unet, inputs, 1.1, 1, 1.0, "compiled")
    assert len(found["ways"]) == 9
    assert found["difference_ours_to_plain"] < 1e-5

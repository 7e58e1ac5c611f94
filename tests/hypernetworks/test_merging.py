"""Merging: averages of equal structures, exact compositions of affine ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach, load
from hyperbrush.hypernetworks.convert.merging import merge
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights

SITE = "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(widths: Any = (8, 12), seed: int = 0, **settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(seed)
    hn = AttentionHypernetwork(widths, **{"weight_init": "XavierNormal", "name": f"n{seed}"} | settings)
    for name, parameter in hn.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
    return hn


def affine(widths: Any = (8, 12), seed: int = 0, **settings: Any) -> AttentionHypernetwork:
    return make(widths, seed, activation=None, **settings)


def context(width: int) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


def chain(entries: Any, width: int, site: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    keys = values = context(width).double()
    for hn, weight in entries:
        if hn.network_for(width, site) is not None:
            keys = hn.transform(keys, weight, site)[0]
            values = hn.transform(values, weight, site)[1]
    return keys, values


def generated(seed: int, rank: int = 2, layers: Any = ("to_k", "to_v")) -> GeneratedWeights:
    torch.manual_seed(seed)
    made = {f"{SITE}.{layer}": Factors(torch.randn(rank, 8), torch.randn(6, rank), 0.5) for layer in layers}
    return GeneratedWeights(made, name=f"g{seed}")


@pytest.mark.parametrize("how", ["auto", "average", "compose"])
def test_generated_weights_add_up(how: str, tmp_path: Path) -> None:
    first, second = generated(1), generated(2, rank=3, layers=("to_v", "to_q"))
    merged = merge([(first, 0.5), (second, -2)], how=how)
    assert merged.name == "g1*0.5 + g2*-2"
    assert merged.metadata["merged_from"] == "g1 * 0.5; g2 * -2"
    assert set(merged.layers) == {f"{SITE}.to_{x}" for x in "qkv"}
    for layer in merged.layers:
        parts = [w * g.delta(layer) for g, w in ((first, 0.5), (second, -2)) if layer in g.layers]
        torch.testing.assert_close(merged.delta(layer), sum(parts))
    again = GeneratedWeights.load(merged.save(tmp_path / "m.safetensors"))
    assert again.metadata["merged_how"] == "changes added exactly, rank 5"


def test_both_kinds_do_not_merge() -> None:
    for entries in ([(generated(1), 1), (make(), 1)], [(make(), 1), (generated(1), 1)]):
        with pytest.raises(UserError, match="cannot merge 'g1', generated weights, .* attach both together"):
            merge(entries)
    other = GeneratedWeights({f"{SITE}.to_k": Factors(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(UserError, match="different shapes"):
        merge([(generated(1), 1), (other, 1)])


def test_affine_ones_compose_exactly() -> None:
    entries = [
        (affine(seed=1), 0.7),
        (affine(seed=2, layer_structure=(1, 2, 2, 1)), -1.3),
        (affine(seed=3, skip_connection=True), 0.4),
    ]
    merged = merge(entries)
    assert merged.settings.layer_structure == (1, 1)
    assert merged.settings.activation == "linear"
    for width in (8, 12):
        for made, wanted in zip(merged.transform(context(width)), chain(entries, width), strict=True):
            assert error(made.double(), wanted) < 1e-6
            assert error(context(width), wanted.float()) > 0.1
    # In another order it is another network: a chain, no sum.
    assert error(*(m.transform(context(8))[0] for m in (merge(entries[::-1]), merged))) > 1e-2
    assert "composed exactly" in merged.metadata["merged_how"]
    assert merged.metadata["merged_from"] == "n1 (step 0) * 0.7; n2 (step 0) * -1.3; n3 (step 0) * 0.4"


def test_strength_one_of_the_merged_is_the_chain_on_a_unet(make_unet: Any, call: Any) -> None:
    unet = make_unet()
    entries = [(affine((16, 24), 1), 0.6), (affine((24, 32), 2), -0.4)]
    with attach(unet, entries):
        wanted = call(unet)
    with attach(unet, merge(entries)):
        made = call(unet)
    assert error(made, wanted) < 1e-5
    assert error(call(unet), wanted) > 1e-2


def test_widths_of_some_are_the_identity_elsewhere_and_told() -> None:
    entries = [(affine((8, 12), 1), 0.5), (affine((12, 16), 2), 0.5)]
    merged = merge(entries)
    assert merged.widths == [8, 12, 16]
    for width in (8, 12, 16):
        for made, wanted in zip(merged.transform(context(width)), chain(entries, width), strict=True):
            assert error(made.double(), wanted) < 1e-6
    assert "8: not in n2" in merged.metadata["merged_how"]
    assert "16: not in n1" in merged.metadata["merged_how"]


def test_sites_and_widths_meet_as_they_do_attached() -> None:
    entries = [(affine({SITE: 8}, 1), 0.5), (affine((8,), 2), 0.9)]
    merged = merge(entries)
    assert (merged.widths, merged.sites) == ([8], [SITE])
    for site in (SITE, None):
        made, wanted = merged.transform(context(8), 1.0, site), chain(entries, 8, site)
        assert error(made[0].double(), wanted[0]) < 1e-6
        assert error(made[1].double(), wanted[1]) < 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "relu"},
        {"activation": "tanh", "layer_norm": True, "activate_output": True},
        {"activation": "prelu", "layer_structure": (1, 2, 2, 1)},
        {"activation": "relu", "skip_connection": True, "upsample_linear": "Linear"},
    ],
)
def test_an_average_is_the_weighted_sum_of_parameters(settings: Any) -> None:
    first, second = make(seed=1, **settings), make(seed=2, **settings)
    merged = merge([(first, 0.3), (second, 0.9)])
    states = first.state_dict(), second.state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, 0.3 * states[0][name] + 0.9 * states[1][name])
    assert merged.settings == first.settings
    assert "weights sum to 1.2" in merged.metadata["merged_how"]
    same = merge([(first, 0.25), (first, 0.75)])
    assert error(same.transform(context(8))[1], first.transform(context(8))[1]) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}, {"activate_output": True}])
def test_an_average_keeps_a_lone_width_at_its_weight(settings: Any) -> None:
    first, second = make((8,), 1, **settings), make((8, 12), 2, **settings)
    merged = merge([(first, 0.4), (second, 0.6)])
    for made, wanted in zip(merged.transform(context(12)), second.transform(context(12), 0.6), strict=True):
        assert error(made, wanted) < 1e-6
    assert "12: not in n1" in merged.metadata["merged_how"]


def test_affine_ones_can_be_averaged_too() -> None:
    first, second = affine(seed=1), affine(seed=2)
    merged = merge([(first, 0.5), (second, 0.5)], how="average")
    assert merged.settings.layer_structure == (1, 2, 1)
    assert "averaged" in merged.metadata["merged_how"]
    assert merge([(first, 0.5), (second, 0.5)], how="compose").settings.layer_structure == (1, 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_result_is_a_file_like_any(suffix: str, tmp_path: Path) -> None:
    first = affine(seed=1, metadata={"sd_checkpoint_name": "base", "optional_info": "mine"})
    second = affine(seed=2, metadata={"sd_checkpoint_name": "base"})
    merged = merge([(first, 0.5), (second, 1)], name="both")
    again = load(merged.save(tmp_path / f"both{suffix}"))
    assert again.name == "both"
    assert again.metadata["sd_checkpoint_name"] == "base"
    assert again.metadata["merged_from"] == merged.metadata["merged_from"]
    assert torch.equal(again.transform(context(8))[0], merged.transform(context(8))[0])
    other = affine(seed=2, metadata={"sd_checkpoint_name": "other"})
    assert "sd_checkpoint_name" not in merge([(first, 0.5), (other, 1)]).metadata
    assert merge([(first, 0.5), (other, 1)]).name == "n1*0.5 + n2*1"


def test_what_cannot_be_merged_says_why() -> None:
    bent = make(seed=1)
    tall = make((8,), 2, activate_output=True)
    for entries, how, message in (
        ([(bent, 1)], "auto", "two or more"),
        ([(bent, 1), (bent, float("inf"))], "auto", "not a finite number"),
        ([(bent, 1), (bent, 1)], "mix", "unknown way to merge 'mix'"),
        ([(bent, 1), (bent, 1)], "compose", "'n1'.*has an activation or LayerNorm"),
        ([(bent, 1), (affine(seed=3), 1)], "auto", "differ in activation 'relu' and 'linear'"),
        ([(bent, 1), (make(seed=4, layer_structure=(1, 3, 1)), 1)], "auto", "layer_structure"),
        ([(tall, -0.5), (make((12,), 5, activate_output=True), 0.5)], "auto", "cannot be scaled"),
        ([(make((8,)), 0.5), (make((8,)), -0.5), (make((12,)), 1)], "auto", "sum to 0"),
        ([(affine({SITE: 8}), 1), (affine({SITE: 12}), 1)], "auto", "8 and 12 wide"),
    ):
        with pytest.raises(UserError, match=message):
            merge(entries, how=how)

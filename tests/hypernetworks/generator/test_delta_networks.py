"""Generated deltas on a trained attention hypernetwork."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import attach, load
from hyperbrush.hypernetworks.convert.merging import merge
from hyperbrush.hypernetworks.generator import (
    GeneratedWeights,
    TargetNetwork,
    find_targets,
    merge_deltas,
    with_deltas,
)

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
VARIANTS: list[dict[str, Any]] = [
    {},
    {"activation": "swish", "layer_norm": True, "activate_output": True},
    {"per_site": True},
    {"skip_connection": True, "upsample_linear": "Linear"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_equal_to_merged_deltas(
    settings: dict[str, Any],
    make_unet: Make,
    make_network: Make,
    make_weights: Make,
    call: Make,
    relative: Make,
    tmp_path: Path,
) -> None:
    unet = make_unet()
    base = make_network(unet, **settings)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    weights = make_weights(base)
    assert len(weights.layers) == 4 * len(list(base.pairs()))
    with attach(unet, base):
        plain = call(unet)
    with attach(unet, with_deltas(base, weights, 0.4)):
        out = call(unet)
    merged = merge_deltas(base, weights, 0.4)
    with attach(unet, load(merged.save(tmp_path / "merged.safetensors"))):
        assert relative(out, call(unet)) < 1e-5
    assert relative(out, plain) > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    with attach(unet, base):
        assert torch.equal(call(unet), plain)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_would_leave_them_out(
    suffix: str, make_unet: Make, make_network: Make, make_weights: Make, tmp_path: Path
) -> None:
    base = make_network(make_unet())
    changed = with_deltas(base, make_weights(base))
    with pytest.raises(UserError, match="has deltas attached, which would be left out: use .*merge_deltas"):
        changed.save(tmp_path / f"a{suffix}")
    with pytest.raises(UserError, match="has deltas attached"):
        merge([(changed, 0.5), (base, 0.5)], how="average")
    assert not list(tmp_path.iterdir())


def test_gradients_and_batches(
    make_unet: Make, make_network: Make, make_weights: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    base = make_network(unet).requires_grad_(False)
    weights = make_weights(base, batch=2).requires_grad_()
    with attach(unet, with_deltas(base, weights)):
        out = call(unet, 4)
        out.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in weights.parameters())
    rows = []
    for i in range(4):
        with attach(unet, with_deltas(base, weights.detach()[i % 2])):
            rows.append(call(unet, 4)[i])
    assert relative(out, torch.stack(rows)) < 1e-5


def test_a_hypernetwork_for_a_hypernetwork(
    make_unet: Make, make_network: Make, make_net: Make, call: Make, tmp_path: Path
) -> None:
    """The generator's target is the attention hypernetwork itself."""
    unet = make_unet()
    base = make_network(unet)
    net = make_net(TargetNetwork(base))
    weights = net.generate_weights(torch.randn(2, 3, 32))
    assert set(weights.layers) == {t.name for t in find_targets(base)}
    with attach(unet, with_deltas(base, weights)):
        two = call(unet, 2)
    assert not torch.allclose(two[0], two[1])
    again = GeneratedWeights.load(weights[0].save(tmp_path / "delta.safetensors"))
    assert torch.allclose(again.delta(weights.layers[0]), weights[0].delta(weights.layers[0]), atol=1e-6)


def test_chosen_layers_and_what_does_not_fit(make_unet: Make, make_network: Make, make_weights: Make) -> None:
    base = make_network(make_unet())
    first = str(base.widths[0])
    assert {t.kind for t in find_targets(base, ["key"])} == {"key"}
    assert {t.block for t in find_targets(base, [first])} == {first}
    assert {t.projection for t in find_targets(base, ["value.layers.1"])} == {"layers.1"}
    with pytest.raises(UserError, match="unknown target layer 'attn1'"):
        find_targets(base, ["attn1"])
    other = make_network(make_unet(), layer_structure=(1, 3, 1))
    with pytest.raises(UserError, match="for another model"):
        with_deltas(other, make_weights(base))
    with pytest.raises(UserError, match="reaches no layer"):
        with_deltas(base, make_weights(make_unet()))
    with pytest.raises(UserError, match="holds one adapter"):
        merge_deltas(base, make_weights(base, batch=2))
    with pytest.raises(UserError, match="finite"):
        with_deltas(base, make_weights(base), float("inf"))

"""Affine maps against the networks they stand for, in float64."""

import pytest
import torch

from hyperbrush.hypernetworks.attention.affine import chain_as_affine, fit_affine, network_as_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork, NetworkSettings


def network(seed: int, **settings: object) -> ContextNetwork:
    torch.manual_seed(seed)
    made = ContextNetwork(24, NetworkSettings(**settings))  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.double().eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_structure": (1, 1)},
        {"layer_structure": (1, 2, 1)},
        {"layer_structure": (1, 1.5, 2, 1), "dropout_structure": (0, 0.3, 0.3, 0)},
        {"layer_structure": (1, 2, 1), "skip_connection": True},
        {"layer_structure": (1, 2, 1), "skip_connection": True, "upsample_linear": "Linear"},
    ],
)
def test_a_chain_is_one_map(settings: dict[str, object]) -> None:
    chain = [(network(0, **settings), 0.7), (network(1, layer_structure=(1, 1)), -0.4)]
    context = torch.randn(2, 5, 24, dtype=torch.float64)
    x = context
    for net, strength in chain:
        x = x + strength * net(x)
    whole = chain_as_affine(chain, 24)
    assert whole is not None
    torch.testing.assert_close(whole(context), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"activation": "relu"}, {"layer_norm": True}])
def test_what_bends_is_not_affine(settings: dict[str, object]) -> None:
    bent = network(0, layer_structure=(1, 2, 1), **settings)
    assert network_as_affine(bent) is None
    assert chain_as_affine([(network(1), 1.0), (bent, 1.0)], 24) is None


def test_the_fit_finds_an_affine_map_and_leaves_unseen_directions_alone() -> None:
    net = network(0, layer_structure=(1, 1))
    one = network_as_affine(net)
    assert one is not None
    inputs = torch.randn(200, 24, dtype=torch.float64) + 3
    fitted = fit_affine(inputs, one.scaled(0.5)(inputs), ridge=1e-12)
    torch.testing.assert_close(fitted.matrix, one.scaled(0.5).matrix, rtol=1e-7, atol=1e-7)
    flat = torch.randn(200, 24, dtype=torch.float64)
    flat[:, 0] = 0
    fitted = fit_affine(flat, flat + 1)
    torch.testing.assert_close(fitted.matrix, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-6)

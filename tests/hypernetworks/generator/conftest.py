"""Random weights for tiny UNets, and small hypernetworks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, Hypernetwork, TargetNetwork

SMALL: dict[str, Any] = {"embedding_dim": 32, "hidden_dim": 48, "depth": 2, "heads": 4, "rank": 2}


@pytest.fixture
def make_weights() -> Callable[..., GeneratedWeights]:
    """Random weights with a visible effect for a UNet's layers."""

    def make(
        unet: Any,
        seed: int = 0,
        rank: int = 2,
        batch: int | None = None,
        layers: Any = None,
        scale: float = 0.5,
    ) -> GeneratedWeights:
        generator = torch.Generator().manual_seed(seed)
        front = () if batch is None else (batch,)
        made = {}
        for t in TargetNetwork(unet, layers).targets:
            down = torch.randn(*front, rank, t.in_width, generator=generator) * t.in_width**-0.5
            up = torch.randn(*front, t.out_width, rank, generator=generator)
            made[t.name] = Factors(down, up, scale)
        return GeneratedWeights(made, name="ink")

    return make


@pytest.fixture
def make_net() -> Callable[..., Hypernetwork]:
    """A small hypernetwork for a UNet; `woken` ones have changes that are not zero."""

    def make(target: Any, seed: int = 0, woken: bool = True, **settings: Any) -> Hypernetwork:
        torch.manual_seed(seed)
        if not isinstance(target, TargetNetwork):
            target = TargetNetwork(target)
        net = Hypernetwork(target=target, **(SMALL | {"text_width": 24, "latent_channels": 4} | settings))
        if woken:
            for name, parameter in net.decoder.named_parameters():
                if "up" in name or "core" in name or name.endswith("head.weight"):
                    torch.nn.init.normal_(parameter, std=0.3)
        return net

    return make


@pytest.fixture
def merged() -> Callable[..., Any]:
    """A copy of a UNet with W + strength·ΔW in its own weights: what applying must be equal to."""
    import copy

    def merge(unet: Any, weights: GeneratedWeights, strength: Any = 1.0) -> Any:
        made = copy.deepcopy(unet)
        with torch.no_grad():
            for name in weights.layers:
                own = strength(name) if callable(strength) else strength
                made.get_submodule(name).weight += own * weights.delta(name)
        return made

    return merge

"""Deltas on a trained attention hypernetwork: its linear layers with generated low-rank changes."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.context_network import ContextLayer
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import finite
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import find_targets, reach


class DeltaLayer(ContextLayer):
    """A layer of another network with ΔW x added before its activation; the layer itself is shared."""

    def __init__(self, layer: ContextLayer, factors: Factors, strength: float) -> None:
        nn.Module.__init__(self)
        self.residual, self.dropout = layer.residual, layer.dropout
        self.skip, self.linear = layer.skip, layer.linear
        self.norm, self.activation = layer.norm, layer.activation
        self.factors, self.strength = factors, strength

    def forward(self, x: Tensor, rows_per_picture: int | None = None) -> Tensor:
        """X: (batch, tokens, in_width) → (batch, tokens, out_width)."""
        y = F.linear(x, self.linear.weight.to(x.dtype), self.linear.bias.to(x.dtype))
        y = y + self.factors.apply(x, self.strength).to(y.dtype)
        if not self.residual:
            return self._drop(self._normalise(self._activate(y, rows_per_picture)))
        return self._skip(x) + self._activate(self._drop(self._normalise(y)), rows_per_picture)


def with_deltas(
    hypernetwork: AttentionHypernetwork, weights: GeneratedWeights, strength: float = 1.0
) -> AttentionHypernetwork:
    """The hypernetwork with W + strength·ΔW in the layers named, to be attached like any other.

    Parameters are shared with ``hypernetwork``, and gradients reach the factors. weights: one adapter, or a batch
    (row i of the UNet's batch goes through adapter i mod n). To write a file, use `merge_deltas`.

    Raises:
        UserError: no layer is reached, a shape differs, or the strength is not finite.
    """
    reached = reach(weights, find_targets(hypernetwork))
    strength = finite(strength)
    # New modules around the same parameters.
    memo: dict[int, Any] = {id(p): p for p in hypernetwork.parameters()}
    made: AttentionHypernetwork = copy.deepcopy(hypernetwork, memo)
    device = next(hypernetwork.parameters()).device
    for layers, i, name in _layers(made):
        if name in reached.layers:
            layers[i] = DeltaLayer(layers[i], weights.factors[name].to(device), strength)  # type: ignore[arg-type]
    return made


@torch.no_grad()
def merge_deltas(
    hypernetwork: AttentionHypernetwork, weights: GeneratedWeights, strength: float = 1.0
) -> AttentionHypernetwork:
    """An ordinary hypernetwork with weights W + strength·ΔW, which every format can hold.

    Raises:
        UserError: as `with_deltas`; or a batch of several adapters.
    """
    if weights.batch is not None and weights.batch != 1:
        raise UserError(f"a hypernetwork holds one adapter, but these are {weights.batch}: pick weights[i]")
    reached = reach(weights, find_targets(hypernetwork))
    strength = finite(strength)
    made = copy.deepcopy(hypernetwork)
    for layers, i, name in _layers(made):
        if name in reached.layers:
            weight: Tensor = layers[i].linear.weight  # type: ignore[assignment, union-attr]
            weight += strength * weights[0].delta(name).to(weight)
    return made


def _layers(hypernetwork: AttentionHypernetwork) -> list[tuple[nn.ModuleList, int, str]]:
    """Every layer as (its list, its place there, the target's name)."""
    return [
        (network.layers, i, f"{key}.{kind}.layers.{i}")
        for key, pair in hypernetwork.pairs()
        for kind, network in (("key", pair.key), ("value", pair.value))
        for i in range(len(network.layers))
    ]

"""Affine maps of contexts: what networks without a non-linearity are, alone and in chains.

With no non-linearity MLP(c) = A c + b, so c + s·MLP(c) = (1 + sA) c + s b, and a chain of such maps is one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbrush.hypernetworks.attention.context_network import ContextNetwork


@dataclass(frozen=True)
class Affine:
    """c → matrix c + offset, in float64: matrix (out, in), offset (out,)."""

    matrix: Tensor
    offset: Tensor

    @classmethod
    def identity(cls, width: int) -> "Affine":
        """The map that changes nothing."""
        return cls(torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def __call__(self, contexts: Tensor) -> Tensor:
        """Contexts (…, in) → (…, out), computed and returned in float64."""
        return contexts.to(self.matrix) @ self.matrix.T + self.offset

    def then(self, other: "Affine") -> "Affine":
        """First this map, then ``other`` on its output."""
        return Affine(other.matrix @ self.matrix, other.matrix @ self.offset + other.offset)

    def scaled(self, strength: float) -> "Affine":
        """The map c + strength·(this map of c)."""
        one = torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        return Affine(one + strength * self.matrix, strength * self.offset)


def is_affine(network: ContextNetwork) -> bool:
    """Whether a network has neither activation nor LayerNorm (dropout only acts in training)."""
    return all(getattr(layer, part) is None for layer in network.layers for part in ("activation", "norm"))


@torch.no_grad()
def network_as_affine(network: ContextNetwork) -> Affine | None:
    """MLP(c) = A c + b of one network as it is now, on the CPU; None if it is not affine."""
    if not is_affine(network):
        return None
    double = copy.deepcopy(network).to("cpu", torch.float64).eval()
    corners = torch.cat([torch.zeros(1, network.width), torch.eye(network.width)]).double()
    # The images of 0 and of the unit vectors say all of it, whatever the layers (skips, projections).
    images = double(corners[None])[0]
    return Affine((images[1:] - images[0]).T.contiguous(), images[0].clone())


def chain_as_affine(networks: Sequence[tuple[ContextNetwork, float]], width: int) -> Affine | None:
    """The map c ← c + strength·MLP(c) for each network in order; None if one is not affine."""
    whole = Affine.identity(width)
    for network, strength in networks:
        one = network_as_affine(network)
        if one is None:
            return None
        whole = whole.then(one.scaled(strength))
    return whole


def fit_affine(inputs: Tensor, outputs: Tensor, ridge: float = 1e-6) -> Affine:
    """The map with the least squared error from inputs (n, in) to outputs (n, out), in float64.

    ridge: pulls it towards the identity (where in = out) by this share of the inputs' mean variance, which
    decides the directions that the inputs do not show.
    """
    x, y = inputs.double(), outputs.double()
    start = x if x.shape[1] == y.shape[1] else torch.zeros_like(y)
    mean_x, mean_y = x.mean(0), (y - start).mean(0)
    centred, change = x - mean_x, (y - start) - mean_y
    gram = centred.T @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
    matrix = torch.linalg.solve(gram, centred.T @ change).T
    offset = mean_y - matrix @ mean_x
    if start is x:
        matrix = matrix + torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    return Affine(matrix, offset)

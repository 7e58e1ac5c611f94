"""Matrices in few bytes: the largest singular triples or the rows, each with eight-bit numbers and a scale of its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbrush.hypernetworks.weights.factors import Factors, singular_parts

ROWS, PLAIN = -1, -2  # in the place of a rank
LEVELS = 127
SCALE_BYTES = 4


@dataclass(frozen=True, eq=False)
class Coded:
    """One tensor.

    shape: of the tensor; of a matrix (out, in). rank: of its low-rank form; `ROWS`: rows of a matrix; `PLAIN`: as it is.
    codes: int8, the low-rank form's A (rank, in) and then its B by columns (rank, out); or the matrix (out, in).
    scales: float32, one for each rank or row; the numbers themselves of a plain tensor.
    """

    shape: tuple[int, ...]
    rank: int
    codes: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """What it takes in a file."""
        return self.codes.numel() + SCALE_BYTES * self.scales.numel()

    def factors(self) -> Factors:
        """The low-rank form, both sides bearing equal shares of each scale."""
        out, width = self.shape
        down, up = self.codes[: self.rank * width].float(), self.codes[self.rank * width :].float()
        root = self.scales.sqrt().unsqueeze(1)
        return Factors(down.view(self.rank, width) * root, (up.view(self.rank, out) * root).T.contiguous())

    def tensor(self) -> Tensor:
        """The tensor itself, float32."""
        if self.rank == PLAIN:
            return self.scales.view(self.shape).clone()
        if self.rank == ROWS:
            return self.codes.view(self.shape).float() * self.scales.unsqueeze(1)
        return self.factors().delta()


def lengths(shape: tuple[int, ...], rank: int) -> tuple[int, int]:
    """How many codes and scales a tensor has."""
    if rank == PLAIN:
        return 0, math.prod(shape)
    if rank == ROWS:
        return math.prod(shape), shape[0]
    return rank * sum(shape), rank


def plain(tensor: Tensor) -> Coded:
    """A tensor as it is: biases and norms, which are small."""
    return Coded(tuple(tensor.shape), PLAIN, torch.empty(0, dtype=torch.int8), tensor.reshape(-1).float())


def rows(matrix: Tensor) -> Coded:
    """A matrix (out, in) row by row: wrong by half a 127th of each row's largest number at most."""
    scale = matrix.abs().amax(1).float().clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    codes = (matrix / scale.unsqueeze(1)).round().to(torch.int8)
    return Coded(tuple(matrix.shape), ROWS, codes.reshape(-1), scale)


@dataclass(frozen=True, eq=False)
class Triples:
    """Singular values of a matrix (out, in), largest first, with their vectors: u (out, n), s (n,), v (n, in)."""

    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Triples":
        """Of a matrix itself."""
        return cls(*torch.linalg.svd(matrix.double(), full_matrices=False))

    @classmethod
    def of_factors(cls, factors: Factors) -> "Triples":
        """Of a product B A, from two thin QRs instead of the product."""
        q_up, u, s, v, q_down = singular_parts(factors)
        return cls(q_up @ u, s, v @ q_down.mT)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.u.shape[0], self.v.shape[1]

    def rank_within(self, energy: float) -> int:
        """The least rank that leaves out at most this sum of squared singular values."""
        left_out = self.s.square().flip(0).cumsum(0)
        return len(self.s) - int((left_out <= energy).sum())

    def coded(self, rank: int) -> Coded:
        """The largest triples, each vector by its largest number."""
        u, s, v = self.u[:, :rank].mT, self.s[:rank], self.v[:rank]
        tall, wide = u.abs().amax(1, keepdim=True), v.abs().amax(1, keepdim=True)
        codes = [
            (part / top * LEVELS).round().to(torch.int8).reshape(-1) for part, top in ((v, wide), (u, tall))
        ]
        scales = (s * (tall * wide).squeeze(1) / LEVELS**2).float()
        return Coded(self.shape, rank, torch.cat(codes), scales)


def ranks_within(layers: dict[str, Triples], error: float) -> dict[str, int]:
    """Ranks of several layers that together leave out at most error² of all squared singular values, in the fewest bytes.

    What matters least for the bytes it takes is left out first; a layer of rank 0 goes as a whole.
    """
    worth = [
        (float(s) ** 2 / (sum(t.shape) + SCALE_BYTES), float(s) ** 2, name)
        for name, t in layers.items()
        for s in t.s
    ]
    budget = error**2 * sum(energy for _, energy, _ in worth)
    kept = {name: len(t.s) for name, t in layers.items()}
    for _, energy, name in sorted(worth):
        budget -= energy
        if budget < 0:
            break
        kept[name] -= 1
    return kept

"""One layer's generated change in low-rank form, ΔW = scale · B A, and what can be done without ΔW itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError


@dataclass(frozen=True, eq=False)
class Factors:
    """ΔW = scale · up · down, of one adapter or of a batch of them.

    down: A, (rank, in) or (batch, rank, in). up: B, (out, rank) or (batch, out, rank).
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        a, b = self.down.shape, self.up.shape
        if len(a) not in (2, 3) or len(a) != len(b) or a[:-2] != b[:-2] or a[-2] != b[-1] or a[-2] < 1:
            raise UserError(
                f"factors {tuple(a)} and {tuple(b)} do not fit: expected A (rank, in) and B (out, rank), or both with "
                "a batch in front"
            )

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[-2]

    @property
    def batch(self) -> int | None:
        """How many adapters these are; None for one without a batch dimension."""
        return len(self.down) if self.down.ndim == 3 else None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return self.up.shape[-2], self.down.shape[-1]

    def delta(self) -> Tensor:
        """ΔW itself, (out, in) or (batch, out, in)."""
        return self.scale * (self.up @ self.down)

    def apply(self, x: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Two products for strength·ΔW x, without ΔW itself: x (rows, tokens, in) → (rows, tokens, out).

        Row i of x goes through adapter i mod batch, as pipelines lay out both sides of guidance.
        strength: a number, a 0-dim tensor, or (rows, 1, 1). Computed in the higher precision of the two
        (under autocast in its own).

        Raises:
            UserError: the rows are no multiple of the batch.
        """
        dtype = torch.promote_types(x.dtype, self.down.dtype)
        down, up, x = (t.to(x.device, dtype) for t in (self.down, self.up, x))
        if self.batch is None:
            return torch.nn.functional.linear(self._scaled(torch.nn.functional.linear(x, down), strength), up)
        if self.batch > 1:
            if x.ndim != 3 or len(x) % self.batch:
                raise UserError(
                    f"there are weights for {self.batch} samples, but the UNet's batch has {len(x)} rows: expected a "
                    f"multiple of {self.batch} (row i is sample i mod {self.batch}), or one set for all"
                )
            down, up = (t.repeat(len(x) // self.batch, 1, 1) for t in (down, up))
            return torch.bmm(self._scaled(torch.bmm(x, down.mT), strength), up.mT)
        return self._scaled(x @ down[0].T, strength) @ up[0].T

    def _scaled(self, hidden: Tensor, strength: float | Tensor) -> Tensor:
        if isinstance(strength, Tensor) and strength.ndim:
            strength = strength.to(hidden.dtype)
        return hidden * (strength * self.scale)

    def to(self, *args: Any, **kwargs: Any) -> "Factors":
        """As `Tensor.to`."""
        return replace(self, down=self.down.to(*args, **kwargs), up=self.up.to(*args, **kwargs))

    def folded(self) -> "Factors":
        """The same ΔW with the scale in B."""
        return self if self.scale == 1 else Factors(self.down, self.up * self.scale)

    def pick(self, index: int) -> "Factors":
        """One adapter of a batch."""
        return replace(self, down=self.down[index], up=self.up[index])


def concatenate(parts: Sequence[Factors], shares: Sequence[float]) -> Factors:
    """Σ shareᵢ·ΔWᵢ exactly: the ranks add up."""
    kept = [(f, share) for f, share in zip(parts, shares, strict=True)]
    down = torch.cat([f.down for f, _ in kept], dim=-2)
    up = torch.cat([f.up * (share * f.scale) for f, share in kept], dim=-1)
    return Factors(down, up)


def singular_parts(factors: Factors) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Q, U, S, V, P with ΔW = Q U S V Pᵀ, in float64: the singular value decomposition from two thin QRs."""
    q_up, r_up = torch.linalg.qr((factors.up * factors.scale).double())
    q_down, r_down = torch.linalg.qr(factors.down.double().mT)
    u, s, v = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up, u, s, v, q_down


def truncate(factors: Factors, rank: int) -> Factors:
    """The closest factors of a lower rank (Eckart & Young 1936), from two thin QRs instead of ΔW.

    Unchanged where the rank is already low enough. Both sides bear equal shares.
    """
    if factors.rank <= rank:
        return factors
    q_up, u, s, v, q_down = singular_parts(factors)
    root = s[..., :rank].sqrt()
    up = q_up @ (u[..., :, :rank] * root.unsqueeze(-2))
    down = (root.unsqueeze(-1) * v[..., :rank, :]) @ q_down.mT
    return Factors(down.to(factors.down), up.to(factors.up))


def inner(a: Factors, b: Factors) -> Tensor:
    """⟨ΔW_a, ΔW_b⟩ = Σ (B_aᵀB_b)∘(A_aA_bᵀ), by rank×rank products, per sample: () or (batch,)."""
    scale = a.scale * b.scale
    left, right = a.up.mT @ b.up, a.down @ b.down.mT
    return scale * (left * right).sum(dim=(-2, -1))


def expand(factors: Factors, rank: int, generator: torch.Generator) -> Factors:
    """Room for more: A' = [A; A_rand], B' = [B, 0], so that ΔW stays and B's new columns can learn at once.

    A_rand is drawn as LoRA's start, uniform with variance 1/(3·in).
    """
    extra = rank - factors.rank
    folded = factors.folded()
    shape = (*folded.down.shape[:-2], extra, folded.down.shape[-1])
    bound = folded.down.shape[-1] ** -0.5
    drawn = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    down = torch.cat([folded.down, drawn.to(folded.down)], dim=-2)
    zeros = folded.up.new_zeros(*folded.up.shape[:-1], extra)
    return Factors(down, torch.cat([folded.up, zeros], dim=-1))

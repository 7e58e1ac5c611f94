"""The best low-rank form B A of a change ΔW of a linear layer, and of what a missing bias leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbrush.hypernetworks.files.lora import LowRank


@dataclass(frozen=True)
class Moments:
    """What contexts (rows, width) look like on average."""

    mean: Tensor  # (width,)
    covariance: Tensor  # (width, width), about the mean

    @classmethod
    def of(cls, contexts: Tensor, ridge: float = 1e-6) -> "Moments":
        """Of contexts (rows, width); ridge: share of their mean square given to all directions alike."""
        x = contexts.double()
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        # So that contexts that do not vary, or are all zero, have a Cholesky root too.
        covariance.diagonal().add_(ridge * x.square().mean() + 1e-30)
        return cls(mean, covariance)

    @property
    def second(self) -> Tensor:
        """The second moment about zero, (width, width)."""
        return self.covariance + torch.outer(self.mean, self.mean)


def best_low_rank(change: Tensor, rank: int | None, weighting: Tensor | None = None) -> LowRank:
    """Singular value decomposition of a change (out, in), cut at a rank (None: all that is there).

    >>> low = best_low_rank(torch.outer(torch.ones(4), torch.ones(3)), rank=1)
    >>> low.rank, round(low.energy, 6)
    (1, 1.0)

    weighting: second moment Σ (in, in) of what the layer sees; the cut then keeps ‖(ΔW − B A) x‖ least on
    average over such x instead of over all directions alike: A = Uᵀ ΔW, B = U, with U the leading
    eigenvectors of ΔW Σ ΔWᵀ (Eckart & Young 1936 for ΔW Σ^½).
    """
    change = change.double()
    out_width, in_width = change.shape
    side = change if weighting is None or rank is None else _times_root(change, weighting)
    squares, vectors = torch.linalg.eigh(side @ side.T)
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
    most = min(out_width, in_width)
    # Eigenvalues below 1e-14 are rounding; the projection loses less than 1e-7 of ΔW with them.
    kept = max(1, int((squares > 1e-14 * squares[0]).sum())) if rank is None else min(rank, most)
    up = vectors[:, :kept]
    down = up.T @ change
    # Equal shares for both sides, for files in half precision.
    size = down.norm(dim=1).sqrt().clamp_min(1e-150)
    total = squares.sum()
    energy = float(squares[:kept].sum() / total) if total > 0 else 1.0
    return LowRank(down / size[:, None], up * size, min(energy, 1.0))


def _times_root(change: Tensor, weighting: Tensor) -> Tensor:
    """ΔW L with L Lᵀ = Σ: its squares are those of ΔW Σ^½."""
    root: Tensor = torch.linalg.cholesky(weighting)
    return change @ root


def without_bias(change: Tensor, offset: Tensor, moments: Moments) -> Tensor:
    """The matrix whose products come closest to ΔW x + offset, where no bias can be said.

    Least squares on the contexts: ΔW + offset pᵀ, with pᵀx the best linear guess of 1.
    """
    guess: Tensor = torch.linalg.solve(moments.second, moments.mean)
    return change + torch.outer(offset, guess)

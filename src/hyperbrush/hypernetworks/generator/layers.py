"""Layers the encoder and the trunks are made of: attention with a mask, the feed-forward layer, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbrush.errors import UserError


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries on a context; the output layer starts small."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"a width of {width} cannot be split over {heads} heads: take a divisor")
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """X (batch, queries, width); context (batch, tokens, width), x itself if None; mask (batch, tokens) bool."""
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        seen = None if mask is None else mask[:, None, None, :]
        out: Tensor = self.to_out(
            F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(-2)
        )
        return out


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear, of width → 4 width → width."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class SelfAttentionLayer(nn.Module):
    """Pre-norm transformer layer: x + attention, x + feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_feed, self.feed = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """X (batch, tokens, width), mask (batch, tokens) bool; same shape back."""
        x = x + self.attention(self.norm(x), mask=mask)
        out: Tensor = x + self.feed(self.norm_feed(x))
        return out


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that count: (batch, tokens, width), (batch, tokens) → (batch, width)."""
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


def correlations(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Channel statistics of maps (n, c, h, w): mean (n, c), standard deviation (n, c), correlations (n, c(c−1)/2)."""
    flat = x.flatten(2)
    mean, std = flat.mean(-1), flat.std(-1, correction=0)
    standard = (flat - mean[..., None]) / (std[..., None] + 1e-4)
    gram = standard @ standard.mT / flat.shape[-1]
    i, j = torch.triu_indices(x.shape[1], x.shape[1], offset=1, device=x.device)
    return mean, std, gram[:, i, j]

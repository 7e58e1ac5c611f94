"""The weight generator: condition tokens → one latent for every layer and rank."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.generator.layers import (
    Attention,
    FeedForward,
    SelfAttentionLayer,
    masked_mean,
    unit,
)
from hyperbrush.hypernetworks.weights.layers import Target

TRUNKS = ("perceiver", "mlp")


class WeightQueries(nn.Module):
    """A learned query per (layer, token): layer + type + depth + rank embeddings.

    The type is (kind, projection), such as attn2's to_k; the depth counts transformer blocks; both let layers share
    what they have in common.
    """

    def __init__(self, targets: Sequence[Target], tokens: int, width: int) -> None:
        super().__init__()
        types = list(dict.fromkeys((t.kind, t.projection) for t in targets))
        depths = sorted({t.depth for t in targets})
        self.of_layer = nn.Embedding(len(targets), width)
        self.of_type = nn.Embedding(len(types), width)
        self.of_depth = nn.Embedding(len(depths), width)
        self.of_rank = nn.Embedding(tokens, width)
        for table in (self.of_layer, self.of_type, self.of_depth, self.of_rank):
            nn.init.normal_(table.weight, std=0.5)
        self.types: Tensor
        self.depths: Tensor
        kinds = torch.tensor([types.index((t.kind, t.projection)) for t in targets])
        self.register_buffer("types", kinds, persistent=False)
        self.register_buffer(
            "depths", torch.tensor([depths.index(t.depth) for t in targets]), persistent=False
        )

    def forward(self) -> Tensor:
        """(layers · tokens, width)."""
        layers = self.of_layer.weight + self.of_type(self.types) + self.of_depth(self.depths)
        out: Tensor = (layers[:, None] + self.of_rank.weight).flatten(0, 1)
        return out


class PerceiverBlock(nn.Module):
    """Cross-attention to the condition, self-attention among the weights' latents, feed-forward (Jaegle et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.cross = nn.LayerNorm(width), Attention(width, heads)
        self.own = SelfAttentionLayer(width, heads)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """X (batch, queries, width), context (batch, tokens, width), mask (batch, tokens)."""
        out: Tensor = self.own(x + self.cross(self.norm(x), context, mask))
        return out


class MLPBlock(nn.Module):
    """A residual feed-forward layer on each latent alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.feed = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """X (batch, queries, width); the condition has come in by its mean."""
        out: Tensor = x + self.feed(self.norm(x))
        return out


class WeightGenerator(nn.Module):
    """Latents of length 1 for the layers' weights, from the condition's tokens.

    Args:
        targets: the layers.
        tokens_per_layer: latents of each layer, usually one per rank.
        embedding_dim: width of the condition tokens.
        hidden_dim: width of the latents.
        trunk: "perceiver", or "mlp", which sees the condition's mean alone.
        depth: blocks.
        heads: attention heads.
        iterations: how often the trunk runs, each time with the latents it made before
            (HyperDreamBooth's refinement, Ruiz et al. 2023, with latents in the place of weights); what is
            fed back starts at zero.

    The mean of the condition's tokens is added to every query, so that the condition reaches the latents from
    the first step on. Any module with ``forward(tokens, mask)`` → (batch, layers, tokens_per_layer, hidden_dim)
    can stand in its place.

    Raises:
        UserError: an unknown trunk, a number below 1, or a width the heads do not divide.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        tokens_per_layer: int = 4,
        embedding_dim: int = 768,
        hidden_dim: int = 1024,
        trunk: str = "perceiver",
        depth: int = 4,
        heads: int = 8,
        iterations: int = 1,
    ) -> None:
        super().__init__()
        if trunk not in TRUNKS:
            raise unknown_name("trunk", trunk, TRUNKS)
        if min(depth, iterations, tokens_per_layer) < 1:
            raise UserError("depth, iterations and tokens_per_layer must be whole numbers from 1")
        self.layers, self.tokens_per_layer, self.iterations = len(targets), tokens_per_layer, iterations
        self.queries = WeightQueries(targets, tokens_per_layer, hidden_dim)
        self.condition = nn.Linear(embedding_dim, hidden_dim)
        self.pooled = nn.Linear(embedding_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            PerceiverBlock(hidden_dim, heads) if trunk == "perceiver" else MLPBlock(hidden_dim)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.feedback = nn.Linear(hidden_dim, hidden_dim) if iterations > 1 else None
        if self.feedback is not None:
            nn.init.zeros_(self.feedback.weight)
            nn.init.zeros_(self.feedback.bias)
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (batch, tokens, embedding_dim), mask (batch, tokens) bool → latents of length 1, (batch, layers,
        tokens_per_layer, hidden_dim).
        """
        start = self.queries() + self.pooled(masked_mean(tokens, mask))[:, None]
        context = self.condition(tokens)
        latents = None
        for _ in range(self.iterations):
            x = start
            if latents is not None and self.feedback is not None:
                x = x + self.feedback(latents)
            for block in self.blocks:
                x = self._run(block, x, context, mask)
            latents = unit(self.norm(x))
        assert latents is not None
        return latents.view(len(latents), self.layers, self.tokens_per_layer, -1)

    def _run(self, block: Any, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, context, mask, use_reentrant=False)
            return out
        out = block(x, context, mask)
        return out

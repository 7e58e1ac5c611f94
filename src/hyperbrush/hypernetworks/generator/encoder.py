"""The encoder: conditions → condition tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.generator.conditions import (
    Condition,
    ImageCondition,
    TaskCondition,
    TextCondition,
    batch_of,
)
from hyperbrush.hypernetworks.generator.layers import SelfAttentionLayer, correlations


class Encoded(NamedTuple):
    """Condition tokens, and which of them count."""

    tokens: Tensor  # (batch, tokens, embedding_dim)
    mask: Tensor  # (batch, tokens) bool; at least one True in each row


class HypernetworkEncoder(nn.Module):
    """Texts, pictures and tasks as tokens of one width.

    Args:
        embedding_dim: width of the tokens.
        text_width: of the text encoder's states.
        latent_channels: of the pictures' latents.
        image_width: of a vision model's states; None where there is none.
        tasks: names of tasks, each with a token of its own.
        patch_size: side of a patch of latents that becomes one token.
        stem_width: channels of the convolution before the patches.
        depth: transformer layers over the tokens of each picture.
        heads: their attention heads.

    A picture becomes tokens of its patches, and one of its channel statistics (means, deviations and
    correlations, of the latents and of the stem's features), which is where style shows (Gatys et al. 2016).
    Nothing tells references apart by their place, so their order does not matter.

    Raises:
        UserError: embedding_dim is no multiple of heads.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        *,
        text_width: int = 768,
        latent_channels: int = 4,
        image_width: int | None = None,
        tasks: Sequence[str] = (),
        patch_size: int = 4,
        stem_width: int = 64,
        depth: int = 1,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.latent_channels, self.image_width, self.patch_size = latent_channels, image_width, patch_size
        self.text_width, self.tasks = text_width, tuple(tasks)
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, embedding_dim))
        self.stem = nn.Sequential(nn.Conv2d(latent_channels, stem_width, 3, padding=1), nn.GELU())
        self.patches = nn.Conv2d(stem_width, embedding_dim, patch_size, stride=patch_size)
        pairs = latent_channels * (latent_channels - 1) // 2
        self.statistics = nn.Linear(2 * latent_channels + pairs + 2 * stem_width, embedding_dim)
        self.features = (
            None
            if image_width is None
            else nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, embedding_dim))
        )
        self.layers = nn.ModuleList(SelfAttentionLayer(embedding_dim, heads) for _ in range(depth))
        self.task = nn.Embedding(len(self.tasks), embedding_dim) if self.tasks else None
        self.kind = nn.Embedding(4, embedding_dim)  # text, patches, statistics or features, task
        self.norm = nn.LayerNorm(embedding_dim)
        self.null = nn.Parameter(torch.randn(1, 1, embedding_dim))
        nn.init.normal_(self.kind.weight, std=0.02)

    def forward(self, conditions: Sequence[Condition], drop: Tensor | None = None) -> Encoded:
        """Tokens of all conditions side by side; a condition that is a tensor is taken as tokens.

        conditions: prepared (tensors, no texts or pictures); none is the null condition, of one sample.
        drop: (batch,) bool, True where a sample has the null condition instead of its own.

        Raises:
            UserError: widths or channels that are not the encoder's, an unknown task, batches that differ, or a
                condition that was not prepared.
        """
        batch = batch_of(conditions) or (1 if drop is None else len(drop))
        device = self.null.device
        # A place for the null condition's token stands in front.
        tokens, masks = (
            [self.null.expand(batch, 1, -1)],
            [torch.zeros(batch, 1, dtype=torch.bool, device=device)],
        )
        for condition in conditions:
            own, mask = self._encode(condition)
            tokens.append(own.expand(batch, -1, -1))
            masks.append(mask.expand(batch, -1))
        mask = torch.cat(masks, dim=1)
        dropped = torch.zeros(batch, dtype=torch.bool, device=device) if drop is None else drop.to(device)
        if len(dropped) != batch:
            raise UserError(f"drop has {len(dropped)} entries for {batch} samples: expected one each")
        mask = mask & ~dropped[:, None]
        mask[:, 0] = ~mask.any(1)
        return Encoded(torch.cat(tokens, dim=1), mask)

    def _encode(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """(batch or 1, tokens, embedding_dim) and which count."""
        at = self.null
        if isinstance(condition, Tensor):
            self._check_width("condition tensor", condition, self.embedding_dim)
            return condition.to(at), _all(condition)
        if isinstance(condition, TextCondition) and condition.states is not None:
            self._check_width("text states", condition.states, self.text_width)
            states = condition.states.to(at)
            states = states[None] if states.ndim == 2 else states
            mask = _all(states) if condition.mask is None else condition.mask.to(at.device)
            return self._finish(self.text(states), 0), mask[None] if mask.ndim == 1 else mask
        if isinstance(condition, ImageCondition) and condition.pictures is None:
            return self._pictures(condition)
        if isinstance(condition, TaskCondition):
            return self._finish(self._tasks(condition), 3), torch.ones(
                1, 1, dtype=torch.bool, device=at.device
            )
        raise UserError(
            f"{type(condition).__name__} holds texts or pictures that nobody has read yet: ConditionSource.prepare does, "
            "and Hypernetwork.generate_weights calls it"
        )

    def _tasks(self, condition: TaskCondition) -> Tensor:
        names = [condition.names] if isinstance(condition.names, str) else condition.names
        for name in names:
            if name not in self.tasks:
                raise unknown_name("task", name, self.tasks, hint="; Hypernetwork(tasks=[…]) names them")
        assert self.task is not None
        ids = torch.tensor([self.tasks.index(name) for name in names], device=self.null.device)
        out: Tensor = self.task(ids)[:, None]
        return out

    def _pictures(self, condition: ImageCondition) -> tuple[Tensor, Tensor]:
        parts = []
        references = 0
        if condition.latents is not None:
            latents = condition.latents.to(self.null)
            latents = latents[None] if latents.ndim == 4 else latents
            if latents.shape[2] != self.latent_channels:
                raise UserError(
                    f"latents of {latents.shape[2]} channels, but the encoder was made for {self.latent_channels}"
                )
            references = latents.shape[1]
            own = self._latent_tokens(latents.flatten(0, 1))
            parts.append(own.view(*latents.shape[:2], *own.shape[1:]))
        if condition.features is not None and self.features is not None:
            self._check_width("features", condition.features, self.image_width or 0)
            states = condition.features.to(self.null)
            states = states[None] if states.ndim == 3 else states
            references = states.shape[1]
            parts.append(self._finish(self.features(states), 2))
        elif condition.features is not None:
            raise UserError(
                "the pictures have features of a vision model, and this encoder was made without one: "
                "Hypernetwork(image_width=…), or give their latents alone"
            )
        tokens = torch.cat(parts, dim=2)  # (batch, references, tokens, embedding_dim)
        present = (
            torch.ones(len(tokens), references, dtype=torch.bool, device=tokens.device)
            if condition.present is None
            else condition.present.to(tokens.device)
        )
        mask = present[:, :, None].expand(-1, -1, tokens.shape[2])
        return tokens.flatten(1, 2), mask.flatten(1)

    def _latent_tokens(self, latents: Tensor) -> Tensor:
        """(pictures, c, h, w) → (pictures, patches + 1, embedding_dim)."""
        features = self.stem(latents)
        statistics = self.statistics(torch.cat([*correlations(latents), *correlations(features)[:2]], dim=1))
        short = [-side % self.patch_size for side in features.shape[-2:]]
        if any(short):
            features = F.pad(features, (0, short[1], 0, short[0]), mode="replicate")
        patches = self.patches(features).flatten(2).mT + self.kind.weight[1]
        x = torch.cat([statistics[:, None] + self.kind.weight[2], patches], dim=1)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out

    def _finish(self, tokens: Tensor, kind: int) -> Tensor:
        out: Tensor = self.norm(tokens + self.kind.weight[kind])
        return out

    def _check_width(self, what: str, value: Tensor, width: int) -> None:
        if value.shape[-1] != width:
            raise UserError(
                f"{what} {value.shape[-1]} wide, but the hypernetwork was made for {width}: bind it to the model it was "
                "made for, or make a new one for this model (Hypernetwork(target=TargetNetwork(pipe)))"
            )


def _all(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)

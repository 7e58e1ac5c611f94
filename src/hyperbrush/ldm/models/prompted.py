"""What a network is told of prompts that change while they are sampled, or are composed of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperbrush.ldm.models import text

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Stretch:
    """Text states that hold until a sampling step, counted from 1.

    Args:
        last: the step; the last stretch of all holds until the end.
        embeddings: (batch, tokens, width).
        pooled: (batch, projection) for Stable Diffusion XL, else None.
    """

    last: int
    embeddings: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Prompted:
    """What a batch of pictures is told, step by step.

    Args:
        parts: of the composed prompts (one where nothing is composed), each its stretches in order.
        weights: (parts, batch), the share of the guidance that each part gets.
        negative: what guidance moves away from.
        evaluations: whether the webui's count is kept: evaluations of the network from 0 on, so that what holds
            first does so for one evaluation more than is written; else steps.
    """

    parts: Sequence[Sequence[Stretch]]
    weights: Tensor
    negative: Sequence[Stretch]
    evaluations: bool = False

    @property
    def batch(self) -> int:
        """Number of pictures."""
        return len(self.parts[0][0].embeddings)

    def guided(self, scale: float) -> bool:
        """Whether the negative side counts: not where all there is is one prompt at a scale of 1."""
        return len(self.parts) > 1 or not bool((self.weights * scale == 1).all())

    def rows_per_picture(self, scale: float) -> int:
        """Rows of the network's batch that belong to one picture."""
        return 1 + len(self.parts) if self.guided(scale) else 1

    def number(self, steps: int, evaluations: int) -> int:
        """The step, from 1, that a stretch's `last` is compared with; both counts are of what is done."""
        return max(evaluations, 1) if self.evaluations else steps + 1


class StepConditions:
    """Keyword arguments of `LatentDiffusion.diffusion` for each step; equal steps get the same tensors, so that what was
    computed from them can be kept.

    guided: whether the negative side comes first in the batch, before the parts.
    """

    def __init__(self, model: "LatentDiffusion", prompted: Prompted, *, guided: bool) -> None:
        self._model = model
        self._lines = [prompted.negative, *prompted.parts] if guided else [prompted.parts[0]]
        self._made: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def at(self, number: int) -> dict[str, Tensor]:
        """What holds at a step, from 1."""
        now = [_at(line, number) for line in self._lines]
        key = tuple(id(one.embeddings) for one in now)  # alternating prompts come back to the same states
        if key not in self._made:
            self._made[key] = self._stacked(now)
        return self._made[key]

    def _stacked(self, now: Sequence[Stretch]) -> dict[str, Tensor]:
        """All sides as one batch."""
        embeddings = [one.embeddings for one in now]
        if len(embeddings) > 1:
            parts = padded(embeddings[1:])
            null, first = text.same_length(embeddings[0], parts[0])
            times = first.shape[1] // parts[0].shape[1]
            embeddings = [null, *(part.repeat(1, times, 1) for part in parts)]
        batch = {"embeddings": torch.cat(embeddings)}
        pooled = [one.pooled for one in now if one.pooled is not None]
        if pooled:
            batch["pooled_embeddings"] = torch.cat(pooled)
        return self._model.conditions(batch)


def _at(line: Sequence[Stretch], number: int) -> Stretch:
    return next((stretch for stretch in line if number <= stretch.last), line[-1])


def padded(states: Sequence[Tensor]) -> list[Tensor]:
    """Text states (batch, tokens, width) of the parts of one prompt, as long as the longest: as in the webui the last
    token's are repeated.
    """
    longest = max(one.shape[1] for one in states)
    return [
        torch.cat([one, one[:, -1:].expand(-1, longest - one.shape[1], -1)], dim=1)
        if one.shape[1] < longest
        else one
        for one in states
    ]

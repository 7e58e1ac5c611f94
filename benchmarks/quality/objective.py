"""One objective for every method: the same pictures, noises and timesteps, whatever is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.ldm.data import BatchOrder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.ldm.objectives import make_batch, validation_losses
from hyperbrush.training.loop.objectives import Objective
from quality.data import StyleData
from quality.methods import Adapter


class StyleObjective(Objective):
    """Denoising loss of a model with an adapter; draws as `HypernetworkObjective` does, keyed by (seed, step).

    model: the adapter acts on it already; no submodule, so that only the adapter is trained and saved.
    config: what concerns the draws and the loss.
    watched: how many validation pictures, evenly spread, are looked at during the training.
    watch: after which steps, all multiples of the first; nothing is validated at others.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        adapter: Adapter,
        data: StyleData,
        config: HypernetworkConfig,
        watched: int,
        watch: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._model = (model,)
        self.adapter, self.data, self.config = adapter, data, config
        self.order = BatchOrder(data.train.groups, config.batch_size, config.seed)
        self.held_out = Some(data.validation, watched)
        self.watch, self.asked = watch, 0
        self.history: list[float] = []

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Latents, captions and what is random of a step."""
        batch = make_batch(self.data.train, self.order.pairs(step))
        c = self.config
        drawn = self._model[0].draw(
            tuple(batch["latent_means"].shape),
            keyed_generator(c.seed, "noise", step),
            condition_dropout=c.condition_dropout,
            timestep_sampling=c.timestep_sampling,
            offset_noise=c.offset_noise,
            perturbation=c.perturbation,
        )
        keep = drawn.pop("keep").tolist()
        captions = [t if k else "" for t, k in zip(batch["captions"], keep, strict=True)]
        return batch | drawn | {"captions": captions}

    def text_states(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the UNet is told: the cached states, or the adapter's own."""
        own = self.adapter.text_states(captions)
        if own is not None:
            return own
        return {"embeddings": torch.stack([self.data.texts[t]["embeddings"] for t in captions])}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean weighted loss."""
        found = self._model[0].losses(
            {**batch, **self.text_states(batch["captions"])},
            weighting=self.config.weighting,
            loss=self.config.loss,
        )
        return {"loss": found.mean()}

    def validate(self) -> dict[str, float]:
        """Mean loss over the watched pictures' fixed grid, where the step is one to watch."""
        self.asked += 1
        if self.watch is not None and self.asked * self.config.validate_every not in self.watch:
            return {}
        self.history.append(self.validation_loss(self.held_out))
        return {"loss": self.history[-1]}

    def validation_loss(self, pictures: Any) -> float:
        """Mean loss over some pictures' fixed grid of timesteps and noises."""
        with torch.no_grad():
            return float(validation_losses(self._model[0], pictures, text_states=self.text_states).mean())

    def save(self, folder: Path) -> Path:
        """The run's result is a line of figures: no weights are kept."""
        return folder


class Some:
    """So many examples of a dataset, evenly spread over it; at most all."""

    def __init__(self, data: Any, count: int) -> None:
        count = min(count, len(data))
        self.data, self.indices = data, [i * len(data) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The example of the dataset in that place."""
        return dict(self.data.example(self.indices[index], epoch))

"""The objective of a latent diffusion model on its first stage's latents, and batches for all objectives."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.ldm.data import BatchOrder, Selection
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.data.ahead import Ahead, Examples, as_batch
from hyperbrush.training.data.conditioned import check_wanted, shown_conditions
from hyperbrush.training.loop.micro_batches import is_out_of_memory
from hyperbrush.training.loop.objectives import Objective

if TYPE_CHECKING:
    from PIL.Image import Image

SHARES = (0.125, 0.375, 0.625, 0.875)  # of the process, for validation


def make_batch(data: Examples, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Examples of (epoch, index) as one batch, keys in the plural: images, captions, paths, …"""
    return as_batch([data.example(i, epoch) for epoch, i in pairs])


def latent_shape(model: LatentDiffusion, batch: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """(count, c, h, w) of a batch's latents, also of those that its pictures will have."""
    for key in ("latents", "latent_means"):
        if key in batch:
            return (count, *batch[key].shape[1:])
    sides = (side // model.downsampling for side in batch["images"].shape[-2:])
    return (count, model.latent_shape[0], *sides)


def order_of(data: Examples, batch_size: int, seed: int) -> BatchOrder:
    """Batches of a dataset; pictures of different shapes (``groups``) never meet in one."""
    groups = getattr(data, "groups", None)
    return BatchOrder(len(data) if groups is None else groups, batch_size, seed)


class DenoisingObjective(Objective):
    """Train a latent diffusion model's UNet (and its text encoder, where that is trainable).

    Args:
        model: the whole model; whatever requires a gradient is trained.
        data: pictures or cached latents, with captions.
        held_out: for the validation loss, over one fixed set of timesteps and noises.
        weighting, condition_dropout, offset_noise, perturbation, timestep_sampling, timestep_options: see
            `ldm.modules.diffusion` and `ldm.modules.draws`.
        prompts: of the sample grid.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        data: Examples,
        *,
        held_out: Examples | None = None,
        seed: int = 0,
        weighting: str = "none",
        condition_dropout: float = 0.1,
        offset_noise: float = 0.0,
        perturbation: float = 0.0,
        timestep_sampling: str = "uniform",
        timestep_options: Mapping[str, float] | None = None,
        timestep_range: tuple[int, int] | None = None,
        prompts: Sequence[str] | None = None,
        guidance_scale: float = 4.0,
        text_learning_rate_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_wanted(model, prompts or [])
        self.model = model
        self.data, self.held_out, self.seed = data, held_out, seed
        self.ahead = Ahead()
        self.weighting, self.guidance_scale = weighting, guidance_scale
        self.prompts = None if prompts is None else list(prompts)
        self.text_scale = text_learning_rate_scale
        self.drawing: dict[str, Any] = {
            "condition_dropout": condition_dropout,
            "offset_noise": offset_noise,
            "perturbation": perturbation,
            "timestep_sampling": timestep_sampling,
            "timestep_options": timestep_options,
            "timestep_range": timestep_range,
        }
        self.order: BatchOrder | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoder may learn at a rate of its own."""
        encoders = (self.model.text_encoder, self.model.text_encoder_2)
        text = [p for e in encoders if e is not None for p in e.parameters() if p.requires_grad]
        chosen = set(map(id, text))
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        return groups + ([{"params": text, "scale": self.text_scale}] if text else [])

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Examples with this step's noise, timesteps and dropped conditions."""
        if self.order is None:
            self.order = order_of(self.data, batch_size, self.seed)
        batch = self.ahead.batch(self.data, self.order, step)
        shape = latent_shape(self.model, batch, batch_size)
        return batch | self.model.draw(shape, keyed_generator(self.seed, "noise", step), **self.drawing)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean weighted loss."""
        losses = self.model.losses(batch, weighting=self.weighting)
        if "weights" in batch:
            losses = losses * batch["weights"].to(losses.device)
        return {"loss": losses.mean()}

    def validate(self, pictures: int = 256) -> dict[str, float]:
        """Unweighted loss on held-out pictures, each at four fixed timesteps with fixed noise."""
        if self.held_out is None:
            return {}
        return {"loss": float(validation_losses(self.model, spread(self.held_out, pictures)).mean())}

    def preview(self) -> "Image | None":
        """One picture a prompt (a class, a picture to be told of, or a seed), fixed seeds."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        examples: Any = self.held_out or self.data
        names, conditions = shown_conditions(self.model, self.prompts, examples)
        if not names:
            return None
        if len(set(examples.groups)) == 1:  # a shape it is trained on
            conditions.setdefault("size", tuple(examples.groups[0]))
        steps = max(1, min(20, len(self.model.diffusion.schedule) // 2 - 1))
        made = self.model.sample(**conditions, guidance_scale=self.guidance_scale, steps=steps)
        return grid(to_pictures(made), columns=min(8, len(names)))

    def save(self, folder: Path) -> Path:
        """`save_pretrained` into folder/model."""
        self.model.save_pretrained(folder / "model")
        return folder / "model"


def spread(data: Any, most: int) -> Any:
    """So many examples at most, from all over a dataset."""
    count = len(data)
    return data if count <= most else Selection(data, [i * count // most for i in range(most)])


@torch.no_grad()
def validation_losses(
    model: LatentDiffusion,
    data: Examples,
    *,
    limit: int | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    batch_size: int = 64,
    text_states: Callable[[Sequence[str]], dict[str, Tensor]] | None = None,
) -> Tensor:
    """Unweighted denoising loss over one fixed grid: (pictures, timesteps), float32 on the CPU.

    Picture i meets timestep j always with the same noise, keyed by (seed, i, j), whatever the model,
    the batch or the adapter; so that two models differ by what they know alone.  With four shares of
    the process the first is nearly clean and the last nearly noise.

    batch_size: pictures at once; where memory is short, a batch is halved until it fits.
    text_states: captions to "embeddings", where they are known already.
    """

    def judged(indices: list[int]) -> Tensor:
        batch = make_batch(data, [(0, i) for i in indices])
        states = {} if text_states is None else text_states(batch["captions"])
        conditions: dict[str, Any] = model.conditions(batch | states)
        return grid_losses(model, model.latents_of(batch), indices, conditions, shares, seed)

    count = len(data) if limit is None else min(limit, len(data))
    was_training = model.training
    model.eval()
    found = torch.empty(count, len(shares))
    for indices in batches_by_shape(data, range(count), batch_size):
        found[indices] = in_halves(judged, indices)
    model.train(was_training)
    return found


def in_halves(of: Callable[[list[int]], Tensor], indices: list[int]) -> Tensor:
    """A row for each of the numbers, all computed at once; where memory is short, one half after the other."""
    from accelerate.utils.memory import clear_device_cache

    try:
        return of(indices)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(indices) == 1:
            raise
    clear_device_cache(garbage_collection=True)
    middle = len(indices) // 2
    return torch.cat([in_halves(of, indices[:middle]), in_halves(of, indices[middle:])])


@torch.no_grad()
def grid_losses(
    model: LatentDiffusion,
    latents: Tensor,
    indices: Sequence[int],
    conditions: Mapping[str, Any],
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Tensor:
    """Losses of latents (pictures, c, h, w) at shares of the process, with noise keyed by (seed, index, timestep's number).

    Gives (pictures, timesteps), float32 on the CPU.
    """
    columns = []
    for j, share in enumerate(shares):
        step = int(share * len(model.diffusion.schedule))
        noises = [
            torch.randn(latents.shape[1:], generator=keyed_generator(seed, "grid", i, j)) for i in indices
        ]
        timesteps = torch.full((len(latents),), step, device=latents.device)
        noise = torch.stack(noises).to(latents)
        columns.append(model.diffusion.losses(latents, noise, timesteps, **conditions).cpu())
    return torch.stack(columns, dim=1)


def batches_by_shape(data: Examples, indices: Iterable[int], size: int) -> list[list[int]]:
    """Numbers of examples in batches of one shape each (``groups``)."""
    groups = getattr(data, "groups", None)
    shapes: dict[Any, list[int]] = {}
    for i in indices:
        shapes.setdefault(None if groups is None else groups[i], []).append(i)
    return [own[k : k + size] for own in shapes.values() for k in range(0, len(own), size)]

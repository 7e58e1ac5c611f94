"""Objectives for a latent diffusion model: the first stage, and the diffusion model on its latents."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from hyperbrush.files import atomic_folder
from hyperbrush.ldm.data import BatchOrder, collate
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.autoencoder import downsampling, is_vq, reconstruct
from hyperbrush.ldm.models.loading import plain_configs
from hyperbrush.ldm.modules.losses import (
    FirstStageLoss,
    PatchDiscriminator,
    hinge_discriminator_loss,
    psnr,
)
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.conditioned import shown_conditions
from hyperbrush.training.objectives import Objective

if TYPE_CHECKING:
    from PIL.Image import Image


class Examples(Protocol):
    """A dataset: `example(index, epoch)` is a function of its arguments (and the dataset's seed)."""

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """One training example."""
        ...


def make_batch(data: Examples, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Examples of (epoch, index) as one batch, keys in the plural: images, captions, paths, …"""
    return {f"{k}s": v for k, v in collate([data.example(i, epoch) for epoch, i in pairs]).items()}


def latent_shape(model: LatentDiffusion, batch: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """(count, c, h, w) of a batch's latents, also of those that its pictures will have."""
    for key in ("latents", "latent_means"):
        if key in batch:
            return (count, *batch[key].shape[1:])
    factor = downsampling(model.first_stage)
    return (count, model.latent_shape[0], *(side // factor for side in batch["images"].shape[-2:]))


def order_of(data: Examples, batch_size: int, seed: int) -> BatchOrder:
    """Batches of a dataset; pictures of different shapes (``groups``) never meet in one."""
    groups = getattr(data, "groups", None)
    return BatchOrder(len(data) if groups is None else groups, batch_size, seed)


class FirstStageObjective(Objective):
    """Train an autoencoder on pictures (Rombach et al. 2022, appendix G).

    With an adversarial weight the discriminator learns in the same step and from the same optimizer:
    each side sees the other's parameters as constants.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: FirstStageLoss,
        data: Examples,
        *,
        held_out: Examples | None = None,
        seed: int = 0,
        sample_posterior: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.terms = model, loss
        self.discriminator = PatchDiscriminator() if loss.adversarial_weight else None
        self.data, self.held_out, self.seed = data, held_out, seed
        self.sample_posterior = sample_posterior and not is_vq(model)
        self.order: BatchOrder | None = None

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Pictures, and the noise of the posterior's sample."""
        if self.order is None:
            self.order = order_of(self.data, batch_size, self.seed)
        batch = make_batch(self.data, self.order.pairs(step))
        batch["step"] = step
        if self.sample_posterior:
            factor = downsampling(self.model)
            height, width = (side // factor for side in batch["images"].shape[-2:])
            config: Any = self.model.config
            shape = (batch_size, config.latent_channels, height, width)
            batch["noise"] = torch.randn(shape, generator=keyed_generator(self.seed, "posterior", step))
        return batch

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms."""
        device = next(self.model.parameters()).device
        pictures = batch["images"].to(device)
        noise = batch["noise"].to(device) if "noise" in batch else None
        found = {k: v.float() for k, v in reconstruct(self.model, pictures, noise).items()}
        reconstruction = found.pop("reconstruction")
        adversarial = self.terms.adversarial(batch["step"])
        fake = self._frozen_discriminator(reconstruction) if adversarial else None
        terms = self.terms.terms(pictures, reconstruction, fake_logits=fake, **found)
        if self.discriminator is not None:
            logits = self.discriminator(torch.cat([pictures, reconstruction.detach()]))
            real, false = logits.float().chunk(2)
            # Before its start the discriminator stays in the graph, so that every process has its gradients.
            terms["discriminator"] = hinge_discriminator_loss(real, false) * float(adversarial)
        total = torch.stack([v.float() for v in terms.values()]).sum()
        return {"loss": total, **terms}

    def _frozen_discriminator(self, reconstruction: Tensor) -> Tensor:
        assert self.discriminator is not None
        constants = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        logits: Tensor = torch.func.functional_call(self.discriminator, constants, (reconstruction,))
        return logits.float()

    def validate(self) -> dict[str, float]:
        """Mean of per-picture PSNR in dB on the held-out pictures; "loss" is its negative."""
        if self.held_out is None:
            return {}
        found = torch.cat([psnr(a, b) for a, b in self._pairs(range(len(self.held_out)))])
        return {"psnr": float(found.mean()), "loss": -float(found.mean())}

    def _pairs(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        assert self.held_out is not None
        device = next(self.model.parameters()).device
        found = []
        for start in range(0, len(indices), 64):
            batch = make_batch(self.held_out, [(0, i) for i in indices[start : start + 64]])["images"].to(
                device
            )
            made = reconstruct(self.model, batch)["reconstruction"]
            found.append(((made.float() / 2 + 0.5).clamp(0, 1), batch / 2 + 0.5))
        return found

    def preview(self) -> "Image | None":
        """Eight held-out pictures above their reconstructions."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        if self.held_out is None:
            return None
        count = min(8, len(self.held_out))
        [(made, true)] = self._pairs(range(0, len(self.held_out), len(self.held_out) // count))[:1]
        return grid(to_pictures(torch.cat([true[:count], made[:count]])), columns=count)

    def save(self, folder: Path) -> Path:
        """`save_pretrained` into folder/first_stage."""
        with atomic_folder(folder / "first_stage") as temporary:
            self.model.save_pretrained(temporary)  # type: ignore[operator]
            plain_configs(temporary)
        return folder / "first_stage"


class DenoisingObjective(Objective):
    """Train a latent diffusion model's UNet (and its text encoder, where that is trainable).

    Args:
        model: the whole model; whatever requires a gradient is trained.
        data: pictures or cached latents, with captions.
        held_out: for the validation loss, over one fixed set of timesteps and noises.
        weighting, condition_dropout, offset_noise, perturbation, timestep_sampling: see
            `ldm.modules.diffusion`.
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
        timestep_range: tuple[int, int] | None = None,
        prompts: Sequence[str] = (),
        guidance_scale: float = 4.0,
        text_learning_rate_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.data, self.held_out, self.seed = data, held_out, seed
        self.weighting, self.prompts, self.guidance_scale = weighting, list(prompts), guidance_scale
        self.text_scale = text_learning_rate_scale
        self.drawing: dict[str, Any] = {
            "condition_dropout": condition_dropout,
            "offset_noise": offset_noise,
            "perturbation": perturbation,
            "timestep_sampling": timestep_sampling,
            "timestep_range": timestep_range,
        }
        self.order: BatchOrder | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoder may learn at a rate of its own."""
        encoder = self.model.text_encoder
        text = [p for p in encoder.parameters() if p.requires_grad] if encoder is not None else []
        chosen = set(map(id, text))
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        return groups + ([{"params": text, "scale": self.text_scale}] if text else [])

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Examples with this step's noise, timesteps and dropped conditions."""
        if self.order is None:
            self.order = order_of(self.data, batch_size, self.seed)
        batch = make_batch(self.data, self.order.pairs(step))
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
        return {"loss": float(validation_losses(self.model, self.held_out, limit=pictures).mean())}

    def preview(self) -> "Image | None":
        """One picture a prompt (a class, a picture to be told of, or a seed), fixed seeds."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        examples: Any = self.held_out or self.data
        names, told = shown_conditions(self.model, self.prompts, examples)
        if not names:
            return None
        made = self.model.sample(**told, guidance_scale=self.guidance_scale, steps=20)
        return grid(to_pictures(made), columns=min(8, len(names)))

    def save(self, folder: Path) -> Path:
        """`save_pretrained` into folder/model."""
        self.model.save_pretrained(folder / "model")
        return folder / "model"


@torch.no_grad()
def validation_losses(
    model: LatentDiffusion,
    data: Examples,
    *,
    limit: int | None = None,
    shares: Sequence[float] = (0.125, 0.375, 0.625, 0.875),
    seed: int = 0,
    batch_size: int = 64,
    told: Callable[[Sequence[str]], dict[str, Tensor]] | None = None,
) -> Tensor:
    """Unweighted denoising loss over one fixed grid: (pictures, timesteps), float32 on the CPU.

    Picture i meets timestep j always with the same noise, keyed by (seed, i, j), whatever the model,
    the batch or the adapter; so that two models differ by what they know alone.  With four shares of
    the process the first is nearly clean and the last nearly noise.

    told: captions to "embeddings", where they are known already.
    """
    count = len(data) if limit is None else min(limit, len(data))
    steps = [int(share * len(model.diffusion.schedule)) for share in shares]
    was_training = model.training
    model.eval()
    groups = getattr(data, "groups", None)
    shapes: dict[Any, list[int]] = {}
    for i in range(count):
        shapes.setdefault(None if groups is None else groups[i], []).append(i)
    found = torch.empty(count, len(shares))
    for indices in (
        own[k : k + batch_size] for own in shapes.values() for k in range(0, len(own), batch_size)
    ):
        batch = make_batch(data, [(0, i) for i in indices])
        latents = model.latents_of(batch)
        conditions: dict[str, Any] = model.conditions(batch | told(batch["captions"]) if told else batch)
        columns = []
        for j, step in enumerate(steps):
            noise = torch.stack(
                [
                    torch.randn(latents.shape[1:], generator=keyed_generator(seed, "grid", i, j))
                    for i in indices
                ]
            ).to(latents)
            timesteps = torch.full((len(latents),), step, device=latents.device)
            columns.append(model.diffusion.losses(latents, noise, timesteps, **conditions).cpu())
        found[indices] = torch.stack(columns, dim=1)
    model.train(was_training)
    return found

"""The objective of a first stage: pictures to latents and back."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.files import atomic_folder
from hyperbrush.ldm.data import BatchOrder
from hyperbrush.ldm.models.autoencoder import downsampling, is_vq, reconstruct
from hyperbrush.ldm.models.loading import plain_configs
from hyperbrush.ldm.modules.codebook import perplexity, revive
from hyperbrush.ldm.modules.losses import (
    FirstStageLoss,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    psnr,
)
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.data.ahead import Ahead, Examples
from hyperbrush.training.ldm.objectives import batches_by_shape, make_batch, order_of
from hyperbrush.training.loop.objectives import Objective

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 64  # held-out pictures
LOOKED_AT = 8  # latents for each entry of a codebook, before it is said to be unused
REST = ("kl", "quantise", "adversarial")  # terms that do not compare pictures


class FirstStageObjective(Objective):
    """Train an autoencoder on pictures (Rombach et al. 2022, appendix G).

    With an adversarial weight the discriminator learns in the same step and from the same optimizer:
    each side sees the other's parameters as constants.

    revive_every: steps after which entries of a codebook that no picture of the last batches used take the place
        of latents that there are (Dhariwal et al. 2020, Jukebox, section 3.1); 0: never.
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
        revive_every: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.terms = model, loss
        self.discriminator = PatchDiscriminator() if loss.adversarial_weight else None
        self.data, self.held_out, self.seed = data, held_out, seed
        self.ahead = Ahead()
        self.sample_posterior = sample_posterior and not is_vq(model)
        self.revive_every = revive_every if is_vq(model) else 0
        self.order: BatchOrder | None = None

    def place(self, device: torch.device) -> None:
        """The perceptual network is frozen, so no part of this module."""
        if isinstance(self.terms.perceptual, nn.Module):
            self.terms.perceptual.to(device)

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Pictures, and the noise of the posterior's sample."""
        if self.order is None:
            self.order = order_of(self.data, batch_size, self.seed)
        batch = self.ahead.batch(self.data, self.order, step)
        batch["step"] = step
        if self.sample_posterior:
            factor = downsampling(self.model)
            height, width = (side // factor for side in batch["images"].shape[-2:])
            config: Any = self.model.config
            shape = (batch_size, config.latent_channels, height, width)
            batch["noise"] = torch.randn(shape, generator=keyed_generator(self.seed, "posterior", step))
        return batch

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms; told beside them are "codebook_used", the share of entries that these pictures use, and
        "adversarial_factor", see `adaptive_weight`.
        """
        device = next(self.model.parameters()).device
        pictures = batch["images"].to(device)
        noise = batch["noise"].to(device) if "noise" in batch else None
        found = reconstruct(self.model, pictures, noise)
        codes = found.pop("codes", None)
        found = {k: v.float() for k, v in found.items()}
        reconstruction = found.pop("reconstruction")
        adversarial = self.terms.adversarial(batch["step"])
        fake = self._frozen_discriminator(reconstruction) if adversarial else None
        terms = self.terms.terms(pictures, reconstruction, fake_logits=fake, **found)
        figures: dict[str, Tensor] = {}
        if self.terms.adversarial_adaptive and adversarial and torch.is_grad_enabled():
            rest = torch.stack([v.float() for k, v in terms.items() if k not in REST]).sum()
            factor = adaptive_weight(rest, terms["adversarial"], self.model.decoder.conv_out.weight)  # type: ignore[union-attr, arg-type]
            figures["adversarial_factor"] = factor
            terms["adversarial"] = terms["adversarial"] * factor
        if self.discriminator is not None:
            logits = self.discriminator(torch.cat([pictures, reconstruction.detach()]))
            real, false = logits.float().chunk(2)
            # Before its start the discriminator stays in the graph, so that every process has its gradients.
            terms["discriminator"] = hinge_discriminator_loss(real, false) * float(adversarial)
        total = torch.stack([v.float() for v in terms.values()]).sum()
        if codes is not None:
            figures["codebook_used"] = torch.tensor(len(torch.unique(codes)) / self._entries(), device=device)
        return {"loss": total, **terms, **figures}

    def _frozen_discriminator(self, reconstruction: Tensor) -> Tensor:
        assert self.discriminator is not None
        constants = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        logits: Tensor = torch.func.functional_call(self.discriminator, constants, (reconstruction,))
        return logits.float()

    def _entries(self) -> int:
        return len(self.model.quantize.embedding.weight)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def before_step(self, step: int, batch_size: int) -> str | None:
        """Revive a codebook's unused entries: a function of weights and step, so that a resume is exact."""
        if not self.revive_every or step == 0 or step % self.revive_every:
            return None
        device, order = next(self.model.parameters()).device, order_of(self.data, batch_size, self.seed)
        latents: list[Tensor] = []
        seen = 0
        for before in range(step - 1, max(-1, step - 1 - self.revive_every), -1):
            images = make_batch(self.data, order.pairs(before))[
                "images"
            ]  # past `ahead`, which has the next ones
            for pictures in torch.split(images, 16):
                latents.append(self.model.encode(pictures.to(device)).latents.float())  # type: ignore[operator]
                seen += latents[-1][:, 0].numel()
            if seen >= LOOKED_AT * self._entries():
                break
        generator = keyed_generator(self.seed, "revive", step)
        count = revive(self.model.quantize, latents, generator)
        if not count:
            return None
        return f"{count} of {self._entries()} entries of the codebook were used by no picture and begin anew"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean of per-picture PSNR in dB on the held-out pictures; "loss" is its negative.

        Of a codebook also "codebook_used", the share of its entries that they use, and "perplexity", as many
        entries as would be used as evenly.
        """
        if self.held_out is None:
            return {}
        psnrs: list[Tensor] = []
        uses = torch.zeros(self._entries() if is_vq(self.model) else 0)
        for made, true, codes in self._pairs(range(len(self.held_out))):
            psnrs.append(psnr(made, true))
            if codes is not None:
                uses += codes.flatten().cpu().bincount(minlength=len(uses))
        found = torch.cat(psnrs)
        figures = {"psnr": float(found.mean()), "loss": -float(found.mean())}
        if len(uses):
            figures |= {"codebook_used": float((uses > 0).float().mean()), "perplexity": perplexity(uses)}
        return figures

    def _pairs(self, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(reconstructions, pictures, codes) of held-out pictures, those of one shape together; in [0, 1]."""
        assert self.held_out is not None
        device = next(self.model.parameters()).device
        for own in batches_by_shape(self.held_out, indices, AT_ONCE):
            batch = make_batch(self.held_out, [(0, i) for i in own])["images"].to(device)
            made = reconstruct(self.model, batch)
            pictures = (made["reconstruction"].float() / 2 + 0.5).clamp(0, 1)
            yield pictures, batch / 2 + 0.5, made.get("codes")

    def preview(self) -> "Image | None":
        """Eight held-out pictures of the commonest shape above their reconstructions."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        if self.held_out is None:
            return None
        count = len(self.held_out)
        own = max(batches_by_shape(self.held_out, range(count), count), key=len)
        count = min(8, len(own))
        chosen = [own[i * len(own) // count] for i in range(count)]
        [(made, true, _)] = self._pairs(chosen)
        return grid(to_pictures(torch.cat([true, made])), columns=count)

    def save(self, folder: Path) -> Path:
        """`save_pretrained` into folder/first_stage."""
        with atomic_folder(folder / "first_stage") as temporary:
            self.model.save_pretrained(temporary)  # type: ignore[operator]
            plain_configs(temporary)
        return folder / "first_stage"

"""First-stage loss: reconstruction, KL, image gradients, optional perceptual and adversarial terms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperbrush.errors import UserError


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), mean over the latents' elements, in nats."""
    return 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar).mean()


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between horizontal and vertical differences (Mathieu et al. 2016, equation 6, alpha = 1).

    a, b: (batch, channels, height, width); keeps edges sharp where L1 alone would blur them.
    """
    across = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    return across + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()


class PatchDiscriminator(nn.Sequential):
    """PatchGAN of Isola et al. (2017): (batch, 3, h, w) -> (batch, 1, ~h/8, ~w/8) realness logits."""

    def __init__(self, channels: int = 3, width: int = 32, layers: int = 2) -> None:
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            a, b = width * 2**i, width * 2 ** (i + 1)
            parts += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(width * 2**layers, 1, 3, 1, 1))


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim & Ye 2017), as in VQGAN."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(rest: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """Equation 7 of Esser et al. (2021, VQGAN): what makes the adversarial gradient as long as the rest's.

    rest, adversarial: scalars; last: the weight of the decoder's last layer, where both are compared.  From 0 to 1e4.
    """
    one, other = (
        torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (rest, adversarial)
    )
    factor: Tensor = (one / (other + 1e-4)).clamp(0, 1e4).detach()
    return factor


@dataclass(frozen=True)
class FirstStageLoss:
    """Weighted sum of the first stage's terms; a weight of 0 leaves a term out.

    ``perceptual`` is any function (a, b) -> scalar, LPIPS for one, given by the caller since its
    weights need a download.  The adversarial term starts at step ``adversarial_start``, after the
    picture is roughly there (Esser et al. 2021, section 4.1); adaptive, its weight is multiplied by
    `adaptive_weight`.

    Raises:
        UserError: a perceptual weight without a function.
    """

    l1: float = 1.0
    mse: float = 1.0
    gradient: float = 1.0
    log_mse: float = 0.0  # log of each picture's MSE: the mean of per-picture PSNR itself
    kl: float = 1e-3  # per latent element, not summed: independent of the latents' size
    quantise: float = 1.0
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    adversarial_adaptive: bool = False
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.perceptual_weight and self.perceptual is None:
            raise UserError("perceptual_weight is given, but no perceptual function; pass perceptual=…")

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.adversarial_weight > 0 and step >= self.adversarial_start

    def terms(
        self,
        picture: Tensor,
        reconstruction: Tensor,
        *,
        mean: Tensor | None = None,
        logvar: Tensor | None = None,
        quantise: Tensor | None = None,
        fake_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each term, weighted; their sum is the loss.

        picture, reconstruction: (batch, 3, height, width) in [-1, 1]; mean, logvar: (batch, latent
        channels, …) of a KL first stage; quantise: the scalar commitment loss of a VQ one.
        """
        found: dict[str, Tensor] = {}
        if self.l1:
            found["l1"] = self.l1 * F.l1_loss(reconstruction, picture)
        if self.mse:
            found["mse"] = self.mse * F.mse_loss(reconstruction, picture)
        if self.gradient:
            found["gradient"] = self.gradient * gradient_loss(reconstruction, picture)
        if self.log_mse:
            per_picture = (reconstruction - picture).pow(2).flatten(1).mean(1)
            found["log_mse"] = self.log_mse * (per_picture + 1e-4).log().mean()
        if self.kl and mean is not None and logvar is not None:
            found["kl"] = self.kl * kl_to_standard_normal(mean, logvar)
        if self.quantise and quantise is not None:
            found["quantise"] = self.quantise * quantise
        if self.perceptual is not None and self.perceptual_weight:
            found["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, picture)
        if fake_logits is not None:
            found["adversarial"] = -self.adversarial_weight * fake_logits.mean()
        return found


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB; a, b: (batch, 3, h, w) in [0, 1] -> (batch,)."""
    error = (a.float() - b.float()).pow(2).flatten(1).mean(1).clamp_min(1e-12)
    return -10 * torch.log10(error)

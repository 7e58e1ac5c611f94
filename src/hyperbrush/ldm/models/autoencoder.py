"""First stages: KL and VQ autoencoders of diffusers behind one pair of functions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.models.latents import decode_tiled


def first_stage(
    kind: str = "kl",
    *,
    latent_dim: int = 4,
    channels: Sequence[int] = (64, 128, 256, 256),
    layers_per_block: int = 1,
    mid_attention: bool = False,
    codebook: int = 1024,
    sample_size: int = 512,
) -> nn.Module:
    """A fresh `AutoencoderKL` ("kl") or `VQModel` ("vq"); downsampling is 2^(len(channels) - 1).

    Args:
        kind: "kl" (Gaussian latents, Rombach et al. 2022) or "vq" (a codebook, Esser et al. 2021).
        latent_dim: channels of the latents.
        channels: width of each level, first level at full resolution.
        layers_per_block: residual layers a level in the encoder (the decoder has one more).
        mid_attention: self-attention in the middle.
        codebook: entries of a VQ codebook.
        sample_size: pictures' side in pixels, kept in the config for pipelines.

    Raises:
        UserError: unknown kind, or widths the group norm cannot divide.
    """
    from diffusers import AutoencoderKL, VQModel

    groups = norm_groups(channels)
    shape: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": layers_per_block,
        "latent_channels": latent_dim,
        "norm_num_groups": groups,
        "mid_block_add_attention": mid_attention,
        "sample_size": sample_size,
    }
    if kind == "kl":
        model: nn.Module = AutoencoderKL(**shape, scaling_factor=1.0, force_upcast=False)
    elif kind == "vq":
        model = VQModel(**shape, num_vq_embeddings=codebook, scaling_factor=1.0)
    else:
        raise unknown_name("first stage", kind, ("kl", "vq"))
    return model


def norm_groups(channels: Sequence[int]) -> int:
    """The largest group count up to 32 that divides every width.

    Raises:
        UserError: a width is not a positive number.
    """
    if not channels or any(c < 1 for c in channels):
        raise UserError(f"channels must be positive numbers, got {list(channels)}")
    return next(g for g in range(32, 0, -1) if all(c % g == 0 for c in channels))


def is_vq(model: nn.Module) -> bool:
    """Whether this first stage has a codebook."""
    return hasattr(model, "quantize")


def downsampling(model: nn.Module) -> int:
    """Pixels per latent element along one side."""
    return int(2 ** (len(model.config.block_out_channels) - 1))  # type: ignore[union-attr, arg-type]


def moments(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Unscaled latents of pictures as {"mean", "std"}: (batch, c, h, w) each; std is 0 where the first stage has no
    posterior, a codebook's and `AutoencoderTiny`.

    images: (batch, 3, H, W) in [-1, 1].
    """
    encoded = model.encode(images)  # type: ignore[operator]
    if hasattr(encoded, "latents"):
        return {"mean": encoded.latents, "std": torch.zeros_like(encoded.latents)}
    posterior = encoded.latent_dist
    return {"mean": posterior.mean, "std": posterior.std}


class EncodeMethod:
    """``encoder.encode``: scaled latents (batch, c, h, w) of pictures (batch, 3, H, W) in [-1, 1].

    stage: the first stage that the encoder is part of; None in a copy, until its model is asked for its encoder.
    """

    def __init__(self, stage: nn.Module | None = None) -> None:
        self.stage = stage

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Without a generator the posterior's mean, else a sample drawn from it.

        Raises:
            UserError: the encoder is a copy without its first stage.
        """
        if self.stage is None:
            raise UserError("this encoder is a copy without its first stage: take model.encoder anew")
        return encode(self.stage, images, generator)

    def __reduce__(self) -> tuple[type["EncodeMethod"], tuple[()]]:
        return EncodeMethod, ()  # a copy of the encoder must not carry the whole first stage along


def scaled(
    model: nn.Module, mean: Tensor, std: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Latents as diffusion sees them, of their unscaled mean; with a generator drawn from the posterior."""
    if generator is not None and std is not None:
        mean = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
    config: Any = model.config
    return (mean - shift_of(model)) * float(config.scaling_factor)


def shift_of(model: nn.Module) -> float:
    """Number taken from the latents before they are scaled."""
    return float(getattr(model.config, "shift_factor", None) or 0.0)


def encode(model: nn.Module, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents as diffusion sees them of pictures (batch, 3, H, W) in [-1, 1]: the posterior's mean, or a sample of it."""
    latents = moments(model, images)
    return scaled(model, latents["mean"], latents["std"], generator)


def decode(model: nn.Module, latents: Tensor, *, tiled: bool = False) -> Tensor:
    """Undo `encode`; ``tiled``: overlapping tiles one by one."""
    stage: Any = model
    unscaled = latents / float(stage.config.scaling_factor) + shift_of(model)
    if tiled:
        return decode_tiled(lambda z: stage.decode(z).sample, unscaled, downsampling(model))
    pictures: Tensor = stage.decode(unscaled).sample
    return pictures


def reconstruct(model: nn.Module, images: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
    """One pass through encoder and decoder with what `FirstStageLoss` needs.

    images: (batch, 3, H, W) in [-1, 1]; noise: standard normal of the latents' shape, which makes a
    KL stage decode a sample of its posterior (None decodes its mean).  Returns "reconstruction" and
    either "mean" and "logvar", or the scalar "quantise" and the "codes" used, or (`AutoencoderTiny`) nothing else.
    """
    if is_vq(model):
        latents = model.encode(images).latents  # type: ignore[operator]
        quantised, loss, (_, _, codes) = model.quantize(latents)  # type: ignore[operator]
        decoded = model.decode(quantised, force_not_quantize=True).sample  # type: ignore[operator]
        return {"reconstruction": decoded, "quantise": loss, "codes": codes}
    encoded = model.encode(images)  # type: ignore[operator]
    if hasattr(encoded, "latents"):
        return {"reconstruction": model.decode(encoded.latents).sample}  # type: ignore[operator]
    posterior = encoded.latent_dist
    latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
    decoded = model.decode(latents).sample  # type: ignore[operator]
    return {"reconstruction": decoded, "mean": posterior.mean, "logvar": posterior.logvar}

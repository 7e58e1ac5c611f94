"""A transformer as the denoiser of `LatentDiffusion`: diffusers' PixArt, its text states read by cross-attention."""

from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError

CLASS = "PixArtTransformer2DModel"
PIPELINE = "PixArtSigmaPipeline"


def build_transformer(
    *,
    latent_dim: int,
    sample_size: int,
    context_dim: int,
    width: int,
    layers: int,
    num_heads: int,
    patch_size: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """A fresh `PixArtTransformer2DModel` (Chen et al. 2023, PixArt-α), which predicts no variance.

    Args:
        latent_dim: channels of the latents (and of the output).
        sample_size: side of the latent map.
        context_dim: width of the text states, which every block's cross-attention reads as they are.
        width: of the tokens; a multiple of the heads, and of 4 for the positions.
        layers: blocks of self-attention, cross-attention and feed-forward.
        num_heads: attention heads of every block.
        patch_size: side of the square of latents that is a token.
        dropout: in attention and feed-forward.

    Raises:
        UserError: a width or a patch that does not fit.
    """
    from diffusers import PixArtTransformer2DModel

    check_width(width, num_heads)
    if sample_size % patch_size:
        raise UserError(
            f"transformer: patches of {patch_size} do not fit latents {sample_size} wide; expected a divisor, such as 2"
        )
    made = PixArtTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=width // num_heads,
        in_channels=latent_dim,
        out_channels=latent_dim,
        num_layers=layers,
        dropout=dropout,
        cross_attention_dim=context_dim,
        sample_size=sample_size,
        patch_size=patch_size,
        use_additional_conditions=False,
    )
    _initialise(made)
    return made  # type: ignore[no-any-return]


def check_width(width: int, num_heads: int) -> None:
    """Refuse a width that cannot be had.

    Raises:
        UserError: the heads do not divide it, or 4 does not (sines and cosines of two coordinates).
    """
    for what, number in ((f"{num_heads} heads", num_heads), ("4, for the positions of patches", 4)):
        if width % number:
            raise UserError(f"transformer: width {width} is not divisible by {what}; expected a multiple")


@torch.no_grad()
def _initialise(transformer: Any) -> None:
    """`initialize_weights` of PixArt-alpha's diffusion/model/nets/PixArt.py: the blocks begin without text, the model
    with an output of 0.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(transformer.pos_embed.proj.weight.flatten(1))
    time = transformer.adaln_single
    for layer in (time.emb.timestep_embedder.linear_1, time.emb.timestep_embedder.linear_2, time.linear):
        nn.init.normal_(layer.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(transformer.proj_out.weight)


def is_transformer(denoiser: nn.Module) -> bool:
    """Whether a denoiser is a transformer, not a UNet."""
    return type(denoiser).__name__ == CLASS


def halvings(denoiser: nn.Module) -> int:
    """What both sides of the latents must be multiples of: a UNet's levels halve them, a transformer cuts patches."""
    config: Any = denoiser.config
    return int(config.patch_size if is_transformer(denoiser) else 2 ** (len(config.block_out_channels) - 1))


def check_denoiser(denoiser: nn.Module, conditioning: str) -> None:
    """Refuse a transformer that `LatentDiffusion` does not call, or whose condition it does not read.

    Raises:
        UserError: it is one.
    """
    name = type(denoiser).__name__
    if "Transformer" not in name:
        return
    if not is_transformer(denoiser):
        raise UserError(
            f"{name} cannot be the denoiser of a latent diffusion model here; expected a UNet or {CLASS}"
        )
    if conditioning != "text":
        raise UserError(
            f"a transformer reads text alone, not conditioning {conditioning!r}; take a UNet for that"
        )
    config: Any = denoiser.config
    if denoiser.use_additional_conditions or config.caption_channels is not None:
        raise UserError(
            "a PixArt told of resolution and aspect ratio, or with a projection of captions, cannot be used here; expected "
            "use_additional_conditions=False and caption_channels=None"
        )
    if config.in_channels != config.out_channels:
        raise UserError(
            f"this PixArt reads {config.in_channels} channels and makes {config.out_channels} (a learned variance?); "
            "expected as many"
        )


def denoised(transformer: nn.Module, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """A transformer's output (batch, c, h, w).

    All of a caption's tokens are read, the padding too, as Stable Diffusion's UNets do.

    latents: (batch, c, h, w); timesteps: (batch,) or a scalar; context: (batch, tokens, width).

    Raises:
        UserError: sides of the latents that the patches do not divide.
    """
    patch = halvings(transformer)
    if any(side % patch for side in latents.shape[-2:]):
        raise UserError(
            f"the latents are {tuple(latents.shape[-2:])}; this transformer takes multiples of its patches' side {patch}"
        )
    told = torch.as_tensor(timesteps, device=latents.device).expand(len(latents))
    sample: Tensor = transformer(latents, encoder_hidden_states=context, timestep=told).sample
    return sample

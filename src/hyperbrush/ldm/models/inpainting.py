"""Models whose UNet reads a mask and the masked picture beside the latents, as Stable Diffusion inpainting does."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion

SPECIAL = {
    1: "a depth-to-image",
    3: "an upscaling",
    4: "an instruct-pix2pix",
}  # by channels beside the latents


def reads_masks(unet: Any) -> bool:
    """Whether a UNet takes latents, one channel of a mask and the masked picture's latents."""
    return bool(unet.config.in_channels == 2 * unet.config.out_channels + 1)


def check_channels(unet: Any) -> None:
    """Refuse a UNet that is told of something else beside the latents.

    Raises:
        UserError: it is.
    """
    read, made = unet.config.in_channels, unet.config.out_channels
    if read != made and not reads_masks(unet):
        what = SPECIAL.get(read - made, "another kind of")
        raise UserError(
            f"this is {what} model: its UNet reads {read} channels and makes {made}; expected {made}, or {2 * made + 1} "
            "for inpainting (hypernetworks can be attached to its pipeline all the same, see hyperbrush.attach)"
        )


def check_batch(model: "LatentDiffusion", batch: Any) -> None:
    """Refuse a batch for an inpainting model that does not say what is missing.

    Raises:
        UserError: it has no pictures or no masks.
    """
    if not {"images", "inpaint_masks"} <= set(batch):
        raise UserError(
            "a batch for an inpainting model needs 'images' and 'inpaint_masks' (1 where they are drawn anew, 0 where "
            f"they are kept), also beside cached latents; got {sorted(batch)}"
        )


def masked_input(model: "LatentDiffusion", images: Tensor, masks: Tensor) -> Tensor:
    """What such a UNet reads beside the latents, (batch, 1 + c, h, w): the mask, and the latents of what is kept.

    As in diffusers' StableDiffusionInpaintPipeline: the mask is black or white (0.5 is white), what is drawn anew is
    grey in the picture, and the mask is brought to the latents' size by the nearest place.  The first stage's posterior
    counts by its mean, where diffusers draws from it.

    images: (batch, 3, H, W) in [-1, 1]; masks: (batch, 1, H, W), 1 where the picture is drawn anew.

    Raises:
        UserError: masks of another size than the pictures'.
    """
    expected = (len(images), 1, *images.shape[2:])
    if tuple(masks.shape) != expected:
        raise UserError(f"inpaint_masks have shape {tuple(masks.shape)}; expected {expected}")
    first = next(model.first_stage.parameters())
    white = masks.to(first) >= 0.5
    with torch.no_grad():
        kept = model.encode(torch.where(white, 0.0, images.to(first)))
    small = F.interpolate(white.to(kept), size=kept.shape[2:])
    return torch.cat([small, kept], dim=1).to(model.device, model.dtype)


def all_missing(model: "LatentDiffusion", count: int, size: tuple[int, int]) -> Tensor:
    """`masked_input` of pictures of which nothing is kept: as the webui draws with such a model from text alone.

    size: (height, width) in pixels.
    """
    condition = masked_input(model, torch.zeros(1, 3, *size), torch.ones(1, 1, *size))
    return condition.expand(count, -1, -1, -1)


def random_mask(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A rectangle or an ellipse anywhere in a picture, (1, height, width) of 0 and 1: `random_mask` of diffusers'
    example train_dreambooth_inpaint.py.

    Its sides are uniform, from nothing to the picture's; then its middle is, as far as it fits.
    """
    half, middle = [], []
    for side in size:
        whole = _up_to(side, generator) // 2
        half.append(whole)
        middle.append(whole + _up_to(side - 2 * whole, generator))
    y = (torch.arange(size[0])[:, None] - middle[0]).abs()
    x = (torch.arange(size[1])[None] - middle[1]).abs()
    if _up_to(1, generator):
        inside = (y / max(half[0], 0.5)) ** 2 + (x / max(half[1], 0.5)) ** 2 <= 1
    else:
        inside = (y <= half[0]) & (x <= half[1])
    return inside[None].float()


def _up_to(most: int, generator: torch.Generator) -> int:
    return int(torch.randint(most + 1, (), generator=generator))

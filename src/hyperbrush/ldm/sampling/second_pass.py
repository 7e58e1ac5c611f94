"""A second pass over larger latents, the webui's hires fix: less of what comes twice where a model draws larger than it learned.

The first pass gives the composition at the model's own size; its latents, or its picture, are enlarged, get noise again, and
are sampled to the end (modules/processing.py, StableDiffusionProcessingTxt2Img).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperbrush.ldm.models.prompted import Prompted
from hyperbrush.ldm.pictures import from_picture, to_pictures
from hyperbrush.ldm.sampling.names import UPSCALERS

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class SecondPass:
    """How pictures are drawn on, larger.

    Args:
        scale: of both sides, above 1.
        strength: how much noise is put back, above 0 to 1, the webui's denoising strength.
        steps: sampling steps that are run.
        upscaler: one of `names.UPSCALERS`.
        prompted: what is said in this pass; text states of their own, as the webui counts the numbers of prompts anew.
    """

    scale: float
    strength: float
    steps: int
    upscaler: str
    prompted: Prompted

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of what it draws, of a first pass's."""
        return int(height * self.scale), int(width * self.scale)

    @property
    def schedule(self) -> int:
        """Steps of the schedule whose last `steps` are run, as `setup_img2img_steps` of the webui."""
        return int(self.steps / min(self.strength, 0.999))

    @property
    def share(self) -> float:
        """Of `schedule` that is run; half a step more, so that rounding down gives `steps`."""
        return min((self.steps + 0.5) / self.schedule, 1.0)


def enlarged(
    model: "LatentDiffusion",
    latents: Tensor,
    upscaler: str,
    shape: tuple[int, int, int],
    size: tuple[int, int],
) -> Tensor:
    """Latents (batch, c, h, w) as those of a larger picture.

    shape: (c, h, w) they get; size: (height, width) of the picture, for upscalers that work on it.
    """
    mode = UPSCALERS[upscaler]
    if mode is not None:
        larger = torch.nn.functional.interpolate(
            latents.float(), size=shape[1:], mode=mode[0], antialias=mode[1]
        )
        return larger.to(latents)
    from PIL.Image import Resampling

    first = next(model.first_stage.parameters())
    drawn = (model.decode(latents.to(first)).float() / 2 + 0.5).clamp(0, 1)
    pictures = [one.resize((size[1], size[0]), Resampling.LANCZOS) for one in to_pictures(drawn)]
    pixels = torch.stack([from_picture(one) for one in pictures])
    return model.encode(pixels.to(first) * 2 - 1).to(latents)

"""Stable Diffusion 1, 2 and XL, and what tells them apart."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Models whose UNets have the same shape.

    key: of its configs (`assets/configs`); name: in words; architecture: ModelSpec's name; kohya: that of sd-scripts
    (ss_base_model_version); cross_width: of the text states; self_widths: of its self-attentions' contexts, from the
    finest level to the coarsest.
    """

    key: str
    name: str
    architecture: str
    kohya: str
    cross_width: int
    self_widths: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all contexts, sorted."""
        return tuple(sorted((*self.self_widths, self.cross_width)))


SD1 = Family("sd1", "Stable Diffusion 1.x", "stable-diffusion-v1", "sd_v1", 768, (320, 640, 1280))
SD2 = Family("sd2", "Stable Diffusion 2.x", "stable-diffusion-v2", "sd_v2", 1024, (320, 640, 1280))
SDXL = Family(
    "sdxl", "Stable Diffusion XL", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", 2048, (640, 1280)
)
BY_CROSS_WIDTH = {family.cross_width: family for family in (SD1, SD2, SDXL)}
BY_ARCHITECTURE = {family.architecture: family for family in (SD1, SD2, SDXL)}


UNKNOWN = "latent-diffusion"  # a base model whose widths are of no known family, or of several


def architecture_of(widths: Collection[int]) -> str:
    """ModelSpec's name of the base model, of the widths that a file's networks are for.

    >>> architecture_of([320, 768]), architecture_of([768, 1024])
    ('stable-diffusion-v1', 'latent-diffusion')
    """
    found = [family for width, family in BY_CROSS_WIDTH.items() if width in widths]
    return found[0].architecture if len(found) == 1 else UNKNOWN

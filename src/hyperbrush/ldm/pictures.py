"""Tensors to pictures and pictures to grids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pictures(images: Tensor) -> "list[Image]":
    """(batch, 3, h, w) in [0, 1] to 8-bit pictures, rounded as diffusers does."""
    from PIL import Image

    array = (images.detach().float().cpu().permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(x) for x in array]


def from_picture(picture: "Image") -> Tensor:
    """An RGB picture as (3, h, w) in [0, 1]."""
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def grid(pictures: "Sequence[Image]", columns: int, *, gap: int = 2, background: str = "white") -> "Image":
    """Equal pictures side by side, row by row."""
    from PIL import Image

    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), background)
    for i, picture in enumerate(pictures):
        page.paste(picture, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return page

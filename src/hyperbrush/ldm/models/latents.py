"""Tools of the latent space: interpolation, statistics, quick previews, tiled decoding."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperbrush.errors import UserError


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of each picture's latents, share 0 is a and 1 is b.

    a, b: (batch, …); keeps the norm of Gaussian noise where a straight line would shrink it.  Nearly
    parallel latents are interpolated linearly.
    """
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    cosine = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)[:, None]
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    left = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / safe)
    right = torch.where(straight, share, (share * angle).sin() / safe)
    return (left * flat_a + right * flat_b).view_as(a).to(a.dtype)


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over pictures and places; (batch, c, h, w) -> (c,), (c,)."""
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


def normalise_channels(latents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(latents - mean) / std by channel; mean, std: (c,)."""
    return (latents - mean[:, None, None]) / std[:, None, None]


def denormalise_channels(latents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo `normalise_channels`."""
    return latents * std[:, None, None] + mean[:, None, None]


def fit_preview(latents: Tensor, images: Tensor) -> Tensor:
    """Least-squares map from latents to RGB: (c + 1, 3), the last row a constant.

    latents: (batch, c, h, w); images: (batch, 3, H, W) in [-1, 1], H a multiple of h.
    """
    small = F.adaptive_avg_pool2d(images.float(), (latents.shape[-2], latents.shape[-1]))
    x = latents.float().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    y = small.permute(0, 2, 3, 1).reshape(-1, 3)
    found: Tensor = torch.linalg.lstsq(x, y, driver="gelsd" if x.device.type == "cpu" else "gels").solution
    return found


def quick_preview(latents: Tensor, matrix: Tensor) -> Tensor:
    """Latents to small pictures without the decoder: (batch, c, h, w) -> (batch, 3, h, w) in [0, 1].

    matrix: (c + 1, 3) from `fit_preview`; far cheaper than decoding, so live previews cost nothing.
    """
    rgb = torch.einsum("bchw,cr->brhw", latents.float(), matrix[:-1]) + matrix[-1][:, None, None]
    return (rgb / 2 + 0.5).clamp(0, 1)


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, factor: int, *, tile: int = 64, overlap: int = 16
) -> Tensor:
    """Decode overlapping tiles one by one and blend them linearly over the overlap.

    latents: (batch, c, h, w); factor: pixels per latent element; tile, overlap: in latent elements.
    Returns (batch, 3, h * factor, w * factor).  Differs from a whole decode only as far as the
    decoder sees past a tile's edge.

    Raises:
        UserError: the overlap is not smaller than the tile.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} cannot overlap by {overlap}; the overlap must be smaller")
    height, width = latents.shape[-2:]
    if height <= tile and width <= tile:
        return decode(latents)
    out: Tensor | None = None
    total: Tensor | None = None
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = decode(latents[..., top : top + tile, left : left + tile])
            if out is None or total is None:
                out = part.new_zeros(*part.shape[:2], height * factor, width * factor)
                total = part.new_zeros(1, 1, height * factor, width * factor)
            weight = _ramp(part.shape[-2], overlap * factor)[:, None] * _ramp(
                part.shape[-1], overlap * factor
            )
            weight = weight.to(part)
            window = (
                ...,
                slice(top * factor, top * factor + part.shape[-2]),
                slice(left * factor, left * factor + part.shape[-1]),
            )
            out[window] += part * weight
            total[window] += weight
    assert out is not None
    assert total is not None
    return out / total


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights of one side of a tile: rising over the overlap, flat, falling; never zero."""
    place = torch.arange(length, dtype=torch.float32) + 0.5
    if not overlap:
        return torch.ones(length)
    return torch.minimum(torch.minimum(place, length - place) / overlap, torch.ones(()))

"""The noise that a sampling starts with: of a seed, or between that of two, as with the webui's variation seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIKE = 0.9995  # mean cosine from which two noises count as one direction


@dataclass(frozen=True)
class Variation:
    """Where the starting noise goes.

    Args:
        seeds: one for each picture, whose noise it goes to.
        strength: how far, from 0 (not at all) to 1 (all the way).
    """

    seeds: Sequence[int]
    strength: float


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of noise (c, h, w), as `slerp` of the webui's modules/rng.py.

    As there each column of each channel turns by its own angle, and noises of nearly one direction are mixed with the
    shares changed over.
    """
    a, b = low.float(), high.float()
    cosine = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1)
    if cosine.mean() > ALIKE:
        return (a * share + b * (1 - share)).to(low)
    angle = torch.acos(cosine)
    whole = torch.sin(angle)
    shares = [(torch.sin(part * angle) / whole).unsqueeze(1) for part in (1 - share, share)]
    return (shares[0] * a + shares[1] * b).to(low)


def drawn_noise(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Unit noise of a generator: some versions of torch draw other numbers in half precision, so that it is rounded after."""
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(shape, generator=generator, dtype=wide, device=generator.device).to(dtype)


def starting_noise(
    shape: tuple[int, int, int],
    generators: Sequence[torch.Generator],
    dtype: torch.dtype = torch.float32,
    variation: Variation | None = None,
) -> Tensor:
    """Unit noise (batch, c, h, w) on the CPU, one generator per picture, as diffusers and the webui
    (CPU noise source) draw it: in float32, of which half precision is rounded.
    """
    noise = torch.cat([drawn_noise((1, *shape), g, dtype) for g in generators])
    if variation is None or variation.strength == 0:
        return noise
    others = [torch.Generator("cpu").manual_seed(seed) for seed in variation.seeds]
    pairs = zip(noise, starting_noise(shape, others, dtype), strict=True)
    return torch.stack([slerp(variation.strength, one, other) for one, other in pairs])

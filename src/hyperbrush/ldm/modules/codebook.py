"""How much of a codebook is used, and a new begin for what is not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def perplexity(uses: Tensor) -> float:
    """exp(entropy) of how often each entry was used: 1 … entries; uses: (entries,), counts."""
    shares = uses.double() / uses.sum().clamp_min(1)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


@torch.no_grad()
def revive(quantizer: Any, latents: Sequence[Tensor], generator: torch.Generator) -> int:
    """Random restarts of Dhariwal et al. (2020, Jukebox, section 3.1): unused entries become latents drawn from these.

    quantizer: diffusers' `VectorQuantizer`; latents: each (batch, c, h, w), before they are quantised.  Returns how
    many entries were unused; their new values are a function of weights, latents and generator.
    """
    weight = quantizer.embedding.weight
    flat = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, weight.shape[1]) for z in latents]).to(weight)
    uses = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
    for part in torch.split(flat, 8192):
        uses += torch.cdist(part, weight).argmin(dim=1).bincount(minlength=len(weight))
    unused = (uses == 0).nonzero().flatten()
    if len(unused):
        drawn = torch.randint(len(flat), (len(unused),), generator=generator)
        weight[unused] = flat[drawn.to(flat.device)]
    return len(unused)

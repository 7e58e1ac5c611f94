"""Style and content of generated pictures, by what the model brings along: nothing is downloaded."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbrush.ldm.models import LatentDiffusion


@torch.no_grad()
def moments(model: LatentDiffusion, pictures: Tensor) -> Tensor:
    """Means and deviations of every channel of the pictures and of the first stage's encoder levels.

    pictures: (n, 3, H, W) in [-1, 1] → (n, features), after Huang & Belongie (2017, 1703.06868): what says the
    style and not where things are.
    """
    levels: list[Tensor] = [pictures]
    blocks = model.encoder.down_blocks
    hooks = [b.register_forward_hook(lambda _, __, out: levels.append(out)) for b in blocks]  # type: ignore[union-attr]
    try:
        for part in pictures.split(64):  # type: ignore[no-untyped-call]
            model.encode(part)
    finally:
        for hook in hooks:
            hook.remove()
    count = len(blocks)  # type: ignore[arg-type]
    parts = [levels[0], *(torch.cat(levels[1 + i :: count]) for i in range(count))]
    return torch.cat([m for f in parts for m in (f.mean((2, 3)), f.flatten(2).std(2))], 1).float()


class StyleSpace:
    """Distances between sets of pictures in style, scaled by how much real pictures of all styles differ.

    pictures: of each style, (n, 3, H, W) in [-1, 1].
    """

    def __init__(self, model: LatentDiffusion, pictures: Mapping[str, Tensor]) -> None:
        self.model = model
        raw = {style: moments(model, own) for style, own in pictures.items()}
        everything = torch.cat(list(raw.values()))
        self.mean, self.std = everything.mean(0), everything.std(0).clamp_min(1e-6)
        self.real = {style: (own - self.mean) / self.std for style, own in raw.items()}

    def features(self, pictures: Tensor) -> Tensor:
        """Scaled moments of pictures in [-1, 1]."""
        return (moments(self.model, pictures) - self.mean) / self.std

    @staticmethod
    def distance(one: Tensor, other: Tensor) -> float:
        """Root mean square difference of the mean features of two sets; 0 is alike, 1 a usual deviation."""
        return float((one.mean(0) - other.mean(0)).square().mean().sqrt())

    def to_style(self, pictures: Tensor, style: str, names: Sequence[int]) -> float:
        """Distance of generated pictures to the style's own pictures of the same names."""
        return self.distance(self.features(pictures), self.real[style][list(names)])


def content(made: Tensor, real: Tensor, names: Sequence[int], among: int = 5) -> float:
    """Share of generated pictures whose own name is among the nearest real pictures of that style.

    made: latents (n, c, h, w) of generated pictures; real: of the style's validation pictures; names: which
    of these each generated one should be.  Cosine after the style's mean is taken away: what is left is
    what the picture shows.  Chance is ``among`` / len(real).
    """
    a, b = _centred(made), _centred(real)
    likeness = a @ b.T
    own = likeness[torch.arange(len(a)), torch.tensor(list(names))]
    rank = (likeness > own[:, None]).sum(1)
    return float((rank < among).float().mean())


def _centred(latents: Tensor) -> Tensor:
    flat = latents.flatten(1).float()
    return F.normalize(flat - flat.mean(0), dim=1)

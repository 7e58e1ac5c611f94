"""HyperDreamBooth's lightweight form: frozen random orthogonal frames around a few generated numbers.

ΔW = (U T_up)(T_down D) with D (inner, in) and U (out, inner') drawn once from a seed, never trained (Lightweight
DreamBooth in Ruiz et al. 2023).  A file need only hold T_down, T_up and the seed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.ldm.util import keyed_generator


@dataclass(frozen=True)
class Frames:
    """Which random frames: equal settings make equal frames.

    seed: of all draws. down, up: inner widths (the paper's b and a), at most the layer's own.
    """

    seed: int = 0
    down: int = 50
    up: int = 100

    def of_input(self, layer: str, width: int) -> Tensor:
        """D: (inner, width), orthonormal rows."""
        return _frame(min(self.down, width), width, self.seed, layer, "down")

    def of_output(self, layer: str, width: int) -> Tensor:
        """U: (width, inner), orthonormal columns."""
        return _frame(min(self.up, width), width, self.seed, layer, "up").mT.contiguous()

    def inner(self, out_width: int, in_width: int) -> tuple[int, int]:
        """(out, in) of what stands between the frames of a layer."""
        return min(self.up, out_width), min(self.down, in_width)

    def compress(self, layer: str, factors: Factors) -> tuple[Tensor, Tensor] | None:
        """T_down (rank, inner) and T_up (inner', rank) of folded factors; None if they are not of this form."""
        out_width, in_width = factors.shape
        frame_in, frame_out = self.of_input(layer, in_width), self.of_output(layer, out_width)
        down, up = factors.down.detach().cpu().float(), (factors.up * factors.scale).detach().cpu().float()
        t_down, t_up = down @ frame_in.mT, frame_out.mT @ up
        errors = (t_down @ frame_in - down).norm(), (frame_out @ t_up - up).norm()
        sizes = down.norm(), up.norm()
        fits = all(e <= 1e-4 * s for e, s in zip(errors, sizes, strict=True))
        return (t_down, t_up) if fits else None

    def restore(self, layer: str, t_down: Tensor, t_up: Tensor, in_width: int, out_width: int) -> Factors:
        """Undo `compress`."""
        down = t_down.float() @ self.of_input(layer, in_width)
        return Factors(down, self.of_output(layer, out_width) @ t_up.float())


def _frame(rows: int, width: int, *key: int | str) -> Tensor:
    drawn = torch.randn(width, rows, generator=keyed_generator("frame", *key), dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    # QR is unique up to signs; without this they would be the library's choice.
    frame: Tensor = (q * torch.sign(torch.diagonal(r))).mT.float().contiguous()
    return frame

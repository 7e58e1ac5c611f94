"""What a group of equal layers makes of its latents: the factors A and B, in four ways.

All start with ΔW = 0 by B = 0 alone: A is LoRA's usual start (variance 1/(3·in)), so that B's gradient flows from the
first step and A's from the second.  "bias" takes this A from a bias of each layer with a head of zeros
(bias-HyperInit, Beck et al. 2023); "hyperfan-in" takes it from the head, whose variance is chosen for latents of
length 1 so that A's is the same (Chang et al. 2020).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.weights.frames import Frames
from hyperbrush.hypernetworks.weights.layers import Target

INITS = ("bias", "hyperfan-in")


@dataclass(frozen=True)
class FormSettings:
    """What all groups of one decoder have in common."""

    rank: int = 4
    tokens: int = 4  # latents of each layer
    hidden_dim: int = 1024
    init: str = "bias"
    basis: int = 64  # vectors of a shared basis
    frames: Frames = field(default_factory=Frames)

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise unknown_name("init", self.init, INITS)
        if self.rank < 1 or self.tokens < 1 or self.rank % self.tokens:
            raise UserError(
                f"rank {self.rank} cannot be made of {self.tokens} latents per layer: take a divisor of the rank"
            )
        if self.basis < 1:
            raise UserError(f"a basis of {self.basis} vectors is impossible: expected a whole number from 1")


class Form(nn.Module, ABC):
    """Latents (batch, layers, tokens, hidden_dim) → A (batch, layers, rank, in), B (batch, layers, out, rank)."""

    def __init__(self, group: Sequence[Target], settings: FormSettings) -> None:
        super().__init__()
        self.settings = settings
        self.in_width, self.out_width, self.count = group[0].in_width, group[0].out_width, len(group)

    @abstractmethod
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""

    def _head(self, width: int, variance: float | None = None) -> nn.Linear:
        """A head from latents to (rank, width) numbers; zeros, or the variance of each number."""
        s = self.settings
        head = nn.Linear(s.hidden_dim, s.rank // s.tokens * width, bias=False)
        # The latents have length 1, so that a number's variance is that of a weight.
        nn.init.zeros_(head.weight) if variance is None else nn.init.normal_(head.weight, std=variance**0.5)
        return head

    def _start(self, width: int, variance: float) -> tuple[nn.Parameter, nn.Linear]:
        """A bias (layers, rank, width) and a head whose sum has this variance at the start."""
        bias = nn.Parameter(torch.zeros(self.count, self.settings.rank, width))
        if self.settings.init == "bias":
            bound = (3 * variance) ** 0.5
            nn.init.uniform_(bias, -bound, bound)
            return bias, self._head(width)
        return bias, self._head(width, variance)

    def _rows(self, head: nn.Linear, latents: Tensor) -> Tensor:
        """(batch, layers, rank, width)."""
        out: Tensor = (
            head(latents).unflatten(-1, (self.settings.rank // self.settings.tokens, -1)).flatten(2, 3)
        )
        return out

    def _zeros(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(self.count, *shape))


class LoraForm(Form):
    """A linear head for each side, shared by the group's layers, on top of factors all conditions share."""

    def __init__(self, group: Sequence[Target], settings: FormSettings) -> None:
        super().__init__(group, settings)
        self.shared_down, self.head_down = self._start(self.in_width, 1 / (3 * self.in_width))
        self.shared_up, self.head_up = self._zeros(self.out_width, settings.rank), self._head(self.out_width)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `Form`."""
        down = self.shared_down + self._rows(self.head_down, latents)
        return down, self.shared_up + self._rows(self.head_up, latents).mT


class BasisForm(Form):
    """Each row of A and column of B is a mixture of a few vectors that the group's layers share."""

    def __init__(self, group: Sequence[Target], settings: FormSettings) -> None:
        super().__init__(group, settings)
        k = settings.basis
        self.basis_down = nn.Parameter(torch.randn(k, self.in_width) * (3 * self.in_width) ** -0.5)
        self.basis_up = nn.Parameter(torch.randn(k, self.out_width) * k**-0.5)
        self.mixture_down, self.head_down = self._start(k, 1 / k)
        self.mixture_up, self.head_up = self._zeros(settings.rank, k), self._head(k)
        self.shared_down, self.shared_up = (
            self._zeros(settings.rank, self.in_width),
            self._zeros(self.out_width, settings.rank),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `Form`."""
        down = (self.mixture_down + self._rows(self.head_down, latents)) @ self.basis_down
        up = (self.mixture_up + self._rows(self.head_up, latents)) @ self.basis_up
        return self.shared_down + down, self.shared_up + up.mT


class CoreForm(Form):
    """ΔW = B_shared C A_shared: a generated rank × rank core between matrices that all conditions share."""

    def __init__(self, group: Sequence[Target], settings: FormSettings) -> None:
        super().__init__(group, settings)
        rank = settings.rank
        self.shared_down = self._zeros(rank, self.in_width)
        bound = self.in_width**-0.5
        nn.init.uniform_(self.shared_down, -bound, bound)
        self.outer = self._zeros(self.out_width, rank)
        nn.init.normal_(self.outer, std=rank**-0.5)
        self.core, self.head = self._zeros(rank, rank), self._head(rank)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `Form`."""
        core = self.core + self._rows(self.head, latents).mT
        return self.shared_down.expand(len(latents), -1, -1, -1), self.outer @ core


class LightweightForm(Form):
    """Generated numbers inside frozen random frames, see `lightweight`."""

    def __init__(self, group: Sequence[Target], settings: FormSettings) -> None:
        super().__init__(group, settings)
        frames = settings.frames
        self.frame_in: Tensor
        self.frame_out: Tensor
        ins = torch.stack([frames.of_input(t.name, self.in_width) for t in group])
        outs = torch.stack([frames.of_output(t.name, self.out_width) for t in group])
        self.register_buffer("frame_in", ins, persistent=False)
        self.register_buffer("frame_out", outs, persistent=False)
        inner_in, inner_out = ins.shape[1], outs.shape[2]
        # A = T D with orthonormal rows in D has variance inner/in times that of T.
        self.inner_down, self.head_down = self._start(inner_in, 1 / (3 * inner_in))
        self.inner_up, self.head_up = self._zeros(inner_out, settings.rank), self._head(inner_out)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `Form`."""
        down = self.inner_down + self._rows(self.head_down, latents)
        up = self.inner_up + self._rows(self.head_up, latents).mT
        return down @ self.frame_in, self.frame_out @ up


FORMS: dict[str, type[Form]] = {
    "lora": LoraForm,
    "basis": BasisForm,
    "core": CoreForm,
    "lightweight": LightweightForm,
}

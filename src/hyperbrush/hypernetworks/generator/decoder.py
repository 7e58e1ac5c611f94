"""The decoder: latents of the layers → low-rank factors of their weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.generator.output_forms import FORMS, Form, FormSettings
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.frames import Frames
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import Target


class HypernetworkDecoder(nn.Module):
    """A head for each group of equal layers (kind, projection, shape), shared over the depth.

    Args:
        targets: the layers.
        rank: of their changes.
        tokens_per_layer: latents of each layer, a divisor of the rank; None: one per rank.
        hidden_dim: width of the latents.
        output: "lora" (a head for A and one for B), "basis" (mixtures of vectors each group shares), "core" (a rank ×
            rank core between shared A and B), "lightweight" (HyperDreamBooth's random frames); see `output_forms`.
        init: "bias" or "hyperfan-in"; see `output_forms`.
        alpha: ΔW = alpha/rank · B A; None: the rank, so that the scale is 1.
        basis: vectors of a group's basis.
        frames: seed and inner widths of the lightweight form.

    Any module with ``forward(latents)`` → {layer: `Factors`} can stand in its place.

    Raises:
        UserError: an unknown output or init, a rank that the tokens do not divide.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        rank: int = 4,
        tokens_per_layer: int | None = None,
        hidden_dim: int = 1024,
        output: str = "lora",
        init: str = "bias",
        alpha: float | None = None,
        basis: int = 64,
        frames: Frames | None = None,
    ) -> None:
        super().__init__()
        if output not in FORMS:
            raise unknown_name("output", output, FORMS)
        self.output, self.rank = output, rank
        self.frames = frames or Frames()
        settings = FormSettings(rank, tokens_per_layer or rank, hidden_dim, init, basis, self.frames)
        self.scale = 1.0 if alpha is None else alpha / rank
        self.names = [target.name for target in targets]
        groups: dict[tuple[str, str, int, int], list[int]] = {}
        for i, target in enumerate(targets):
            groups.setdefault(target.group, []).append(i)
        self.places = list(groups.values())
        self.groups = nn.ModuleDict(
            {
                "-".join(map(str, key)).replace(".", "_"): FORMS[output](
                    [targets[i] for i in places], settings
                )
                for key, places in groups.items()
            }
        )

    def forward(self, latents: Tensor) -> dict[str, Factors]:
        """Latents (batch, layers, tokens, hidden_dim) → factors of each layer, with the batch in front."""
        made: dict[str, Factors] = {}
        for places, form in zip(self.places, self.groups.values(), strict=True):
            down, up = form(latents[:, places])
            for j, i in enumerate(places):
                made[self.names[i]] = Factors(down[:, j], up[:, j], self.scale)
        return {name: made[name] for name in self.names}

    def shared_parameters(self) -> list[nn.Parameter]:
        """The factors that all conditions share, to be trained first and frozen then.

        Raises:
            UserError: the output form has none.
        """
        shared = [
            parameter
            for form in self.groups.values()
            for name, parameter in form.named_parameters()
            if name in ("shared_down", "shared_up")
        ]
        if not shared:
            raise UserError(f"output {self.output!r} has no factors that all conditions share")
        return shared

    @torch.no_grad()
    def set_shared(self, weights: GeneratedWeights) -> None:
        """Begin at a trained adapter: with heads of zeros every condition gives exactly these weights.

        weights: one adapter of this decoder's layers, of at most its rank. The heads are set to give nothing at first,
        A's ("hyperfan-in") too.

        Raises:
            UserError: another output form than "lora" and "basis"; other layers; a higher rank; a batch.
        """
        if self.output not in ("lora", "basis"):
            raise UserError(
                f"output {self.output!r} cannot begin at a trained adapter: use 'lora' or 'basis'"
            )
        if weights.batch is not None or set(weights.factors) != set(self.names):
            raise UserError("the shared adapter must be one adapter of exactly the decoder's layers")
        if weights.rank > self.rank:
            raise UserError(
                f"the shared adapter has rank {weights.rank}, the decoder {self.rank}: truncate it first"
            )
        whole = weights.expand_rank(self.rank)
        for places, form in zip(self.places, self.groups.values(), strict=True):
            assert isinstance(form, Form)
            self._silence(form)
            shared = dict(form.named_parameters())
            for j, i in enumerate(places):
                factors = whole.factors[self.names[i]]
                shared["shared_down"][j] = factors.down.to(shared["shared_down"])
                shared["shared_up"][j] = (factors.up / self.scale).to(shared["shared_up"])

    def _silence(self, form: Form) -> None:
        for name, parameter in form.named_parameters():
            if name.startswith(("head_", "mixture_")):
                nn.init.zeros_(parameter)

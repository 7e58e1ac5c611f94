"""Generated weights: low-rank changes of a model's layers, with their files and their arithmetic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.weights.factors import Factors, concatenate, expand, inner, truncate
from hyperbrush.ldm.modules.attention_sites import AttentionSite
from hyperbrush.ldm.util import keyed_generator

FORMATS = ("safetensors", "lora-diffusers", "lora-peft", "lora-kohya")


class GeneratedWeights:
    """An adapter, or a batch of them: layer name → `Factors`.

    factors: names are a UNet's ("….attn2.to_k", "….attn1.to_out.0") or an attention hypernetwork's
        ("768.key.layers.0"). All have a batch of the same size, or none has one.
    name, metadata: carried to files; ``metadata`` holds texts, numbers, booleans and None.

    Immutable but for ``name`` and ``metadata``; gradients flow through the factors.

    Raises:
        UserError: no layers, or batches that differ.
    """

    def __init__(
        self,
        factors: Mapping[str, Factors],
        *,
        name: str = "generated",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if not factors:
            raise UserError("generated weights need at least one layer, but got none")
        batches = {f.batch for f in factors.values()}
        if len(batches) > 1:
            raise UserError(f"the layers' batches differ: {sorted(map(str, batches))}; expected one size")
        self.factors = dict(factors)
        self.name = name
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def batch(self) -> int | None:
        """How many adapters these are; None for a single one without a batch dimension."""
        return next(iter(self.factors.values())).batch

    @property
    def layers(self) -> list[str]:
        """Names of the layers that change."""
        return list(self.factors)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer's change."""
        return {name: f.rank for name, f in self.factors.items()}

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max(f.rank for f in self.factors.values())

    @property
    def size(self) -> int:
        """How many numbers the factors hold (of the whole batch)."""
        return sum(f.down.numel() + f.up.numel() for f in self.factors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of these numbers."""
        return sum(t.numel() * t.element_size() for f in self.factors.values() for t in (f.down, f.up))

    def __len__(self) -> int:
        return 1 if self.batch is None else self.batch

    def __iter__(self) -> "Iterator[GeneratedWeights]":
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> "GeneratedWeights":
        """One adapter of a batch, without the batch dimension."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} adapters")
        if self.batch is None:
            return self
        return self._map(lambda _, f: f.pick(index))

    def __repr__(self) -> str:
        many = "" if self.batch is None else f"{self.batch} × "
        return f"GeneratedWeights({self.name!r}: {many}{len(self.factors)} layers, rank {self.rank}, {self.size:,} numbers)"

    def changes(self, site: AttentionSite) -> dict[str, Factors]:
        """Projection of a site → the change of its weight; empty where there is none."""
        names = {p.name: f"{site.path}.{p.name}" for p in site.projections}
        return {projection: self.factors[n] for projection, n in names.items() if n in self.factors}

    def delta(self, layer: str | None = None) -> Any:
        """ΔW of one layer, (out, in) or (batch, out, in); without a name all of them by name.

        Raises:
            UserError: no such layer.
        """
        if layer is None:
            return {name: f.delta() for name, f in self.factors.items()}
        if layer not in self.factors:
            raise unknown_name("layer", layer, self.factors)
        return self.factors[layer].delta()

    def to(self, *args: Any, **kwargs: Any) -> "GeneratedWeights":
        """The same on a device or in a precision, as `Tensor.to`."""
        return self._map(lambda _, f: f.to(*args, **kwargs))

    def detach(self) -> "GeneratedWeights":
        """The same, cut from the graph they were generated in."""
        return self._map(lambda _, f: Factors(f.down.detach(), f.up.detach(), f.scale))

    def requires_grad_(self) -> "GeneratedWeights":
        """Detached copies that are leaves of their own, to be tuned by an optimizer (`parameters`)."""
        return self._map(
            lambda _, f: Factors(
                f.down.detach().clone().requires_grad_(), f.up.detach().clone().requires_grad_(), f.scale
            )
        )

    def parameters(self) -> list[Tensor]:
        """Every A and B, in order."""
        return [t for f in self.factors.values() for t in (f.down, f.up)]

    def folded(self) -> "GeneratedWeights":
        """The same ΔW with every scale in B."""
        return self._map(lambda _, f: f.folded())

    def expand_rank(self, rank: int, seed: int = 0) -> "GeneratedWeights":
        """The same ΔW at a higher rank, so that tuning has room: A' = [A; A_rand], B' = [B, 0].

        The rank relaxation of HyperDreamBooth (Ruiz et al. 2023).

        Raises:
            UserError: the rank is lower than a layer's own.
        """
        if rank < self.rank:
            raise UserError(f"cannot expand to rank {rank}: the layers have rank {self.rank} already")
        return self._map(lambda name, f: expand(f, rank, keyed_generator("expand_rank", seed, name)))

    def truncate(self, rank: int) -> "GeneratedWeights":
        """The closest weights of at most this rank, by singular values.

        Raises:
            UserError: the rank is below 1.
        """
        if rank < 1:
            raise UserError(f"rank {rank} is impossible: expected a whole number from 1")
        return self._map(lambda _, f: truncate(f, rank))

    def __mul__(self, share: float) -> "GeneratedWeights":
        return self._map(lambda _, f: Factors(f.down, f.up, f.scale * share))

    __rmul__ = __mul__

    def __neg__(self) -> "GeneratedWeights":
        return self * -1.0

    def __add__(self, other: "GeneratedWeights") -> "GeneratedWeights":
        return blend([self, other], [1.0, 1.0])

    def __sub__(self, other: "GeneratedWeights") -> "GeneratedWeights":
        return blend([self, other], [1.0, -1.0])

    def inner(self, other: "GeneratedWeights") -> Tensor:
        """Σ over layers of ⟨ΔW, ΔW'⟩, without any ΔW: () or (batch,). Layers one lacks count as 0."""
        common = [name for name in self.factors if name in other.factors]
        if not common:
            raise UserError(f"{self.name!r} and {other.name!r} have no layer in common")
        return torch.stack([inner(self.factors[n], other.factors[n]) for n in common]).sum(0)

    def squared_norm(self) -> Tensor:
        """Σ ‖ΔW‖² over layers: () or (batch,)."""
        return self.inner(self)

    def squared_distance(self, other: "GeneratedWeights") -> Tensor:
        """Σ ‖ΔW − ΔW'‖² over layers, () or (batch,): the same for all factors of one ΔW, and cheap.

        ‖B̂Â − BA‖² = tr(B̂ᵀB̂·ÂÂᵀ) + tr(BᵀB·AAᵀ) − 2 tr(B̂ᵀB·AÂᵀ).
        """
        return self.squared_norm() + other.squared_norm() - 2 * self.inner(other)

    def save(
        self,
        path: str | Path,
        format: str = "safetensors",
        *,
        dtype: torch.dtype | None = None,
        overwrite: bool = True,
    ) -> Path:
        """Write an adapter, whole or not at all.

        format: "safetensors" (ours, see `files.generated`); "lora-diffusers" (``pipe.load_lora_weights``), "lora-peft"
            (a folder for ``PeftModel.from_pretrained``), "lora-kohya" (the webui's and ComfyUI's layout).
            In all of them every scale is in B and alpha = rank.
        dtype: of the numbers; None: as they are, float32 for the LoRA layouts.

        Raises:
            UserError: a batch of several adapters; an unknown format; a path that does not fit it; numbers that
                are not finite or too large for the dtype; something stands there and may not go.
        """
        from hyperbrush.hypernetworks.files.adapters import write_weights

        if format not in FORMATS:
            raise unknown_name("format", format, FORMATS)
        if self.batch is not None and self.batch != 1:
            raise UserError(
                f"a file holds one adapter, but these are {self.batch}: save weights[0], weights[1], …"
            )
        if not overwrite and Path(path).exists():
            raise UserError(f"{path} exists already: choose another name, or overwrite it")
        return write_weights(self[0].detach(), Path(path), format, dtype)

    @classmethod
    def load(cls, path: str | Path) -> "GeneratedWeights":
        """Read a file of ours, or a LoRA of a UNet's attentions in one of the three layouts (for PEFT the folder).

        Raises:
            UserError: no such file, damaged, of another kind, or a LoRA of other layers.
        """
        from hyperbrush.hypernetworks.files.adapters import read_weights

        return read_weights(Path(path))

    def _map(self, change: "Callable[[str, Factors], Factors]") -> "GeneratedWeights":
        made = {name: change(name, factors) for name, factors in self.factors.items()}
        return GeneratedWeights(made, name=self.name, metadata=self.metadata)


def blend(
    weights: Sequence[GeneratedWeights],
    shares: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    name: str = "blend",
) -> GeneratedWeights:
    """Σ shareᵢ·ΔWᵢ, exact: the ranks add up; ``rank`` cuts them by singular values afterwards.

    shares: one each; None: the mean of all. A layer that one of them lacks is unchanged there.

    Raises:
        UserError: none, another number of shares, or batches that differ.
    """
    if not weights:
        raise UserError("nothing to blend: expected at least one GeneratedWeights")
    shares = [1 / len(weights)] * len(weights) if shares is None else list(shares)
    if len(shares) != len(weights):
        raise UserError(f"got {len(shares)} shares for {len(weights)} weights: expected one each")
    if len({w.batch for w in weights}) > 1:
        raise UserError("cannot blend weights with different batches: pick one of each with weights[i]")
    made = {}
    for layer in dict.fromkeys(layer for w in weights for layer in w.factors):
        there = [(w.factors[layer], s) for w, s in zip(weights, shares, strict=True) if layer in w.factors]
        if len({f.shape for f, _ in there}) > 1:
            raise UserError(
                f"cannot blend: {layer} has different shapes; the weights are for different models"
            )
        made[layer] = concatenate([f for f, _ in there], [s for _, s in there])
    families = {w.metadata.get("family") for w in weights}
    about = {"family": families.pop()} if len(families) == 1 and families != {None} else {}
    blended = GeneratedWeights(made, name=name, metadata=about)
    return blended if rank is None else blended.truncate(rank)


def mean(weights: Sequence[GeneratedWeights], *, rank: int | None = None) -> GeneratedWeights:
    """The mean ΔW of several adapters; see `blend`."""
    return blend(weights, rank=rank, name="mean")

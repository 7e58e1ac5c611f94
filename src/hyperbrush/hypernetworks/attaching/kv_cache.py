"""What cross-attention computes from an unchanged prompt, shared by its sites and kept over the steps of a sampling.

Keys and values of cross-attention depend on the prompt, the weights and the strengths alone.  Everything
kept is compared with what it was computed from before it is used again: the context (place in memory and version;
content under inference mode), every weight (place and version), the strengths.  It is forgotten whenever the timestep
does not fall, which is a new sampling.  Under gradients the changed context alone is shared, by the sites of one
forward pass; what is computed again during backward (gradient checkpointing), dropout and compiled graphs share nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import add_change, apply_networks
from hyperbrush.hypernetworks.attention.strengths import Strength

Networks = Sequence[tuple[ContextNetwork, Strength]]


class KVCache:
    """Results of one model's cross-attention, valid inside a forward pass; see the module's text.

    by_content: of a model that makes its contexts anew from the prompt in each pass, as transformers do: compared by
        content always.
    """

    def __init__(self, by_content: bool = False) -> None:
        self._by_content = by_content
        self._inside = False
        self._timestep: float | None = None
        self._kept: dict[Any, _Kept] = {}
        self._weights: dict[int, _Weights] = {}  # of this pass
        self._of_pass: dict[Any, tuple[Any, Any, Tensor]] = {}  # context, rest of what it was made of, result
        # Of this pass: contexts (held, so that no other can take their place) compared by content.
        self._equal: dict[int, tuple[Tensor, int | None, _Seen]] = {}

    def begin(self, timestep: Any) -> None:
        """A forward pass begins."""
        now = _number(timestep) if self._kept else None
        if now is None or self._timestep is None or not now < self._timestep:
            self._kept.clear()
        self._timestep = _number(timestep) if now is None else now
        self._weights.clear()
        self._equal.clear()
        self._of_pass.clear()  # Ctrl-C ends a pass without `end`
        self._inside = True

    def end(self) -> None:
        """The forward pass is over."""
        self._inside = False
        self._of_pass.clear()
        self._equal.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._timestep = None

    @property
    def acts(self) -> bool:
        """Whether results may be kept and used now."""
        return self._inside and not torch.compiler.is_compiling() and not torch.is_grad_enabled()

    def transform(self, context: Tensor, networks: Networks, rows_per_picture: int | None) -> Tensor:
        """`apply_networks`, shared by all sites with these networks."""
        if any(network.is_random for network, _ in networks):
            return apply_networks(context, networks, rows_per_picture)
        if torch.is_grad_enabled():
            return self._share(context, networks, rows_per_picture)
        if not self.acts:
            return apply_networks(context, networks, rows_per_picture)
        weights = [self._stamp(network) for network, _ in networks]
        if not all(w.known for w in weights):
            return apply_networks(context, networks, rows_per_picture)
        key = ("context", *((id(network), id(strength)) for network, strength in networks))
        made_of = (weights, [strength.value for _, strength in networks], rows_per_picture)
        out = self._find(key, context, made_of)
        if out is None:
            out = self._compute(context, networks, rows_per_picture)
            self._keep(key, context, made_of, out)
        return out

    def _share(self, context: Tensor, networks: Networks, rows_per_picture: int | None) -> Tensor:
        """`apply_networks` with its graph, once in a forward pass."""
        if not self._inside or _is_computed_again():
            return apply_networks(context, networks, rows_per_picture)
        key = tuple((id(network), id(strength)) for network, strength in networks)
        values = [strength.value for _, strength in networks]
        made_of = (_version(context), values, rows_per_picture, _autocast(context))
        seen, of, out = self._of_pass.get(key, (None, None, context))
        if seen is not context or of != made_of:
            out = apply_networks(context, networks, rows_per_picture)
            self._of_pass[key] = context, made_of, out
        return out

    def _compute(self, context: Tensor, networks: Networks, rows_per_picture: int | None) -> Tensor:
        (network, strength), *others = networks
        if strength.per_picture:
            return apply_networks(context, networks, rows_per_picture)
        # MLP(c) is kept apart from c + strength·MLP(c): another strength needs no network again.
        key, made_of = ("change", id(network)), (self._stamp(network), rows_per_picture)
        change = self._find(key, context, made_of)
        if change is None:
            change = network(context, rows_per_picture)
            self._keep(key, context, made_of, change)
        x = add_change(context, strength.on(context.device), change)
        return apply_networks(x, others, rows_per_picture).to(context.dtype)

    def project(self, linear: torch.nn.Linear, context: Tensor) -> Tensor:
        """What a projection makes of a context that lasts over the steps."""
        if not self.acts:
            return torch.nn.Linear.forward(linear, context)
        key, weights = ("projection", id(linear)), self._stamp(linear)
        out = self._find(key, context, weights)
        if out is None:
            out = torch.nn.Linear.forward(linear, context)
            if weights.known:
                self._keep(key, context, weights, out)
        return out

    def _find(self, key: Any, context: Tensor, made_of: Any) -> Tensor | None:
        kept = self._kept.get(key)
        if (
            kept is None
            or kept.made_of != made_of
            or kept.autocast != _autocast(context)
            or _version(kept.value) != kept.version  # someone wrote into what we handed out
            or not self._same(kept.context, context)
        ):
            return None
        return kept.value

    def _keep(self, key: Any, context: Tensor, made_of: Any, value: Tensor) -> None:
        seen = self._equal_to(context)
        if seen is None:
            seen = _Seen(context, self._by_content)
            if seen.copy is not None:
                self._equal[id(context)] = (context, _version(context), seen)
        self._kept[key] = _Kept(seen, made_of, _autocast(context), value, _version(value))

    def _same(self, seen: "_Seen", context: Tensor) -> bool:
        if seen.version is not None and seen.at_same_place(context) and context._version == seen.version:
            return True
        if seen.copy is None:
            return False
        if self._equal_to(context) is not seen:
            if not seen.has_content_of(context):
                return False
            self._equal[id(context)] = (context, _version(context), seen)
        return True

    def _equal_to(self, context: Tensor) -> "_Seen | None":
        """What a context was found equal to in this pass, unless it was written into since."""
        known = self._equal.get(id(context))
        return known[2] if known is not None and known[1] == _version(context) else None

    def _stamp(self, module: torch.nn.Module) -> "_Weights":
        if id(module) not in self._weights:
            self._weights[id(module)] = _Weights(tuple(module.parameters()))
        return self._weights[id(module)]

    def __reduce__(self) -> "tuple[type[KVCache], tuple[bool]]":
        return KVCache, (self._by_content,)  # a copied or pickled model starts afresh


@dataclass(frozen=True)
class _Kept:
    context: "_Seen"
    made_of: Any
    autocast: torch.dtype | None
    value: Tensor
    version: int | None


class _Seen:
    """A context as it was. Holding it keeps its place in memory from being given to another."""

    def __init__(self, tensor: Tensor, by_content: bool) -> None:
        self.tensor = tensor
        self.version = _version(tensor)
        self.copy = tensor.clone() if by_content or self.version is None else None

    def at_same_place(self, tensor: Tensor) -> bool:
        own = self.tensor
        return tensor is own or (
            not tensor.is_inference()
            and tensor.data_ptr() == own.data_ptr()
            and (tensor.shape, tensor.stride()) == (own.shape, own.stride())
            and (tensor.dtype, tensor.device) == (own.dtype, own.device)
        )

    def has_content_of(self, tensor: Tensor) -> bool:
        own = self.copy
        assert own is not None
        return (tensor.dtype, tensor.device) == (own.dtype, own.device) and torch.equal(tensor, own)


class _Weights:
    """Parameters as they were: which, where, and how often changed in place."""

    def __init__(self, parameters: tuple[Tensor, ...]) -> None:
        self.parameters = parameters  # held, so that no other can take its place
        self.marks = tuple((id(p), p.data_ptr(), _version(p)) for p in parameters)
        self.known = all(version is not None for *_, version in self.marks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Weights) and self.marks == other.marks

    __hash__ = None  # type: ignore[assignment]


def _is_computed_again() -> bool:
    """Whether gradient checkpointing runs this now and once more during backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _version(tensor: Tensor) -> int | None:
    """Counts changes in place; None for tensors made in inference mode, which have no count."""
    return None if tensor.is_inference() else tensor._version


def _autocast(context: Tensor) -> torch.dtype | None:
    kind = context.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _number(timestep: Any) -> float | None:
    if isinstance(timestep, Tensor):
        return float(timestep) if timestep.numel() == 1 else None
    return float(timestep) if isinstance(timestep, int | float) else None

"""Applying generated weights to a UNet, in place or for the length of a ``with``."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.checkpointing import Binding, bound_to
from hyperbrush.hypernetworks.attaching.low_rank_hooks import low_rank_hooks
from hyperbrush.hypernetworks.attaching.strengths import Strength, StrengthLike, pair_of
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import Target, describe, find_targets, matches
from hyperbrush.ldm.modules.attention_sites import AttentionSite

LayerStrengths = StrengthLike | Mapping[str, StrengthLike]
_Kind = tuple[str, bool]  # pattern, and whether for to_q and to_k


@dataclass(frozen=True)
class LayerReach:
    """Which layers weights reach."""

    name: str
    layers: tuple[str, ...]  # reached
    total: int  # layers the target has
    missed: tuple[str, ...]  # layers of the weights that the target does not have

    def __str__(self) -> str:
        text = f"{len(self.layers)} of {self.total} layers reached"
        if self.missed:
            text += f"; {len(self.missed)} layers of the weights fit nothing here ({self.missed[0]}, …)"
        return text


class TargetNetwork:
    """The layers of a UNet that weights are generated for, and applied to.

    pipe_or_unet: a UNet2DConditionModel (also wrapped), or what has one as ``unet``: a pipeline, LatentDiffusion
        (schedules then follow its sampling steps, and its encoders read the conditions); or an
        `AttentionHypernetwork`, whose linear layers are then the target (see `delta_networks`).
    target_layers: which layers, see `targets.select`; None: to_q, to_k, to_v, to_out of attn1 and attn2.

    Raises:
        UserError: there is no UNet, or a pattern matches nothing.
    """

    def __init__(self, pipe_or_unet: Any, target_layers: Collection[str] | None = None) -> None:
        unet = getattr(pipe_or_unet, "unet", pipe_or_unet)
        if not isinstance(unet, torch.nn.Module):
            raise UserError(
                f"{type(pipe_or_unet).__name__} has no UNet: expected a UNet2DConditionModel, or a pipeline with one"
            )
        self.source = pipe_or_unet
        self.module: torch.nn.Module = unet
        self.targets: list[Target] = find_targets(unet, target_layers)
        self._applied: AppliedWeights | None = None

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of the forward pass."""
        return [target.name for target in self.targets]

    @property
    def is_hypernetwork(self) -> bool:
        """Whether the layers are those of an attention hypernetwork instead of a UNet."""
        return isinstance(self.module, AttentionHypernetwork)

    def apply_weights(self, weights: GeneratedWeights, strength: LayerStrengths = 1.0) -> "AppliedWeights":
        """Add strength·ΔW to every layer, in place until `AppliedWeights.remove`, or for a ``with``.

        weights: one adapter for all rows of the UNet's batch, or a batch of n: row i of the UNet's batch then
            goes through adapter i mod n, so that with classifier-free guidance [unguided 0 … n−1, guided 0 … n−1]
            both sides of picture i have adapter i.
        strength: as in `attach`: a number; a schedule over the sampling steps (`Window`, `Ramp`, any callable);
            `PerPicture`; a pair (for to_q and to_k: where attention looks; for to_v and to_out: what it
            takes along). Or by layer: a mapping from patterns (`targets.select`) to such; the last
            pattern that matches a layer counts, and layers that none matches are left alone.

        The UNet's own weights stay as they are. Another call replaces this target network's weights until it is
        taken away; weights of other target networks on the same UNet, attention hypernetworks and LoRA act beside
        them. Gradients reach the factors, also through gradient checkpointing: a block computed again
        in backward finds the weights it had, whatever is applied by then (a checkpoint of one's own
        around the whole UNet does not: keep the weights applied until backward has run).

        Raises:
            UserError: no layer is reached, a shape differs, a strength is not finite, a pattern matches nothing, or
                projections are fused.
        """
        return AppliedWeights(self, weights, strength)

    def remove_weights(self) -> None:
        """Take away all generated weights that are applied to this UNet, by whichever target network."""
        bound = bound_to(self.module)
        for binding in list(bound.bindings):
            bound.remove(binding)
        self._applied = None  # of other target networks: `AppliedWeights.remove` finds nothing left to do

    def reach(self, weights: GeneratedWeights) -> LayerReach:
        """Which layers these weights would change.

        Raises:
            UserError: none of them, or a shape differs.
        """
        by_name = {target.name: target for target in self.targets}
        reached = [name for name in weights.factors if name in by_name]
        for name in reached:
            there, made = (by_name[name].out_width, by_name[name].in_width), weights.factors[name].shape
            if there != made:
                raise UserError(
                    f"{weights.name!r} has a change of shape {made} for {name}, whose weight is {there}: the weights are "
                    "for another model"
                )
        if not reached:
            some = next(iter(weights.factors))
            raise UserError(
                f"{weights.name!r} reaches no layer: it changes {len(weights.factors)} layers such as {some}, and this "
                f"target network has {describe(self.targets)}"
            )
        missed = tuple(name for name in weights.factors if name not in by_name)
        return LayerReach(weights.name, tuple(reached), len(self.targets), missed)


class AppliedWeights:
    """Weights at work on a UNet; see `TargetNetwork.apply_weights`. A context manager that removes on exit."""

    def __init__(self, target: TargetNetwork, weights: GeneratedWeights, strength: LayerStrengths) -> None:
        if target.is_hypernetwork:
            raise UserError(
                "an attention hypernetwork's layers take no hooks: use delta_networks.with_deltas(hypernetwork, weights) "
                "and attach what it gives"
            )
        self.target = target
        self.weights = weights
        self.applied = target.reach(weights)
        self._device = next(target.module.parameters()).device
        if self._device.type == "meta":
            self._device = torch.device("cpu")  # offloaded: the factors follow their first input
        self._gone = False
        self._entered = False
        self._kinds, specs = _by_layer(target.targets, strength)
        self._strengths = {kind: Strength(spec, self._device) for kind, spec in specs.items()}
        layers = [name for name in self.applied.layers if name in self._kinds]
        if not layers:
            raise UserError(f"the strengths name no layer that {weights.name!r} changes")
        hooks = low_rank_hooks(target.module, weights.to(self._device), layers, self._strength_at)
        self._binding = Binding(hooks, target.source)
        self._before = target._applied
        if self._before is not None:
            self._before._replaced()
        target._applied = self
        bound_to(target.module).add(self._binding)

    def set_strength(self, strength: LayerStrengths) -> None:
        """Change the strength; nothing is compiled again.

        Raises:
            UserError: as `TargetNetwork.apply_weights`, or other layers are named than at first; nothing was changed then.
        """
        kinds, specs = _by_layer(self.target.targets, strength)
        if kinds != self._kinds:
            raise UserError("these strengths name other layers than at first: apply the weights anew")
        for kind, spec in specs.items():  # `_by_layer` has seen that all are sound
            self._strengths[kind].set(spec)

    def set_weights(self, weights: GeneratedWeights) -> None:
        """Put other weights of the same layers in the place of these; nothing is compiled again.

        Raises:
            UserError: they have other layers or shapes; nothing was changed then.
        """
        reached = self.target.reach(weights)
        if set(reached.layers) != set(self.applied.layers):
            raise UserError("these weights are for other layers than the ones applied: apply them anew")
        self.weights, self.applied = weights, reached
        self._binding.set_factors(weights.to(self._device).factors)

    def remove(self) -> None:
        """Leave the UNet as it was found; a second call does nothing."""
        if self._gone:
            return
        self._gone = True
        self._suspend()
        if self.target._applied is self:
            before = self._before
            while before is not None and before._gone:
                before = before._before
            self.target._applied = before
            if before is not None:
                bound_to(self.target.module).add(before._binding)

    def _replaced(self) -> None:
        """Step back for others; what stood before this comes back only where a ``with`` has to restore it."""
        self._suspend()
        while self._before is not None and not self._before._entered:
            self._before = self._before._before

    def _suspend(self) -> None:
        bound = bound_to(self.target.module)
        if self._binding in bound.bindings:
            bound.remove(self._binding)

    def _strength_at(self, site: AttentionSite, projection: str) -> Strength:
        return self._strengths[self._kinds[f"{site.path}.{projection}"]]

    def __enter__(self) -> "AppliedWeights":
        if self._gone:
            raise UserError("these weights are already taken away: call apply_weights again")
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def looks(projection: str) -> bool:
    """Whether a projection decides where attention looks (to_q, to_k), not what it takes along (to_v, to_out)."""
    return projection in ("to_q", "to_k")


def _by_layer(targets: list[Target], strength: LayerStrengths) -> "tuple[dict[str, _Kind], dict[_Kind, Any]]":
    """Which of the strengths each layer has, without layers that are left alone; and the strengths."""
    by_pattern: Mapping[str, Any] = strength if isinstance(strength, Mapping) else {"*": strength}
    kinds: dict[str, _Kind] = {}
    specs: dict[_Kind, Any] = {}
    for pattern, spec in by_pattern.items():
        reached = [t for t in targets if matches(t, pattern)]
        if not reached:
            raise unknown_name("layers for a strength", pattern, (), hint=f"; there are {describe(targets)}")
        keys, values = pair_of(spec)
        specs |= {(pattern, True): keys, (pattern, False): values}
        kinds |= {t.name: (pattern, looks(t.projection)) for t in reached}
    if not kinds:
        raise UserError("the mapping of strengths is empty: name layers, such as {'attn2': 0.8}")
    return kinds, specs

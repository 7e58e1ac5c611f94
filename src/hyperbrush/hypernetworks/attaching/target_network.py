"""Applying generated weights to a UNet or transformer, in place or for the length of a ``with``."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.hooked import Hooked, hooked_onto
from hyperbrush.hypernetworks.attaching.uses import PipeOrUNet, Use
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import StrengthLike, pair_of
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import (
    LayerReach,
    Target,
    describe,
    find_targets,
    matches,
    reach,
)
from hyperbrush.ldm.modules.transformer_sites import find_transformer

LayerStrengths = StrengthLike | Mapping[str, StrengthLike]


class TargetNetwork:
    """The layers of a UNet or transformer that weights are generated for, and applied to.

    pipe_or_unet: a UNet2DConditionModel (also wrapped) or a transformer of a family of `transformer_sites.FAMILIES`, or what
        has one as ``unet`` or ``transformer``: a pipeline, LatentDiffusion (schedules then follow its sampling steps, and
        its encoders read the conditions); or an `AttentionHypernetwork`, whose linear layers are then the target (see
        `weights.deltas`).
    target_layers: which layers, see `targets.select`; None: to_q, to_k, to_v, to_out of attn1 and attn2, of a transformer its
        text streams' and feed-forward layers too.

    Raises:
        UserError: there is no such model, or a pattern matches nothing.
    """

    def __init__(self, pipe_or_unet: PipeOrUNet, target_layers: Collection[str] | None = None) -> None:
        found = getattr(pipe_or_unet, "unet", None) or getattr(pipe_or_unet, "transformer", None)
        unet = pipe_or_unet if found is None else found
        if not isinstance(unet, torch.nn.Module):
            raise UserError(
                f"{type(pipe_or_unet).__name__} has no UNet: expected a UNet2DConditionModel, or a pipeline with one"
            )
        self.source = pipe_or_unet
        self.module: torch.nn.Module = unet
        self.targets: list[Target] = find_targets(unet, target_layers)
        self._applied: list[AppliedWeights] = []  # the last one acts; those before come back when it goes

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of the forward pass."""
        return [target.name for target in self.targets]

    @property
    def family(self) -> str:
        """Of a transformer ("Flux.1"), else empty."""
        transformer = find_transformer(self.module)
        return "" if transformer is None else transformer.layout.name

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
        for applied in hooked_onto(self.module):
            if isinstance(applied, AppliedWeights):
                applied.target._applied = []
                applied.detach()

    def reach(self, weights: GeneratedWeights) -> LayerReach:
        """Which layers these weights would change.

        Raises:
            UserError: none of them, or a shape differs.
        """
        return reach(weights, self.targets)


class AppliedWeights(Hooked):
    """Weights at work on a UNet; see `TargetNetwork.apply_weights`. A context manager that removes on exit."""

    _ALREADY_GONE = "these weights are already taken away: call apply_weights again"

    def __init__(self, target: TargetNetwork, weights: GeneratedWeights, strength: LayerStrengths) -> None:
        if target.is_hypernetwork:
            raise UserError(
                "an attention hypernetwork's layers take no hooks: use hyperbrush.hypernetworks.generator.with_deltas(hypernetwork, weights) "
                "and attach what it gives"
            )
        self.target = target
        self.weights = weights
        self.applied = target.reach(weights)
        super().__init__(target.source)
        self._entered = False
        self._patterns, strengths = _by_layer(target.targets, strength)
        # The layers of one pattern are one use, with a strength of their own.
        parts: dict[str, dict[str, Any]] = {}
        for layer in self.applied.layers:
            if layer in self._patterns:
                parts.setdefault(self._patterns[layer], {})[layer] = weights.factors[layer]
        if not parts:
            raise UserError(f"the strengths name no layer that {weights.name!r} changes")
        uses = [
            Use(GeneratedWeights(part), strengths[pattern], name=pattern) for pattern, part in parts.items()
        ]
        at_work = [self._prepare(use) for use in uses]
        before = target._applied
        target._applied = [a for a in before[:-1] if a._entered] + before[-1:] + [self]
        for applied in before[-1:]:
            applied._unhook()
        self._act(at_work)

    def set_strength(self, strength: LayerStrengths) -> None:
        """Change the strength; nothing is compiled again.

        Raises:
            UserError: as `TargetNetwork.apply_weights`, or other layers are named than at first; nothing was changed then.
        """
        patterns, strengths = _by_layer(self.target.targets, strength)
        if patterns != self._patterns:
            raise UserError("these strengths name other layers than at first: apply the weights anew")
        for a in self._at_work:
            a.check(strengths[a.name])
        for a in self._at_work:
            a.set(strengths[a.name])

    def set_weights(self, weights: GeneratedWeights) -> None:
        """Put other weights of the same layers in the place of these; nothing is compiled again.

        Raises:
            UserError: they have other layers or shapes; nothing was changed then.
        """
        reached = self.target.reach(weights)
        if set(reached.layers) != set(self.applied.layers):
            raise UserError("these weights are for other layers than the ones applied: apply them anew")
        self.weights, self.applied = weights, reached
        for hook in self._hooks:
            for low_rank in hook.low_rank:
                low_rank.factors = weights.factors[hook.layer].to(low_rank.factors.down.device)

    def detach(self) -> None:
        """Leave the UNet as it was found; a second call does nothing."""
        super().detach()
        others = [a for a in self.target._applied if a is not self]
        if others and self.target._applied[-1] is self:
            others[-1]._hook()
        self.target._applied = others

    remove = detach

    def __enter__(self) -> "AppliedWeights":
        self._entered = True
        return super().__enter__()


def _by_layer(
    targets: list[Target], strength: LayerStrengths
) -> tuple[dict[str, str], dict[str, StrengthLike]]:
    """Layer → the pattern it has its strength from, without layers that are left alone; and pattern → strength."""
    by_pattern: Mapping[str, Any] = strength if isinstance(strength, Mapping) else {"*": strength}
    patterns: dict[str, str] = {}
    for pattern, own in by_pattern.items():
        reached = [t for t in targets if matches(t, pattern)]
        if not reached:
            raise unknown_name("layers for a strength", pattern, (), hint=f"; there are {describe(targets)}")
        pair_of(own)
        patterns |= {t.name: pattern for t in reached}
    if not patterns:
        raise UserError("the mapping of strengths is empty: name layers, such as {'attn2': 0.8}")
    return patterns, dict(by_pattern)

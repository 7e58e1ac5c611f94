"""Generated weights inside `attach`: which attentions they reach, and their hooks.

Attention hypernetworks change what to_k and to_v see, generated weights add to what a projection makes of that: the
order in which the two kinds stand in a list makes no difference.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.low_rank_hooks import LowRankHook, low_rank_hooks
from hyperbrush.hypernetworks.attaching.reach import Reach
from hyperbrush.hypernetworks.attaching.strengths import Strength
from hyperbrush.hypernetworks.attaching.target_network import looks
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import AttentionSite


@dataclass(frozen=True)
class WeightsReach(Reach):
    """What generated weights reached on one UNet."""

    layers: tuple[str, ...] = ()
    layers_made: int = 0  # that the weights change
    layers_there: int = 0  # that the UNet has

    def __str__(self) -> str:
        text = f"{len(self.layers)} of {self.layers_there} layers reached"
        if len(self.layers) < self.layers_made:
            text += f"; {self.layers_made - len(self.layers)} of its layers are not here or not asked for"
        return text


def reach_of_weights(
    weights: GeneratedWeights, wanted: Sequence[AttentionSite], everything: Collection[AttentionSite]
) -> WeightsReach:
    """Which layers of the ``wanted`` attentions the weights change.

    Raises:
        UserError: none of them, or a shape differs.
    """
    sites, layers = [], []
    for site in wanted:
        own = [p for p in site.projections if f"{site.path}.{p.name}" in weights.factors]
        for p in own:
            name = f"{site.path}.{p.name}"
            made = weights.factors[name].shape
            if made != (p.out_width, p.in_width):
                raise UserError(
                    f"{weights.name!r} has a change of shape {made} for {name}, whose weight is "
                    f"{(p.out_width, p.in_width)}: the weights are for another model"
                )
            layers.append(name)
        if own:
            sites.append(site)
    if not layers:
        raise UserError(
            f"{weights.name!r} reaches none of the {len(wanted)} attentions asked for: it changes {len(weights.layers)} "
            f"layers such as {weights.layers[0]}. Use weights made for this model, or the model they were made for"
        )
    there = sum(len(site.projections) for site in everything)
    return WeightsReach(
        name=weights.name,
        sites=tuple(sites),
        total=len(everything),
        missed=(),
        unused_widths=(),
        layers=tuple(layers),
        layers_made=len(weights.layers),
        layers_there=there,
    )


def weight_hooks(
    unet: torch.nn.Module, weights: GeneratedWeights, reached: WeightsReach, keys: Strength, values: Strength
) -> list[LowRankHook]:
    """Hooks at work for all layers reached; ``keys`` is the strength of to_q and to_k, ``values`` of to_v and to_out."""
    hooks = low_rank_hooks(unet, weights, reached.layers, lambda _, name: keys if looks(name) else values)
    for hook in hooks:
        hook.hook()
    return hooks

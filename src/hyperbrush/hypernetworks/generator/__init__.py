"""Hypernetworks that generate weights: a condition in, the low-rank weights of an adapter out, in one pass.

The way of the data::

    condition ──ConditionSource──▶ tensors ──encoder──▶ tokens, mask ──weight_generator──▶ latents ──decoder──▶ factors
    GeneratedWeights(factors) ──TargetNetwork.apply_weights──▶ hooks on a UNet ──save──▶ a file, or a LoRA

The three parts of a `Hypernetwork` are modules one can swap:

* ``encoder(conditions, drop)`` → `Encoded` (tokens (batch, tokens, embedding_dim), mask (batch, tokens) bool);
* ``weight_generator(tokens, mask)`` → latents (batch, layers, tokens_per_layer, hidden_dim);
* ``decoder(latents)`` → {layer name: `Factors` with the batch in front}.

For a training loop: give conditions as tensors (``TextCondition(states=…)``, ``ImageCondition(latents=…, present=…)``
from caches; `ConditionSource.prepare` makes them), generate a batch of weights, apply them to as many rows, and
run backward inside the ``with`` or after it: row i of the UNet's batch goes through adapter i mod n, and gradient
checkpointing finds the weights a block had.  ``drop`` is the null condition per sample.  `GeneratedWeights` has
``squared_distance`` (invariant to the factors' symmetries) for reconstruction and ``squared_norm`` for a penalty;
``decoder.shared_parameters`` and ``decoder.set_shared`` are for training a shared adapter first.
Set ``net.trained = True`` (or ``net.step``) once trained: `bind` then refuses other layers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.attaching.target_network import AppliedWeights, TargetNetwork
    from hyperbrush.hypernetworks.generator.condition_sources import ConditionSource
    from hyperbrush.hypernetworks.generator.conditions import ImageCondition, TaskCondition, TextCondition
    from hyperbrush.hypernetworks.generator.decoder import HypernetworkDecoder
    from hyperbrush.hypernetworks.generator.encoder import Encoded, HypernetworkEncoder
    from hyperbrush.hypernetworks.generator.hypernetwork import Hypernetwork, HypernetworkSettings
    from hyperbrush.hypernetworks.generator.weight_generator import WeightGenerator
    from hyperbrush.hypernetworks.weights.deltas import merge_deltas, with_deltas
    from hyperbrush.hypernetworks.weights.factors import Factors
    from hyperbrush.hypernetworks.weights.generated import GeneratedWeights, blend, mean
    from hyperbrush.hypernetworks.weights.layers import Target, find_targets, sd15_targets, select
    from hyperbrush.hypernetworks.weights.tuned import TunedWeights

_HOMES = {
    "AppliedWeights": "attaching.target_network",
    "ConditionSource": "generator.condition_sources",
    "Encoded": "generator.encoder",
    "Factors": "weights.factors",
    "GeneratedWeights": "weights.generated",
    "Hypernetwork": "generator.hypernetwork",
    "HypernetworkDecoder": "generator.decoder",
    "HypernetworkEncoder": "generator.encoder",
    "HypernetworkSettings": "generator.hypernetwork",
    "ImageCondition": "generator.conditions",
    "Target": "weights.layers",
    "TargetNetwork": "attaching.target_network",
    "TaskCondition": "generator.conditions",
    "TextCondition": "generator.conditions",
    "TunedWeights": "weights.tuned",
    "WeightGenerator": "generator.weight_generator",
    "blend": "weights.generated",
    "find_targets": "weights.layers",
    "mean": "weights.generated",
    "merge_deltas": "weights.deltas",
    "sd15_targets": "weights.layers",
    "select": "weights.layers",
    "with_deltas": "weights.deltas",
}

__all__ = [
    "AppliedWeights",
    "ConditionSource",
    "Encoded",
    "Factors",
    "GeneratedWeights",
    "Hypernetwork",
    "HypernetworkDecoder",
    "HypernetworkEncoder",
    "HypernetworkSettings",
    "ImageCondition",
    "Target",
    "TargetNetwork",
    "TaskCondition",
    "TextCondition",
    "TunedWeights",
    "WeightGenerator",
    "blend",
    "find_targets",
    "mean",
    "merge_deltas",
    "sd15_targets",
    "select",
    "with_deltas",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: torch takes seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hyperbrush.hypernetworks.{_HOMES[name]}"), name)

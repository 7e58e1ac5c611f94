"""Adapters onto ComfyUI's models: attention hypernetworks as its attention patches, generated weights as its weight patches."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.reach import WeightsReach, reach
from hyperbrush.hypernetworks.attaching.uses import Use
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, apply_networks
from hyperbrush.hypernetworks.attention.strengths import Strength, pair_of
from hyperbrush.hypernetworks.files.lora import weights_state
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import AttentionSite, choose_attentions

from .sites import Place, find_sites

CONDITIONAL = 0  # of cond_or_uncond, ComfyUI's list of what the parts of a batch are
_log = logging.getLogger("hyperbrush.comfyui")


def attach(model: Any, use: Use) -> tuple[Any, str]:
    """A clone of a ComfyUI model on which an adapter acts, and what it reached in words.

    model: ComfyUI's ModelPatcher; it stays as it is. use: the adapter with its strength and places; on a model that has
        others already it acts on what they made.

    Raises:
        UserError: no UNet; the adapter reaches none of the attentions asked for; or generated weights with what only
            networks can have: a schedule, one side of guidance, two strengths.
    """
    every = find_sites(model)
    wanted = [site for site, _ in choose_attentions(list(every.values()), use.attn, use.blocks)]
    reached = reach(use.hypernetwork, wanted, [site for site, _ in every.values()])
    said = f"{use.name or reached.name}: {reached}"
    if isinstance(use.hypernetwork, AttentionHypernetwork):
        places = {place: site for place, (site, _) in every.items() if site in reached.sites}
        work = AtWork(use.hypernetwork, use, places)
        clone = model.clone()
        clone.set_model_attn1_patch(AttentionPatch(work, "attn1"))
        clone.set_model_attn2_patch(AttentionPatch(work, "attn2"))
    else:
        assert isinstance(reached, WeightsReach)
        clone = _add_weights(model, use, use.hypernetwork, reached)
    _log.info(said)
    return clone, said


class AtWork:
    """One attention hypernetwork on one model: what its attentions' keys and values see.

    places: the attentions that it acts in.
    """

    def __init__(
        self, network: AttentionHypernetwork, use: Use, places: Mapping[Place, AttentionSite]
    ) -> None:
        cpu = torch.device("cpu")  # both follow what they act on
        keys, values = pair_of(use.strength)
        self.network, self.places = network, places
        self.keys, self.values = Strength(keys, cpu), Strength(values, cpu)
        self.conditional = use.guidance == "conditional"
        self._seen: Any = None

    def contexts(self, kind: str, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What to_k and to_v see, (rows, tokens, width) each, changed.

        options: ComfyUI's ``extra_options`` of this call.

        Raises:
            UserError: a schedule, and ComfyUI tells no sigmas; or a batch that cannot be told apart.
        """
        site = self.places.get((*_block_of(options), kind))
        if site is None or k is None or k.shape[-1] != site.context_width:
            return k, v
        if self.keys.scheduled or self.values.scheduled:
            self._follow(options)
        changes = self.network.changes(site)
        k = self._change(k, changes["to_k"], self.keys, options)
        return k, self._change(v, changes["to_v"], self.values, options)

    def _follow(self, options: Mapping[str, Any]) -> None:
        if (
            options.get("sigmas") is not self._seen or self._seen is None
        ):  # once a step, not for each attention
            progress = progress_of(options)
            self.keys.at(progress)
            self.values.at(progress)
            self._seen = options.get("sigmas")

    def _change(
        self, x: Tensor, network: ContextNetwork, strength: Strength, options: Mapping[str, Any]
    ) -> Tensor:
        if not strength.acts:
            return x
        sides = list(options.get("cond_or_uncond") or [CONDITIONAL])
        whole = len(x) % len(sides) == 0
        if not self.conditional:
            return apply_networks(x, [(network, strength)], len(sides) if whole else None)
        if not whole:
            raise UserError(
                f"a batch of {len(x)} rows cannot be parted into {len(sides)} sides of guidance: set guidance to both"
            )
        each = len(x) // len(sides)
        rows = [i for i in range(len(x)) if sides[i // each] == CONDITIONAL]
        if not rows:
            return x
        changed = x.clone()
        if network.over_the_batch:
            changed[rows] = apply_networks(x, [(network, strength)], len(sides))[rows]
        else:
            changed[rows] = apply_networks(x[rows], [(network, strength)], len(rows) // each)
        return changed


class AttentionPatch:
    """What ComfyUI calls in every attention of one kind, with what to_q, to_k and to_v are about to see."""

    def __init__(self, work: AtWork, kind: str) -> None:
        self.work, self.kind = work, kind

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries' (as they are), keys' and values' contexts, (rows, tokens, width) each."""
        return (q, *self.work.contexts(self.kind, k, v, extra_options))

    def to(self, where: Any) -> "AttentionPatch":
        """Go to a device. ComfyUI asks for the model's precision too: networks keep their own, as the webui's float32."""
        if isinstance(where, torch.device | str):
            self.work.network.to(where)
        return self

    def __deepcopy__(self, memo: Any) -> "AttentionPatch":
        """Itself: ComfyUI copies a model's options at each clone, and networks need no second copy."""
        return self


def progress_of(options: Mapping[str, Any]) -> float:
    """How far a sampling has come: 0 at its first step, 1 at its last.

    Second evaluations within a step are the step's whose noise they have, or which they are inside of.

    Raises:
        UserError: ComfyUI does not tell the sigmas of the sampling.
    """
    every, now = options.get("sample_sigmas"), options.get("sigmas")
    if every is None or now is None:
        raise UserError(
            "a schedule needs to know how far the sampling is, but this sampler or this ComfyUI does not tell its sigmas: "
            "update ComfyUI, or take the hypernetwork without a schedule"
        )
    sigma, steps = float(now.reshape(-1)[0]), every.tolist()[:-1]  # the last is where it ends
    above = [i for i, one in enumerate(steps) if one >= sigma * (1 - 1e-4)]
    return float(min(above, key=lambda i: steps[i], default=0) / max(len(steps) - 1, 1))


def _block_of(options: Mapping[str, Any]) -> tuple[str, int, int]:
    block = options.get("block")
    if block is None:
        raise UserError(
            "this model does not tell its attentions' places (block of transformer_options), which hypernetworks act by"
        )
    return block[0], block[1], options.get("block_index", 0)


def _add_weights(model: Any, use: Use, weights: GeneratedWeights, reached: WeightsReach) -> Any:
    """Generated weights as ComfyUI adds a LoRA's: to the model's own weights, for the whole sampling."""
    keys, values = pair_of(use.strength)
    if callable(keys) or keys != values or use.guidance != "both" or isinstance(keys, tuple):
        raise UserError(
            f"{use.name or weights.name!r} holds generated weights, which ComfyUI adds to the model's own for the whole sampling: "
            "take them with one strength, without a schedule, on both sides of guidance"
        )
    if keys == 0:
        return model.clone()
    from comfy.sd import load_lora_for_models

    chosen = GeneratedWeights(
        {layer: weights.factors[layer] for layer in reached.layers},
        name=weights.name,
        metadata=weights.metadata,
    )
    clone, _ = load_lora_for_models(model, None, dict(weights_state(chosen, "kohya").tensors), keys, 0.0)
    added = _patches(clone) - _patches(model)
    if added != len(reached.layers):
        raise UserError(
            f"ComfyUI took {added} of the {len(reached.layers)} layers of {weights.name!r}: its model has others than diffusers' of "
            "this family. Use weights made for this model"
        )
    return clone


def _patches(model: Any) -> int:
    return sum(len(patches) for patches in model.patches.values())

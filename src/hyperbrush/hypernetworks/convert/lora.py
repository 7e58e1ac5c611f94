"""A hypernetwork as a LoRA: ΔW = W·(M − 1) for to_k and to_v of every attention it reaches.

c + s·MLP(c) = M c + t exactly for networks without a non-linearity; for others M and t are the least
squares on contexts of a few generations.  The keys' offset W_k t adds one number to all logits of a query and
cancels; the values' offset W_v t passes through the softmax unchanged and is a bias (`fusing` has the
argument).  ΔW holds the model's weights, so the LoRA is for this model, and close ones.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.attached import attach
from hyperbrush.hypernetworks.attaching.contexts import AttentionInputs, as_model, sample_attention_inputs
from hyperbrush.hypernetworks.attaching.fusing import check_site
from hyperbrush.hypernetworks.attaching.output_error import KeysAndValues, attention_error
from hyperbrush.hypernetworks.attaching.reach import reach
from hyperbrush.hypernetworks.attention.activations import OVER_THE_BATCH
from hyperbrush.hypernetworks.attention.affine import Affine, chain_as_affine, fit_affine, is_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, apply_networks
from hyperbrush.hypernetworks.attention.strengths import StrengthLike, finite, pair_of
from hyperbrush.hypernetworks.convert.low_rank import Moments, best_low_rank, without_bias
from hyperbrush.hypernetworks.convert.report import LoraReport, SiteReport
from hyperbrush.hypernetworks.files.lora import FORMS, LoraLayer, LoraState, lora_state
from hyperbrush.hypernetworks.files.modelspec import architecture
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, find_attentions

Rank = int | Literal["full"]
_MATTERS = 1e-6  # of the values' own size: below it an offset is what rounding left


@dataclass(frozen=True)
class LoraResult:
    """A LoRA, ready to be written, and what it lost."""

    state: LoraState
    report: LoraReport
    layers: tuple[LoraLayer, ...]  # the same in float64, before it was laid out


@torch.no_grad()
def to_lora(
    hypernetwork: AttentionHypernetwork,
    pipe_or_model_or_unet: Any,
    *,
    rank: Rank = 16,
    strength: StrengthLike = 1.0,
    form: str = "diffusers",
    bias: bool | None = None,
    dtype: torch.dtype = torch.float32,
    contexts: Mapping[str, AttentionInputs] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int = 8,
    seed: int = 0,
    weigh_by_contexts: bool = True,
    attn: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> LoraResult:
    """Turn a hypernetwork at a strength into a LoRA of one model, and measure what that costs.

    rank: of every layer, or "full" for all that the change has (exact for affine networks).
    strength: a number or (for keys, for values); it is folded in, so that the LoRA's scale 1 is this.
    form: "diffusers", "peft" or "kohya"; alpha = rank, every scale is in the weights.
    bias: carry the values' offset, as to_v's lora_B.bias (diffusers, PEFT: such a LoRA cannot be merged
        into the weights) or to_out's diff_b (kohya: ComfyUI reads it; diffusers and the webui refuse the file).
        None: diffusers and PEFT carry it where there is one, kohya does not. Where it is not carried, the least
        squares on the contexts make up for it as far as a matrix can. Without an offset no bias is written.
    contexts: from `sample_attention_inputs`; by default sampled with the hypernetwork attached, from
        ``prompts``, ``steps``, ``seed``. With a bare UNet and an affine hypernetwork there need be none;
        then no error of the attentions' output is measured.
    weigh_by_contexts: cut the rank where these contexts feel it least, instead of in all directions alike.
    attn, blocks: only these attentions; see `attach`.
    on_progress: called with (site path, sites done, sites).

    Raises:
        UserError: rank, form or strength is impossible; softmax-like networks; a bare UNet where contexts are
            needed; LoRA already stands at a projection; nothing is reached; numbers too large for the dtype.
    """
    if form not in FORMS:
        raise unknown_name("form of LoRA", form, FORMS)
    if rank != "full" and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UserError(f"rank {rank!r} is impossible: expected a whole number from 1, or 'full'")
    strengths = _numbers(strength)
    if hypernetwork.settings.activation in OVER_THE_BATCH:
        raise UserError(
            f"{hypernetwork.name!r} cannot be a LoRA: {hypernetwork.settings.activation} networks mix the rows "
            "of a batch, which no weight can say"
        )
    carried = form != "kohya" if bias is None else bias
    unet = getattr(pipe_or_model_or_unet, "unet", pipe_or_model_or_unet)
    found = find_attentions(unet, attn, blocks)
    reached = reach(
        hypernetwork, [site for site, _ in found], [site for site, _ in find_attentions(unet)]
    ).sites
    chosen = [(site, attention) for site, attention in found if site in reached]
    for site, attention in chosen:
        check_site(site, attention)
    if contexts is None and not (unet is pipe_or_model_or_unet and _is_affine(hypernetwork)):
        as_model(pipe_or_model_or_unet)  # says what is wrong, if so
        with attach(pipe_or_model_or_unet, (hypernetwork, strength), attn=attn, blocks=blocks):
            contexts = sample_attention_inputs(pipe_or_model_or_unet, prompts, steps=steps, seed=seed)
    layers: list[LoraLayer] = []
    reports = []
    maps: dict[tuple[int, float], Affine | None] = {}  # sites of one width share their networks
    for number, (site, attention) in enumerate(chosen):
        if on_progress is not None:
            on_progress(site.path, number, len(chosen))
        if contexts is not None and site.path not in contexts:
            raise UserError(f"contexts has none for {site.path}: sample them from this model")
        seen = None if contexts is None else contexts[site.path]
        converter = _SiteConverter(
            hypernetwork, strengths, site, attention, seen, carried, weigh_by_contexts, maps
        )
        keys, values = converter.layers(None if rank == "full" else rank)
        layers += [keys, values]
        reports.append(converter.report(keys, values))
    carried = carried and any(layer.shift is not None for layer in layers)
    state = lora_state(
        layers,
        form,
        dtype,
        bias=carried,
        title=hypernetwork.name,
        architecture=architecture(hypernetwork),
        about=f"{hypernetwork.name} at strength {_shown(strengths)}, a hypernetwork made into a LoRA",
    )
    return LoraResult(state, LoraReport(tuple(reports), _shown(strengths), carried), tuple(layers))


class _SiteConverter:
    """One attention: maps of its contexts, changes of its weights, and their error."""

    def __init__(
        self,
        hypernetwork: AttentionHypernetwork,
        strengths: tuple[float, float],
        site: AttentionSite,
        attention: torch.nn.Module,
        seen: AttentionInputs | None,
        carried: bool,
        weigh: bool,
        maps: dict[tuple[int, float], Affine | None],
    ) -> None:
        pair = hypernetwork.network_for(site.context_width, site)
        assert pair is not None
        self.site, self.attention, self.seen, self.carried = site, attention, seen, carried
        self.networks = (pair.key, strengths[0]), (pair.value, strengths[1])
        self.weights = tuple(_weight(attention, name) for name in ("to_k", "to_v"))
        self.to_out = _weight(attention, "to_out.0")
        self.exact = is_affine(pair.key) and is_affine(pair.value)
        self.moments = None if seen is None else Moments.of(seen.contexts)
        self.weigh, self.maps = weigh, maps
        self.lost = False

    def layers(self, rank: int | None) -> tuple[LoraLayer, LoraLayer]:
        """For to_k and to_v."""
        keys, values = (self._map(*of) for of in self.networks)
        one = torch.eye(self.site.context_width, dtype=torch.float64)
        moments, weighed = self.moments, self.weigh
        # A constant in the keys cancels, so they are cut by what varies in the contexts alone.
        change = self.weights[0] @ (keys.matrix - one)
        cut = best_low_rank(change, rank, moments.covariance if moments and weighed else None)
        key_layer = LoraLayer(self.site.path, "to_k", cut, None, None)
        change, offset = self.weights[1] @ (values.matrix - one), self.weights[1] @ values.offset
        there = self._matters(offset)
        if self.carried and there:
            cut = best_low_rank(change, rank, moments.covariance if moments and weighed else None)
            if moments is not None and weighed:
                offset = offset + (change - cut.up @ cut.down) @ moments.mean
            return key_layer, LoraLayer(self.site.path, "to_v", cut, offset, self.to_out @ offset)
        self.lost = there
        if moments is not None and there:
            change = without_bias(change, offset, moments)
        cut = best_low_rank(change, rank, moments.second if moments and weighed else None)
        return key_layer, LoraLayer(self.site.path, "to_v", cut, None, None)

    def _matters(self, offset: Tensor) -> bool:
        """Whether an offset of the values is more than rounding beside the values themselves."""
        weight = self.weights[1]
        size = (
            weight.square().sum() if self.moments is None else (weight @ self.moments.second * weight).sum()
        )
        return float(offset.norm()) > _MATTERS * float(size.clamp_min(0).sqrt())

    def _map(self, network: ContextNetwork, strength: float) -> Affine:
        key = (id(network), strength)
        if key not in self.maps:
            self.maps[key] = chain_as_affine([(network, strength)], self.site.context_width)
        if (exact := self.maps[key]) is not None:
            return exact
        assert self.seen is not None  # asked for before
        return fit_affine(
            self.seen.contexts, self._transformed(self.seen.contexts[None], network, strength)[0]
        )

    @staticmethod
    def _transformed(context: Tensor, network: ContextNetwork, strength: float) -> Tensor:
        return apply_networks(context.double(), [(network, strength)])

    def report(self, keys: LoraLayer, values: LoraLayer) -> SiteReport:
        """What these layers say of the site."""
        error = None
        if self.seen is not None and self.seen.calls:
            error = attention_error(
                self.attention, self._reference(), self._lora(keys, values), self.seen.calls
            )
        return SiteReport(
            self.site,
            self.exact,
            keys.cut.rank,
            values.cut.rank,
            keys.cut.energy,
            values.cut.energy,
            self.lost,
            error,
        )

    def _reference(self) -> KeysAndValues:
        def exact(context: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = (self._transformed(context, *of) for of in self.networks)
            return keys @ self.weights[0].T.to(keys), values @ self.weights[1].T.to(values)

        return exact

    def _lora(self, keys: LoraLayer, values: LoraLayer) -> KeysAndValues:
        return lambda context: (
            keys.add_to(context, self.weights[0]),
            values.add_to(context, self.weights[1]),
        )


def _weight(attention: torch.nn.Module, name: str) -> Tensor:
    linear: Any = attention.get_submodule(name)
    weight: Tensor = linear.weight.detach().cpu().double()
    return weight


def _is_affine(hypernetwork: AttentionHypernetwork) -> bool:
    return all(is_affine(n) for _, pair in hypernetwork.pairs() for n in (pair.key, pair.value))


def _numbers(strength: StrengthLike) -> tuple[float, float]:
    keys, values = pair_of(strength)
    for term in (keys, values):
        if callable(term) or isinstance(term, tuple):
            raise UserError("a LoRA has one strength: give a number or (for keys, for values), no schedule")
    return finite(keys), finite(values)


def _shown(strengths: tuple[float, float]) -> str:
    keys, values = strengths
    return f"{keys:g}" if keys == values else f"{keys:g} (keys), {values:g} (values)"

"""Several hypernetworks in one: the weighted average of equal structures, or the exact composition of affine ones."""

from collections.abc import Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.uses import Adapter
from hyperbrush.hypernetworks.attention.affine import chain_as_affine, is_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, Key, NetworkPair
from hyperbrush.hypernetworks.attention.strengths import finite
from hyperbrush.hypernetworks.files.checks import refuse_deltas
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights, blend

WAYS = ("auto", "average", "compose")
Weighted = tuple[AttentionHypernetwork, float]
WeightedGenerated = tuple[GeneratedWeights, float]
_POSITIVELY_HOMOGENEOUS = ("relu", "leakyrelu", "prelu")  # f(s·x) = s·f(x) for s > 0


def merge(
    hypernetworks: Sequence[tuple[Adapter, float]], *, how: str = "auto", name: str | None = None
) -> Adapter:
    """One hypernetwork out of several with their weights; so with weights that hypernetworks generated.

    how: "average" takes the weighted sum of the parameters, weights as given (they need not sum to 1; the
        metadata say what they sum to); the structures must be equal. A width that some do not have counts as
        the identity there: the others' average at the sum of their weights. "compose" is for networks without
        a non-linearity: it makes the linear networks (structure 1,1) whose strength 1 is exactly the chain of
        all, in order, at their weights as strengths. "auto": compose where it is possible, else average.
        Generated weights add up exactly whichever it is: the result is all of them at their weights as strengths,
        and its rank the sum of theirs.
    name: of the result; the names with their weights by default.

    The metadata's "merged_from" and "merged_how" say what was done, a line of text each.

    Raises:
        UserError: fewer than two, a weight that is not finite, adapters of both kinds, or networks of which such a
            merger is not one.
    """
    if how not in WAYS:
        raise unknown_name("way to merge", how, WAYS)
    given = [(adapter, finite(weight)) for adapter, weight in hypernetworks]
    if len(given) < 2:
        raise UserError(f"got {len(given)} hypernetworks to merge: expected two or more")
    generated = [(adapter, w) for adapter, w in given if isinstance(adapter, GeneratedWeights)]
    if len(generated) == len(given):
        return _added(generated, name)
    entries = [(adapter, w) for adapter, w in given if isinstance(adapter, AttentionHypernetwork)]
    if generated:
        raise UserError(
            f"cannot merge {generated[0][0].name!r}, generated weights, which add to projections, with "
            f"{entries[0][0].name!r}, which changes contexts: attach both together"
        )
    affine = all(_is_affine(hypernetwork) for hypernetwork, _ in entries)
    if how == "auto":
        how = "compose" if affine else "average"
    merged = _composed(entries) if how == "compose" else _averaged(entries)
    merged.name = name or " + ".join(f"{h.name}*{w:g}" for h, w in entries)
    merged.metadata["merged_from"] = "; ".join(f"{h.name} (step {h.step}) * {w:g}" for h, w in entries)
    merged.metadata["merged_how"] = _description(entries, how)
    for key in ("sd_checkpoint", "sd_checkpoint_name"):
        values = {h.metadata.get(key) for h, _ in entries}
        if len(values) == 1 and (value := values.pop()) is not None:
            merged.metadata[key] = value
    return merged.eval()


def _added(entries: Sequence[WeightedGenerated], name: str | None) -> GeneratedWeights:
    merged = blend([weights for weights, _ in entries], [share for _, share in entries])
    merged.name = name or " + ".join(f"{g.name}*{w:g}" for g, w in entries)
    merged.metadata["merged_from"] = "; ".join(f"{g.name} * {w:g}" for g, w in entries)
    merged.metadata["merged_how"] = f"changes added exactly, rank {merged.rank}"
    return merged


def _description(entries: Sequence[Weighted], how: str) -> str:
    """How it was merged, and where some have no network."""
    if how == "compose":
        text = "composed exactly, in this order"
    else:
        text = f"parameters averaged, weights sum to {sum(w for _, w in entries):g}"
    missing = []
    for key in _keys(entries):
        without = [h.name for h, _ in entries if _pair(h, key, _width(entries, key)) is None]
        if without:
            missing.append(f"{key}: not in {', '.join(without)}")
    return text + (f"; the identity where there is no network ({'; '.join(missing)})" if missing else "")


def _keys(entries: Sequence[Weighted]) -> list[Key]:
    """Widths and sites of all, in order of their first place."""
    return list(dict.fromkeys(key for hypernetwork, _ in entries for key, _ in hypernetwork.pairs()))


def _width(entries: Sequence[Weighted], key: Key) -> int:
    widths = {pair.width for hypernetwork, _ in entries for own, pair in hypernetwork.pairs() if own == key}
    if len(widths) > 1:
        raise UserError(
            f"cannot merge: the networks at {key} are for contexts {' and '.join(map(str, sorted(widths)))} wide, "
            "so they are for different models"
        )
    return widths.pop()


def _pair(hypernetwork: AttentionHypernetwork, key: Key, width: int) -> NetworkPair | None:
    """The networks that act there: a site's own, else those of its width."""
    return hypernetwork.network_for(width, key if isinstance(key, str) else None)


def _is_affine(hypernetwork: AttentionHypernetwork) -> bool:
    return all(is_affine(n) for _, pair in hypernetwork.pairs() for n in (pair.key, pair.value))


@torch.no_grad()
def _composed(entries: Sequence[Weighted]) -> AttentionHypernetwork:
    """The whole chain c → M c + t as one linear layer: weight M − 1, bias t."""
    nonlinear = [h.name for h, _ in entries if not _is_affine(h)]
    if nonlinear:
        raise UserError(
            f"cannot compose exactly: {', '.join(map(repr, nonlinear))} has an activation or LayerNorm, so a chain "
            "is no network of the same kind. Attach them together, or merge equal structures with how='average'"
        )
    widths: dict[Key, int] = {key: _width(entries, key) for key in _keys(entries)}
    merged = AttentionHypernetwork(widths, layer_structure=(1, 1), activation=None)
    for key, pair in merged.pairs():
        found = [(own, w) for h, w in entries if (own := _pair(h, key, pair.width)) is not None]
        for network, chain in (
            (pair.key, [(own.key, w) for own, w in found]),
            (pair.value, [(own.value, w) for own, w in found]),
        ):
            whole = chain_as_affine(chain, pair.width)
            assert whole is not None
            linear = network.layers[0].linear
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.copy_(whole.matrix - torch.eye(pair.width, dtype=torch.float64))
            linear.bias.copy_(whole.offset)
    return merged


@torch.no_grad()
def _averaged(entries: Sequence[Weighted]) -> AttentionHypernetwork:
    first = entries[0][0]
    for each, _ in entries:
        refuse_deltas(each)
    for other, _ in entries[1:]:
        _check_equal_structures(first, other)
    widths: dict[Key, int] = {key: _width(entries, key) for key in _keys(entries)}
    s = first.settings
    merged = AttentionHypernetwork(
        widths,
        layer_structure=s.layer_structure,
        activation=s.activation,
        layer_norm=s.layer_norm,
        activate_output=s.activate_output,
        skip_connection=s.skip_connection,
        upsample_linear=s.upsample_linear,
        dropout_structure=s.dropout_structure,
        use_dropout=first.use_dropout,
        last_layer_dropout=first.last_layer_dropout,
        weight_init="Normal",
    )
    for key, pair in merged.pairs():
        found = [(own, w) for h, w in entries if (own := _pair(h, key, pair.width)) is not None]
        whole = len(found) == len(entries)
        _average(key, pair.key, [(own.key, w) for own, w in found], whole)
        _average(key, pair.value, [(own.value, w) for own, w in found], whole)
    return merged


def _average(
    key: Key, into: ContextNetwork, networks: Sequence[tuple[ContextNetwork, float]], whole: bool
) -> None:
    """Write the weighted sum of parameters; where not all files have a network, the average at its weight."""
    total = sum(weight for _, weight in networks)
    if not whole and total == 0:
        raise UserError(f"cannot average at {key}: the weights of the files that have it sum to 0")
    share = 1.0 if whole else total
    states = [(network.state_dict(), weight / share) for network, weight in networks]
    into.load_state_dict(
        {n: sum(state[n].detach().cpu().double() * weight for state, weight in states) for n in states[0][0]}
    )
    if not whole and total != 1:
        _scale_output(key, into, total)


def _scale_output(key: Key, network: ContextNetwork, strength: float) -> None:
    """Make a network's output ``strength`` times what it is, exactly."""
    last: Any = network.layers[-1]
    closing = last.linear if last.norm is None else last.norm
    activated = last.norm is None and last.activation is not None
    homogeneous = type(last.activation).__name__.lower() in _POSITIVELY_HOMOGENEOUS and strength > 0
    if network.residual or (activated and not homogeneous):
        raise UserError(
            f"cannot average at {key}: not every file has a network there, and the output of the others' "
            f"(residual or activated) cannot be scaled to their weight {strength:g} exactly. "
            "Give weights that sum to 1 there, or merge files of equal widths"
        )
    closing.weight.mul_(strength)
    closing.bias.mul_(strength)


def _check_equal_structures(first: AttentionHypernetwork, other: AttentionHypernetwork) -> None:
    names = (
        "layer_structure",
        "activation",
        "layer_norm",
        "activate_output",
        "skip_connection",
        "upsample_linear",
    )
    differing = [
        f"{n} {getattr(first.settings, n)!r} and {getattr(other.settings, n)!r}"
        for n in names
        if getattr(first.settings, n) != getattr(other.settings, n)
    ]
    if differing:
        raise UserError(
            f"cannot average {first.name!r} and {other.name!r}: they differ in {'; '.join(differing)}, so their "
            "parameters do not correspond. Affine ones can be composed (how='compose'); others can only be "
            "attached together"
        )

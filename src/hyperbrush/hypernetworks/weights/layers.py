"""Targets: the linear layers a hypernetwork generates weights for, found by kind, projection, block or name."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.families import SD1
from hyperbrush.ldm.modules.attention_sites import KINDS, PROJECTIONS, find_layers
from hyperbrush.ldm.modules.transformer_sites import STREAMS


@dataclass(frozen=True)
class Target:
    """One linear layer: its weight is (out_width, in_width)."""

    name: str  # "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    kind: str  # "attn1" or "attn2"; of a transformer see `transformer_layers`; of an attention hypernetwork "key" or "value"
    projection: str  # "to_q", "to_k", "to_v", "to_out.0"; of a transformer "add_q_proj", "ff.net.2" too; "layers.0", …
    block: (
        str  # "down.1", "mid", "up.2", "transformer_blocks.3"; of an attention hypernetwork the width or site
    )
    depth: int  # which transformer block, counted from the model's input
    in_width: int
    out_width: int

    @property
    def group(self) -> tuple[str, str, int, int]:
        """What layers share a head: kind, projection and shape."""
        return self.kind, self.projection, self.in_width, self.out_width

    @property
    def path(self) -> str:
        """The attention it belongs to."""
        return self.name.removesuffix("." + self.projection)


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


def find_targets(module: torch.nn.Module, target_layers: Collection[str] | None = None) -> list[Target]:
    """The layers of a UNet2DConditionModel, a transformer of a known family or an `AttentionHypernetwork`, in the order of
    the forward pass.

    target_layers: which, see `select`; None: all of to_q, to_k, to_v, to_out in attn1 and attn2, of a transformer its text
        streams' and feed-forward layers too.

    Raises:
        UserError: as `attention_sites` and `select`.
    """
    if isinstance(module, AttentionHypernetwork):
        return select(_of_hypernetwork(module), target_layers)
    targets = []
    for site, _ in find_layers(module):
        for projection in site.projections:
            name = f"{site.path}.{projection.name}"
            targets.append(
                Target(
                    name,
                    site.kind,
                    name.removeprefix(site.block + ".") if site.kind.startswith("ff") else projection.name,
                    site.block,
                    site.depth,
                    projection.in_width,
                    projection.out_width,
                )
            )
    return select(targets, target_layers)


def select(targets: Sequence[Target], target_layers: Collection[str] | None) -> list[Target]:
    """Those of the targets that at least one pattern matches, in their own order.

    A pattern is a kind ("attn1"), a projection ("to_k", "to_out"), a block ("down.1", "mid", "up") or several of
    these joined by dots ("up.attn2.to_k": all must hold); else a layer's name, the beginning of one
    ("mid_block"), or a name with wildcards ("*.attentions.0.*.to_q"). Of a transformer "attn" and "ff" are all attentions and
    all feed-forwards, "picture" and "text" what sees the rows of such, "attn1" and "attn2" attentions that do; blocks
    are named as they begin ("transformer_blocks.3", "layers").

    Raises:
        UserError: a pattern matches nothing, or there is none.
    """
    if target_layers is None:
        return list(targets)
    if isinstance(target_layers, str):
        raise UserError(f"target_layers must be a list, not the text {target_layers!r}: [{target_layers!r}]")
    if not target_layers:
        raise UserError(f"target_layers is empty: name some of {describe(targets)}")
    names = {target.name for target in targets}
    patterns = [pattern for pattern in target_layers if pattern not in names]
    for pattern in patterns:
        if not any(matches(target, pattern) for target in targets):
            raise unknown_name(
                "target layer", pattern, _vocabulary(targets), hint="; or a layer's name with * for any part"
            )
    wanted = names.intersection(target_layers)
    return [t for t in targets if t.name in wanted or any(matches(t, pattern) for pattern in patterns)]


def reach(weights: GeneratedWeights, targets: Sequence[Target]) -> LayerReach:
    """Which of the targets these weights change.

    Raises:
        UserError: none of them, or a shape differs.
    """
    by_name = {target.name: target for target in targets}
    reached = tuple(name for name in weights.factors if name in by_name)
    for name in reached:
        check_shape(weights, name, (by_name[name].out_width, by_name[name].in_width))
    if not reached:
        raise UserError(
            f"{weights.name!r} reaches no layer: it changes {len(weights.factors)} layers such as {weights.layers[0]}, "
            f"and this target network has {describe(targets)}"
        )
    missed = tuple(name for name in weights.factors if name not in by_name)
    return LayerReach(weights.name, reached, len(targets), missed)


def check_shape(weights: GeneratedWeights, layer: str, shape: tuple[int, int]) -> None:
    """See that a layer's change has the shape (out, in) of its weight.

    Raises:
        UserError: it has another.
    """
    made = weights.factors[layer].shape
    if made != shape:
        raise UserError(
            f"{weights.name!r} has a change of shape {made} for {layer}, whose weight is {shape}: the weights are for "
            "another model"
        )


def matches(target: Target, pattern: str) -> bool:
    """Whether one pattern of `select` matches a target."""
    words = list(_words(pattern))
    if words and all(_is_word(word, target) is not None for word in words):
        return all(_is_word(word, target) for word in words)
    name = target.name
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)


def describe(targets: Sequence[Target]) -> str:
    """What there is, in words: "128 layers: attn1, attn2; to_k, …; blocks down.0, …"."""
    kinds, projections, blocks = (
        list(dict.fromkeys(getattr(t, what) for t in targets)) for what in ("kind", "projection", "block")
    )
    return f"{len(targets)} layers: {', '.join(kinds)}; {', '.join(projections)}; blocks {', '.join(blocks[:12])}"


def sd15_targets(target_layers: Collection[str] | None = None) -> list[Target]:
    """The 128 layers of Stable Diffusion 1.x's UNet, without the UNet.

    Raises:
        UserError: as `select`.
    """
    places = [
        (f"down_blocks.{i}", f"down.{i}", j, w) for i, w in enumerate(SD1.self_widths) for j in range(2)
    ]
    places += [("mid_block", "mid", 0, 1280)]
    places += [
        (f"up_blocks.{i + 1}", f"up.{i + 1}", j, w)
        for i, w in enumerate(reversed(SD1.self_widths))
        for j in range(3)
    ]
    targets = []
    for depth, (part, block, number, width) in enumerate(places):
        for kind in KINDS:
            path = f"{part}.attentions.{number}.transformer_blocks.0.{kind}"
            for projection in PROJECTIONS:
                cross = kind == "attn2" and projection in ("to_k", "to_v")
                seen = SD1.cross_width if cross else width
                targets.append(Target(f"{path}.{projection}", kind, projection, block, depth, seen, width))
    return select(targets, target_layers)


def to_rows(targets: Sequence[Target]) -> list[list[Any]]:
    """Targets as JSON has them."""
    return [list(astuple(target)) for target in targets]


def from_rows(rows: Any) -> list[Target]:
    """Undo `to_rows`.

    Raises:
        UserError: they are no targets.
    """
    kinds = (str, str, str, str, int, int, int)
    try:
        sound = all(len(row) == 7 and all(map(isinstance, row, kinds)) and min(row[5:]) > 0 for row in rows)
    except TypeError:
        sound = False
    if not sound or not rows or len({row[0] for row in rows}) != len(rows):
        raise UserError("the list of target layers is damaged")
    return [Target(*row) for row in rows]


def _of_hypernetwork(hypernetwork: AttentionHypernetwork) -> list[Target]:
    targets = []
    for depth, (key, pair) in enumerate(hypernetwork.pairs()):
        for kind, network in (("key", pair.key), ("value", pair.value)):
            for i, layer in enumerate(network.layers):
                weight: Any = layer.linear
                where = f"layers.{i}"
                shape = weight.in_features, weight.out_features
                targets.append(Target(f"{key}.{kind}.{where}", kind, where, str(key), depth, *shape))
    return targets


def _words(pattern: str) -> Iterator[str]:
    """A pattern's parts; "down.1", "to_out.0" and "layers.0" are one each."""
    parts = pattern.split(".")
    while parts:
        word = parts.pop(0)
        if parts and parts[0].isdecimal() and word in ("down", "up", "to_out", "layers"):
            word += "." + parts.pop(0)
        yield word


def _is_word(word: str, target: Target) -> bool | None:
    """Whether a word holds of a target; None where it is no such word."""
    if word in ("attn", "ff"):
        return target.kind.startswith(word)
    if word in (*KINDS, "key", "value"):
        return target.kind in (word, word.rstrip("12"))
    if word in STREAMS:
        return target.kind[-1] == STREAMS[word][-1] or target.kind in ("attn", "ff")
    if word.startswith(("to_", "add_")):
        return target.projection in (word, word + ".0")
    if word.startswith("layers") and target.kind in ("key", "value"):
        return target.projection == word
    if word.partition(".")[0] in ("down", "mid", "up"):
        return word in (target.block, target.block.partition(".")[0])
    return word == target.block if word.isdecimal() else None


def _vocabulary(targets: Sequence[Target]) -> list[str]:
    words = set()
    for target in targets:
        words |= {target.kind, target.projection.removesuffix(".0"), target.block}
        words |= {target.projection} if target.kind in ("key", "value") else {target.block.partition(".")[0]}
    return sorted(words)

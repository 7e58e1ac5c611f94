"""The attention sites of a diffusers UNet: every attn1 and attn2, its place and its widths."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name

KINDS = ("attn1", "attn2")
# Attribute of a UNet that is told no text: its attn2 read one empty token, where a network would have nothing to read.
WITHOUT_CONTEXT = "hyperbrush_without_context"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
# Wrappers (PEFT, DDP, compile) put names before the UNet's own, hence more than "^".
_PATH = re.compile(r"(?:^|\.)((?P<part>down_blocks|mid_block|up_blocks)\.(?:.+\.)?(?P<kind>attn[12]))$")


@dataclass(frozen=True)
class Projection:
    """One linear layer of an attention: ``weight`` is (out_width, in_width)."""

    name: str  # "to_q", "to_k", "to_v" or "to_out.0"
    in_width: int
    out_width: int


@dataclass(frozen=True)
class AttentionSite:
    """One attention of a UNet."""

    path: str  # "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    kind: str  # "attn1" (self-attention in Stable Diffusion) or "attn2" (cross-attention)
    block: str  # "down.1", "mid", "up.2"
    depth: int  # which transformer block, counted from the UNet's input: 0, 1, …
    heads: int
    query_width: int  # what to_q sees
    context_width: int  # what to_k and to_v see
    projections: tuple[Projection, ...]

    def projection(self, name: str) -> Projection:
        """The projection called ``name``.

        Raises:
            UserError: the attention has no such projection.
        """
        for projection in self.projections:
            if projection.name == name:
                return projection
        raise unknown_name("projection", name, [p.name for p in self.projections])


def attention_sites(
    unet: torch.nn.Module,
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[AttentionSite]:
    """Every attention of a UNet2DConditionModel from input to output, attn1 before attn2.

    unet: also one wrapped by PEFT, DDP or torch.compile, with LoRA layers or other wrappers at its
    projections, with any attention processor. Paths are always the bare UNet's.
    kinds, blocks: keep only these; blocks are "down.1", "mid", "up.2", or "down" and "up" for all
        of them. Of a `LatentDiffusion` that is told no text there are self-attentions alone.

    Raises:
        UserError: no attention, several UNets at once, or an unknown kind or block.
    """
    return [site for site, _ in find_attentions(unet, kinds, blocks)]


def find_attentions(
    unet: torch.nn.Module,
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """`attention_sites` with the attention module of each site.

    Raises:
        UserError: as `attention_sites`.
    """
    found = _attention_modules(unet)
    depths: dict[str, int] = {}
    pairs = []
    for path, module in found.items():
        depth = depths.setdefault(path.rpartition(".")[0], len(depths))
        pairs.append((_site(path, depth, module), module))
    if any(getattr(module, WITHOUT_CONTEXT, False) for module in unet.modules()):
        pairs = [(site, module) for site, module in pairs if site.kind == "attn1"]
    return choose_attentions(pairs, kinds, blocks)


def choose_attentions(
    every: Sequence[tuple[AttentionSite, torch.nn.Module]],
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """Those of some kinds and blocks out of all that `find_attentions` gives.

    Raises:
        UserError: an unknown kind or block; or attn2 alone of a model without it.
    """
    _check_names(kinds, blocks, {site.block for site, _ in every})
    if "attn2" in kinds and not any(site.kind in kinds for site, _ in every):
        raise UserError(
            "this model is told no text, so that its cross-attentions (attn2) have nothing to read: expected attn1, "
            "or both"
        )
    return [
        (site, module)
        for site, module in every
        if site.kind in kinds and (blocks is None or _in_blocks(site.block, blocks))
    ]


def _attention_modules(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Attention modules by the bare UNet's path, in the order of the forward pass."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in unet.named_modules():
        match = _PATH.search(name.replace("_orig_mod.", ""))
        # Motion modules attend over time, not over a picture: no hypernetwork is for them.
        if match is None or "motion_modules" in name or not _has_projections(module):
            continue
        if match[1] in found:
            raise UserError(
                f"{type(unet).__name__} holds several UNets (two modules are {match[1]}): "
                "hand over one of them"
            )
        found[match[1]] = module
    if not found:
        raise UserError(
            f"{type(unet).__name__} has no attention with to_k and to_v at "
            "down_blocks/mid_block/up_blocks….attn1 or .attn2: "
            "expected a diffusers UNet2DConditionModel, or a pipeline that has one as `unet`"
        )
    return dict(sorted(found.items(), key=lambda item: _forward_order(item[0])))


def _has_projections(module: torch.nn.Module) -> bool:
    return all(isinstance(getattr(module, n, None), torch.nn.Module) for n in PROJECTIONS[:3])


def _forward_order(path: str) -> tuple[int, list[tuple[int, str]]]:
    part = ("down_blocks", "mid_block", "up_blocks").index(path.split(".", 1)[0])
    return part, [(int(p), "") if p.isdigit() else (0, p) for p in path.split(".")]


def _site(path: str, depth: int, module: torch.nn.Module) -> AttentionSite:
    projections = []
    for name in PROJECTIONS:
        try:
            layer: Any = module.get_submodule(name)
        except AttributeError:
            continue  # some attentions have no output projection of their own
        in_width, out_width = _widths(layer)
        projections.append(Projection(name, in_width, out_width))
    widths = {p.name: p.in_width for p in projections}
    part, index = path.split(".")[:2]
    return AttentionSite(
        path=path,
        kind=path.rpartition(".")[2],
        block="mid" if part == "mid_block" else f"{part.removesuffix('_blocks')}.{index}",
        depth=depth,
        heads=int(getattr(module, "heads", 1)),
        query_width=widths["to_q"],
        context_width=widths["to_k"],
        projections=tuple(projections),
    )


def _widths(layer: Any) -> tuple[int, int]:
    """In and out width of a linear layer, however many adapters stand around it."""
    while not isinstance(getattr(layer, "in_features", None), int):
        inner = getattr(layer, "base_layer", None) or next(layer.children(), None)
        if inner is None:
            raise UserError(
                f"cannot read the widths of {type(layer).__name__}: expected a linear layer, "
                "or a wrapper with in_features and out_features or with the layer inside"
            )
        layer = inner
    return layer.in_features, layer.out_features


def _in_blocks(block: str, blocks: Collection[str]) -> bool:
    return block in blocks or block.partition(".")[0] in blocks


def _check_names(kinds: Collection[str], blocks: Collection[str] | None, known: set[str]) -> None:
    for what, names in (("kinds", kinds), ("blocks", blocks)):
        if isinstance(names, str):
            raise UserError(f"{what} must be a list of names, not the text {names!r}: write [{names!r}]")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of attention", kind, KINDS)
    for block in blocks or ():
        if not any(_in_blocks(k, [block]) for k in known):
            raise unknown_name("block", block, known | {k.partition(".")[0] for k in known})

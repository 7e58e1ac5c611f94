"""The attention sites of a diffusers UNet or transformer: every context, its place and its widths."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.modules.sites import PROJECTIONS as PROJECTIONS
from hyperbrush.ldm.modules.sites import AttentionSite as AttentionSite
from hyperbrush.ldm.modules.sites import Projection as Projection
from hyperbrush.ldm.modules.sites import linear_widths
from hyperbrush.ldm.modules.transformer_layers import layer_sites
from hyperbrush.ldm.modules.transformer_sites import FAMILIES, STREAMS, find_transformer

KINDS = ("attn1", "attn2")
# Attribute of a UNet that is told no text: its attn2 read one empty token, where a network would have nothing to read.
WITHOUT_CONTEXT = "hyperbrush_without_context"
# Wrappers (PEFT, DDP, compile) put names before the UNet's own, hence more than "^".
_PATH = re.compile(r"(?:^|\.)((?P<part>down_blocks|mid_block|up_blocks)\.(?:.+\.)?(?P<kind>attn[12]))$")


def attention_sites(
    model: torch.nn.Module,
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[AttentionSite]:
    """Every attention of a UNet2DConditionModel or a transformer from input to output, attn1 before attn2.

    model: also one wrapped by PEFT, DDP or torch.compile, with LoRA layers or other wrappers at its
        projections, with any attention processor. Paths are always the bare model's. Transformers are those of
        `transformer_sites.LAYOUTS`; of each attention there is a site for each stream, picture and text, it reads.
    kinds, blocks: keep only these; blocks are "down.1", "mid", "up.2", or "down" and "up" for all
        of them. Of a `LatentDiffusion` that is told no text there are self-attentions alone. Of a transformer
        blocks are "transformer_blocks.3", or "transformer_blocks" for all of them, and kinds may be streams too:
        "picture" (as "attn1") and "text" (as "attn2").

    Raises:
        UserError: no attention, several models at once, an unknown family, or an unknown kind or block.
    """
    return [site for site, _ in find_sites(model, kinds, blocks)]


def find_sites(
    model: torch.nn.Module,
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """`attention_sites` with the attention module of each site.

    Raises:
        UserError: as `attention_sites`.
    """
    transformer = find_transformer(model)
    if transformer is not None:
        return choose_attentions(transformer.sites(), kinds, blocks)
    name = type(model).__name__
    if "Transformer" in name and not any(map(_PATH.search, dict(model.named_modules()))):
        raise UserError(
            f"{name} is a transformer that hyperbrush does not know the attentions of: expected a UNet, or a "
            f"transformer of {', '.join(FAMILIES)}"
        )
    return find_attentions(model, kinds, blocks)


def find_attentions(
    unet: torch.nn.Module,
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """`find_sites` of a UNet, which alone fusing and conversion know.

    Raises:
        UserError: as `attention_sites`; or it is a transformer.
    """
    if not isinstance(unet, torch.nn.Module):
        raise UserError(
            f"{type(unet).__name__} has no UNet: expected a UNet2DConditionModel, or a pipeline with one"
        )
    found = _attention_modules(unet)
    depths: dict[str, int] = {}
    pairs = []
    for path, module in found.items():
        depth = depths.setdefault(path.rpartition(".")[0], len(depths))
        pairs.append((_site(path, depth, module), module))
    if any(getattr(module, WITHOUT_CONTEXT, False) for module in unet.modules()):
        pairs = [(site, module) for site, module in pairs if site.kind == "attn1"]
    return choose_attentions(pairs, kinds, blocks)


def find_layers(model: torch.nn.Module) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """Where low-rank weights act: the attentions of a UNet, attentions and feed-forwards of a transformer (see
    `transformer_layers`), each with the module that holds its projections.

    Raises:
        UserError: as `attention_sites`.
    """
    transformer = find_transformer(model)
    return find_attentions(model) if transformer is None else layer_sites(transformer)


def choose_attentions(
    every: Sequence[tuple[AttentionSite, torch.nn.Module]],
    kinds: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> list[tuple[AttentionSite, torch.nn.Module]]:
    """Those of some kinds and blocks out of all that `find_sites` or `find_layers` gives; layers whose rows are of both streams
    where both are asked for.

    Raises:
        UserError: an unknown kind or block; or attn2 alone of a model without it.
    """
    streams = {site.stream for site, _ in every if site.family}
    _check_names(kinds, blocks, {site.block for site, _ in every}, streams)
    kinds = {STREAMS.get(kind, kind) for kind in kinds}
    if "attn2" in kinds and not any(_kinds_of(site) <= kinds for site, _ in every):
        raise UserError(
            "this model is told no text, so that its cross-attentions (attn2) have nothing to read: expected attn1, "
            "or both"
        )
    return [
        (site, module)
        for site, module in every
        if _kinds_of(site) <= kinds and (blocks is None or _in_blocks(site.block, blocks))
    ]


def _kinds_of(site: AttentionSite) -> set[str]:
    """The kinds that must be asked for."""
    return {kind for kind in KINDS if site.kind[-1] not in "12" or kind[-1] == site.kind[-1]}


# Of video models: these attend over frames, not over a picture; no hypernetwork is for them.
_OVER_TIME = ("motion_modules", "temp_attentions", "temporal_transformer_blocks")


def _attention_modules(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Attention modules by the bare UNet's path, in the order of the forward pass."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in unet.named_modules():
        match = _PATH.search(name.replace("_orig_mod.", ""))
        if match is None or any(part in name for part in _OVER_TIME) or not _has_projections(module):
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
        in_width, out_width = linear_widths(layer)
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
        stream=next(stream for stream, kind in STREAMS.items() if path.endswith(kind)),
        lasting=path.endswith("attn2"),
    )


def _in_blocks(block: str, blocks: Collection[str]) -> bool:
    return block in blocks or block.partition(".")[0] in blocks


def _check_names(
    kinds: Collection[str], blocks: Collection[str] | None, known: set[str], streams: set[str]
) -> None:
    for what, names in (("kinds", kinds), ("blocks", blocks)):
        if isinstance(names, str):
            raise UserError(f"{what} must be a list of names, not the text {names!r}: write [{names!r}]")
    for kind in kinds:
        if kind not in KINDS and kind not in streams:
            raise unknown_name("kind of attention", kind, (*KINDS, *sorted(streams)))
    for block in blocks or ():
        if not any(_in_blocks(k, [block]) for k in known):
            raise unknown_name("block", block, known | {k.partition(".")[0] for k in known})

"""The linear layers of diffusion transformers that low-rank weights are for, as sites: attention and feed-forward.

A weight sees all rows that its layer sees, so that here a site is the module whose forward pass calls the layers, not a
stream: in single blocks they see the rows of both.  A site's `kind` is "attn" or "ff", followed by 1 where its rows are the picture's alone, by 2
where they are the text's.
"""

from collections.abc import Iterator
from typing import Any

from hyperbrush.ldm.modules.sites import PROJECTIONS, AttentionSite, Projection, linear_widths
from hyperbrush.ldm.modules.transformer_sites import ADDED, FUSED, STREAMS, Transformer

_NUMBERS = {"picture": "1", "text": "2", "cross": "2", "shared": ""}


def layer_sites(transformer: Transformer) -> list[tuple[AttentionSite, Any]]:
    """Every layer in the order of the blocks, attention before feed-forward, with the module that holds it."""
    found: list[tuple[AttentionSite, Any]] = []
    layout = transformer.layout
    for depth, (place, block) in enumerate(transformer.blocks()):
        blocks = place.partition(".")[0]
        for name, made_of in ((n, m) for b, n, m in layout.attentions if b == blocks):
            attention = getattr(block, name, None)
            if attention is None:
                continue
            streams = ("picture", "text") if made_of == "joint" else (made_of,)
            for stream in streams:
                layers = tuple(_attention_layers(attention, stream, made_of == "joint"))
                if layers:
                    kind = "attn" + _NUMBERS[stream]
                    found.append(
                        (_site(f"{place}.{name}", kind, place, depth, layout.name, layers), attention)
                    )
        for names, stream in ((n, m) for b, n, m in layout.feeds if b == blocks):
            name, dot, _ = names[0].partition(".")
            holder = getattr(block, name, None) if dot else block
            if holder is not None:  # SD3's last text stream has no feed-forward
                inside = [one.removeprefix(name + dot) if dot else one for one in names]
                layers = tuple(Projection(n, *linear_widths(holder.get_submodule(n))) for n in inside)
                path = f"{place}.{name}" if dot else place
                kind = "ff" + _NUMBERS[stream]
                found.append((_site(path, kind, place, depth, layout.name, layers), holder))
    return found


def _attention_layers(attention: Any, stream: str, joint: bool) -> Iterator[Projection]:
    names = (*PROJECTIONS[:3], "to_out", FUSED) if stream != "text" or not joint else ADDED
    for name in names:
        layer = getattr(attention, name, None)
        if layer is None:
            continue
        if name == "to_out" and hasattr(layer, "__getitem__"):  # with the dropout behind it
            name, layer = PROJECTIONS[3], layer[0]
        yield Projection(name, *linear_widths(layer))


def _site(
    path: str, kind: str, block: str, depth: int, family: str, layers: tuple[Projection, ...]
) -> AttentionSite:
    streams = {of[-1]: stream for stream, of in STREAMS.items()}
    return AttentionSite(
        path=path,
        kind=kind,
        block=block,
        depth=depth,
        heads=0,
        query_width=layers[0].in_width,
        context_width=layers[0].in_width,
        projections=layers,
        stream=streams.get(kind[-1], ""),
        family=family,
    )

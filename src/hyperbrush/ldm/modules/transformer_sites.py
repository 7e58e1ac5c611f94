"""The attention sites of diffusers' diffusion transformers, and what their forward passes are told.

Each family is one `Layout`; names and orders are those of its class in diffusers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.sites import PROJECTIONS, AttentionSite, Projection, linear_widths

STREAMS = {"picture": "attn1", "text": "attn2"}  # and the kind of attention that reads such in a UNet
Ranges = Sequence[
    tuple[int, int | None]
]  # (first, last + 1 or None: to the end) of each picture's rows, or one for all
# The text's own layers in a joint attention.
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FUSED = "to_qkv_mlp_proj"  # queries, keys, values and the feed-forward's input, in this order


@dataclass(frozen=True)
class Layout:
    """Where the contexts of a family of transformers enter.

    attentions: (list of blocks, attention in a block, what its keys and values are made of): "picture" or "text";
        "cross": the text as it comes from outside; "joint": of both, each by layers of its own; "shared": of both,
        as rows of one sequence.
    feeds: (list of blocks, linear layers of its feed-forward, whose rows these see): as there, "joint" and "cross" aside.
    rows: of a call's arguments, which rows of shared sequences are of which stream.
    time: (a, b) of timestep → a + b·timestep, which is 1000 for noise and 0 for pictures, as schedulers count.
    sample, timestep: the arguments' names.
    """

    name: str
    attentions: tuple[tuple[str, str, str], ...]
    feeds: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    rows: Callable[[Any, Mapping[str, Any]], Mapping[str, Ranges]] | None = None
    time: tuple[float, float] = (0, 1000)
    sample: str = "hidden_states"
    timestep: str = "timestep"


def _text_first(model: Any, call: Mapping[str, Any]) -> Mapping[str, Ranges]:
    texts = call["encoder_hidden_states"].shape[1]
    return {"text": [(0, texts)], "picture": [(texts, None)]}


def _z_image_rows(model: Any, call: Mapping[str, Any]) -> Mapping[str, Ranges]:
    """Pictures, then texts, each filled up to a multiple of 32 rows (`_build_unified_sequence`)."""
    pictures, texts = call["x"], call["cap_feats"]
    if isinstance(pictures[0], list | tuple):
        raise UserError(
            "hypernetworks cannot act on Z-Image's omni mode, several pictures in one sequence: hand over one picture a "
            "prompt, or detach() first"
        )
    patch = call.get("patch_size", 2)
    frames = call.get("f_patch_size", 1)
    ends = [
        _filled((f // frames) * (h // patch) * (w // patch)) for _, f, h, w in (x.shape for x in pictures)
    ]
    return {
        "picture": [(0, end) for end in ends],
        "text": [(end, end + _filled(len(text))) for end, text in zip(ends, texts, strict=True)],
    }


def _filled(rows: int) -> int:
    return rows + -rows % 32


def _lumina2_rows(model: Any, call: Mapping[str, Any]) -> Mapping[str, Ranges]:
    """Each text's own tokens, then its picture, then nothing (`Lumina2Transformer2DModel.forward`)."""
    texts = [int(length) for length in call["encoder_attention_mask"].sum(1).tolist()]
    height, width = call["hidden_states"].shape[-2:]
    patch = model.config.patch_size
    pictures = (height // patch) * (width // patch)
    return {
        "text": [(0, length) for length in texts],
        "picture": [(length, length + pictures) for length in texts],
    }


_CROSS = (("transformer_blocks", "attn1", "picture"), ("transformer_blocks", "attn2", "cross"))
_DOUBLE = ("transformer_blocks", "attn", "joint")
_SINGLE = ("single_transformer_blocks", "attn", "shared")


def _feeds(picture: str, text: str, *layers: str) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """Of double blocks, one feed-forward for each stream."""
    modules = {"picture": picture, "text": text}
    return tuple(
        ("transformer_blocks", tuple(f"{module}.{layer}" for layer in layers), stream)
        for stream, module in modules.items()
        if module
    )


_NET = ("net.0.proj", "net.2")
_SINGLE_FEED = ("single_transformer_blocks", ("proj_mlp", "proj_out"), "shared")
_Z_IMAGE_FEED = tuple(f"feed_forward.w{i}" for i in (1, 2, 3))
_LUMINA2_FEED = tuple(f"feed_forward.linear_{i}" for i in (1, 2, 3))
LAYOUTS = {
    "PixArtTransformer2DModel": Layout("PixArt", _CROSS, _feeds("ff", "", *_NET), time=(0, 1)),
    "SanaTransformer2DModel": Layout("Sana", _CROSS, time=(0, 1)),  # its feed-forward is of convolutions
    "SD3Transformer2DModel": Layout(
        "Stable Diffusion 3",
        (_DOUBLE, ("transformer_blocks", "attn2", "picture")),
        _feeds("ff", "ff_context", *_NET),
        time=(0, 1),
    ),
    "FluxTransformer2DModel": Layout(
        "Flux.1", (_DOUBLE, _SINGLE), (*_feeds("ff", "ff_context", *_NET), _SINGLE_FEED), _text_first
    ),
    "Flux2Transformer2DModel": Layout(
        "Flux.2", (_DOUBLE, _SINGLE), _feeds("ff", "ff_context", "linear_in", "linear_out"), _text_first
    ),
    "ChromaTransformer2DModel": Layout(
        "Chroma", (_DOUBLE, _SINGLE), (*_feeds("ff", "ff_context", *_NET), _SINGLE_FEED), _text_first
    ),
    "QwenImageTransformer2DModel": Layout("Qwen-Image", (_DOUBLE,), _feeds("img_mlp", "txt_mlp", *_NET)),
    "ZImageTransformer2DModel": Layout(
        "Z-Image",
        (
            ("noise_refiner", "attention", "picture"),
            ("context_refiner", "attention", "text"),
            ("siglip_refiner", "attention", "picture"),
            ("layers", "attention", "shared"),
        ),
        (
            ("noise_refiner", _Z_IMAGE_FEED, "picture"),
            ("context_refiner", _Z_IMAGE_FEED, "text"),
            ("siglip_refiner", _Z_IMAGE_FEED, "picture"),
            ("layers", _Z_IMAGE_FEED, "shared"),
        ),
        _z_image_rows,
        time=(1000, -1000),
        sample="x",
        timestep="t",
    ),
    "Lumina2Transformer2DModel": Layout(
        "Lumina2",
        (
            ("context_refiner", "attn", "text"),
            ("noise_refiner", "attn", "picture"),
            ("layers", "attn", "shared"),
        ),
        (
            ("context_refiner", _LUMINA2_FEED, "text"),
            ("noise_refiner", _LUMINA2_FEED, "picture"),
            ("layers", _LUMINA2_FEED, "shared"),
        ),
        _lumina2_rows,
        time=(1000, -1000),
    ),
}
FAMILIES = tuple(layout.name for layout in LAYOUTS.values())


@dataclass(frozen=True)
class Transformer:
    """A transformer of a known family, without what may be wrapped around it."""

    module: Any
    layout: Layout

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A forward pass's arguments by name."""
        names = list(inspect.signature(type(self.module).forward).parameters)[1:]
        return dict(zip(names, args, strict=False)) | dict(kwargs)

    def timestep(self, call: Mapping[str, Any]) -> torch.Tensor | None:
        """A call's timestep as schedulers count, (1,): that of its first row."""
        timestep = call.get(self.layout.timestep)
        if timestep is None:
            return None
        offset, factor = self.layout.time
        scale = getattr(self.module.config, "timestep_scale", 1.0)  # of Sana
        return offset + factor * torch.as_tensor(timestep).reshape(-1)[:1].float() / scale

    def batch(self, call: Mapping[str, Any]) -> int | None:
        """How many rows a call has."""
        sample = call.get(self.layout.sample)
        return None if sample is None else len(sample)

    def rows(self, call: Mapping[str, Any]) -> Mapping[str, Ranges]:
        """Stream → its rows in shared sequences; empty where there are none.

        Raises:
            UserError: a call of a kind that is not supported.
        """
        return {} if self.layout.rows is None else self.layout.rows(self.module, call)

    def sites(self) -> list[tuple[AttentionSite, torch.nn.Module]]:
        """Every site in the order of the forward pass, with its attention."""
        found = []
        for depth, (place, block) in enumerate(self.blocks()):
            blocks = place.partition(".")[0]
            for name, made_of in ((n, m) for b, n, m in self.layout.attentions if b == blocks):
                attention = getattr(block, name, None)  # only some blocks of SD3.5 have an attn2
                if attention is not None:
                    found += [
                        (site, attention) for site in self._sites(place, name, depth, attention, made_of)
                    ]
        return found

    def blocks(self) -> list[tuple[str, Any]]:
        """Every block by its name, in the order of the forward pass."""
        return [
            (f"{blocks}.{number}", block)
            for blocks in dict.fromkeys(blocks for blocks, _, _ in self.layout.attentions)
            for number, block in enumerate(
                getattr(self.module, blocks, None) or ()
            )  # maybe no siglip_refiner
        ]

    def _sites(self, block: str, name: str, depth: int, attention: Any, made_of: str) -> list[AttentionSite]:
        streams = {"cross": ["text"], "joint": ["picture", "text"], "shared": ["picture", "text"]}
        sites = []
        for stream in streams.get(made_of, [made_of]):
            projections = _projections(attention, added=made_of == "joint" and stream == "text")
            widths = {p.name: p.in_width for p in projections}
            sites.append(
                AttentionSite(
                    path=f"{block}.{name}.{stream}",
                    kind=STREAMS[stream],
                    block=block,
                    depth=depth,
                    heads=int(attention.heads),
                    query_width=widths.get("to_q", widths["to_k"]),  # SD3's last text stream asks nothing
                    context_width=widths["to_k"],
                    projections=projections,
                    stream=stream,
                    shared=made_of == "shared",
                    lasting=made_of == "cross",
                    family=self.layout.name,
                )
            )
        return sites


def find_transformer(model: torch.nn.Module) -> Transformer | None:
    """The transformer of a known family in a model, which may be wrapped; None if there is none.

    Raises:
        UserError: there are several, or it is no module, such as a whole pipeline.
    """
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{type(model).__name__} is no torch module: hand over its unet or transformer")
    found = [
        Transformer(module, LAYOUTS[name])
        for module in model.modules()
        for name in [next((c.__name__ for c in type(module).__mro__ if c.__name__ in LAYOUTS), "")]
        if name
    ]
    if len(found) > 1:
        raise UserError(
            f"{type(model).__name__} holds {len(found)} transformers ({found[0].layout.name}, "
            f"{found[1].layout.name}): hand over one of them"
        )
    return found[0] if found else None


def _projections(attention: Any, added: bool) -> tuple[Projection, ...]:
    fused = getattr(attention, FUSED, None)
    if fused is not None:
        width, _ = linear_widths(fused)
        inner = attention.inner_dim
        return tuple(
            Projection(name, width, inner, FUSED, (i * inner, (i + 1) * inner))
            for i, name in enumerate(PROJECTIONS[:3])
        )
    found = []
    for name, layer in zip(PROJECTIONS, ADDED if added else PROJECTIONS, strict=True):
        module = getattr(attention, layer.removesuffix(".0"), None)
        if module is not None:
            found.append(
                Projection(name, *linear_widths(module[0] if layer.endswith(".0") else module), layer)
            )
    return tuple(found)

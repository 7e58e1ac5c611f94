"""LoRA layers of diffusion transformers: their names in diffusers, and in kohya's layout.

kohya's programs (sd-scripts, musubi-tuner) name Z-Image's and Qwen-Image's layers as diffusers does, those of Flux and SD3 as in
the original models, whose queries, keys and values (and more in Flux.1's single blocks) are one layer: ΔW of several
is then one of the sum of their ranks, up block by block.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.weights.factors import Factors

FAMILY = "family"  # in the metadata of weights: the name in `transformer_sites`
BLOCKS = (
    "transformer_blocks",
    "single_transformer_blocks",
    "noise_refiner",
    "context_refiner",
    "siglip_refiner",
    "layers",
)
LAYER = (
    rf"(?:{'|'.join(BLOCKS)})\.\d+\.(?:(?:attn[12]?|attention)\.(?:to_\w+(?:\.0)?|add_[qkv]_proj)"
    r"|(?:ff|ff_context|img_mlp|txt_mlp|feed_forward)\.(?:net\.0\.proj|net\.2|w[123]|linear_\w+)|proj_mlp|proj_out)"
)
Names = Mapping[str, tuple[str, ...]]  # kohya's name → the layers in it, from the outputs' top


def _double(feed: tuple[str, str]) -> Names:
    """Of Flux's double blocks."""
    names = {}
    for stream, layers, out, module in (
        ("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
    ):
        names[f"{stream}_attn_qkv"] = tuple(f"attn.{layer}" for layer in layers)
        names[f"{stream}_attn_proj"] = (f"attn.{out}",)
        names[f"{stream}_mlp_0"] = (f"{module}.{feed[0]}",)
        names[f"{stream}_mlp_2"] = (f"{module}.{feed[1]}",)
    return names


_NET = ("net.0.proj", "net.2")
_FLUX1: Mapping[str, tuple[str, Names]] = {
    "transformer_blocks": ("double_blocks", _double(_NET)),
    "single_transformer_blocks": (
        "single_blocks",
        {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",)},
    ),
}
_SD3: Names = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
}
_ORIGINAL: Mapping[str, Mapping[str, tuple[str, Names]]] = {
    "Flux.1": _FLUX1,
    "Chroma": _FLUX1,
    "Flux.2": {
        "transformer_blocks": ("double_blocks", _double(("linear_in", "linear_out"))),
        "single_transformer_blocks": (
            "single_blocks",
            {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
        ),
    },
    "Stable Diffusion 3": {"transformer_blocks": ("joint_blocks", _SD3)},
}
_SIGNS = {
    "Flux.2": r"to_qkv_mlp_proj|\.linear_in$",
    "Flux.1": r"^single_transformer_blocks\.",
    "Z-Image": r"\.attention\.to_",
    "Qwen-Image": r"\.(?:img|txt)_mlp\.",
}
_AS_DIFFUSERS = ("Z-Image", "Qwen-Image")
_MLP = 4  # Flux.1's feed-forward is as many times as wide


def kohya_layers(factors: Mapping[str, Factors], family: str, name: str) -> dict[str, Factors]:
    """A transformer's layers by their names in kohya's layout, without ``lora_unet_``.

    factors: folded, of one adapter. name: of the weights, for messages.

    Raises:
        UserError: a family whose layers kohya's programs do not name, or one that is not known.
    """
    if family in _AS_DIFFUSERS:
        return {layer.replace(".", "_"): own for layer, own in factors.items()}
    if family not in _ORIGINAL:
        of = f"of {family}" if family else "of a family that the weights do not name (metadata 'family')"
        known = ", ".join((*_ORIGINAL, *_AS_DIFFUSERS))
        raise UserError(
            f"{name!r} has layers {of}, for which kohya's layout is not defined here: it is for {known}. Save as "
            "lora-diffusers, which ComfyUI reads for many transformers too, as lora-peft, or as safetensors"
        )
    made: dict[str, Factors] = {}
    left = dict(factors)
    for layer in factors:
        blocks, number, _ = layer.split(".", 2)
        renamed, names = _ORIGINAL[family][blocks]
        for kohya, layers in names.items():
            there = [left.pop(f"{blocks}.{number}.{part}", None) for part in layers]
            if any(one is not None for one in there):
                made[f"{renamed}_{number}_{kohya}"] = _together(there)
    if left:
        raise UserError(f"{name!r} changes {next(iter(left))}, which kohya's layout has no name for")
    return made


def _together(parts: list[Factors | None]) -> Factors:
    """Factors of layers that see the same rows as those of one layer, None for those that do not change."""
    there = {i: part for i, part in enumerate(parts) if part is not None}
    if len(parts) == 1:
        return there[0]
    shares = [1 if i < 3 else _MLP for i in range(len(parts))]
    unit = next(part.shape[0] // shares[i] for i, part in there.items())
    first = next(iter(there.values())).up
    ups = [
        first.new_zeros(unit * share, 0) if (p := there.get(i)) is None else p.up
        for i, share in enumerate(shares)
    ]
    return Factors(torch.cat([part.down for part in there.values()]), torch.block_diag(*ups))  # type: ignore[no-untyped-call]


def family_of(layers: Iterable[str]) -> str:
    """The family whose transformer has these layers, by names that no other has; "" where they leave it open.

    Chroma's are those of Flux.1, and named as there in kohya's layout.

    >>> family_of(["single_transformer_blocks.0.attn.to_q"]), family_of(["transformer_blocks.0.attn.to_q"])
    ('Flux.1', '')
    """
    for family, sign in _SIGNS.items():
        if any(re.search(sign, layer) for layer in layers):
            return family
    return ""


def is_layer(name: str) -> bool:
    """Whether a layer is one of a transformer's attentions or feed-forwards."""
    return re.fullmatch(LAYER, name) is not None

"""diffusers' transformers at tiny widths with random weights, and one call of each."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

TOKENS, TEXT = 16, 5  # rows of a picture of 8 × 8 in patches of 2, and of a text


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _build(name: str, **config: Any) -> Any:
    model = getattr(diffusers, f"{name}Transformer2DModel")(**config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # some begin at zero, some at whatever memory held
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _packed(ids: int, **more: Any) -> dict[str, Any]:
    """Of Flux and its kin: rows of patches, with places for both streams."""
    return {
        "hidden_states": _noise(2, TOKENS, 4),
        "encoder_hidden_states": _noise(2, TEXT, 12),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": torch.stack([torch.arange(TOKENS) // 4] * ids, 1).float(),
        "txt_ids": torch.zeros(TEXT, ids),
        **more,
    }


def _spatial(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _noise(2, 4, 8, 8),
        "encoder_hidden_states": _noise(2, TEXT, 12),
        "timestep": torch.tensor([500.0, 500.0]),
        **more,
    }


_HEADS: dict[str, Any] = {"num_attention_heads": 1, "attention_head_dim": 16}
_DOUBLE: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": 12,
    **_HEADS,
}
MODELS: Mapping[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "PixArt": (
        lambda: _build("PixArt", num_layers=2, cross_attention_dim=16, sample_size=8, caption_channels=12, **_HEADS),
        lambda: _spatial(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "Sana": (
        lambda: _build(
            "Sana", in_channels=4, out_channels=4, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=12, sample_size=8, **_HEADS,
        ),
        _spatial,
    ),
    "SD3": (
        lambda: _build(
            "SD3", sample_size=8, in_channels=4, out_channels=4, num_layers=2, joint_attention_dim=12,
            caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8, dual_attention_layers=(0,),
            qk_norm="rms_norm", **_HEADS,
        ),
        lambda: _spatial(pooled_projections=_noise(2, 10)),
    ),
    "Flux": (
        lambda: _build("Flux", pooled_projection_dim=10, axes_dims_rope=(4, 6, 6), **_DOUBLE),
        lambda: _packed(3, pooled_projections=_noise(2, 10)),
    ),
    "Flux2": (
        lambda: _build(
            "Flux2", timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **_DOUBLE
        ),
        lambda: _packed(4),
    ),
    "Chroma": (
        lambda: _build(
            "Chroma", axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=16,
            approximator_layers=1, **_DOUBLE,
        ),
        lambda: _packed(3),
    ),
    "QwenImage": (
        lambda: _build(
            "QwenImage", in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=12, axes_dims_rope=(4, 6, 6),
            **_HEADS,
        ),
        lambda: {
            "hidden_states": _noise(2, TOKENS, 16),
            "encoder_hidden_states": _noise(2, TEXT, 12),
            "encoder_hidden_states_mask": torch.ones(2, TEXT, dtype=torch.long),
            "timestep": torch.tensor([0.5, 0.5]),
            "img_shapes": [[(1, 4, 4)]] * 2,
        },
    ),
    "ZImage": (
        lambda: _build(
            "ZImage", in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1, cap_feat_dim=12,
            axes_dims=[4, 6, 6], axes_lens=[256, 64, 64],
        ),
        lambda: {
            "x": [_noise(4, 1, 8, 8), _noise(4, 1, 8, 10)],
            "t": torch.tensor([0.5, 0.5]),
            "cap_feats": [_noise(TEXT, 12), _noise(40, 12)],
        },
    ),
    "Lumina2": (
        lambda: _build(
            "Lumina2", sample_size=8, in_channels=4, hidden_size=16, num_layers=2, num_refiner_layers=1,
            num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(300, 16, 16),
            cap_feat_dim=12,
        ),
        lambda: _spatial(
            timestep=torch.tensor([0.5, 0.5]),
            encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        ),
    ),
}  # fmt: skip


def make(name: str) -> tuple[Any, dict[str, Any]]:
    """A model of a family, and the arguments of a call."""
    build, call = MODELS[name]
    return build(), call()


def random_network(model: Any, seed: int = 1, **settings: Any) -> Any:
    """An attention hypernetwork that changes much."""
    from hyperbrush.hypernetworks import AttentionHypernetwork

    network = AttentionHypernetwork.for_transformer(model, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network


def text_rows(name: str) -> torch.Tensor:
    """(2, rows): which rows of a shared sequence are text in the call of a family, counted by hand."""
    if name == "ZImage":  # 16 and 20 patches filled up to 32, then 5 and 40 tokens filled up to 32 and 64
        return torch.tensor([[False] * 32 + [True] * 32 + [False] * 32, [False] * 32 + [True] * 64])
    lengths = torch.tensor([[5], [3]]) if name == "Lumina2" else torch.tensor([[5], [5]])
    return torch.arange(TOKENS + TEXT) < lengths


def picture_rows(name: str) -> torch.Tensor:
    """(2, rows): as `text_rows`, of the picture."""
    if name == "ZImage":
        return (torch.arange(96) < 32).expand(2, -1)
    last = torch.tensor([[21], [19]]) if name == "Lumina2" else torch.tensor([[21], [21]])
    return (torch.arange(TOKENS + TEXT) < last) & ~text_rows(name)


def run(model: Any, call: Mapping[str, Any]) -> torch.Tensor:
    """The output of a call, as one tensor."""
    out = model(**call, return_dict=False)[0]
    return torch.cat([x.flatten() for x in out]) if isinstance(out, list) else out


def pixart_sized() -> Any:
    """A PixArt that is told resolution and aspect ratio, and predicts a variance."""
    return _build(
        "PixArt", num_layers=1, num_attention_heads=1, attention_head_dim=24, cross_attention_dim=24, sample_size=128,
        caption_channels=12, out_channels=8, use_additional_conditions=True,
    )  # fmt: skip


def flux_guided() -> Any:
    """A Flux.1 with a guidance embedding."""
    return _build("Flux", pooled_projection_dim=10, axes_dims_rope=(4, 6, 6), guidance_embeds=True, **_DOUBLE)


def random_weights(
    model: Any, seed: int = 1, rank: int = 2, layers: Any = None, batch: int | None = None
) -> Any:
    """Low-rank changes of a transformer's layers, all of them by default."""
    from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TargetNetwork

    generator = torch.Generator().manual_seed(seed)
    target = TargetNetwork(model, layers)
    many = () if batch is None else (batch,)
    factors = {
        t.name: Factors(
            0.3 * torch.randn(*many, rank, t.in_width, generator=generator),
            0.3 * torch.randn(*many, t.out_width, rank, generator=generator),
        )
        for t in target.targets
    }
    return GeneratedWeights(factors, name="made", metadata={"family": target.family})


def merge(model: Any, weights: Any, strength: float = 1.0) -> Any:
    """A model with W + strength·ΔW, which nothing of ours made."""
    with torch.no_grad():
        for name, own in weights.factors.items():
            model.get_submodule(name).weight += strength * own.scale * own.up @ own.down
    return model

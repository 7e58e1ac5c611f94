"""Tiny UNets of the three Stable Diffusion families, and hypernetworks with visible effects."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 4, "cross_attention_dim": 24},
    "sd2": {"attention_head_dim": (2, 4), "cross_attention_dim": 40, "use_linear_projection": True},
    "sdxl": {
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 48,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    },
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # faster than two for tensors this small


@pytest.fixture
def make_unet() -> Callable[..., Any]:
    from diffusers import UNet2DConditionModel

    def make(family: str = "sd1", **changes: Any) -> Any:
        torch.manual_seed(0)
        config = {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "norm_num_groups": 8,
        }
        return UNet2DConditionModel(**config | FAMILIES[family] | changes).eval().requires_grad_(False)

    return make


@pytest.fixture
def call() -> Callable[..., torch.Tensor]:
    """One forward pass of a tiny UNet with fixed inputs."""

    def run(unet: Any, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        config = unet.config
        sample = torch.randn(batch, 4, 8, 8, generator=generator).to(dtype)
        context = torch.randn(batch, 5, config.cross_attention_dim, generator=generator).to(dtype)
        added = None
        if config.addition_embed_type == "text_time":
            pooled = torch.randn(batch, 16, generator=generator).to(dtype)
            added = {"text_embeds": pooled, "time_ids": torch.ones(batch, 6)}
        steps = torch.full((batch,), 500)
        out: torch.Tensor = unet(sample, steps, context, added_cond_kwargs=added).sample
        return out

    return run


@pytest.fixture
def make_network() -> Callable[..., Any]:
    from hyperbrush.hypernetworks import AttentionHypernetwork

    def make(unet: Any, seed: int = 3, **settings: Any) -> Any:
        torch.manual_seed(seed)
        settings = {"weight_init": "XavierNormal"} | settings
        return AttentionHypernetwork.for_unet(unet, **settings)

    return make

"""The sites of tiny UNets of each family, bare and wrapped."""

from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.attention_sites import Projection, attention_sites, find_attentions


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 8),
    }
    return UNet2DConditionModel(**config | changes)


def test_sites_in_the_order_of_the_forward_pass() -> None:
    model = unet()
    sites = attention_sites(model)
    order: list[str] = []
    for site, module in find_attentions(model):
        module.register_forward_pre_hook(lambda m, a, path=site.path: order.append(path))
    with torch.no_grad():
        model(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 24))
    assert [s.path for s in sites] == order
    blocks = list(dict.fromkeys(s.block for s in sites))
    assert blocks == ["down.0", "down.1", "mid", "up.1", "up.2"]
    assert [s.depth for s in sites] == [d for d in range(7) for _ in range(2)]
    assert [s.kind for s in sites] == ["attn1", "attn2"] * 7


def test_a_site_knows_its_widths() -> None:
    by_path = {s.path: s for s in attention_sites(unet())}
    cross = by_path["down_blocks.1.attentions.0.transformer_blocks.0.attn2"]
    assert (cross.query_width, cross.context_width, cross.heads) == (32, 24, 4)
    assert cross.projections == (
        Projection("to_q", 32, 32),
        Projection("to_k", 24, 32),
        Projection("to_v", 24, 32),
        Projection("to_out.0", 32, 32),
    )
    assert cross.projection("to_k").in_width == 24
    with pytest.raises(UserError, match="did you mean 'to_q'"):
        cross.projection("to_qq")
    own = by_path["down_blocks.1.attentions.0.transformer_blocks.0.attn1"]
    assert own.context_width == 32


def test_transformer_depth_counts() -> None:
    sites = attention_sites(unet(transformer_layers_per_block=(1, 12, 1)))
    down = [s for s in sites if s.block == "down.1"]
    assert [s.depth for s in down] == [d for d in range(1, 13) for _ in range(2)]
    assert "transformer_blocks.11." in down[-1].path  # 11 comes after 2, not before


def test_kinds_and_blocks() -> None:
    model = unet()
    assert len(attention_sites(model, kinds=["attn2"])) == 7
    assert {s.block for s in attention_sites(model, blocks=["up", "mid"])} == {
        "mid",
        "up.1",
        "up.2",
    }
    assert len(attention_sites(model, ["attn1"], ["down.1"])) == 1
    with pytest.raises(UserError, match=r"unknown block 'down.2'.*did you mean 'down"):
        attention_sites(model, blocks=["down.2"])
    with pytest.raises(UserError, match=r"write \['attn1'\]"):
        attention_sites(model, kinds="attn1")
    with pytest.raises(UserError, match="expected a diffusers UNet2DConditionModel"):
        attention_sites(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="several UNets"):
        attention_sites(torch.nn.ModuleList([model, unet()]))


def test_wrapped_unets_have_the_same_sites() -> None:
    from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
    from peft import LoraConfig, get_peft_model

    expected = attention_sites(unet())
    model = unet()
    assert attention_sites(torch.compile(model)) == expected
    assert attention_sites(torch.nn.ModuleDict({"module": model})) == expected
    for processor in (AttnProcessor(), SlicedAttnProcessor(1)):
        model.set_attn_processor(processor)
        assert attention_sites(model) == expected
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model.add_adapter(lora)
    assert attention_sites(model) == expected
    assert attention_sites(get_peft_model(unet(), lora)) == expected


def test_our_own_wrappers_may_stand_around_the_layers() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

    model = unet()
    expected = attention_sites(model)
    for _, attention in find_attentions(model):
        attention.to_k = Wrapper(attention.to_k)
    assert attention_sites(model) == expected

"""The attentions of a UNet in ComfyUI, under the names that diffusers, and so our files, have for them."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.attention_sites import AttentionSite, find_attentions

# Where an attention stands, as ComfyUI tells its patches: ("input", 4), its transformer block, and "attn1" or "attn2".
Place = tuple[str, int, int, str]
_ATTENTION = re.compile(
    r"(?P<part>input|middle|output)_blocks?\.(?P<number>\d+)\.(?:\d+\.)?"
    r"transformer_blocks\.(?P<index>\d+)\.(?P<kind>attn[12])"
)


def find_sites(model: Any) -> dict[Place, tuple[AttentionSite, torch.nn.Module]]:
    """Place → site, and the attention itself, from the UNet's input to its output.

    model: ComfyUI's ModelPatcher (what a node gets as MODEL).

    Raises:
        UserError: it is no UNet.
    """
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    levels = getattr(unet, "num_res_blocks", None)
    found: dict[str, Place] = {}
    tree = torch.nn.Module()
    if isinstance(unet, torch.nn.Module) and isinstance(levels, Sequence):
        for name, module in unet.named_modules():
            if match := _ATTENTION.fullmatch(name):
                part, index, kind = match["part"], int(match["index"]), match["kind"]
                number = 0 if part == "middle" else int(match["number"])
                path = f"{_block(part, number, levels)}.transformer_blocks.{index}.{kind}"
                found[path] = (part, number, index, kind)
                _hang(tree, path, module)
    if not found:
        raise UserError(
            f"{type(unet).__name__} is no UNet: hypernetworks act here on Stable Diffusion 1.x, 2.x and XL. For other models write "
            "generated weights as a LoRA (hyperbrush convert FILE --to lora-kohya) and load it with ComfyUI's LoraLoader"
        )
    return {found[site.path]: (site, attention) for site, attention in find_attentions(tree)}


def _block(part: str, number: int, levels: Sequence[int]) -> str:
    """The attentions' name in diffusers; of each level its residual blocks, and one number more for resizing.

    >>> _block("input", 5, [2, 2, 2, 2]), _block("output", 11, [2, 2, 2, 2])
    ('down_blocks.1.attentions.1', 'up_blocks.3.attentions.2')
    """
    if part == "middle":
        return "mid_block.attentions.0"
    down = part == "input"
    level, place = 0, number - down  # input block 0 is a convolution
    for count in levels if down else reversed(levels):
        if place <= count:
            break
        level, place = level + 1, place - count - 1
    return f"{'down' if down else 'up'}_blocks.{level}.attentions.{place}"


def _hang(tree: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in tree._modules:
            tree.add_module(name, torch.nn.Module())
        tree = tree.get_submodule(name)
    tree.add_module(last, module)

"""A few pictures with a hypernetwork and with the LoRA made of it, compared in float32."""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperbrush.hypernetworks.attaching.attached import attach
from hyperbrush.hypernetworks.attaching.contexts import PROMPTS, as_model
from hyperbrush.hypernetworks.attaching.fusing import Fused
from hyperbrush.hypernetworks.attaching.strengths import StrengthLike
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.convert.report import PictureError
from hyperbrush.hypernetworks.files.lora import LoraLayer
from hyperbrush.ldm.modules.attention_sites import KINDS, find_attentions


@torch.no_grad()
def picture_errors(
    pipe_or_model: Any,
    hypernetwork: AttentionHypernetwork,
    layers: Sequence[LoraLayer],
    *,
    strength: StrengthLike = 1.0,
    prompts: Sequence[str] | None = None,
    steps: int = 20,
    seed: int = 1000,
    attn: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> tuple[PictureError, ...]:
    """Draw each prompt bare, with the hypernetwork attached, and with a LoRA's layers in the weights.

    prompts: the first three of `contexts.PROMPTS` by default. The model is as it was afterwards, bit for bit.

    Raises:
        UserError: the model cannot draw pictures from text alone.
    """
    model = as_model(pipe_or_model)
    texts = list(PROMPTS[:3] if prompts is None else prompts)
    seeds = [seed + i for i in range(len(texts))]

    def draw() -> Tensor:
        captions = texts if model.conditioning == "text" else None
        return model.sample(captions, count=len(texts), seeds=seeds, steps=steps).cpu().double()

    bare = draw()
    with attach(pipe_or_model, (hypernetwork, strength), attn=attn, blocks=blocks):
        wanted = draw()
    with lora_in_weights(model.unet, layers):
        made = draw()
    return tuple(
        PictureError(text, float((m - w).norm() / w.norm()), _psnr(m, w), _psnr(b, w))
        for text, b, w, m in zip(texts, bare, wanted, made, strict=True)
    )


@contextlib.contextmanager
def lora_in_weights(unet: torch.nn.Module, layers: Sequence[LoraLayer]) -> Iterator[None]:
    """Add a LoRA's layers to a UNet's own weights for a while (`fusing.check_site` comes first)."""
    attentions = {site.path: attention for site, attention in find_attentions(unet)}
    fused = Fused()
    try:
        for layer in layers:
            attention: Any = attentions[layer.path]
            linear = attention.get_submodule(layer.projection)
            change = (layer.cut.up @ layer.cut.down).to(linear.weight.device)
            fused.replace(linear, "weight", linear.weight.double() + change)
            if layer.out_bias is not None:
                out = attention.to_out[0]
                fused.replace(out, "bias", out.bias.double() + layer.out_bias.to(out.bias.device))
        yield
    finally:
        fused.undo()


def _psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; inf where they are equal."""
    square = float((a - b).square().mean())
    return 10 * math.log10(1 / square) if square > 0 else math.inf

"""What a conversion to LoRA lost, in figures and in words, and a few pictures compared."""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.hypernetworks.attaching.attached import attach
from hyperbrush.hypernetworks.attaching.contexts import PROMPTS, as_model
from hyperbrush.hypernetworks.attaching.fusing import Fused
from hyperbrush.hypernetworks.attaching.output_error import OutputError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import StrengthLike
from hyperbrush.hypernetworks.files.lora import LoraLayer
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, find_attentions


@dataclass(frozen=True)
class SiteReport:
    """One attention."""

    site: AttentionSite
    exact: bool  # the networks are affine: only the rank (and a lost bias) can cost something
    key_rank: int
    value_rank: int
    key_energy: float  # share of the change that the rank keeps
    value_energy: float
    bias_lost: bool  # the values have an offset that the form cannot say
    error: OutputError | None  # of the attention's output on real contexts


@dataclass(frozen=True)
class PictureError:
    """One picture drawn with the hypernetwork and with the LoRA, float32."""

    prompt: str
    relative: float  # ‖lora − hypernetwork‖ / ‖hypernetwork‖ over the pixels
    psnr: float  # dB, of pixels in [0, 1]
    change_psnr: float  # dB between the picture without and with the hypernetwork: how much is at stake


@dataclass(frozen=True)
class LoraReport:
    """The whole LoRA."""

    sites: tuple[SiteReport, ...]
    strength: str
    bias_carried: bool  # the values' offset is in the LoRA, as a bias
    pictures: tuple[PictureError, ...] = ()

    @property
    def error(self) -> OutputError | None:
        """Of all attentions' outputs together; None where no contexts were sampled."""
        errors = [s.error for s in self.sites if s.error is not None]
        return sum(errors, OutputError()) if errors else None

    @property
    def exact_maps(self) -> bool:
        """Whether every network is affine, so that the maps themselves are exact."""
        return all(s.exact for s in self.sites)

    @property
    def lost(self) -> list[str]:
        """What this LoRA cannot say, in words."""
        lost = []
        if not self.exact_maps:
            lost.append(
                "the networks' non-linearity: each is replaced by its best affine map on the contexts"
            )
        least = min(min(s.key_energy, s.value_energy) for s in self.sites)
        if least < 1 - 1e-9:
            lost.append(f"what lies beyond the rank: the layer cut most keeps {least:.1%} of its change")
        shifted = sum(s.bias_lost for s in self.sites)
        if shifted:
            lost.append(f"the values' offset at {shifted} attentions (bias=True carries it)")
        return lost

    def __str__(self) -> str:
        ranks = sorted({r for s in self.sites for r in (s.key_rank, s.value_rank)})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        text = f"{len(self.sites)} attentions, rank {shown}, strength {self.strength}"
        if self.error is not None:
            text += (
                f"; error of the attentions' output {self.error.relative:.2e} "
                f"({self.error.of_change:.1%} of what the hypernetwork changes)"
            )
        for picture in self.pictures:
            text += (
                f"\npicture {picture.prompt!r}: relative error {picture.relative:.2e}, PSNR {picture.psnr:.1f} dB "
                f"(without the hypernetwork {picture.change_psnr:.1f} dB)"
            )
        if self.bias_carried:
            text += (
                "\nthe values' offset is a bias, which pipe.fuse_lora() and PEFT's merge refuse (bias=False, "
                "--no-bias: a LoRA that fuses)"
            )
        for lost in self.lost:
            text += f"\nlost: {lost}"
        return text


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
            change = layer.cut.up @ layer.cut.down
            fused.replace(linear, "weight", linear.weight.detach().cpu().double() + change.cpu())
            if layer.out_bias is not None:
                out = attention.to_out[0]
                fused.replace(out, "bias", out.bias.detach().cpu().double() + layer.out_bias.cpu())
        yield
    finally:
        fused.undo()


def _psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; inf where they are equal."""
    square = float((a - b).square().mean())
    return 10 * math.log10(1 / square) if square > 0 else math.inf

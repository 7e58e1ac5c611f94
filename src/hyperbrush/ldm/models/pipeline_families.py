"""How each family of diffusion transformers is told of texts, latents and timesteps by its pipeline in diffusers.

Each row of `FAMILIES` does what the pipeline's ``__call__`` does in one step, without guidance.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.ldm.models import autoencoder

Rows = list[
    dict[str, Tensor]
]  # a prompt's "context" (tokens, width), "context_mask" (tokens,), "pooled" (width,)
GUIDANCE = 1.0  # that models with a guidance embedding are told: pictures are no guided samples


@dataclass(frozen=True)
class PipelineFamily:
    """What a pipeline's transformer, text encoders and first stage are asked, and how.

    encode: (pipeline, prompts, device) → what the transformer is told of each.
    denoise: (pipeline, latents (batch, c, h, w), timesteps (batch,) 0 … 1000 as schedulers count, told) → as the latents.
    encode_empty: of the text that guidance moves away from, where that is said otherwise than a prompt.
    moments: (first stage, pictures) → "mean" and "std" of latents as the transformer sees them; pictures: back.
    latent_side: pixels of a latent's side, times the pipeline's own number. unit: latents that both sides are multiples of;
        None: the transformer's patch.
    is_flow: trained by flow matching alone. guidance: what ``__call__`` names its scale; no_guidance: what that is without any;
        negative: whether it has negative prompts; drawing: what else it is told.
    """

    encode: Callable[[Any, list[str], torch.device], Rows]
    denoise: Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    encode_empty: Callable[[Any, torch.device], Rows] | None = None
    moments: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    pictures: Callable[[Any, Tensor], Tensor] = autoencoder.decode
    latent_side: int = 1
    unit: int | None = 2
    is_flow: bool = True
    guidance: str = "guidance_scale"
    no_guidance: float = 1.0
    negative: bool = True
    drawing: Mapping[str, Any] = field(default_factory=dict)


def _rows(**told: Tensor | None) -> Rows:
    """Batches as one mapping for each row."""
    given = {key: value for key, value in told.items() if value is not None}
    count = len(next(iter(given.values())))
    return [{key: value[i] for key, value in given.items()} for i in range(count)]


# Texts.


def _masked(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    context, mask = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)[:2]
    return _rows(context=context, context_mask=mask)


def _masked_empty(pipe: Any, device: torch.device) -> Rows:
    _, _, context, mask = pipe.encode_prompt([""], True, negative_prompt=[""], device=device)
    return _rows(context=context, context_mask=mask)


def _sana_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    asked = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    context, mask, _, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=device, complex_human_instruction=asked
    )
    return _rows(context=context, context_mask=mask)


def _sd3_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    context, _, pooled, _ = pipe.encode_prompt(
        prompts, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False, device=device
    )
    return _rows(context=context, pooled=pooled)


def _flux_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    context, pooled, _ = pipe.encode_prompt(prompts, prompt_2=None, device=device)
    return _rows(context=context, pooled=pooled)


def _flux2_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    return _rows(context=pipe.encode_prompt(prompts, device=device)[0])


def _chroma_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    found = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)
    return _rows(context=found[0], context_mask=found[2])


def _qwen_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    context, mask = pipe.encode_prompt(prompts, device=device)
    if mask is None:  # all are as long
        mask = torch.ones(context.shape[:2], dtype=torch.long, device=context.device)
    return _rows(context=context, context_mask=mask)


def _z_image_texts(pipe: Any, prompts: list[str], device: torch.device) -> Rows:
    found = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, device=device)[0]
    return [
        {"context": c, "context_mask": torch.ones(len(c), dtype=torch.long, device=c.device)} for c in found
    ]


# One step each.


def _pixart(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    transformer = pipe.transformer
    added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:  # PixArt-α at 1024
        height, width = (side * pipe.vae_scale_factor for side in x.shape[-2:])
        added["resolution"] = x.new_tensor([height, width]).repeat(len(x), 1)
        added["aspect_ratio"] = x.new_tensor([height / width]).repeat(len(x), 1)
    out: Tensor = transformer(
        x,
        encoder_hidden_states=told["context"],
        encoder_attention_mask=told["context_mask"],
        timestep=t,
        added_cond_kwargs=added,
    ).sample
    return out[:, : x.shape[1]]  # the rest is the learned variance


def _sana(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = pipe.transformer(
        x,
        encoder_hidden_states=told["context"],
        encoder_attention_mask=told["context_mask"],
        timestep=t * pipe.transformer.config.timestep_scale,
    ).sample
    return out[:, : x.shape[1]]


def _sd3(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = pipe.transformer(
        hidden_states=x,
        timestep=t,
        encoder_hidden_states=told["context"],
        pooled_projections=told["pooled"],
    ).sample
    return out


def _guidance(pipe: Any, x: Tensor) -> Tensor | None:
    wanted = getattr(pipe.transformer.config, "guidance_embeds", False)
    return torch.full((len(x),), GUIDANCE, device=x.device) if wanted else None


def _packed(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor], **more: Any) -> Tensor:
    """Flux.1 and Chroma: patches of 2 × 2 latents as rows, with their places."""
    batch, channels, height, width = x.shape
    out = pipe.transformer(
        hidden_states=pipe._pack_latents(x, batch, channels, height, width),
        timestep=t.to(x.dtype) / 1000,
        encoder_hidden_states=told["context"],
        txt_ids=torch.zeros(told["context"].shape[1], 3).to(x),
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, x.device, x.dtype),
        **more,
    ).sample
    unpacked: Tensor = pipe._unpack_latents(out, height, width, 1)
    return unpacked


def _flux(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    return _packed(pipe, x, t, told, guidance=_guidance(pipe, x), pooled_projections=told["pooled"])


def _chroma(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    patches = (x.shape[-2] // 2) * (x.shape[-1] // 2)
    mask = pipe._prepare_attention_mask(len(x), patches, x.dtype, told["context_mask"])
    return _packed(pipe, x, t, told, attention_mask=mask)


def _qwen(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    batch, channels, height, width = x.shape
    mask = told["context_mask"]
    longest = int(mask.sum(1).max())
    mask = mask[:, :longest]
    out = pipe.transformer(
        hidden_states=pipe._pack_latents(x, batch, channels, height, width),
        timestep=t.to(x.dtype) / 1000,
        guidance=_guidance(pipe, x),
        encoder_hidden_states=told["context"][:, :longest],
        encoder_hidden_states_mask=None if bool(mask.all()) else mask,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
    ).sample
    frames: Tensor = pipe._unpack_latents(out, height, width, 1)
    return frames[:, :, 0]


def _flux2(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = pipe.transformer(
        hidden_states=pipe._pack_latents(x),
        timestep=t.to(x.dtype) / 1000,
        guidance=_guidance(pipe, x),
        encoder_hidden_states=told["context"],
        txt_ids=pipe._prepare_text_ids(told["context"]).to(x.device),
        img_ids=pipe._prepare_latent_ids(x).to(x.device),
    ).sample
    return out.permute(0, 2, 1).reshape(x.shape)


def _z_image(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    texts = [c[m.bool()] for c, m in zip(told["context"], told["context_mask"], strict=True)]
    out = pipe.transformer(list(x.unsqueeze(2).unbind()), (1000 - t) / 1000, texts, return_dict=False)[0]
    return -torch.stack(list(out)).squeeze(2)


def _lumina2(pipe: Any, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = pipe.transformer(
        hidden_states=x,
        timestep=1 - t / 1000,
        encoder_hidden_states=told["context"],
        encoder_attention_mask=told["context_mask"],
    ).sample
    return -out


# First stages.


def scaled_moments(stage: Any, images: Tensor) -> dict[str, Tensor]:
    """Latents of pictures as transformers see them: {"mean", "std"}, (batch, c, h, w) each; of `AutoencoderDC` too."""
    if not hasattr(stage.config, "encoder_block_out_channels"):
        found = autoencoder.moments(stage, images)
        scale = float(stage.config.scaling_factor)
        return {"mean": autoencoder.scaled(stage, found["mean"]), "std": found["std"] * scale}
    mean = stage.encode(images).latent * stage.config.scaling_factor
    return {"mean": mean, "std": torch.zeros_like(mean)}


def _sana_pictures(stage: Any, latents: Tensor) -> Tensor:
    made: Tensor = stage.decode(latents / stage.config.scaling_factor).sample
    return made


def _qwen_scale(stage: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    numbers = (stage.config.latents_mean, stage.config.latents_std)
    shift, scale = (like.new_tensor(one)[:, None, None] for one in numbers)
    return shift, scale


def _qwen_moments(stage: Any, images: Tensor) -> dict[str, Tensor]:
    posterior = stage.encode(images.unsqueeze(2)).latent_dist  # one frame of a film
    shift, scale = _qwen_scale(stage, images)
    return {"mean": (posterior.mean[:, :, 0] - shift) / scale, "std": posterior.std[:, :, 0] / scale}


def _qwen_pictures(stage: Any, latents: Tensor) -> Tensor:
    shift, scale = _qwen_scale(stage, latents)
    made: Tensor = stage.decode((latents * scale + shift).unsqueeze(2)).sample
    return made[:, :, 0]


def _flux2_scale(stage: Any) -> tuple[Tensor, Tensor]:
    scale = torch.sqrt(stage.bn.running_var[:, None, None] + stage.config.batch_norm_eps)
    return stage.bn.running_mean[:, None, None], scale


def _flux2_moments(stage: Any, images: Tensor) -> dict[str, Tensor]:
    posterior = stage.encode(images).latent_dist
    shift, scale = _flux2_scale(stage)
    mean, std = (nn.functional.pixel_unshuffle(x, 2) for x in (posterior.mean, posterior.std))
    return {"mean": (mean - shift) / scale, "std": std / scale}


def _flux2_pictures(stage: Any, latents: Tensor) -> Tensor:
    shift, scale = _flux2_scale(stage)
    made: Tensor = stage.decode(nn.functional.pixel_shuffle(latents * scale + shift, 2)).sample
    return made


_NO_BINS = {"use_resolution_binning": False}
_PIXART = PipelineFamily(
    _masked, _pixart, unit=None, is_flow=False, drawing={**_NO_BINS, "clean_caption": False}
)
_FLUX2 = PipelineFamily(
    _flux2_texts,
    _flux2,
    moments=_flux2_moments,
    pictures=_flux2_pictures,
    latent_side=2,
    unit=1,
    negative=False,
)
FAMILIES: Mapping[str, PipelineFamily] = {
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "SanaPipeline": PipelineFamily(
        _sana_texts, _sana, _masked_empty, pictures=_sana_pictures, unit=None, drawing=_NO_BINS
    ),
    "StableDiffusion3Pipeline": PipelineFamily(_sd3_texts, _sd3, unit=None),
    "FluxPipeline": PipelineFamily(_flux_texts, _flux, negative=False),
    "ChromaPipeline": PipelineFamily(_chroma_texts, _chroma),
    "Flux2Pipeline": _FLUX2,
    "Flux2KleinPipeline": _FLUX2,
    "QwenImagePipeline": PipelineFamily(
        _qwen_texts, _qwen, moments=_qwen_moments, pictures=_qwen_pictures, guidance="true_cfg_scale"
    ),
    "ZImagePipeline": PipelineFamily(_z_image_texts, _z_image, no_guidance=0.0),
    "Lumina2Pipeline": PipelineFamily(_masked, _lumina2, _masked_empty),
}

"""Where and how a model computes: device, precision, attention and offload in one plain setting."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperbrush.errors import UserError, unknown_name

ATTENTION = ("auto", "sdpa", "sliced", "eager", "flash")
PRECISION = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OFFLOAD = ("none", "model", "sequential")


@dataclass(frozen=True)
class Placement:
    """Resolved setting: a device, a precision, an attention backend, an offload."""

    device: torch.device
    dtype: torch.dtype
    attention: str = "auto"
    offload: Literal["none", "model", "sequential"] = "none"


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def placement(
    device: str = "auto", precision: str = "auto", attention: str = "auto", offload: str = "none"
) -> Placement:
    """Resolve plain words to a `Placement`.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto (fp16 on CUDA and MPS, of transformers' pipelines bf16, fp32 on the CPU), fp32, fp16, bf16.
        attention: auto (diffusers' choice: SDPA), sdpa, sliced (least memory), eager, flash (on CUDA in half precision only).
        offload: none, model (parts wait in main memory), sequential (layers do; least memory).

    Raises:
        UserError: an unknown word, an absent device, or a combination that cannot run.
    """
    try:
        where = best_device() if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise unknown_name("device", device, ("auto", "cpu", "cuda", "mps")) from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device {device!r} was asked for, but torch sees no CUDA GPU here; take 'auto' or 'cpu'"
        )
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    if where.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' was asked for, but this is no Mac with Metal; take 'auto' or 'cpu'")
    if precision != "auto" and precision not in PRECISION:
        raise unknown_name("precision", precision, ("auto", *PRECISION))
    dtype = (
        PRECISION["fp32" if where.type == "cpu" else "fp16"] if precision == "auto" else PRECISION[precision]
    )
    if attention not in ATTENTION:
        raise unknown_name("attention backend", attention, ATTENTION)
    if attention == "flash" and (where.type == "mps" or (where.type == "cuda" and dtype == torch.float32)):
        raise UserError("attention 'flash' needs CUDA with fp16 or bf16, or the CPU; take 'auto'")
    if offload not in OFFLOAD:
        raise unknown_name("offload", offload, OFFLOAD)
    if offload != "none" and where.type == "cpu":
        raise UserError(f"offload {offload!r} moves parts off a GPU, and there is none in use; leave it out")
    return Placement(where, dtype, attention, offload)  # type: ignore[arg-type]


def set_attention(unet: Any, backend: str) -> None:
    """Choose how a diffusers UNet or transformer computes attention; "auto" leaves diffusers' choice, which is SDPA.

    Raises:
        UserError: "sliced" for a transformer.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    class FlashProcessor(AttnProcessor2_0):  # type: ignore[misc]
        """SDPA that may only take the flash kernel."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return super().__call__(*arguments, **named)

    if backend == "sliced":
        if not hasattr(unet, "set_attention_slice"):
            raise UserError(
                f"{type(unet).__name__} has no attention 'sliced'; take 'auto', 'sdpa' or 'eager'"
            )
        unet.set_attention_slice("auto")
    elif backend != "auto":
        processors = {"eager": AttnProcessor, "sdpa": AttnProcessor2_0, "flash": FlashProcessor}
        unet.set_attn_processor(processors[backend]())


def place(model: Any, how: Placement) -> Any:
    """Move a `LatentDiffusion` or a pipeline there and set its attention; returns it.

    Offload works on pipelines (accelerate's hooks do the moving).

    Raises:
        UserError: offload for something that is not a pipeline.
    """
    set_attention(model.unet, how.attention)
    if how.offload == "none":
        placed = model.to(how.device, how.dtype)
        # Stable Diffusion XL's first stage overflows in fp16: its pipelines decode in fp32 too.
        if how.dtype == torch.float16 and getattr(placed, "text_encoder_2", None) is not None:
            placed.first_stage.float()
        return placed
    if not hasattr(model, "enable_model_cpu_offload"):
        raise UserError("offload works on a pipeline; take model.pipeline() first")
    model.to(how.dtype)
    if how.offload == "model":
        model.enable_model_cpu_offload(device=how.device)
    else:
        model.enable_sequential_cpu_offload(device=how.device)
    return model

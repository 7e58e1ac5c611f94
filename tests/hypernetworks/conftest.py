"""Tiny UNets of the three Stable Diffusion families, and hypernetworks with visible effects."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture(scope="session")
def shared() -> Path:
    """Files and outputs of the original programs that are too large to be copied in, where they are there."""
    beside = Path(__file__).parents[3] / "shared/reference"
    folder = Path(os.environ.get("HYPERBRUSH_REFERENCE", beside))
    if not (folder / "unet.checkpoint.safetensors").is_file():
        pytest.skip(f"no whole-UNet reference in {folder}")
    return folder


@pytest.fixture
def compvis_unet(shared: Path) -> Any:
    """The original program's UNet, in diffusers' form."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from safetensors.torch import load_file

    theirs = json.loads((shared / "unet.config.json").read_text())
    levels = len(theirs["channel_mult"])
    unet = UNet2DConditionModel(
        sample_size=theirs["image_size"],
        block_out_channels=[theirs["model_channels"] * m for m in theirs["channel_mult"]],
        layers_per_block=theirs["num_res_blocks"],
        down_block_types=["CrossAttnDownBlock2D"] * levels,
        up_block_types=["CrossAttnUpBlock2D"] * levels,
        cross_attention_dim=theirs["context_dim"],
        attention_head_dim=theirs["num_heads"],
    )
    state = convert_ldm_unet_checkpoint(load_file(shared / "unet.checkpoint.safetensors"), dict(unet.config))
    unet.load_state_dict({k: v.float() for k, v in state.items()})
    return unet.eval()


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


@pytest.fixture
def by_hand() -> Callable[..., Any]:
    """A copy of a UNet, with (hypernetwork, strength) in the plainest way: to_k and to_v are wrapped."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, stack: list[tuple[Any, float]], use: str) -> None:
            super().__init__()
            self.inner, self.use, self.stack = inner, use, stack

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            for hypernetwork, strength in self.stack:
                x = x + strength * getattr(hypernetwork.network_for(x.shape[-1]), self.use)(x)
            out: torch.Tensor = self.inner(x, *args, **kwargs)
            return out

    def wrap(unet: Any, stack: list[tuple[Any, float]]) -> Any:
        unet = copy.deepcopy(unet)
        for name, module in list(unet.named_modules()):
            if name.endswith((".attn1", ".attn2")):
                module.to_k = Wrapped(module.to_k, stack, "key")
                module.to_v = Wrapped(module.to_v, stack, "value")
        return unet

    return wrap


SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLASSES = {  # what a call is → its pipelines for SD 1.x and 2.x, and for SDXL
    "text": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "image": ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "inpaint": ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    "controlnet": ("StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"),
    "controlnet image": (
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
    ),
    "controlnet inpaint": (
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
    ),
    "pag": ("StableDiffusionPAGPipeline", "StableDiffusionXLPAGPipeline"),
    "pag image": ("StableDiffusionPAGImg2ImgPipeline", "StableDiffusionXLPAGImg2ImgPipeline"),
    "pag inpaint": ("StableDiffusionPAGInpaintPipeline", "StableDiffusionXLPAGInpaintPipeline"),
    "pag controlnet": ("StableDiffusionControlNetPAGPipeline", "StableDiffusionXLControlNetPAGPipeline"),
}


@pytest.fixture
def make_pipe(make_unet: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    """A tiny real pipeline of diffusers: what it does (a key of CLASSES), and for which family."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text_model(cls: Any, width: int) -> Any:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return cls(config).eval().requires_grad_(False)

    def make(what: str = "text", family: str = "sd1", scheduler: str = "DDIM", **changes: Any) -> Any:
        unet = make_unet(family, **changes)
        torch.manual_seed(10)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=8,
            sample_size=16,
        )
        vae.eval().requires_grad_(False)
        settings = SCHEDULE | {"prediction_type": "v_prediction"} if family == "sd2" else SCHEDULE
        if scheduler == "PNDM":
            settings = settings | {"skip_prk_steps": True}
        if scheduler in ("DDIM", "DDPM", "LCM"):
            settings = settings | {"clip_sample": False}
        parts = {
            "vae": vae,
            "unet": unet,
            "scheduler": getattr(diffusers, f"{scheduler}Scheduler")(**settings),
            "tokenizer": tokenizer,
        }
        if family == "sdxl":
            parts |= {
                "text_encoder": text_model(CLIPTextModel, 32),
                "text_encoder_2": text_model(CLIPTextModelWithProjection, 16),
                "tokenizer_2": tokenizer,
                "add_watermarker": False,
            }
        else:
            width = unet.config.cross_attention_dim
            parts |= {
                "text_encoder": text_model(CLIPTextModel, width),
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
            }
        if "controlnet" in what:
            controlnet = diffusers.ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=(8, 16)
            )
            for name, parameter in controlnet.named_parameters():
                if "controlnet" in name:  # its zero convolutions would leave it without effect
                    torch.nn.init.normal_(parameter, std=0.05)
            parts["controlnet"] = controlnet.eval().requires_grad_(False)
        if "pag" in what:
            parts["pag_applied_layers"] = ["mid", "up_blocks.1"]
        pipe = getattr(diffusers, CLASSES[what][family == "sdxl"])(**parts)
        pipe.set_progress_bar_config(disable=True)
        pipe.what = what
        return pipe

    return make


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """One call of such a pipeline, with fixed noise and pictures; returns latents unless told otherwise."""

    def run(pipe: Any, **changes: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        picture, control = (torch.rand(1, 3, 16, 16, generator=generator) for _ in range(2))
        mask = torch.zeros(1, 1, 16, 16)
        mask[:, :, 4:12, 4:12] = 1
        arguments: dict[str, Any] = {
            "prompt": "a red heart",
            "num_inference_steps": 3,
            "generator": torch.Generator().manual_seed(5),
            "output_type": "latent",
        }
        words = pipe.what.split()
        if "image" in words or "inpaint" in words:
            arguments |= {"image": picture, "strength": 0.7}
        if "inpaint" in words:
            arguments |= {"mask_image": mask}
        if "controlnet" in words:
            name = "control_image" if "image" in arguments else "image"
            arguments |= {name: control}
        if "pag" in words:
            arguments |= {"pag_scale": 3.0}
        if "image" not in arguments or arguments["image"] is control:
            arguments |= {"height": 16, "width": 16}
        if "prompt_embeds" in changes:
            del arguments["prompt"]
        out: torch.Tensor = pipe(**arguments | changes).images
        return out

    return run


@pytest.fixture
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """‖a − b‖ / ‖b‖."""

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).norm() / b.double().norm())

    return error

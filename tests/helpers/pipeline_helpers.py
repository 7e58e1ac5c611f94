"""diffusers' pipelines of transformers at tiny widths with random weights: text encoders, first stages, schedulers."""

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from transformer_helpers import MODELS, flux_guided, make, pixart_sized

LETTERS = [chr(code) for code in range(33, 127)]
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def _random(module: Any, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def t5() -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in ["▁", *LETTERS])]
    config = transformers.T5Config(
        vocab_size=128, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0), _random(transformers.T5EncoderModel(config))


def clip(projection: int | None, width: int = 4) -> tuple[Any, Any]:
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=projection or width,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, _random(kind(config))


def gemma() -> tuple[Any, Any]:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    tokenizer = transformers.GemmaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=128,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        pad_token_id=0,
    )
    return tokenizer, _random(transformers.Gemma2Model(config))


def _qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    words = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(width: int = 12, layers: int = 2) -> tuple[Any, Any]:
    config = transformers.Qwen3Config(
        vocab_size=280,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
    )
    return _qwen_tokenizer(), _random(transformers.Qwen3ForCausalLM(config))


def qwen_vl() -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 280,
            "hidden_size": 12,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 1,
            "out_hidden_size": 12,
        },
    )
    return _qwen_tokenizer(), _random(transformers.Qwen2_5_VLForConditionalGeneration(config))


def vae(channels: int, levels: int = 3, kind: str = "AutoencoderKL", **more: Any) -> Any:
    shape = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
    }
    torch.manual_seed(0)
    return getattr(diffusers, kind)(**shape, **more).eval()


def _flow(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | more))


def _pixart() -> Any:
    tokenizer, encoder = t5()
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    return diffusers.PixArtSigmaPipeline(
        tokenizer, encoder, vae(4, scaling_factor=0.5), MODELS["PixArt"][0](), scheduler
    )


def _sd3() -> Any:
    (one, first), (two, second), (three, third) = clip(5), clip(5), t5()
    return diffusers.StableDiffusion3Pipeline(
        MODELS["SD3"][0](),
        _flow(),
        vae(4, scaling_factor=1.5, shift_factor=0.1),
        first,
        one,
        second,
        two,
        third,
        three,
    )


def _flux() -> Any:
    (one, first), (two, second) = clip(None, 10), t5()
    scheduler = _flow(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        scheduler, vae(1, scaling_factor=0.4, shift_factor=0.1), first, one, second, two, MODELS["Flux"][0]()
    )


def _chroma() -> Any:
    tokenizer, encoder = t5()
    return diffusers.ChromaPipeline(
        _flow(), vae(1, scaling_factor=0.4, shift_factor=0.1), encoder, tokenizer, MODELS["Chroma"][0]()
    )


def _z_image() -> Any:
    tokenizer, encoder = qwen3()
    return diffusers.ZImagePipeline(
        _flow(), vae(4, scaling_factor=0.4, shift_factor=0.1), encoder, tokenizer, MODELS["ZImage"][0]()
    )


def _lumina2() -> Any:
    tokenizer, encoder = gemma()
    return diffusers.Lumina2Pipeline(
        MODELS["Lumina2"][0](), _flow(), vae(4, 4, scaling_factor=0.4, shift_factor=0.1), encoder, tokenizer
    )


def _sana() -> Any:
    tokenizer, encoder = gemma()
    torch.manual_seed(0)
    stage = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.5,
    ).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(tokenizer, encoder, stage, MODELS["Sana"][0](), scheduler)


def _qwen_image() -> Any:
    tokenizer, encoder = qwen_vl()
    torch.manual_seed(0)
    stage = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    ).eval()
    return diffusers.QwenImagePipeline(
        _flow(use_dynamic_shifting=True, shift_terminal=0.02),
        stage,
        encoder,
        tokenizer,
        MODELS["QwenImage"][0](),
    )


def _flux2_klein() -> Any:
    tokenizer, encoder = qwen3(4, 27)
    stage = vae(1, kind="AutoencoderKLFlux2", use_quant_conv=False, use_post_quant_conv=False)
    stage.bn.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    stage.bn.running_var.copy_(torch.tensor([1.5, 0.5, 1.0, 2.0]))
    return diffusers.Flux2KleinPipeline(
        _flow(use_dynamic_shifting=True), stage, encoder, tokenizer, MODELS["Flux2"][0]()
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    name: functools.cache(make)  # nobody changes them: attaching and training leave a pipeline as it was
    for name, make in {
        "PixArt": _pixart,
        "SD3": _sd3,
        "Flux": _flux,
        "Flux2Klein": _flux2_klein,
        "Chroma": _chroma,
        "QwenImage": _qwen_image,
        "ZImage": _z_image,
        "Sana": _sana,
        "Lumina2": _lumina2,
    }.items()
}


def _pixart_alpha() -> Any:
    """Told the size of pictures, as the one for 1024 pixels."""
    parts = PIPELINES["PixArt"]().components
    return diffusers.PixArtAlphaPipeline(**{**parts, "transformer": pixart_sized()})


def _flux_guided() -> Any:
    """Told a guidance, as FLUX.1-dev."""
    parts = {k: v for k, v in PIPELINES["Flux"]().components.items() if v is not None}
    return diffusers.FluxPipeline(**{**parts, "transformer": flux_guided()})


MORE: dict[str, Callable[[], Any]] = {"PixArtAlpha": _pixart_alpha, "FluxGuided": _flux_guided}


def fresh(name: str) -> Any:
    """A pipeline of a family of `MODELS` whose transformer may be changed."""
    pipe = PIPELINES["Flux2Klein" if name == "Flux2" else name]()
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    return type(pipe)(**{**parts, "transformer": make(name)[0]})

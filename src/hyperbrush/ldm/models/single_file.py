"""Single-file Stable Diffusion checkpoints in CompVis' layout, as a diffusers pipeline, without network."""

import contextlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.assets import FOLDER
from hyperbrush.assets.clip import END, clip_tokenizer
from hyperbrush.errors import UserError, first_line
from hyperbrush.ldm.families import BY_CROSS_WIDTH
from hyperbrush.ldm.models.inpainting import SPECIAL, reads_masks

CONFIGS = FOLDER / "configs"
KINDS = ("sd1", "sd2", "sd2-v", "sdxl")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {  # where the text encoders lie; OpenCLIP's prefixes end in "model.", OpenAI's in "transformer."
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.0.model.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
OPENCLIP_NAMES = {  # OpenCLIP's names -> those of transformers
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn": "self_attn",
}
OTHER_FILES = (  # what else people pass: (what it is, parts of names that tell)
    ("a LoRA", ("lora_", ".hada_w1", ".lokr_w1")),
    ("a ControlNet", ("control_model.", "controlnet_")),
    ("a Stable Diffusion 3 model", ("joint_blocks.",)),
    ("a FLUX model", ("double_blocks.",)),
    ("a UNet alone, without VAE and text encoder", ("input_blocks.0.0.weight",)),
    (
        "one part of a diffusers folder (give the whole folder)",
        ("down_blocks.0.resnets", "up_blocks.0.resnets", "text_model.encoder.layers."),
    ),
    ("a VAE alone", (VAE, "decoder.up.")),
    ("a textual inversion embedding", ("emb_params", "string_to_param", "clip_l", "clip_g")),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which only the header has been read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]  # by tensor name
    metadata: Mapping[str, str]  # of a .safetensors file, else empty
    tensor: Callable[[str], Tensor]  # reads one, by name


def open_single_file(
    path: Path, *, dtype: torch.dtype = torch.float32, config: str | Path | None = None
) -> Any:
    """Open a .safetensors or .ckpt file in the original CompVis or SDXL layout; nothing is fetched or executed.

    Of a checkpoint with two sets of weights the plain ones are taken, not the averaged ones (model_ema).

    Args:
        path: the file; its content decides how it is read, not its suffix.
        dtype: precision of the weights in memory.
        config: a diffusers folder that describes the architecture (JSON files; weights are not looked at),
            or one of "sd1", "sd2", "sd2-v", "sdxl". By default chosen by `architecture` and `prediction_type`.

    Returns:
        a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` without safety checker, or the ones for inpainting.

    Raises:
        UserError: not a whole Stable Diffusion checkpoint, of an unknown architecture, or unlike ``config``.
    """
    path = Path(path)
    checkpoint = read_header(path)
    if len(checkpoint.shapes.get(UNET + "input_blocks.0.0.weight", ())) != 4:
        raise UserError(
            f"{path} is not a Stable Diffusion checkpoint: it looks like {looks_like(checkpoint.shapes)}"
        )
    process: dict[str, Any] = {}
    if config is None:
        kind = architecture(checkpoint)
        process["prediction_type"] = prediction_type(checkpoint, kind)
        if "ztsnr" in checkpoint.shapes:
            process |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 0}
        folder = CONFIGS / (
            "sd2-v" if (kind, process["prediction_type"]) == ("sd2", "v_prediction") else kind
        )
    else:
        folder = CONFIGS / config if str(config) in KINDS else Path(config)
    return _pipeline(checkpoint, folder, dtype, process)


def read_header(path: Path) -> Checkpoint:
    """Names and shapes of the tensors in a .safetensors or .ckpt file.

    Raises:
        UserError: the file is absent, truncated or corrupt, or can only be read by executing code in it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _safetensors_header(path)
    return _torch_header(path)


def _safetensors_header(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or corrupt ({first_line(error)}): fetch it again") from error
    return Checkpoint(path, shapes, file.metadata() or {}, file.get_tensor)


def _torch_header(path: Path) -> Checkpoint:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise UserError(
                f"{path} is not a checkpoint, or is corrupt: expected .safetensors or .ckpt"
            ) from error
        raise UserError(
            f"{path} holds code ({code[1]}) beside its weights, which is not executed here: "
            "take the .safetensors version of this model"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{path} is truncated or corrupt ({first_line(error)}): fetch it again") from error
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(found).__name__}, not tensors by name")
    shapes = {
        str(name): tuple(value.shape) if isinstance(value, Tensor) else () for name, value in found.items()
    }
    return Checkpoint(path, shapes, {}, found.__getitem__)


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file that is not a Stable Diffusion checkpoint seems to be, in words."""
    names = list(shapes)
    for what, signs in OTHER_FILES:
        if any(sign in name for name in names for sign in signs):
            return what
    # The webui's .pt is keyed by context width, our .safetensors by "width.key.layers.…".
    if any(re.match(r"\d{3,4}$|.+\.(key|value)\.layers\.\d", name) for name in names):
        return "a hypernetwork (open it with hyperbrush.load)"
    return f"a file of {len(names)} tensors such as {names[0]!r}" if names else "a file without tensors"


def architecture(checkpoint: Checkpoint) -> str:
    """One of "sd1", "sd2", "sdxl", by the shapes of the UNet's tensors.

    They differ in the width of the context (`ldm.families`): CLIP ViT-L's, OpenCLIP ViT-H's, or ViT-L's and bigG's; a
    UNet for inpainting takes 9 channels instead of 4.

    Raises:
        UserError: none of them; ``config`` can describe it.
    """
    shapes = checkpoint.shapes
    width, channels = shapes[UNET + "input_blocks.0.0.weight"][:2]
    context = next(
        (
            shape[-1]
            for name, shape in shapes.items()
            if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
        ),
        0,
    )
    kind = BY_CROSS_WIDTH[context].key if context in BY_CROSS_WIDTH else None
    found = f"its UNet is {width} channels wide, takes {channels} channels and a context {context} wide"
    if channels - 4 in SPECIAL:
        found = f"it is {SPECIAL[channels - 4]} model ({channels} input channels, expected 4, or 9 for inpainting)"
    elif kind and any(name.startswith("edm_") for name in shapes):
        found = "it is trained with the EDM process (as Playground 2.5), expected DDPM's"
    elif kind and width == 320 and channels in (4, 9):
        return kind
    raise UserError(
        f"{checkpoint.path} is not Stable Diffusion 1, 2 or XL base: {found}. "
        "Describe another architecture with config=<diffusers folder>"
    )


def prediction_type(checkpoint: Checkpoint, kind: str) -> str:
    """What the UNet was trained to predict, "epsilon" or "v_prediction", which no shape tells.

    In order: a tensor named "v_pred", which trainers of XL models leave as a mark; the metadata entry
    modelspec.prediction_type; and for Stable Diffusion 2 the rule of thumb of ComfyUI
    (supported_models.py, SD20): the standard deviation of one bias of 320 numbers is above 0.09 in the
    768-v models and below in the 512 ones. Where it errs, config="sd2" or "sd2-v" overrides it.
    """
    if "v_pred" in checkpoint.shapes:
        return "v_prediction"
    said = checkpoint.metadata.get("modelspec.prediction_type", "")
    if said:
        return "v_prediction" if said.startswith("v") else "epsilon"
    bias = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if kind == "sd2" and bias in checkpoint.shapes:
        spread = checkpoint.tensor(bias).float().std(correction=0).item()
        return "v_prediction" if spread > 0.09 else "epsilon"
    return "epsilon"


def _pipeline(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, process: dict[str, Any]) -> Any:
    """The parts that ``folder`` describes, with the checkpoint's weights.  process: overrides the scheduler's."""
    import diffusers

    index = _json(folder / "model_index.json")
    name = index.get("_class_name")
    texts = {
        "StableDiffusionPipeline": ["text_encoder"],
        "StableDiffusionXLPipeline": ["text_encoder", "text_encoder_2"],
    }.get(str(name).replace("InpaintPipeline", "Pipeline"))
    if texts is None:
        raise UserError(
            f"{folder} describes a {name}; expected StableDiffusionPipeline or StableDiffusionXLPipeline"
        )
    settings = _json(folder / "scheduler" / "scheduler_config.json")
    scheduler = getattr(diffusers, str(settings.get("_class_name")), None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
        raise UserError(f"{folder}/scheduler: diffusers has no scheduler {settings.get('_class_name')!r}")
    parts: dict[str, Any] = {
        "unet": _diffusers_part(diffusers.UNet2DConditionModel, checkpoint, UNET, folder / "unet", dtype),
        "vae": _diffusers_part(diffusers.AutoencoderKL, checkpoint, VAE, folder / "vae", dtype),
        "scheduler": scheduler.from_config({**settings, **process}),  # type: ignore[attr-defined]
    }
    for text in texts:
        encoder = parts[text] = _text_encoder(checkpoint, folder / text, dtype)
        tokenizer = text.replace("text_encoder", "tokenizer")
        parts[tokenizer] = _tokenizer(folder / tokenizer)
        if len(parts[tokenizer]) > encoder.config.vocab_size:
            raise UserError(
                f"{folder}: {tokenizer} has {len(parts[tokenizer])} tokens, "
                f"{text} only {encoder.config.vocab_size}"
            )
    kind = "InpaintPipeline" if reads_masks(parts["unet"]) else "Pipeline"
    if len(texts) == 2:
        empty = index.get("force_zeros_for_empty_prompt", True)
        return getattr(diffusers, f"StableDiffusionXL{kind}")(
            **parts, force_zeros_for_empty_prompt=empty, add_watermarker=False
        )
    return getattr(diffusers, f"StableDiffusion{kind}")(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _diffusers_part(cls: Any, checkpoint: Checkpoint, prefix: str, folder: Path, dtype: torch.dtype) -> Any:
    """The UNet or VAE, its names converted by diffusers itself."""
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    config = _json(folder / "config.json")
    state = {name: checkpoint.tensor(name) for name in checkpoint.shapes if name.startswith(prefix)}
    if not state:
        raise _lacks(checkpoint, f"it has no {folder.name} (tensors named {prefix}*)")
    read = checkpoint.shapes.get(UNET + "input_blocks.0.0.weight", (0, 0))[1]
    if prefix == UNET and read == 2 * config.get("out_channels", 4) + 1:
        config["in_channels"] = read  # an inpainting model is else like the one it was made of
    convert = convert_ldm_unet_checkpoint if prefix == UNET else convert_ldm_vae_checkpoint
    with _refuse_config(folder), init_empty_weights():
        model = cls.from_config(config)
    try:
        converted = convert(state, config=dict(model.config))
    except KeyError as error:
        raise _lacks(checkpoint, f"its {folder.name} lacks {error}") from error
    return _fill(model, converted, checkpoint, folder, dtype)


def _text_encoder(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config, prefixes = _json(folder / "config.json"), TEXT[folder.name]
    names = list(checkpoint.shapes)
    prefix = next((p for p in prefixes if any(n.startswith(p) for n in names)), None)
    if prefix is None:
        raise _lacks(checkpoint, f"it has no {folder.name} (tensors named {prefixes[0]}*)")
    state = {name.removeprefix(prefix): checkpoint.tensor(name) for name in names if name.startswith(prefix)}
    if prefix.endswith(".model."):
        state = convert_openclip(state)
    with _refuse_config(folder), init_empty_weights():
        cls = CLIPTextModelWithProjection if folder.name == "text_encoder_2" else CLIPTextModel
        model = cls(CLIPTextConfig.from_dict(config))
    return _fill(model, state, checkpoint, folder, dtype)


def _fill(
    model: Any, state: Mapping[str, Tensor], checkpoint: Checkpoint, folder: Path, dtype: torch.dtype
) -> Any:
    """Put ``state`` in the place of the model's empty weights.  Tensors the model has no use for are left out."""
    # Versions of transformers, and of old checkpoints, differ in whether names begin with "text_model.".
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    short = {name: name.removeprefix("text_model.") for name in model.state_dict()}
    missing = [name for name in short.values() if name not in state]
    if missing:
        raise _lacks(checkpoint, f"its {folder.name} lacks {len(missing)} tensors such as {missing[0]!r}")
    for name, value in model.state_dict().items():
        found = state[short[name]].shape
        if found != value.shape:
            raise UserError(
                f"{checkpoint.path} does not fit the {folder.name} described in {folder.parent}: "
                f"{short[name]} is {tuple(found)}, expected {tuple(value.shape)}"
            )
    # Copied: a weight that stays mapped from the file is badly aligned, which changes the last bits of results.
    weights = {name: state[key].to(dtype, copy=True) for name, key in short.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


@contextlib.contextmanager
def _refuse_config(folder: Path) -> Iterator[None]:
    """What the libraries say about a configuration they cannot build, as one `UserError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"cannot build the {folder.name} described in {folder}: {first_line(error)}"
        ) from error


def convert_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text tower under the names of transformers' `CLIPTextModel`; q, k and v come apart."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "text_projection":  # a bare matrix (width, projection) there, a linear layer here
            converted["text_projection.weight"] = value.T.contiguous()
            continue
        for theirs, ours in OPENCLIP_NAMES.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", name)
        layer, joined, kind = name.partition(".in_proj_")
        if joined:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                converted[f"{layer}.{letter}_proj.{kind}"] = third.clone()
        else:
            converted[name] = value
    return converted


def _tokenizer(folder: Path) -> Any:
    """The folder's own vocabulary where it has one, else CLIP's with the folder's padding and length."""
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot open the tokenizer in {folder}: {first_line(error)}") from error
    settings = _json(folder / "tokenizer_config.json")
    pad = settings.get("pad_token", END)
    return clip_tokenizer(
        pad["content"] if isinstance(pad, dict) else pad, settings.get("model_max_length", 77)
    )


def _lacks(checkpoint: Checkpoint, what: str) -> UserError:
    return UserError(
        f"{checkpoint.path} is not a whole checkpoint: {what}. Is its architecture another one? "
        "Describe it with config=<diffusers folder>"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {first_line(error)}. config must be a diffusers folder or "
            f"one of {', '.join(KINDS)}"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected an object")
    return value

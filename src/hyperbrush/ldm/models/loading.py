"""Models from and to disk: diffusers folders, single-file checkpoints, hub ids, the embedded one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from hyperbrush.assets import MODELS, model_folder
from hyperbrush.errors import UserError, first_line
from hyperbrush.files import atomic_folder, read_json, write_json
from hyperbrush.ldm.models import text
from hyperbrush.ldm.models.inpainting import check_channels
from hyperbrush.ldm.models.transformer import CLASS, PIPELINE, is_transformer
from hyperbrush.ldm.modules import flow

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion

FIRST_STAGES = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")  # of plain diffusers pipelines
NOT_PLAIN = "hyperbrush.ldm.models.opens_here_alone"  # where diffusers looks for the first stage then
OWN_INDEX = "hyperbrush.json"  # what a diffusers folder cannot say: the kind of conditioning
DENOISERS = {"unet": "UNet2DConditionModel", "transformer": CLASS}  # by the folder's part
OPENING = (  # what diffusers and transformers raise on folders that are broken, or newer than they are
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


def from_pretrained(
    cls: "type[LatentDiffusion]",
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
) -> "LatentDiffusion":
    """Open a model by name, folder, file or hub id.

    Args:
        source: "emoji" (embedded), a diffusers folder, a single-file checkpoint, or a hub id
            ("owner/name", fetched by diffusers).
        dtype: precision of the weights in memory.
        config: diffusers folder that describes a single-file checkpoint's architecture, where it is
            none of Stable Diffusion 1, 2 or XL.

    Raises:
        UserError: nothing there, or not a latent diffusion model that can be used here.
    """
    found = opened(cls, source, dtype=dtype, config=config)
    return found if isinstance(found, cls) else from_pipeline(cls, found)


def opened(
    cls: "type[LatentDiffusion]",
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
) -> Any:
    """As `from_pretrained`, but a diffusers pipeline, of whatever kind, stays one.

    Raises:
        UserError: nothing there, or it cannot be read.
    """
    path = Path(source)
    if str(source) in MODELS and not path.exists():
        path = model_folder(str(source))
    if path.is_file():
        from hyperbrush.ldm.models.single_file import open_single_file

        return open_single_file(path, dtype=dtype, config=config)
    if path.is_dir():
        return _from_folder(cls, path, dtype)
    if (
        path.suffix in CHECKPOINT_SUFFIXES
        or str(source).startswith((".", "/", "~"))
        or "/" not in str(source)
    ):
        known = ", ".join(MODELS)
        raise UserError(
            f"unknown model {str(source)!r}: expected {known} (embedded), a diffusers folder, a single-file "
            "checkpoint, or a hub id like owner/name"
        )
    return _from_hub(str(source), dtype)


def _from_folder(cls: "type[LatentDiffusion]", path: Path, dtype: torch.dtype) -> Any:
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(f"{path} is not a model: it has no model_index.json (a diffusers folder has one)")
    if (path / OWN_INDEX).is_file():
        return _from_own_folder(cls, path, dtype)
    from diffusers import DiffusionPipeline

    checker = {"safety_checker": None, "requires_safety_checker": False} if "unet" in read_json(index) else {}
    try:
        return DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, **checker)
    except OPENING as error:
        raise UserError(f"cannot open the model in {path}: {first_line(error)}") from error


def _from_own_folder(cls: "type[LatentDiffusion]", path: Path, dtype: torch.dtype) -> "LatentDiffusion":
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    classes: dict[str, Any] = {name: getattr(diffusers, name) for name in (*FIRST_STAGES, "VQModel")}
    try:
        about = json.loads((path / OWN_INDEX).read_text(encoding="utf-8"))
        # Read in the precision of the file and cast after: diffusers' own casting is several times slower.
        first = classes[about["first_stage"]].from_pretrained(
            path / "vae", low_cpu_mem_usage=False, use_safetensors=True
        )
        part = "transformer" if (path / "transformer").is_dir() else "unet"
        denoiser = getattr(diffusers, DENOISERS[part]).from_pretrained(
            path / part, low_cpu_mem_usage=False, use_safetensors=True
        )
        encoder = tokenizer = None
        if about["conditioning"] == "text":
            encoder = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=dtype)
            tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
        process = json.loads((path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot open the model in {path}: {first_line(error)}") from error
    model = cls.of_parts(
        first, denoiser, encoder, tokenizer, process, about["conditioning"], about.get("classes")
    )
    if "words" in about:
        model.known_words = frozenset(about["words"])
    return model.to(dtype=dtype).eval()


def _from_hub(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(name, torch_dtype=dtype)
    except OPENING as error:
        raise UserError(
            f"cannot fetch model {name!r}: {first_line(error)}. Is it a folder on this machine? Give its path"
        ) from error


def from_pipeline(cls: "type[LatentDiffusion]", pipe: Any) -> "LatentDiffusion":
    """The parts of a diffusers Stable Diffusion pipeline as a `LatentDiffusion`.

    Raises:
        UserError: the pipeline has no UNet of the kind used here (Flux and the like), or one that is told of something
            else than masks beside the latents (instruct-pix2pix and the like).
    """
    if not hasattr(pipe, "unet") or not hasattr(pipe, "vae"):
        raise UserError(
            f"{type(pipe).__name__} has no UNet and VAE; Stable Diffusion 1, 2 and XL do. What is there for diffusion "
            "transformers is in docs/models.md"
        )
    check_channels(pipe.unet)
    model = cls.of_parts(
        pipe.vae,
        pipe.unet,
        getattr(pipe, "text_encoder", None),
        getattr(pipe, "tokenizer", None),
        flow.process_config(pipe.scheduler.config, type(pipe.scheduler).__name__),
        "text",
    )
    if getattr(pipe, "text_encoder_2", None) is not None:
        model.text_encoder_2, model.tokenizer_2 = pipe.text_encoder_2, pipe.tokenizer_2
        model.zero_empty_text = bool(pipe.config.get("force_zeros_for_empty_prompt", False))
    return model.eval()


def pipeline(model: "LatentDiffusion") -> Any:
    """The same modules in a `StableDiffusionPipeline`, or the XL one, or those for inpainting.

    Raises:
        UserError: the model is not of Stable Diffusion's kind (text condition, a first stage without a codebook).
    """
    import diffusers

    if not _is_plain(model):
        raise UserError(
            f"a Stable Diffusion pipeline needs a text condition and a first stage without a codebook; this model has "
            f"{model.conditioning!r} and {type(model.first_stage).__name__}"
        )
    parts: dict[str, Any] = {
        "vae": model.first_stage,
        "text_encoder": model.text_encoder,
        "tokenizer": model.tokenizer,
        _denoiser_part(model): model.unet,
        "scheduler": _scheduler(model),
    }
    if is_transformer(model.unet):
        return getattr(diffusers, PIPELINE)(**parts)
    if model.text_encoder_2 is not None:
        parts |= {
            "text_encoder_2": model.text_encoder_2,
            "tokenizer_2": model.tokenizer_2,
            "force_zeros_for_empty_prompt": model.zero_empty_text,
            "add_watermarker": False,
        }
    else:
        parts |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
        parts["requires_safety_checker"] = False
    return getattr(diffusers, _pipeline_class(model))(**parts)


def _scheduler(model: "LatentDiffusion") -> Any:
    """Diffusers' scheduler with the model's process in its config."""
    import diffusers

    config = model.diffusion.scheduler_config
    if model.diffusion.prediction != "flow_prediction":
        return diffusers.DDIMScheduler.from_config(config)
    made: Any = getattr(diffusers, flow.SCHEDULER)(config["num_train_timesteps"], config["shift"])
    made.register_to_config(**config)
    return made


def _is_plain(model: "LatentDiffusion") -> bool:
    """Whether plain diffusers pipelines can draw with it."""
    return model.conditioning == "text" and type(model.first_stage).__name__ in FIRST_STAGES


def _denoiser_part(model: "LatentDiffusion") -> str:
    """What diffusers calls the denoiser."""
    return "transformer" if is_transformer(model.unet) else "unet"


def _pipeline_class(model: "LatentDiffusion") -> str:
    if is_transformer(model.unet):
        return PIPELINE
    size = "XL" if model.text_encoder_2 is not None else ""
    return f"StableDiffusion{size}{'Inpaint' if model.inpaints else ''}Pipeline"


def save_pretrained(model: "LatentDiffusion", folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the model as a diffusers folder, whole or not at all.

    A text model without a codebook opens in plain `StableDiffusionPipeline.from_pretrained` (one for inpainting in
    `StableDiffusionInpaintPipeline`, one with a transformer in `PixArtSigmaPipeline`), also under older versions of transformers, in float32 unless it is told otherwise.  dtype: precision on disk, the
    present one by default.

    Raises:
        UserError: the folder cannot be written (disk full); what stood there is kept.
    """
    with atomic_folder(folder) as temporary:
        _write_parts(model, temporary, dtype)
        plain_configs(temporary)


def plain_configs(folder: Path) -> None:
    """Make the configs of a folder say nothing of the machine and the precision it was written in.

    diffusers opens a UNet and a VAE in float32 whatever their files hold, but transformers goes by the text
    encoder's config, and without an entry by its file: with float16 there, the parts would not fit together.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name not in ("config.json", "model_index.json", "tokenizer_config.json"):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        plain = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
        plain |= {key: "float32" for key in ("dtype", "torch_dtype") if key in plain}
        if plain != content:
            text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def _write_parts(model: "LatentDiffusion", folder: Path, dtype: torch.dtype | None) -> None:
    scheduler = _scheduler(model)

    def write(module: nn.Module, name: str) -> None:
        # diffusers warns of casts that change nothing too
        if dtype is not None and dtype != next(module.parameters()).dtype:
            module.to(dtype)
        if name == "text_encoder":
            text.save_text_encoder(module, folder / name)
        else:
            module.save_pretrained(folder / name)  # type: ignore[operator]

    if dtype is not None:  # casting down and back would lose digits of the model in memory
        import copy

        model = copy.deepcopy(model)
    if model.text_encoder_2 is not None:
        model.to(dtype or model.dtype)
        pipeline(model).save_pretrained(folder)
        return
    write(model.first_stage, "vae")
    part = _denoiser_part(model)
    write(model.unet, part)
    index: dict[str, Any] = {
        "_class_name": _pipeline_class(model),
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", type(scheduler).__name__],
        part: ["diffusers", DENOISERS[part]],
        "vae": ["diffusers" if _is_plain(model) else NOT_PLAIN, type(model.first_stage).__name__],
    }
    if part == "unet":
        index |= {key: [None, None] for key in ("feature_extractor", "image_encoder", "safety_checker")}
        index["requires_safety_checker"] = False
    if model.text_encoder is not None:
        write(model.text_encoder, "text_encoder")
        text.save_tokenizer(model.tokenizer, folder / "tokenizer")
        index |= {
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        }
    scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", dict(sorted(index.items())))
    about: dict[str, Any] = {
        "conditioning": model.conditioning,
        "first_stage": type(model.first_stage).__name__,
    }
    if model.class_names is not None:
        about["classes"] = model.class_names
    if model.known_words is not None:
        about["words"] = sorted(model.known_words)
    write_json(folder / OWN_INDEX, about)

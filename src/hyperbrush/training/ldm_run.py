"""`hyperbrush ldm train CONFIG`: configs of a first stage or a diffusion model, from folders to a run."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, TypeAdapter, model_validator

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import atomic_folder, read_json, write_json, write_text
from hyperbrush.ldm.data import LatentCache, Mixture, cache_latents
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.ldm.models.autoencoder import downsampling
from hyperbrush.ldm.modules.losses import FirstStageLoss
from hyperbrush.ldm.util import keyed_seed, load_config, read_yaml
from hyperbrush.training.caller import generators_kept
from hyperbrush.training.checkpoint import digest
from hyperbrush.training.config import Share, Strict, TrainerConfig
from hyperbrush.training.ldm import DenoisingObjective, FirstStageObjective
from hyperbrush.training.objectives import Objective
from hyperbrush.training.pictures import (
    CaptionSettings,
    FolderConfig,
    PictureSettings,
    as_mixture,
    without_chance,
)

SCALE = "scale.json"  # in a run folder
MADE_FROM = "made_from.txt"  # in a run's tokenizer: the digest of what it was trained on


class DataConfig(CaptionSettings):
    """Where the pictures are, and what is done to their captions; all are brought to `size`."""

    folders: list[FolderConfig] = Field(min_length=1, description="folders of pictures, see above")
    held_out: list[FolderConfig] = Field([], description="folders to validate on")
    size: int = Field(64, ge=8, description="side in pixels")
    flip: Share = Field(0.0, description="share of mirrored pictures")
    cache: str = Field("", description="folder for cached latents; the run's own by default")


class FirstStageConfig(Strict):
    """An autoencoder from scratch."""

    type: Literal["kl", "vq"] = Field("kl", description="continuous latents, or those of a codebook")
    latent_dim: int = Field(4, ge=1, description="channels of the latents")
    channels: list[int] = Field(
        [16, 48, 96], description="of each level; each further one halves the picture"
    )
    layers_per_block: int = Field(1, ge=1, description="residual blocks a level")
    mid_attention: bool = Field(False, description="attention at the smallest level")
    codebook: int = Field(1024, ge=2, description="entries of a vq codebook")


class LossConfig(Strict):
    """Weights of the first stage's loss; see `FirstStageLoss`."""

    l1: float = Field(1.0, ge=0, description="weight of the absolute error")
    mse: float = Field(1.0, ge=0, description="weight of the squared error")
    gradient: float = Field(1.0, ge=0, description="weight of the error of neighbouring differences: edges")
    log_mse: float = Field(0.0, ge=0, description="weight of log(squared error): the fine end")
    kl: float = Field(1e-3, ge=0, description="weight of the distance to a normal distribution")
    quantise: float = Field(1.0, ge=0, description="weight of the codebook's loss")
    adversarial_weight: float = Field(0.0, ge=0, description="weight of a patch discriminator; 0: none")
    adversarial_start: int = Field(0, ge=0, description="step at which it begins")

    @model_validator(mode="after")
    def _reconstructs(self) -> "LossConfig":
        if not (self.l1 or self.mse or self.log_mse):
            raise ValueError("one of l1, mse and log_mse must be above 0, or nothing asks for the picture")
        return self


class FirstStageRun(Strict):
    """`kind: first_stage`."""

    kind: Literal["first_stage"] = Field(description="what the file is for")
    data: DataConfig
    model: FirstStageConfig = FirstStageConfig()
    loss: LossConfig = LossConfig()
    training: TrainerConfig = TrainerConfig()


class TextConfig(Strict):
    """A CLIP text model from scratch, its tokenizer trained on the captions."""

    width: int = Field(128, ge=8, description="of the text states")
    layers: int = Field(3, ge=1, description="transformer layers")
    num_heads: int = Field(4, ge=1, description="attention heads")
    vocabulary: int = Field(4096, ge=600, description="tokens learnt from the captions")
    max_length: int = Field(77, ge=8, description="tokens of a caption at most")


class UNetConfig(Strict):
    """A UNet from scratch; attention stands where the latent map is as wide as listed."""

    channels: list[int] = Field([64, 128, 192], description="of each level")
    attention_resolutions: list[int] = Field(
        [8, 4], description="sides of the latent maps that have attention"
    )
    num_heads: int = Field(4, ge=1, description="attention heads")
    layers_per_block: int = Field(2, ge=1, description="residual blocks a level")


class ProcessConfig(Strict):
    """The diffusion process and what is asked of it."""

    schedule: str = Field("scaled_linear", description="of the noise: scaled_linear, linear, cosine, …")
    prediction: str = Field("v_prediction", description="epsilon, v_prediction or sample")
    zero_terminal_snr: bool = Field(False, description="let the last step be noise alone")
    weighting: str = Field("none", description="of timesteps: none, min_snr, debiased")
    timestep_sampling: str = Field("uniform", description="uniform, stratified or logit_normal")
    condition_dropout: Share = Field(0.1, description="share of pictures trained without their caption")
    offset_noise: float = Field(0.0, ge=0, description="noise of the whole picture; 0: none")
    perturbation: float = Field(0.0, ge=0, description="noise added to the input alone; 0: none")


class DiffusionRun(Strict):
    """`kind: diffusion`: a UNet and text encoder on a trained first stage, or on from another model."""

    kind: Literal["diffusion"] = Field(description="what the file is for")
    data: DataConfig
    first_stage: str = Field("", description="folder of the trained first stage")
    start_from: str = Field("", description="go on from a whole model instead (emoji, folder, file)")
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    prompts: list[str] = Field([], description="of the previews")
    guidance_scale: float = Field(4.0, description="of the previews")
    training: TrainerConfig = TrainerConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> "DiffusionRun":
        fresh = {"first_stage": self.first_stage, "text": self.text, "unet": self.unet}
        fields = type(self).model_fields
        set_too = [name for name, value in fresh.items() if value != fields[name].default]
        process = ProcessConfig()
        set_too += [
            f"process.{name}"
            for name in ("schedule", "prediction", "zero_terminal_snr")
            if getattr(self.process, name) != getattr(process, name)
        ]
        if self.start_from and set_too:
            raise ValueError(f"start_from brings its own {', '.join(set_too)}; leave that out")
        return self


Run = FirstStageRun | DiffusionRun
KINDS = {"first_stage": FirstStageRun, "diffusion": DiffusionRun}


def open_folders(data: DataConfig, held_out: bool, seed: int) -> Mixture:
    """The folders of a config, to train on or held out."""
    captions = {name: getattr(data, name) for name in CaptionSettings.model_fields}
    pictures = PictureSettings(size=data.size, flip=data.flip, **captions)
    folders = data.held_out if held_out else data.folders
    about = {"size": data.size, "downscale": 1, "multiple": 1, "seed": seed}
    found = as_mixture(folders, pictures, **about, on_problem="raise")
    return found.over(without_chance) if held_out else found


def captions_of(data: Mixture) -> list[str]:
    """Every caption once that may be told, with the templates, words and suffix that may come with it."""
    return list(dict.fromkeys(caption for i in range(len(data)) for caption in data.variants(i)))


def cached(
    data: Mixture, model: LatentDiffusion, folder: Path, progress: Callable[[int, int], None] | None
) -> Mixture:
    """Latents for pictures, encoded once and kept in ``folder``."""
    with LatentCache(folder, digest(dict(model.first_stage.state_dict()))) as cache:
        return cache_latents(data, model.moments, cache, progress=progress)


def read_config(source: str | Path | dict[str, Any], **overrides: Any) -> Run:
    """Validate a config; its `kind` says which.

    Raises:
        UserError: see `load_config`.
    """
    values = source if isinstance(source, dict) else read_yaml(Path(source))
    kind = values.get("kind")
    if kind not in KINDS:
        raise unknown_name("kind of training (first line 'kind: …')", str(kind), KINDS)
    model: Any = KINDS[kind]
    return TypeAdapter(Run).validate_python(load_config(model, source, **overrides))


@generators_kept()
def build(
    config: Run, run: Path, progress: Callable[[int, int], None] | None = None, *, resume: bool = False
) -> Objective:
    """Data, networks and objective of a run; pictures are checked before anything is computed.

    resume: tokenizer and scale factor are those the run began with, whatever pictures came or went.

    Raises:
        UserError: whatever is wrong with them; a size that the networks cannot halve as often as they do.
    """
    data, seed = config.data, config.training.seed
    train = open_folders(data, False, seed)
    held_out = open_folders(data, True, seed) if data.held_out else None
    torch.manual_seed(keyed_seed(seed, "initialisation"))
    if isinstance(config, FirstStageRun):
        m = config.model
        _check_size(data.size, 2 ** (len(m.channels) - 1), "the first stage")
        stage = first_stage(
            m.type,
            latent_dim=m.latent_dim,
            channels=m.channels,
            layers_per_block=m.layers_per_block,
            mid_attention=m.mid_attention,
            codebook=m.codebook,
            sample_size=data.size,
        )
        if config.training.channels_last:
            stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.training.gradient_checkpointing:
            if m.type == "vq":
                raise UserError("gradient_checkpointing: diffusers' VQ autoencoder has none; leave it out")
            stage.enable_gradient_checkpointing()  # type: ignore[operator]
        return FirstStageObjective(
            stage, FirstStageLoss(**config.loss.model_dump()), train, held_out=held_out, seed=seed
        )
    model = _diffusion_model(config, train, run, resume)
    _check_size(data.size, model.size_unit, "the model")
    words = re.findall(r"[^\W_]+", " ".join(captions_of(train)).casefold())
    model.known_words = (model.known_words or frozenset()) | frozenset(words)
    if not config.start_from:
        _scale(model, train, run / SCALE, resume)
    cache = Path(data.cache) if data.cache else run / "cache"
    train = cached(train, model, cache, progress)
    if held_out is not None:
        held_out = cached(held_out, model, cache, progress)
    model.first_stage.requires_grad_(False)
    if config.training.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.training.channels_last:
        model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    p = config.process
    return DenoisingObjective(
        model,
        train,
        held_out=held_out,
        seed=seed,
        weighting=p.weighting,
        condition_dropout=p.condition_dropout,
        offset_noise=p.offset_noise,
        perturbation=p.perturbation,
        timestep_sampling=p.timestep_sampling,
        prompts=config.prompts,
        guidance_scale=config.guidance_scale,
    )


def _check_size(size: int, unit: int, what: str) -> None:
    if size % unit:
        near = max(1, round(size / unit)) * unit
        raise UserError(
            f"data.size is {size}; {what} halves pictures until {unit} pixels are one: expected a multiple of {unit}, "
            f"such as {near}"
        )


def _scale(model: LatentDiffusion, train: Mixture, file: Path, resume: bool) -> None:
    """The scale factor of a model's latents, measured on about 512 pictures when the run begins, and kept there."""
    if resume and isinstance(kept := read_json(file).get("scale_factor"), float):
        model.scale_factor = kept
        return
    every = range(0, len(train), max(1, len(train) // 512))
    batches = (every[start : start + 32] for start in range(0, len(every), 32))
    model.measure_scale(torch.stack([train.example(i, 0)["image"] for i in batch]) for batch in batches)
    write_json(file, {"scale_factor": float(model.scale_factor)})


def _diffusion_model(config: DiffusionRun, train: Mixture, run: Path, resume: bool) -> LatentDiffusion:
    if config.start_from:
        return LatentDiffusion.from_pretrained(config.start_from)
    if not config.first_stage:
        raise UserError(
            "a diffusion run needs 'first_stage' (a trained autoencoder's folder) or 'start_from'"
        )
    from diffusers import AutoencoderKL, VQModel

    from hyperbrush.ldm.models.text import build_text_encoder

    folder = Path(config.first_stage)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"first_stage: {folder} holds no trained autoencoder (no config.json); train it first"
        )
    is_vq = "VQModel" in (folder / "config.json").read_text(encoding="utf-8")
    stage = (VQModel if is_vq else AutoencoderKL).from_pretrained(folder, low_cpu_mem_usage=False)
    t, u, p = config.text, config.unet, config.process
    _check_size(config.data.size, downsampling(stage) * 2 ** (len(u.channels) - 1), "the model")
    tokenizer = _tokenizer(t, captions_of(train), run / "tokenizer", resume)
    encoder = build_text_encoder(tokenizer, width=t.width, layers=t.layers, num_heads=t.num_heads)
    return LatentDiffusion(
        stage.config.latent_channels,
        u.attention_resolutions,
        u.num_heads,
        image_size=config.data.size,
        channels=u.channels,
        layers_per_block=u.layers_per_block,
        first_stage=stage,
        text_encoder=encoder,
        tokenizer=tokenizer,
        schedule=p.schedule,
        prediction=p.prediction,
        zero_terminal_snr=p.zero_terminal_snr,
    )


def _tokenizer(config: TextConfig, captions: list[str], folder: Path, resume: bool) -> Any:
    """Trained once a run and kept there: training it again may order pairs of equal counts otherwise.

    What another training left in the folder, of other captions or settings, is trained anew.
    """
    from transformers import CLIPTokenizer

    from hyperbrush.ldm.models.text import train_tokenizer

    about = json.dumps([captions, config.vocabulary, config.max_length])
    of = hashlib.sha256(about.encode()).hexdigest()
    kept = folder / MADE_FROM
    is_ours = kept.is_file() and kept.read_text(encoding="utf-8") == of
    if not folder.is_dir() or not (resume or is_ours):
        made = train_tokenizer(captions, vocabulary=config.vocabulary, max_length=config.max_length)
        with atomic_folder(folder) as temporary:
            made.save_pretrained(temporary)
            (temporary / MADE_FROM).write_text(of, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def save_config(config: Run, run: Path) -> None:
    """Write config.yaml into the run folder, defaults included: what `--resume` reads."""
    write_text(run / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

"""`hyperbrush ldm train`: a run of a first stage or a diffusion model, from its config to the finished folder."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperbrush.errors import UserError, first_line
from hyperbrush.files import atomic_folder, read_json, write_json
from hyperbrush.ldm.data import CaptionedExamples, ImageFolder, Mixture, over_folders, split
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.ldm.models.autoencoder import downsampling
from hyperbrush.ldm.models.transformer import build_transformer
from hyperbrush.ldm.modules.diffusion import check_weighting
from hyperbrush.ldm.modules.losses import FirstStageLoss
from hyperbrush.ldm.modules.perceptual import perceptual_loss
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.training.before.preflight import Preflight, preflight_of
from hyperbrush.training.data.cached import cached_latents
from hyperbrush.training.data.conditioned import CONDITION_CHANNELS, class_names_of, conditioned
from hyperbrush.training.data.pictures import LookAt, as_mixture
from hyperbrush.training.ldm.config import DataConfig, DiffusionRun, FirstStageRun, Run, TextConfig
from hyperbrush.training.ldm.config import read_config as read_config
from hyperbrush.training.ldm.first_stage import FirstStageObjective
from hyperbrush.training.ldm.objectives import DenoisingObjective, batches_by_shape
from hyperbrush.training.loop.caller import generators_kept
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import peak_rate
from hyperbrush.training.loop.processes import check_precision, is_main, join, prepared
from hyperbrush.training.loop.progress import PrepareCallback, Progress
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import write_settings
from hyperbrush.training.loop.trainer import Trainer

PLAIN_ATTENTION = 32  # side of a latent map up to which attention is computed plainly on the CPU
SCALE = "scale.json"  # in a run folder
CLASSES = "classes.json"  # in a run folder
MADE_FROM = "made_from.txt"  # in a run's tokenizer: the digest of what it was trained on


def train_ldm(
    config: Run,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    on_report: Callable[[Preflight], None] | None = None,
    on_prepare: PrepareCallback | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train in a run folder, which is locked and looked at before anything is written; returns the finished folder.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        on_report: told the preflight's report, before anything is encoded.
        on_prepare: called with (what, done, in all) while pictures are looked at and encoded.
        on_progress, should_stop: see `Trainer`; before the first step a stop is obeyed at once.

    Raises:
        UserError: whatever is wrong with data, models or settings; another training is there.
        Interrupted: `should_stop` said so; the run can be resumed.
    """

    def begin() -> Objective:
        check_precision(config.training.mixed_precision, join())
        opened, report = open_origin(config), None
        if is_main() and not resume:
            progress = None if on_prepare is None else partial(on_prepare, "looking at")
            report = run_preflight(config, opened, progress)
            if on_report is not None:
                on_report(report)
        listener = on_prepare if is_main() else None
        objective = build(
            config, run, listener, resume=resume, opened=opened, look=None if report is None else report.look
        )
        if report is not None:
            write_settings(config, run)
            write_json(run / "preflight.json", report.as_dict())
        return objective

    with opened_run(run, resume=resume, at=at):
        objective = prepared(run, begin, should_stop)
        trainer = Trainer(objective, config.training, run, on_progress=on_progress, should_stop=should_stop)
        on_begin = partial(write_settings, config, run) if changed else None
        return trainer.train(resume=resume, at=at, held=True, on_begin=on_begin)


@dataclass(frozen=True)
class Opened:
    """What a run goes on from, opened, and what it asks of pictures.

    stage: the trained first stage, or model: the whole one; of a run from scratch neither.
    downscale: pixels for each place of the latent map; unit: what sides of pictures are multiples of.
    """

    downscale: int
    unit: int
    stage: nn.Module | None = None
    model: LatentDiffusion | None = None


@generators_kept()
def open_origin(config: Run) -> Opened:
    """What a run goes on from.

    Raises:
        UserError: it is not there; a size that the networks cannot halve as often as they do.
    """
    if isinstance(config, FirstStageRun):
        found = Opened(1, 2 ** (len(config.model.channels) - 1))
    elif config.start_from:
        model = LatentDiffusion.from_pretrained(config.start_from)
        if "size" not in config.data.model_fields_set and config.data.size != model.image_size:
            raise UserError(
                f"data.size is not given, and {config.start_from} was made for {model.image_size} pixels: write "
                f"data.size: {model.image_size}, or the size that it is to learn"
            )
        found = Opened(downsampling(model.first_stage), model.size_unit, model=model)
    else:
        stage = _trained_stage(config)
        factor = downsampling(stage)
        t = config.transformer
        found = Opened(factor, factor * (t.patch_size if t else 2 ** (len(config.unet.channels) - 1)), stage)
    _check_size(config, found.unit)
    return found


def _trained_stage(config: DiffusionRun) -> nn.Module:
    import diffusers

    from hyperbrush.ldm.models.loading import FIRST_STAGES, OPENING

    if not config.first_stage:
        raise UserError(
            "a diffusion run needs 'first_stage' (a trained autoencoder's folder) or 'start_from'"
        )
    folder = Path(config.first_stage)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"first_stage: {folder} holds no trained autoencoder (no config.json); train it first"
        )
    kind, kinds = read_json(folder / "config.json").get("_class_name"), (*FIRST_STAGES, "VQModel")
    if kind not in kinds:
        raise UserError(f"first_stage: {folder} holds a {kind}; expected one of {', '.join(kinds)}")
    try:
        made, loaded = getattr(diffusers, kind).from_pretrained(
            folder, low_cpu_mem_usage=False, output_loading_info=True
        )
    except OPENING as error:
        raise UserError(f"first_stage: cannot open {folder}: {first_line(error)}") from error
    if missing := loaded["missing_keys"]:
        raise UserError(
            f"first_stage: the weights in {folder} lack {len(missing)} tensors, such as {missing[0]}"
        )
    assert isinstance(made, nn.Module)
    return made


def _check_size(config: Run, unit: int) -> None:
    size, what = config.data.size, "the first stage" if isinstance(config, FirstStageRun) else "the model"
    sides = (size, size) if isinstance(size, int) else size
    if config.data.buckets != "original" and any(side % unit for side in sides):
        near = [max(1, round(side / unit)) * unit for side in sides]
        raise UserError(
            f"data.size is {size}; {what} halves pictures until {unit} pixels are one: expected a multiple of {unit}, "
            f"such as {near[0] if isinstance(size, int) else near}"
        )


def open_folders(
    data: DataConfig,
    held_out: bool,
    seed: int,
    *,
    downscale: int = 1,
    multiple: int = 1,
    look: LookAt | None = None,
) -> Mixture:
    """The folders of a config, to train on or held out; see `as_mixture`."""
    found = as_mixture(
        data.held_out if held_out else data.folders,
        data,
        size=data.size,
        downscale=downscale,
        multiple=multiple,
        seed=seed,
        on_problem=data.on_problem,
        held_out=held_out,
        look=look,
    )
    return found.over(lambda part: over_folders(part, ImageFolder.without_chance)) if held_out else found


def open_data(config: Run, opened: Opened, look: LookAt | None = None) -> tuple[Mixture, Mixture | None]:
    """Pictures to train on, and held out; look: as of `open_pictures`.

    Raises:
        UserError: whatever is wrong with them.
    """
    data, seed = config.data, config.training.seed
    about: dict[str, Any] = {"downscale": opened.downscale, "multiple": opened.unit, "look": look}
    train = open_folders(data, False, seed, **about)
    if data.held_out:
        return train, open_folders(data, True, seed, **about)
    if not data.validation_share or sum(len(part.data) for part in train.parts) < 10:  # none can be spared
        return train, None
    rest, held = split(train, data.validation_share, seed)
    assert isinstance(rest, Mixture)
    assert isinstance(held, Mixture)
    return rest, held


def run_preflight(
    config: Run, opened: Opened, progress: Callable[[int, int], None] | None = None
) -> Preflight:
    """The preflight of a run's pictures."""
    data = config.data
    return preflight_of(
        data.folders,
        data.held_out,
        data,
        size=data.size,
        downscale=opened.downscale,
        multiple=opened.unit,
        tokenizer=opened.model.tokenizer if opened.model is not None else None,
        batch_size=config.training.batch_size,
        progress=progress,
    )


def captions_of(data: Mixture) -> list[str]:
    """Every caption once that may be told, with the templates, words and suffix that may come with it."""
    return list(dict.fromkeys(caption for i in range(len(data)) for caption in data.variants(i)))


@generators_kept()
def build(
    config: Run,
    run: Path,
    on_prepare: PrepareCallback | None = None,
    *,
    resume: bool = False,
    opened: Opened | None = None,
    look: LookAt | None = None,
) -> Objective:
    """Data, networks and objective of a run; pictures are checked before anything is computed.

    on_prepare: called with (what is encoded, done, in all).
    resume: tokenizer and scale factor are those the run began with, whatever pictures came or went.
    opened: of `open_origin`, where that was called already. look: as of `open_pictures`.

    Raises:
        UserError: whatever is wrong with them; a size that the networks cannot halve as often as they do.
    """
    opened = opened or open_origin(config)
    pictures, held_out_pictures = open_data(config, opened, look)
    if isinstance(config, FirstStageRun):
        return first_stage_objective(config, pictures, held_out_pictures)
    model = diffusion_model(config, opened, pictures, run, resume)
    check_weighting(config.process.weighting, model.diffusion.schedule)
    model.first_stage.to(join())
    if not config.start_from:
        _scale(model, pictures, run / SCALE, resume)
    data = config.data
    about: dict[str, Any] = {
        "seed": config.training.seed,
        "missing": data.missing,
        "classes": data.classes,
        "condition_folder": data.condition_folder,
    }
    found: list[CaptionedExamples | None] = [None, None]
    for number, shown in enumerate((pictures, held_out_pictures)):
        if shown is None:
            continue
        [latents] = cached_latents(
            model,
            (shown,),
            Path(data.cache) if data.cache else run / "cache",
            posterior="deterministic" if number else data.latent_sampling,
            on_prepare=on_prepare,
        )
        assert latents is not None
        found[number] = conditioned(model, latents, shown, **about)
    return denoising_objective(config, model, *found)


def first_stage_objective(
    config: FirstStageRun, train: Mixture, held_out: Mixture | None
) -> FirstStageObjective:
    """A fresh autoencoder and what it learns."""
    m, training, seed = config.model, config.training, config.training.seed
    torch.manual_seed(keyed_seed(seed, "initialisation"))
    stage = first_stage(
        m.type,
        latent_dim=m.latent_dim,
        channels=m.channels,
        layers_per_block=m.layers_per_block,
        mid_attention=m.mid_attention,
        codebook=m.codebook,
        sample_size=config.data.size if isinstance(config.data.size, int) else max(config.data.size),
    )
    if training.channels_last:
        stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.gradient_checkpointing:
        if m.type == "vq":
            raise UserError("gradient_checkpointing: diffusers' VQ autoencoder has none; leave it out")
        stage.enable_gradient_checkpointing()  # type: ignore[operator]
    weights = config.loss.model_dump()
    network, weight = weights.pop("perceptual_network"), weights.pop("perceptual")
    loss = FirstStageLoss(
        **weights, perceptual_weight=weight, perceptual=perceptual_loss(network) if weight else None
    )
    return FirstStageObjective(stage, loss, train, held_out=held_out, seed=seed, revive_every=m.revive_every)


def denoising_objective(
    config: DiffusionRun, model: LatentDiffusion, train: Any, held_out: Any
) -> DenoisingObjective:
    """A model and what it learns: its denoiser, and its text encoder unless that has a rate of 0."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    p, training = config.process, config.training
    model.first_stage.requires_grad_(False)
    scale = 1.0
    if config.text_learning_rate is not None:
        if model.text_encoder is None:
            raise UserError("text_learning_rate: the model has no text encoder; leave it out")
        scale = config.text_learning_rate / peak_rate(training.optimizer)
        for encoder in filter(None, (model.text_encoder, model.text_encoder_2)):
            encoder.requires_grad_(scale > 0)
    if training.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if training.channels_last:
        model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = config.data.size
    side = (size if isinstance(size, int) else max(size)) // model.downsampling
    # On the CPU torch's own attention is slower backward; of larger maps the plain one would fill the memory.
    if join().type == "cpu" and side <= PLAIN_ATTENTION and isinstance(model.unet, UNet2DConditionModel):
        model.unet.set_attn_processor(AttnProcessor())
    return DenoisingObjective(
        model,
        train,
        held_out=held_out,
        seed=training.seed,
        weighting=p.weighting,
        condition_dropout=p.condition_dropout,
        offset_noise=p.offset_noise,
        perturbation=p.perturbation,
        timestep_sampling=p.timestep_sampling,
        timestep_options=p.timestep_options,
        prompts=config.prompts,
        guidance_scale=config.guidance_scale,
        text_learning_rate_scale=scale,
    )


def _scale(model: LatentDiffusion, train: Mixture, file: Path, resume: bool) -> None:
    """The scale factor of a model's latents, measured on about 512 pictures when the run begins, and kept there."""
    if resume and isinstance(kept := read_json(file).get("scale_factor"), float):
        model.scale_factor = kept
        return
    every = range(0, len(train), max(1, len(train) // 512))
    batches = batches_by_shape(train, every, 32)
    model.measure_scale(torch.stack([train.example(i, 0)["image"] for i in batch]) for batch in batches)
    write_json(file, {"scale_factor": float(model.scale_factor)})


def diffusion_model(
    config: DiffusionRun, opened: Opened, train: Mixture, run: Path, resume: bool
) -> LatentDiffusion:
    """The whole model to go on with, or a denoiser and text encoder from scratch on the trained first stage."""
    model = opened.model if opened.model is not None else _fresh_model(config, opened, train, run, resume)
    if model.conditioning != "text":
        return model
    words = re.findall(r"[^\W_]+", " ".join(captions_of(train)).casefold())
    model.known_words = (model.known_words or frozenset()) | frozenset(words)
    return model


def _fresh_model(
    config: DiffusionRun, opened: Opened, train: Mixture, run: Path, resume: bool
) -> LatentDiffusion:
    from hyperbrush.ldm.models.text import build_text_encoder

    t, u, p = config.text, config.unet, config.process
    stage: Any = opened.stage
    torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
    kind: dict[str, Any] = {"conditioning": config.conditioning}
    if config.conditioning == "text":
        tokenizer = _tokenizer(t, captions_of(train), run / "tokenizer", resume)
        encoder = build_text_encoder(tokenizer, width=t.width, layers=t.layers, num_heads=t.num_heads)
        kind |= {"tokenizer": tokenizer, "text_encoder": encoder}
    elif config.conditioning == "class":
        kind["class_names"] = _class_names(train, config.data.classes, run / CLASSES, resume)
    elif config.conditioning == "image":
        kind["image_channels"] = CONDITION_CHANNELS
    size = config.data.size
    side = size if isinstance(size, int) else max(size)
    if config.transformer is not None:
        kind["unet"] = build_transformer(
            latent_dim=stage.config.latent_channels,
            sample_size=side // downsampling(stage),
            context_dim=t.width,
            **config.transformer.model_dump(),
        )
    return LatentDiffusion(
        stage.config.latent_channels,
        u.attention_resolutions,
        u.num_heads,
        image_size=side,
        channels=u.channels,
        layers_per_block=u.layers_per_block,
        first_stage=stage,
        dropout=u.dropout,
        schedule=p.schedule,
        prediction=p.prediction,
        zero_terminal_snr=p.zero_terminal_snr,
        shift=p.shift,
        **kind,
    )


def _class_names(train: Mixture, classes: str, file: Path, resume: bool) -> list[str]:
    """The classes that a run begins with, kept there: their numbers must not move when pictures come or go."""
    if resume and (kept := read_json(file).get("classes")):
        return list(kept)
    names = class_names_of(train, classes)
    write_json(file, {"classes": names})
    return names


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

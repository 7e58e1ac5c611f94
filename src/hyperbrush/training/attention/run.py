"""`hyperbrush train`: a hypernetwork's run, from its config to a file in the library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from hyperbrush.errors import UserError
from hyperbrush.files import check_place, write_json
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.hypernetwork import BOTTLENECK
from hyperbrush.hypernetworks.files.adapters import load
from hyperbrush.hypernetworks.files.optimizer import OptimizerState, read_optimizer, write_optimizer
from hyperbrush.hypernetworks.generator import GeneratedWeights, TunedWeights
from hyperbrush.ldm.data.archives import is_source
from hyperbrush.ldm.data.templates import read_templates
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.pipelines import open_any
from hyperbrush.ldm.modules.attention_sites import attention_sites
from hyperbrush.ldm.modules.transformer_sites import find_transformer
from hyperbrush.ldm.util import keyed_seed, load_config, read_yaml
from hyperbrush.shell import quoted
from hyperbrush.training.attention.config import HypernetworkConfig, preset
from hyperbrush.training.attention.trainer import HypernetworkTrainer
from hyperbrush.training.before.preflight import Preflight, preflight_of
from hyperbrush.training.data.pictures import FolderConfig
from hyperbrush.training.loop.adapter_settings import AdapterSettings
from hyperbrush.training.loop.caller import generators_kept
from hyperbrush.training.loop.config import Place, Strict, TrainedName
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.progress import PrepareCallback, Progress
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import merge_settings, names_of, read_settings, write_settings
from hyperbrush.training.report.result import RunResult, check_file, figures_of, keep_result, steps_before

USUAL_WIDTH = 1024  # of a context, where no model is open yet


class NetworkConfig(Strict):
    """The hypernetwork itself; see `AttentionHypernetwork`."""

    layer_structure: list[float] = Field(
        [1, 2, 1],
        description="widths of the layers, as multiples of the context's; on a transformer 1, 1/16, 1",
    )
    activation: str = Field("relu", description="linear, relu, leakyrelu, elu, swish, tanh, sigmoid, mish, …")
    layer_norm: bool = Field(False, description="normalise after each layer")
    dropout_structure: list[float] | None = Field(
        None, description="dropout after each width, as long as layer_structure"
    )
    activate_output: bool = Field(False, description="activate after the last layer too")
    weight_init: str = Field(
        "zero",
        description="zero: it begins by changing nothing; Normal, XavierNormal, KaimingUniform, … as the webui's",
    )
    per_site: bool = Field(
        False,
        description="a network for each attention instead of one for each width; not for the webui; on a transformer by default",
    )

    def check(self) -> None:
        """See that there is such a network, before a model says how wide it is.

        Raises:
            UserError: there is none.
        """
        with torch.device("meta"):  # no memory is taken, however wide it is
            AttentionHypernetwork([USUAL_WIDTH], **self.model_dump(exclude={"per_site"}))


class HypernetworkRun(Strict):
    """Everything a run needs; written to its config.yaml."""

    kind: Literal["hypernetwork"] = Field("hypernetwork", description="what the file is for")
    name: TrainedName = Field(description="no slashes, colons or angle brackets")
    data: list[FolderConfig] = Field(
        min_length=1, description="a folder, or several with repeats, shares and weights"
    )
    validation: list[FolderConfig] = Field(
        [], description="folders held out; else validation_share of the data"
    )
    model: Place = Field(
        "emoji", description="emoji, a diffusers folder, a single-file checkpoint or a hub id"
    )
    start_from: Place = Field(
        "",
        description="a file to go on from: a hypernetwork, with its .optim where that is beside it, or generated weights",
    )
    tune_rank: int | None = Field(
        None, ge=1, description="rank that generated weights are expanded to, which gives tuning room"
    )
    hypernetworks: Place = Field("models/hypernetworks", description="folder the finished file goes to")
    save_optimizer: bool = Field(
        False, description="write the optimizer's state beside the file (.optim), as the webui can"
    )
    network: NetworkConfig = NetworkConfig()
    training: HypernetworkConfig = HypernetworkConfig()

    @field_validator("data", "validation", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str | Path | dict | FolderConfig) else value

    def check_folders(self) -> None:
        """See that all folders are there, before the model is opened.

        Raises:
            UserError: one is not.
        """
        for folder in (*self.data, *self.validation):
            if not is_source(folder.path):
                raise UserError(f"there is no folder {folder.path}: expected one with pictures to train on")

    @classmethod
    def of(cls, **values: Any) -> "HypernetworkRun":
        """Validate values given by a person, all errors together."""
        return load_config(cls, values)


def configured(
    source: str | Path | None = None,
    *,
    presets: str = "",
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **values: Any,
) -> HypernetworkRun:
    """A run's settings: presets first, then a YAML file (which may name a ``preset`` too), then what is given.

    Args:
        source: the file; its stem is the name where none is given.
        presets: names joined by commas, see `preset`.
        settings: "KEY=VALUE" texts, see `merge_settings`.
        training, values: settings by name; None and "" say nothing.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    read_values = {} if source is None else read_yaml(Path(source))
    first = {"training": preset(str(read_values.pop("preset", ""))) | preset(presets)}
    return merge_settings(
        HypernetworkRun, source, read_values, first=first, settings=settings, training=training, **values
    )


def setting_names() -> list[str]:
    """Every setting of a run by its whole name, "training.loss"."""
    return names_of(HypernetworkRun)


@dataclass
class Result(RunResult):
    """What a finished run left; conditioning: of its model."""

    config: HypernetworkRun
    conditioning: str = "text"

    def command(self) -> str:
        """A command that draws with it."""
        if self.conditioning != "text":
            of = {"class": "--class 0 ", "image": "--image PICTURE "}.get(self.conditioning, "")
            return f"hyperbrush ldm sample {of}--model {quoted(self.config.model)} --hypernetwork {quoted(self.file)}"
        prompt = (self.config.training.prompts or ["cat face"])[0]
        return (
            f"hyperbrush generate {quoted(f'{prompt} <hypernet:{self.config.name}:1>')} "
            f"--model {quoted(self.config.model)} --hypernetworks {quoted(self.file.parent)}"
        )


def trigger_of(config: HypernetworkRun) -> str:
    """The word a run's captions teach: its trigger, else its name where templates have [name]; "" for none.

    Raises:
        UserError: the templates cannot be read.
    """
    t = config.training
    named = bool(t.templates) and any("[name]" in line for line in read_templates(t.templates))
    return t.trigger or (config.name if named else "")


def read_run(run: Path) -> HypernetworkRun:
    """The config of an existing run; see `read_settings`."""
    return read_settings(HypernetworkRun, run)


def run_preflight(
    config: HypernetworkRun, model: LatentDiffusion, progress: Callable[[int, int], None] | None = None
) -> Preflight:
    """The preflight of a run's pictures."""
    t = config.training
    return preflight_of(
        config.data,
        config.validation,
        t if t.trigger else t.model_copy(update={"trigger": config.name}),
        size=t.size or model.image_size,
        downscale=model.downsampling,
        multiple=model.size_unit,
        tokenizer=model.tokenizer,
        batch_size=t.batch_size,
        progress=progress,
    )


def open_model(source: str, training: AdapterSettings) -> LatentDiffusion:
    """The model of a run; a transformer's pipeline in bf16 where the training computes in it.

    Raises:
        UserError: see `open_any`.
    """
    half = training.mixed_precision == "bf16"
    return open_any(source, torch.bfloat16 if half else torch.float32)


def settled(config: HypernetworkRun, model: LatentDiffusion) -> HypernetworkRun:
    """A run's settings with what the model decides where nobody has: on a transformer a bottleneck for each site, see
    `AttentionHypernetwork.for_transformer`.
    """
    if find_transformer(model.unet) is None or config.start_from:
        return config
    usual = {"layer_structure": list(BOTTLENECK), "per_site": True}
    given = config.network.model_fields_set
    network = config.network.model_copy(update={k: v for k, v in usual.items() if k not in given})
    return config.model_copy(update={"network": network})


@generators_kept()
def open_network(
    config: HypernetworkRun, model: LatentDiffusion
) -> tuple[AttentionHypernetwork | TunedWeights, OptimizerState | None]:
    """What a run begins with, and the optimizer's state if it goes on from a file that has one.

    Raises:
        UserError: the file cannot be read; settings of a new network beside ``start_from``; a network that would be
            drawn with where it is not trained.
    """
    about = {"sd_checkpoint_name": config.model}
    if config.start_from:
        if config.network != NetworkConfig():
            raise UserError("start_from brings its own network; leave the settings of 'network' out")
        network = load(config.start_from, torch.float32)
        network.name = config.name
        network.metadata = {**network.metadata, **about}
        if not isinstance(network, GeneratedWeights) and config.tune_rank is not None:
            raise UserError(
                f"tune_rank is of generated weights, and {config.start_from} is a hypernetwork: leave it out"
            )
        if isinstance(network, GeneratedWeights):
            if config.tune_rank is not None and config.tune_rank < network.rank:
                raise UserError(
                    f"tune_rank {config.tune_rank} is below the file's rank {network.rank}, which cannot be made smaller here"
                )
            return TunedWeights(network.expand_rank(max(config.tune_rank or 1, network.rank))), None
        _check_reach(network, model, config.training)
        return network.requires_grad_(True), read_optimizer(config.start_from)
    if config.tune_rank is not None:
        raise UserError(
            "tune_rank is of generated weights to go on from: give them as --from, or leave it out"
        )
    torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
    settings = config.network.model_dump()
    per_site = settings.pop("per_site")
    attn, blocks = tuple(config.training.target_layers), config.training.blocks
    settings |= {"name": config.name, "metadata": about}
    if per_site:
        settings |= {"attn": attn, "blocks": blocks}
        if find_transformer(model.unet) is None:
            return AttentionHypernetwork.for_unet(model.unet, per_site=True, **settings), None
        return AttentionHypernetwork.for_transformer(model.unet, **settings), None
    widths = {site.context_width for site in attention_sites(model.unet, attn, blocks)}
    made = AttentionHypernetwork(sorted(widths), **settings)
    _check_reach(made, model, config.training)
    return made, None


def _check_reach(
    network: AttentionHypernetwork, model: LatentDiffusion, training: HypernetworkConfig
) -> None:
    """Refuse a network of a width that is trained at some of its attentions: drawn with, it acts on all so wide."""
    trained = attention_sites(model.unet, training.target_layers, training.blocks)
    paths = {*network.sites, *(site.path for site in trained)}
    widths = {site.context_width for site in trained if site.path not in network.sites} & {*network.widths}
    if any(s.context_width in widths and s.path not in paths for s in attention_sites(model.unet)):
        chosen = "target_layers" if training.blocks is None else "blocks"
        raise UserError(
            f"{chosen}: a network of a width acts on every attention so wide when it is drawn with, and it would be trained "
            "on some of them alone; take per_site, or leave this out"
        )


def file_of_run(config: HypernetworkRun) -> Path:
    """Where a training leaves its file in the library."""
    return Path(config.hypernetworks) / f"{config.name}.safetensors"


def train_run(
    config: HypernetworkRun,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    overwrite: bool = False,
    model: LatentDiffusion | None = None,
    on_report: Callable[[Preflight], None] | None = None,
    on_prepare: PrepareCallback | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train, save into the run and into the library folder, and say how it went.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        overwrite: replace a file of this name in the library.
        model: already opened; the config's by default.
        on_report: told the preflight's report, before the first step.
        on_prepare, on_progress, should_stop: see `HypernetworkTrainer`.

    Raises:
        UserError: whatever is wrong with data, model or settings, before the first step where possible.
        Interrupted: `should_stop` said so; the run can be resumed.
    """
    config.check_folders()
    trigger = trigger_of(config)
    check_place(config.hypernetworks, "--hypernetworks")
    with opened_run(run, resume=resume, at=at):
        check_file(
            file_of_run(config), config.start_from, overwrite=overwrite, resumed=run if resume else None
        )
        reports: list[Preflight] = []

        def begin() -> tuple[LatentDiffusion, Any, OptimizerState | None]:
            nonlocal config
            opened = model or open_model(config.model, config.training)
            config = settled(config, opened)
            config.training.check_model(opened)
            if is_main() and not resume:
                progress = None if on_prepare is None else partial(on_prepare, "looking at")
                reports.append(run_preflight(config, opened, progress))
                write_settings(config, run)
                write_json(run / "preflight.json", reports[0].as_dict())
                if on_report is not None:
                    on_report(reports[0])
            return opened, *open_network(config, opened)

        opened, network, optimizer_state = prepared(run, begin, should_stop)
        network.step = steps_before(run, network.step, resumed=resume)
        trainer = HypernetworkTrainer(
            network,
            config.training,
            run=run,
            optimizer_state=optimizer_state,
            on_progress=on_progress,
            should_stop=should_stop,
            on_prepare=on_prepare if is_main() else None,
            look=reports[0].look if reports else None,
        )
        trained = trainer.train(
            opened,
            config.data,
            config.validation or None,
            resume=resume,
            at=at,
            held=True,
            on_begin=partial(write_settings, config, run) if changed else None,
        )
        file = file_of_run(config).with_name(trained.name)
        result = Result(
            run=run,
            file=file,
            config=config,
            conditioning=opened.conditioning,
            **figures_of(run, config.training.keep_best),
        )
        network.step += result.best_step

        def save(path: Path) -> None:
            network.save(path)
            if config.save_optimizer:
                write_optimizer(path, *trainer.optimizer_state_dict())

        if is_main():
            again = f"hyperbrush train --resume {run} --hypernetworks FOLDER"
            keep_result(result, save, again, trigger=trigger)
        return result

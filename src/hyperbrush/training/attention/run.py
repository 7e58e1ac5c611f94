"""`hyperbrush train`: a hypernetwork's run, from its config to a file in the library."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from hyperbrush.errors import UserError
from hyperbrush.files import check_place, write_json
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.files.adapters import load
from hyperbrush.hypernetworks.files.optimizer import OptimizerState, read_optimizer, write_optimizer
from hyperbrush.hypernetworks.generator import GeneratedWeights, TunedWeights
from hyperbrush.ldm.data.archives import is_source
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_seed, load_config, read_yaml
from hyperbrush.training.attention.config import HypernetworkConfig, preset
from hyperbrush.training.attention.trainer import HypernetworkTrainer
from hyperbrush.training.before.findings import Finding, Note
from hyperbrush.training.before.preflight import Preflight, preflight
from hyperbrush.training.data.cached import Told
from hyperbrush.training.data.pictures import FolderConfig, named_repeats
from hyperbrush.training.loop.caller import AccelerateStates, generators_kept
from hyperbrush.training.loop.config import Place, Strict, TrainedName
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import from_everywhere, names_of, read_settings, write_settings
from hyperbrush.training.loop.trainer import Progress
from hyperbrush.training.report.report import report_run


class NetworkConfig(Strict):
    """The hypernetwork itself; see `AttentionHypernetwork`."""

    layer_structure: list[float] = Field(
        [1, 2, 1], description="widths of the layers, as multiples of the context's"
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
        False, description="a network for each attention instead of one for each width; not for the webui"
    )


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
        settings: "KEY=VALUE" texts, see `from_everywhere`.
        training, values: settings by name; None and "" say nothing.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    read_values = {} if source is None else read_yaml(Path(source))
    first = {"training": preset(str(read_values.pop("preset", ""))) | preset(presets)}
    return from_everywhere(
        HypernetworkRun, source, read_values, first=first, settings=settings, training=training, **values
    )


def setting_names() -> list[str]:
    """Every setting of a run by its whole name, "training.loss"."""
    return names_of(HypernetworkRun)


@dataclass
class Result:
    """What a finished run left."""

    config: HypernetworkRun
    run: Path
    file: Path
    steps: int
    seconds: float
    base_loss: float
    best_loss: float
    best_step: int
    report: Path
    conditioning: str = "text"  # of its model

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.file}  ({self.steps} steps, {self.seconds:.0f} s)"]
        if math.isfinite(self.best_loss):
            lines.append(
                f"validation loss {self.base_loss:.4f} without, {self.best_loss:.4f} with it "
                f"(best, at step {self.best_step})"
            )
        lines += [f"report: {self.report}", f"try: {self.command()}"]
        return "\n".join(lines)

    def command(self) -> str:
        """A command that draws with it."""
        if self.conditioning != "text":
            of = {"class": "--class 0 ", "image": "--image PICTURE "}.get(self.conditioning, "")
            return f"hyperbrush ldm sample {of}--model {self.config.model} --hypernetwork {self.file}"
        prompt = (self.config.training.prompts or ["cat face"])[0]
        return (
            f'hyperbrush generate "{prompt} <hypernet:{self.config.name}:1>" '
            f"--model {self.config.model} --hypernetworks {self.file.parent}"
        )


def read_run(run: Path) -> HypernetworkRun:
    """The config of an existing run; see `read_settings`."""
    return read_settings(HypernetworkRun, run)


def look_over(
    config: HypernetworkRun, model: LatentDiffusion, progress: Callable[[int, int], None] | None = None
) -> Preflight:
    """The preflight of a run's pictures, as its training will see them."""
    t = config.training
    named = t if t.trigger else t.model_copy(update={"trigger": config.name})
    size = t.size or model.image_size
    report = preflight(
        [f.path for f in config.data],
        validation=[f.path for f in config.validation] or None,
        size=size,
        buckets=t.shapes(size, model.size_unit),
        crop=t.crop,
        captions=t.captions,
        file_names=t.file_names(),
        caption_lines=t.caption_lines,
        captioning=named.captioning(),
        masks=t.mask_settings(model.image_size // model.latent_shape[1]),
        tokenizer=model.tokenizer,
        batch_size=t.batch_size,
        progress=progress,
    )
    repeats = Finding.of(
        "repeats",
        "note",
        [Note((path,), f"each picture counts {times} times") for path, times in named_repeats(config.data)],
        "folders have repeats in their names",
        "as sd-scripts reads them; with repeats: 1 for the folder above, the names say nothing",
    )
    return replace(report, findings=(*report.findings, repeats)) if repeats else report


@generators_kept()
def open_network(
    config: HypernetworkRun, model: LatentDiffusion
) -> tuple[AttentionHypernetwork | TunedWeights, OptimizerState | None]:
    """What a run begins with, and the optimizer's state if it goes on from a file that has one.

    Raises:
        UserError: the file cannot be read; settings of a new network beside ``start_from``.
    """
    about = {"sd_checkpoint_name": config.model}
    if config.start_from:
        if config.network != NetworkConfig():
            raise UserError("start_from brings its own network; leave the settings of 'network' out")
        network = load(config.start_from, torch.float32)
        network.name = config.name
        network.metadata = {**network.metadata, **about}
        if isinstance(network, GeneratedWeights):
            return TunedWeights(network.expand_rank(max(config.tune_rank or 1, network.rank))), None
        return network.requires_grad_(True), read_optimizer(config.start_from)
    torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
    chosen: dict[str, Any] = {"blocks": config.training.blocks} if config.network.per_site else {}
    network = AttentionHypernetwork.for_unet(
        model.unet,
        attn=tuple(config.training.target_layers),
        name=config.name,
        metadata=about,
        **chosen,
        **config.network.model_dump(),
    )
    return network, None


def train_run(
    config: HypernetworkRun,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    model: LatentDiffusion | None = None,
    on_report: Callable[[Preflight], None] | None = None,
    on_prepare: Told | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train, save into the run and into the library folder, and say how it went.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        model: already opened; the config's by default.
        on_report: told the preflight's report, before the first step.
        on_prepare, on_progress, should_stop: see `HypernetworkTrainer`.

    Raises:
        UserError: whatever is wrong with data, model or settings, before the first step where possible.
        Interrupted: `should_stop` said so; the run can be resumed.
    """
    for folder in (*config.data, *config.validation):
        if not is_source(folder.path):  # before the model is opened
            raise UserError(f"there is no folder {folder.path}: expected one with pictures to train on")
    check_place(config.hypernetworks, "--hypernetworks")
    with AccelerateStates().entered(), generators_kept(), opened_run(run, resume=resume, at=at):

        def begin() -> tuple[LatentDiffusion, Any, OptimizerState | None]:
            opened = model or LatentDiffusion.from_pretrained(config.model)
            if is_main() and not resume:
                told = None if on_prepare is None else _named(on_prepare, "looking at")
                report = look_over(config, opened, told)
                write_settings(config, run)
                write_json(run / "preflight.json", report.as_dict())
                if on_report is not None:
                    on_report(report)
            return opened, *open_network(config, opened)

        opened, network, optimizer_state = prepared(run, begin, should_stop)
        before = int(network.step or 0)
        trainer = HypernetworkTrainer(
            network,
            config.training,
            run=run,
            optimizer_state=optimizer_state,
            on_progress=on_progress,
            should_stop=should_stop,
            on_prepare=on_prepare if is_main() else None,
        )
        trained = trainer.train(
            opened,
            config.data,
            config.validation or None,
            resume=resume,
            at=at,
            held=True,
            on_begin=(lambda: write_settings(config, run)) if changed else (lambda: None),
        )
        result = _result(config, run, trained, opened.conditioning)
        network.step = before + result.best_step
        if is_main():
            _keep(network, trainer, trained, result)
        return result


def _result(config: HypernetworkRun, run: Path, trained: Path, conditioning: str) -> Result:
    """What the run's figures say."""
    rows = [row for row in read(run / "metrics.jsonl") if "loss" in row]
    best = min((r for r in rows if "validation_loss" in r), key=lambda r: r["validation_loss"], default={})
    return Result(
        config,
        run,
        Path(config.hypernetworks) / trained.name,
        rows[-1]["step"],
        rows[-1]["seconds"],
        best.get("validation_base", math.inf),
        best.get("validation_loss", math.inf),
        int(best.get("step", rows[-1]["step"])),
        run / "report.html",
        conditioning,
    )


def _keep(
    network: AttentionHypernetwork | TunedWeights, trainer: HypernetworkTrainer, trained: Path, result: Result
) -> None:
    """Write the finished file into the run and into the library, and the report."""
    config = result.config
    for file in (trained, result.file):
        try:
            network.save(file)
            if config.save_optimizer:
                name, state = trainer.optimizer_state_dict()
                write_optimizer(file, name, state)
        except UserError as error:
            if file == trained:
                raise
            raise UserError(
                f"{error}. The training is done and its file stands at {trained}; to write it elsewhere: "
                f"hyperbrush train --resume {result.run} --hypernetworks FOLDER"
            ) from error
    report_run(result.run, commands=[result.command()])


def _named(told: Told, what: str) -> Callable[[int, int], None]:
    return lambda done, of: told(what, done, of)

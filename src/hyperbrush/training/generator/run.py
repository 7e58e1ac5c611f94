"""`hyperbrush hyper train`: a generator's run, from its config to a file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from hyperbrush.errors import UserError
from hyperbrush.files import check_place
from hyperbrush.hypernetworks.generator import Hypernetwork, TargetNetwork
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_seed, read_yaml
from hyperbrush.shell import quoted
from hyperbrush.training.attention.run import open_model
from hyperbrush.training.attention.trainer import HypernetworkTrainer
from hyperbrush.training.generator.config import GeneratorConfig, GeneratorNetwork
from hyperbrush.training.loop.config import Place, Strict, TrainedName
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.progress import PrepareCallback, Progress
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import merge_settings, write_settings
from hyperbrush.training.report.result import RunResult, check_file, figures_of, keep_result, steps_before


class GeneratorRun(Strict):
    """Everything a run needs; written to its config.yaml."""

    kind: Literal["generator"] = Field("generator", description="what the file is for")
    name: TrainedName = Field(description="no slashes, colons or angle brackets")
    data: Place = Field(description="a folder with one folder of pictures for each style")
    validation: Place | None = Field(
        None, description="the same, styles held out; else validation_share of the styles"
    )
    model: Place = Field(
        "emoji", description="emoji, a diffusers folder, a single-file checkpoint or a hub id"
    )
    generators: Place = Field("models/generators", description="folder the finished file goes to")
    start_from: Place = Field(
        "", description="go on from this generator, such as one for the model's earlier weights"
    )
    network: GeneratorNetwork = GeneratorNetwork()
    training: GeneratorConfig = GeneratorConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.start_from and self.network != GeneratorNetwork():
            raise ValueError("start_from brings its own network; leave the settings of 'network' out")
        return self


def configured_generator(
    source: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **values: Any,
) -> GeneratorRun:
    """A run's settings from a YAML file and what is given; see `merge_settings`.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    read_values = {} if source is None else read_yaml(Path(source))
    return merge_settings(GeneratorRun, source, read_values, settings=settings, training=training, **values)


@dataclass
class GeneratorResult(RunResult):
    """What a finished run left; losses are those of held-out styles."""

    config: GeneratorRun

    @property
    def shuffled_loss(self) -> float:
        """With weights from another style's."""
        return float(self.best.get("validation_shuffled", math.inf))

    def judged(self) -> str:
        """The losses in words."""
        said = f"held-out styles: loss {self.base_loss:.4f} without, {self.best_loss:.4f} from their own pictures"
        return (
            f"{said}, {self.shuffled_loss:.4f} from another style's"
            if math.isfinite(self.shuffled_loss)
            else said
        )

    def command(self) -> str:
        """A command that generates with it."""
        of = "" if self.config.model == "emoji" else f"--model {quoted(self.config.model)} "
        return f"hyperbrush hyper generate {of}--generator {quoted(self.file)} --images A.png B.png --out style.safetensors"


def train_generator(
    config: GeneratorRun,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    overwrite: bool = False,
    model: LatentDiffusion | None = None,
    on_prepare: PrepareCallback | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> GeneratorResult:
    """Train, save into the run and into the folder of generators, and say how it went.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        overwrite: replace a file of this name in the folder of generators.
        model: already opened; the config's by default.
        on_prepare, on_progress, should_stop: see `HypernetworkTrainer`.

    Raises:
        UserError: whatever is wrong with data, model or settings, before the first step where possible.
        Interrupted: `should_stop` said so; the run can be resumed.
    """
    for folder in filter(None, (config.data, config.validation)):
        if not Path(folder).is_dir():  # before the model is opened
            raise UserError(f"there is no folder {folder}: expected one with a folder for each style")
    check_place(config.generators, "generators")
    file = Path(config.generators) / f"{config.name}.safetensors"
    with opened_run(run, resume=resume, at=at):
        check_file(file, config.start_from, overwrite=overwrite, resumed=run if resume else None)
        opened = model or prepared(run, lambda: open_model(config.model, config.training), should_stop)
        config.training.check_model(opened)
        net = _begun(config, opened)
        net.step = steps_before(run, net.step, resumed=resume)
        if is_main() and not resume:
            write_settings(config, run)
        trainer = HypernetworkTrainer(
            net,
            config.training,
            run=run,
            on_progress=on_progress,
            should_stop=should_stop,
            on_prepare=on_prepare,
        )
        trained = trainer.train(
            opened,
            config.data,
            config.validation,
            resume=resume,
            at=at,
            held=True,
            on_begin=partial(write_settings, config, run) if changed else None,
        )
        file = file.with_name(trained.name)
        result = GeneratorResult(
            run=run, file=file, config=config, **figures_of(run, config.training.keep_best)
        )
        net.step += result.best_step
        if is_main():
            keep_result(result, net.save, f"hyperbrush hyper train --resume {run} -s generators=FOLDER")
        return result


def _begun(config: GeneratorRun, model: LatentDiffusion) -> Hypernetwork:
    """The generator that is trained, as it is before the first step.

    Raises:
        UserError: the one to go on from cannot be read, or is for another model.
    """
    if config.start_from:
        net = Hypernetwork.load(config.start_from, model)
        net.name, net.settings = config.name, replace(net.settings, condition_dropout=0.0)
        return net
    torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
    target = TargetNetwork(model, tuple(config.network.target_layers))
    settings = config.network.model_dump()
    return Hypernetwork(target=target, name=config.name, condition_dropout=0.0, **settings)

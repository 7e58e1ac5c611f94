"""`hyperbrush hyper train`: a generator's run, from its config to a file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from hyperbrush.errors import UserError
from hyperbrush.files import check_place
from hyperbrush.hypernetworks.generator import Hypernetwork, TargetNetwork
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_seed, read_yaml
from hyperbrush.training.attention.trainer import HypernetworkTrainer
from hyperbrush.training.data.cached import Told
from hyperbrush.training.generator.config import GeneratorConfig, GeneratorNetwork
from hyperbrush.training.loop.caller import AccelerateStates, generators_kept
from hyperbrush.training.loop.config import Place, Strict, TrainedName
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import from_everywhere, write_settings
from hyperbrush.training.loop.trainer import Progress
from hyperbrush.training.report.report import report_run


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
    network: GeneratorNetwork = GeneratorNetwork()
    training: GeneratorConfig = GeneratorConfig()


def configured_generator(
    source: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **values: Any,
) -> GeneratorRun:
    """A run's settings from a YAML file and what is given; see `from_everywhere`.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    read_values = {} if source is None else read_yaml(Path(source))
    return from_everywhere(GeneratorRun, source, read_values, settings=settings, training=training, **values)


@dataclass
class GeneratorResult:
    """What a finished run left; losses are those of held-out styles."""

    config: GeneratorRun
    run: Path
    file: Path
    steps: int
    seconds: float
    base_loss: float
    loss: float
    shuffled_loss: float

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.file}  ({self.steps} steps, {self.seconds:.0f} s)"]
        if math.isfinite(self.loss):
            lines.append(
                f"held-out styles: loss {self.base_loss:.4f} without, {self.loss:.4f} from their own pictures, "
                f"{self.shuffled_loss:.4f} from another style's"
            )
        return "\n".join([*lines, f"report: {self.run / 'report.html'}", f"try: {self.command()}"])

    def command(self) -> str:
        """A command that generates with it."""
        return (
            f"hyperbrush hyper generate --generator {self.file} --images A.png B.png --out style.safetensors"
        )


def train_generator(
    config: GeneratorRun,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    model: LatentDiffusion | None = None,
    on_prepare: Told | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> GeneratorResult:
    """Train, save into the run and into the folder of generators, and say how it went.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
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
    with AccelerateStates().entered(), generators_kept(), opened_run(run, resume=resume, at=at):
        opened = model or prepared(run, lambda: LatentDiffusion.from_pretrained(config.model), should_stop)
        torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
        network = config.network.model_dump()
        target = TargetNetwork(opened, tuple(config.network.target_layers))
        if is_main() and not resume:
            write_settings(config, run)
        net = Hypernetwork(target=target, name=config.name, condition_dropout=0.0, **network)
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
            on_begin=(lambda: write_settings(config, run)) if changed else (lambda: None),
        )
        rows = [row for row in read(run / "metrics.jsonl") if "loss" in row]
        best = min(
            (r for r in rows if "validation_loss" in r), key=lambda r: r["validation_loss"], default={}
        )
        net.step = int(best.get("step", rows[-1]["step"]))
        result = GeneratorResult(
            config,
            run,
            Path(config.generators) / trained.name,
            rows[-1]["step"],
            rows[-1]["seconds"],
            best.get("validation_base", math.inf),
            best.get("validation_loss", math.inf),
            best.get("validation_shuffled", math.inf),
        )
        if is_main():
            for file in (trained, result.file):
                net.save(file)
            report_run(run, commands=[result.command()])
        return result

"""`hyperbrush train`: a hypernetwork's run, from its config to a file in the library."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field

from hyperbrush.errors import UserError
from hyperbrush.files import write_text
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_seed, load_config
from hyperbrush.training.config import Strict
from hyperbrush.training.hypernetwork import HypernetworkConfig, HypernetworkTrainer
from hyperbrush.training.metrics import read
from hyperbrush.training.trainer import Progress


class NetworkConfig(Strict):
    """The hypernetwork itself; see `AttentionHypernetwork`."""

    layer_structure: list[float] = [1, 2, 1]
    activation: str = "relu"
    layer_norm: bool = False
    dropout_structure: list[float] | None = None
    activate_output: bool = False
    weight_init: str = "zero"
    per_site: bool = False


class HypernetworkRun(Strict):
    """Everything a run needs; written to its config.yaml."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    name: str = Field(pattern=r"^[^/\\:<>\x00]+$", description="no slashes, colons or angle brackets")
    data: str
    validation: str | None = None
    model: str = "emoji"
    hypernetworks: str = "models/hypernetworks"
    network: NetworkConfig = NetworkConfig()
    training: HypernetworkConfig = HypernetworkConfig()

    @classmethod
    def of(cls, **values: Any) -> "HypernetworkRun":
        """Validate values given by a person, all errors together."""
        return load_config(cls, values)


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

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.file}  ({self.steps} steps, {self.seconds:.0f} s)"]
        if math.isfinite(self.best_loss):
            lines.append(
                f"validation loss {self.base_loss:.4f} without, {self.best_loss:.4f} with it "
                f"(best, at step {self.best_step})"
            )
        lines.append(
            f'try: hyperbrush generate "<hypernet:{self.config.name}:1> cat face" '
            f"--model {self.config.model} --hypernetworks {self.file.parent}"
        )
        return "\n".join(lines)


def save_run(config: HypernetworkRun, run: Path) -> None:
    """Begin a run folder with its config.yaml.

    Raises:
        UserError: a run stands there already, so that nothing is lost by a name used twice.
    """
    if (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir()):
        raise UserError(
            f"{run} holds a run already; go on with --resume {run}, or take another --name or --run"
        )
    write_text(
        run / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def read_run(run: Path) -> HypernetworkRun:
    """The config of an existing run.

    Raises:
        UserError: no such run, or its config is broken.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    return load_config(HypernetworkRun, run / "config.yaml")


def train_run(
    config: HypernetworkRun,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    model: LatentDiffusion | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train, save into the run and into the library folder, and say how it went.

    Raises:
        UserError: whatever is wrong with data, model or settings, before the first step where possible.
        Interrupted: `should_stop` said so; the run can be resumed.
    """
    ImageFolder(config.data)  # names every broken picture before the model is opened
    opened = model or LatentDiffusion.from_pretrained(config.model)
    torch.manual_seed(keyed_seed(config.training.seed, "initialisation"))
    network = AttentionHypernetwork.for_unet(
        opened.unet,
        attn=tuple(config.training.target_layers),
        name=config.name,
        metadata={"sd_checkpoint_name": config.model},
        **config.network.model_dump(),
    )
    trainer = HypernetworkTrainer(
        network, config.training, run=run, on_progress=on_progress, should_stop=should_stop
    )
    trained = trainer.train(opened, config.data, config.validation, resume=resume, at=at)
    rows = read(run / "metrics.jsonl")
    best = min((r for r in rows if "validation_loss" in r), key=lambda r: r["validation_loss"], default={})
    network.step = int(best.get("step", rows[-1]["step"]))
    file = Path(config.hypernetworks) / trained.name
    network.save(trained)
    network.save(file)
    return Result(
        config,
        run,
        file,
        rows[-1]["step"],
        rows[-1]["seconds"],
        best.get("validation_base", math.inf),
        best.get("validation_loss", math.inf),
        network.step,
    )

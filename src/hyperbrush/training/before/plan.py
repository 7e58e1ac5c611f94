"""What a training will do, take and need, before it begins."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.generator import TunedWeights
from hyperbrush.ldm.data.archives import is_source
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.attention.objective import HypernetworkObjective
from hyperbrush.training.attention.run import HypernetworkRun, look_over, open_network
from hyperbrush.training.attention.trainer import HypernetworkTrainer, pictures_of
from hyperbrush.training.before.finders import find_batch_size
from hyperbrush.training.before.preflight import Preflight
from hyperbrush.training.before.trial import trial
from hyperbrush.training.data.cached import FORMS, Told
from hyperbrush.training.loop.caller import AccelerateStates, ModuleAsFound
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.lock import run_lock
from hyperbrush.training.loop.memory import PeakMemory
from hyperbrush.training.loop.micro_batches import MicroBatches
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import advice
from hyperbrush.training.loop.processes import join
from hyperbrush.training.report.report import duration

TRIED = 2  # steps that are timed


@dataclass(frozen=True)
class Plan:
    """A run before its first step.

    report: what the preflight found. pictures, held_out: as many examples an epoch; captions: different
    ones. shapes: (height, width) in pixels → examples. steps, epochs; parameters: trained ones.
    seconds: of the steps to do, from ``TRIED`` steps timed now; memory: bytes one step takes beside the
    model, None where that cannot be measured. advice: about settings that are legal but rarely meant.
    """

    config: HypernetworkRun
    report: Preflight
    pictures: int
    held_out: int
    captions: int
    shapes: dict[tuple[int, int], int]
    steps: int
    parameters: int
    seconds: float
    memory: int | None
    advice: tuple[str, ...]
    done: int = 0

    @property
    def epochs(self) -> float:
        """Times each picture is seen."""
        return self.steps * self.config.training.batch_size / self.pictures

    def text(self) -> str:
        """For a person."""
        t = self.config.training
        shapes = ", ".join(f"{w}×{h}: {n}" for (h, w), n in sorted(self.shapes.items()))
        memory = "" if self.memory is None else f"{self.memory / 2**20:.0f} MiB for a step, beside the model"
        rows = {
            "pictures": f"{self.pictures} to train on, {self.held_out} held out; {self.captions} captions",
            "shapes": shapes,
            "hypernetwork": f"{self.config.name}, {self.parameters:,} trained numbers"
            + (f", from {self.config.start_from}" if self.config.start_from else ""),
            "steps": f"{self.steps} of {t.batch_size} pictures; each picture {self.epochs:.1f} times",
            "goes on": f"from step {self.done}, {max(0, self.steps - self.done)} to do" if self.done else "",
            "optimizer": f"{t.optimizer}, {t.schedule}",
            "time": f"about {duration(self.seconds)} (measured on {TRIED} steps)",
            "memory": memory,
        }
        width = max(map(len, rows))
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows.items() if value]
        return "\n".join([*lines, *(f"note: {said}" for said in self.advice), "", str(self.report)])


def plan(config: HypernetworkRun, model: LatentDiffusion | None = None, *, done: int = 0) -> Plan:
    """Look at a run's pictures, try two steps, and keep nothing.

    done: steps made already, of a run that goes on.

    Raises:
        UserError: as `train_run`, before the first step.
    """
    for folder in (*config.data, *config.validation):
        if not is_source(folder.path):
            raise UserError(f"there is no folder {folder.path}: expected one with pictures to train on")
    opened = model or LatentDiffusion.from_pretrained(config.model)
    report = look_over(config, opened)
    network, _ = open_network(config, opened)
    trainer = HypernetworkTrainer(network, config.training)
    t = trainer.config
    assert isinstance(t, HypernetworkConfig)
    train, held = pictures_of(opened, t, config.data, config.validation or None)
    steps = t.steps(len(train))
    shapes: dict[tuple[int, int], int] = {}
    for shape in train.groups:
        shapes[shape] = shapes.get(shape, 0) + 1
    found = ModuleAsFound(opened)
    with AccelerateStates().entered():
        objective = _trial_objective(network, t, opened, max(shapes, key=math.prod))
        try:
            seconds, memory = timed(objective, t.trainer(1))
        finally:
            objective.close()
            found.restore()
    return Plan(
        config,
        report,
        len(train),
        0 if held is None else len(held),
        len({train.caption(i, 0) for i in range(len(train))}),
        shapes,
        steps,
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        seconds * max(0, steps - done),
        memory,
        tuple(advice(t.optimizer, t.learning_rate, t.schedule)),
        done,
    )


def suggest_batch_size(config: HypernetworkRun, run: Path, told: Told | None = None) -> int:
    """The most of a run's own pictures that one step can compute at once; see `find_batch_size`."""
    with _opened(config, run, told) as (objective, trainer):
        return find_batch_size(objective, trainer.config.trainer(len(objective.data)))


@contextlib.contextmanager
def _opened(
    config: HypernetworkRun, run: Path, told: Told | None
) -> Iterator[tuple[HypernetworkObjective, HypernetworkTrainer]]:
    with AccelerateStates().entered(), run_lock(run):
        opened = LatentDiffusion.from_pretrained(config.model)
        network, _ = open_network(config, opened)
        trainer = HypernetworkTrainer(network, config.training, run=run, on_prepare=told)
        objective = trainer.objective(opened, config.data, config.validation or None)
        assert isinstance(objective, HypernetworkObjective)
        try:
            yield objective, trainer
        finally:
            objective.close()


class Blanks:
    """As many examples as a batch has, of one shape and without a caption: what a step costs, they cost."""

    def __init__(self, model: LatentDiffusion, shape: tuple[int, int], count: int) -> None:
        factor = model.image_size // model.latent_shape[1]
        self.latent = torch.zeros(model.latent_shape[0], shape[0] // factor, shape[1] // factor)
        self.beside = {}
        if model.inpaints:
            self.beside = {"image": torch.zeros(3, *shape), "inpaint_mask": torch.ones(1, *shape)}
        elif model.conditioning == "class":
            self.beside = {"class_label": torch.tensor(0)}
        elif model.conditioning == "image":
            self.beside = {"condition_image": torch.zeros(3, *self.latent.shape[1:])}
        self.captions, self.paths, self.groups = [""] * count, ["blank"] * count, [shape] * count

    def __len__(self) -> int:
        return len(self.captions)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The one there is."""
        told = {"caption": self.caption(index, epoch), "path": self.paths[index]}
        return {"latent_mean": self.latent, **told, **self.beside}

    def caption(self, index: int, epoch: int) -> str:
        """None."""
        return self.captions[index]

    def variants(self, index: int) -> list[str]:
        """None else."""
        return [self.captions[index]]


def _trial_objective(
    network: AttentionHypernetwork | TunedWeights,
    config: HypernetworkConfig,
    model: LatentDiffusion,
    shape: tuple[int, int],
) -> HypernetworkObjective:
    """An objective on blanks of the largest shape."""
    model.to(join()).requires_grad_(False)
    texts = None
    if model.conditioning == "text":
        with torch.no_grad():
            texts = {"": {FORMS[key]: value[0].cpu() for key, value in model.text_conditions([""]).items()}}
    data = Blanks(model, shape, config.batch_size)
    return HypernetworkObjective(model, network, config, data, texts=texts)


def timed(objective: Objective, config: TrainerConfig) -> tuple[float, int | None]:
    """Seconds of a step and the bytes it takes."""
    with trial(objective, config) as accelerator:
        trained: list[torch.Tensor] = [p for p in objective.parameters() if p.requires_grad]
        micro = MicroBatches(accelerator, objective, trained, config.batch_size, config.gradient_accumulation)
        objective.train()

        def step(number: int) -> None:
            micro.gradients(lambda: objective.batch(number, config.batch_size), number)
            for parameter in trained:
                parameter.grad = None
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()

        peak = PeakMemory(accelerator.device)
        with peak:
            step(0)
        begin = time.perf_counter()
        for number in range(TRIED):
            step(1 + number)
        return (time.perf_counter() - begin) / TRIED, peak.grown or None

"""What a training will do, take and need, before it begins."""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.generator import TunedWeights
from hyperbrush.ldm.data import CaptionedExamples
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.conditioning import FORMS
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.attention.objective import HypernetworkObjective
from hyperbrush.training.attention.run import (
    HypernetworkRun,
    open_model,
    open_network,
    run_preflight,
    settled,
)
from hyperbrush.training.attention.trainer import HypernetworkTrainer, lay_out, pictures_of
from hyperbrush.training.before.finders import TIMED_STEPS, find_batch_size, timed
from hyperbrush.training.before.preflight import Preflight
from hyperbrush.training.ldm.config import FirstStageRun, Run
from hyperbrush.training.ldm.run import (
    denoising_objective,
    diffusion_model,
    first_stage_objective,
    open_data,
    open_origin,
)
from hyperbrush.training.ldm.run import run_preflight as preflight_of_ldm
from hyperbrush.training.loop.caller import AccelerateStates, ModuleAsFound
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import advice
from hyperbrush.training.loop.processes import join
from hyperbrush.training.loop.progress import PrepareCallback
from hyperbrush.training.loop.run_folder import run_lock
from hyperbrush.training.report.report import duration


@dataclass(frozen=True)
class Plan:
    """A run before its first step.

    loop: settings of its loop. report: what the preflight found. kind, network: what is trained, in words.
    pictures, held_out, captions: different ones, whatever their repeats. shapes: (height, width) in pixels → pictures.
    parameters: trained ones. seconds: of the steps to do, from ``TIMED_STEPS`` steps timed now; memory: bytes one step
    takes beside the model, None where that cannot be measured. advice: about settings that are legal but rarely meant.
    done: steps made already, of a run that goes on.
    """

    loop: TrainerConfig
    report: Preflight
    kind: str
    network: str
    pictures: int
    held_out: int
    captions: int
    shapes: dict[tuple[int, int], int]
    parameters: int
    seconds: float
    memory: int | None
    advice: tuple[str, ...]
    done: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.loop.steps

    @property
    def epochs(self) -> float:
        """Times each picture is seen, on average where some have more repeats."""
        return self.steps * self.loop.batch_size / self.pictures

    def text(self) -> str:
        """In lines to show."""
        loop = self.loop
        encoding = ", and encoding the pictures once before" if self.kind.startswith("diffusion") else ""
        rows = {
            "kind": self.kind,
            "pictures": f"{self.pictures} to train on, {self.held_out} held out; {self.captions} captions",
            "shapes": ", ".join(f"{w}×{h}: {n}" for (h, w), n in sorted(self.shapes.items())),
            "network" if self.kind else "hypernetwork": self.network,
            "steps": f"{self.steps} of {loop.batch_size} pictures; each picture {self.epochs:.1f} times",
            "goes on": f"from step {self.done}, {max(0, self.steps - self.done)} to do" if self.done else "",
            "optimizer": f"{loop.optimizer.name}, {loop.optimizer.schedule}",
            "time": f"about {duration(self.seconds)} (measured on {TIMED_STEPS} steps){encoding}",
            "memory": ""
            if self.memory is None
            else f"{self.memory / 2**20:.0f} MiB for a step, beside the model",
        }
        width = max(map(len, rows))
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows.items() if value]
        return "\n".join([*lines, *(f"note: {line}" for line in self.advice), "", str(self.report)])


def _planned(
    objective: Objective,
    loop: TrainerConfig,
    report: Preflight,
    pictures: Sequence[CaptionedExamples | None],
    done: int,
    *,
    kind: str = "",
    name: str = "",
) -> Plan:
    """A plan of what is trained on pictures, after two steps of it; pictures: to train on, and held out."""
    seconds, memory = timed(objective, loop)
    train, held_out = pictures
    assert train is not None
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    optimizer, shapes = loop.optimizer, dict(zip(train.paths, train.groups, strict=True))
    return Plan(
        loop,
        report,
        kind,
        f"{name}{parameters:,} trained numbers",
        len(shapes),
        0 if held_out is None else len(set(held_out.paths)),
        len({train.caption(i, 0) for i in range(len(train))}),
        dict(Counter(shapes.values())),
        parameters,
        seconds * max(0, loop.steps - done),
        memory,
        tuple(advice(optimizer.name, optimizer.learning_rate, optimizer.schedule)),
        done,
    )


def plan(config: HypernetworkRun, model: LatentDiffusion | None = None, *, done: int = 0) -> Plan:
    """Look at a run's pictures, try two steps, and keep nothing.

    done: steps made already, of a run that goes on.

    Raises:
        UserError: as `train_run`, before the first step.
    """
    config.check_folders()
    opened = model or open_model(config.model, config.training)
    config = settled(config, opened)
    config.training.check_model(opened)
    report = run_preflight(config, opened)
    network, _ = open_network(config, opened)
    t = HypernetworkTrainer(network, config.training).config
    assert isinstance(t, HypernetworkConfig)
    pictures = pictures_of(opened, t, config.data, config.validation or None, report.look)
    origin = f", from {config.start_from}" if config.start_from else ""
    found = ModuleAsFound(opened)
    with AccelerateStates().entered():
        objective = _trial_objective(network, t, opened, max(pictures[0].groups, key=math.prod))
        try:
            made = _planned(
                objective, t.trainer(len(pictures[0])), report, pictures, done, name=f"{config.name}, "
            )
        finally:
            objective.close()
            found.restore()
    return replace(made, network=made.network + origin)


def plan_ldm(config: Run, *, done: int = 0) -> Plan:
    """As `plan`, of a first stage or a diffusion model.

    Raises:
        UserError: as `train_ldm`, before the first step.
    """
    opened = open_origin(config)
    report = preflight_of_ldm(config, opened)
    pictures = open_data(config, opened, report.look)
    train, held_out = pictures
    objective: Objective
    with tempfile.TemporaryDirectory() as folder, AccelerateStates().entered():
        if isinstance(config, FirstStageRun):
            kind = f"{config.kind}, {config.model.type}"
            objective = first_stage_objective(config, train, held_out)
        else:
            origin = f"from {config.start_from}" if config.start_from else f"on {config.first_stage}"
            kind = f"{config.kind}, {origin}"
            model = diffusion_model(config, opened, train, Path(folder), resume=False)
            blanks = Blanks(model, max(train.groups, key=math.prod), config.training.batch_size)
            objective = denoising_objective(config, model, blanks, None)
        return _planned(objective, config.training, report, pictures, done, kind=kind)


def suggest_batch_size(config: HypernetworkRun, run: Path, on_prepare: PrepareCallback | None = None) -> int:
    """The most of a run's own pictures that one step can compute at once; see `find_batch_size`."""
    with AccelerateStates().entered(), run_lock(run):
        opened = open_model(config.model, config.training)
        config = settled(config, opened)
        network, _ = open_network(config, opened)
        trainer = HypernetworkTrainer(network, config.training, run=run, on_prepare=on_prepare)
        objective = trainer.objective(opened, config.data, config.validation or None)
        try:
            return find_batch_size(objective, trainer.config.trainer(len(objective.data)))
        finally:
            objective.close()


class Blanks:
    """As many examples as a batch has, of one shape and without a caption: what a step costs, they cost."""

    def __init__(self, model: LatentDiffusion, shape: tuple[int, int], count: int) -> None:
        factor = model.downsampling
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
    lay_out(model, config)
    texts = None
    if model.conditioning == "text":
        with torch.no_grad():
            texts = {"": {FORMS[key]: value[0].cpu() for key, value in model.text_conditions([""]).items()}}
    data = Blanks(model, shape, config.batch_size)
    return HypernetworkObjective(model, network, config, data, texts=texts)

"""What `hyperbrush ldm train` will do, take and need, before it begins."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hyperbrush.training.before.plan import TRIED, Blanks, timed
from hyperbrush.training.before.preflight import Preflight
from hyperbrush.training.ldm.config import DiffusionRun, FirstStageRun, Run
from hyperbrush.training.ldm.run import (
    denoising_objective,
    diffusion_model,
    first_stage_objective,
    look_over,
    open_data,
    open_origin,
)
from hyperbrush.training.loop.caller import AccelerateStates
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import advice
from hyperbrush.training.report.report import duration


@dataclass(frozen=True)
class LdmPlan:
    """A run before its first step; fields as of `training.plan.Plan`."""

    config: Run
    report: Preflight
    pictures: int
    held_out: int
    captions: int
    shapes: dict[tuple[int, int], int]
    parameters: int
    seconds: float
    memory: int | None
    advice: tuple[str, ...]
    done: int = 0

    def text(self) -> str:
        """For a person."""
        t = self.config.training
        rows = {
            "kind": self.config.kind + _origin(self.config),
            "pictures": f"{self.pictures} to train on, {self.held_out} held out; {self.captions} captions",
            "shapes": ", ".join(f"{w}×{h}: {n}" for (h, w), n in sorted(self.shapes.items())),
            "network": f"{self.parameters:,} trained numbers",
            "steps": f"{t.steps} of {t.batch_size} pictures; each picture {t.steps * t.batch_size / self.pictures:.1f} times",
            "goes on": f"from step {self.done}, {max(0, t.steps - self.done)} to do" if self.done else "",
            "optimizer": f"{t.optimizer.name}, {t.optimizer.schedule}",
            "time": f"about {duration(self.seconds)} (measured on {TRIED} steps), and encoding the pictures once before"
            if isinstance(self.config, DiffusionRun)
            else f"about {duration(self.seconds)} (measured on {TRIED} steps)",
            "memory": ""
            if self.memory is None
            else f"{self.memory / 2**20:.0f} MiB for a step, beside the model",
        }
        width = max(map(len, rows))
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows.items() if value]
        return "\n".join([*lines, *(f"note: {said}" for said in self.advice), "", str(self.report)])


def _origin(config: Run) -> str:
    if isinstance(config, FirstStageRun):
        return f", {config.model.type}"
    return f", from {config.start_from}" if config.start_from else f", on {config.first_stage}"


def plan_ldm(config: Run, *, done: int = 0) -> LdmPlan:
    """Look at a run's pictures, try two steps, and keep nothing.

    done: steps made already, of a run that goes on.

    Raises:
        UserError: as `train_ldm`, before the first step.
    """
    opened = open_origin(config)
    report = look_over(config, opened)
    train, held = open_data(config, opened)
    shapes = {shape: train.groups.count(shape) for shape in sorted(set(train.groups))}
    objective: Objective
    with tempfile.TemporaryDirectory() as folder, AccelerateStates().entered():
        if isinstance(config, FirstStageRun):
            objective = first_stage_objective(config, train, held)
        else:
            model = diffusion_model(config, opened, train, Path(folder), resume=False)
            blanks = Blanks(model, max(shapes, key=math.prod), config.training.batch_size)
            objective = denoising_objective(config, model, blanks, None)
        seconds, memory = timed(objective, config.training)
    t = config.training
    return LdmPlan(
        config,
        report,
        len(train),
        0 if held is None else len(held),
        len({train.caption(i, 0) for i in range(len(train))}),
        shapes,
        sum(p.numel() for p in objective.parameters() if p.requires_grad),
        seconds * max(0, t.steps - done),
        memory,
        tuple(advice(t.optimizer.name, t.optimizer.learning_rate, t.optimizer.schedule)),
        done,
    )

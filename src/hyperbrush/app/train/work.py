"""Trainings, of which all is in their run folder, and the looks at one before its first step: plan and preflight."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.jobs.context import JobContext, StopRequested
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import TrainRequest, checked
from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun


def train(context: JobContext) -> dict[str, Any]:
    """Job "train": {"run": NAME, "finish": bool}; goes on where the run has a checkpoint.

    finish: end it at its newest checkpoint and keep what it learned.
    """
    from hyperbrush.training.attention.run import read_run, train_run

    run = _run(context)
    return _carried_out(context, run, read_run(run), train_run)


def hyper_train(context: JobContext) -> dict[str, Any]:
    """Job "hyper-train": as "train", of a generator of weights."""
    from hyperbrush.training.generator.run import GeneratorRun, train_generator
    from hyperbrush.training.loop.settings import read_settings

    run = _run(context)
    config = read_settings(GeneratorRun, run)
    return _carried_out(
        context, run, config, train_generator, lambda _, last: {"max_steps": last, "max_epochs": None}
    )


def ldm_train(context: JobContext) -> dict[str, Any]:
    """Job "ldm-train": as "train", of a first stage or a diffusion model, which stays in its run."""
    from hyperbrush.training.ldm.config import read_config
    from hyperbrush.training.ldm.run import train_ldm

    run = _run(context)
    root = context.workspace.root
    return _carried_out(
        context,
        run,
        read_config(run / "config.yaml"),
        lambda *given, **how: _Folder(train_ldm(*given, **how), root),
        ends_at=_ldm_ends_at,
    )


def _ldm_ends_at(training: Any, last: int) -> dict[str, Any]:
    warmup = min(training.optimizer.warmup_steps, last // 2)  # a schedule wants steps behind it
    return {"steps": last, "optimizer": training.optimizer.model_copy(update={"warmup_steps": warmup})}


@dataclass(frozen=True)
class _Folder:
    """What such a training leaves: a folder of the run."""

    file: Path
    root: Path

    def summary(self) -> str:
        """Where it is."""
        place = self.file.relative_to(self.root) if self.file.is_relative_to(self.root) else self.file
        return f"trained: {place.as_posix()}"


def plan(context: JobContext) -> dict[str, Any]:
    """Job "plan": a `TrainRequest`; steps, time and memory, measured on a model of its own as a training's would be."""
    from hyperbrush.training.before.plan import plan as planned

    context.tell(now=True, stage="planning")
    found = planned(_config(context))
    return {
        "pictures": found.pictures,
        "held_out": found.held_out,
        "captions": found.captions,
        "shapes": [{"width": w, "height": h, "pictures": n} for (h, w), n in sorted(found.shapes.items())],
        "steps": found.steps,
        "batch_size": found.loop.batch_size,
        "epochs": found.epochs,
        "parameters": found.parameters,
        "seconds": found.seconds,
        "memory": found.memory,
        "advice": list(found.advice),
        "text": found.text(),
        "report": found.report.as_dict(),
    }


def preflight(context: JobContext) -> dict[str, Any]:
    """Job "preflight": a `TrainRequest`; what is odd about the pictures."""
    from hyperbrush.training.attention.run import run_preflight

    config = _config(context)

    def report(done: int, of: int) -> None:
        context.tell(now=done == of, stage="looking at pictures", step=done, steps=of)
        context.raise_if_requested()

    return run_preflight(config, opened(context, config.model).model, report).as_dict()


def _carried_out(
    context: JobContext,
    run: Path,
    config: Any,
    do: Callable[..., Any],
    ends_at: Callable[[Any, int], dict[str, Any]] = lambda training, last: {"max_steps": last},
) -> dict[str, Any]:
    """ends_at: settings of a training that ends at a step, in place of its own."""
    from hyperbrush.training.loop.trainer import Interrupted

    _place(context)
    last = _last(run)
    finish = bool(context.arguments.get("finish")) or context.requested() == "finish"
    _begin_log(context, last, finish)
    if not finish:
        try:
            return _left(context, do(config, run, resume=last is not None, **_callbacks(context)))
        except (Interrupted, StopRequested) as stopped:
            how = stopped.how if isinstance(stopped, StopRequested) else context.requested()
            last = _last(run)
            if how != "finish":
                context.log(f"{'paused' if how == 'pause' else 'stopped'} after step {last or 0}")
                raise StopRequested(how) from stopped
    if not last or not _has_figures(run):
        raise UserError(
            f"run {run.name!r} has learned too little to keep: it has no figures yet; train it on"
        )
    # The settings on the disk stay as they were, so that the run can still go on to its end.
    training = config.training.model_copy(update=ends_at(config.training, last))
    ended = do(
        config.model_copy(update={"training": training}), run, resume=True, on_prepare=_stages(context)
    )
    return _left(context, ended)


def _run(context: JobContext) -> Path:
    """The run's folder, found among those there are."""
    name = str(context.arguments.get("run", ""))
    found = {path.name: path for path in context.workspace.folder("runs").iterdir() if path.is_dir()}
    if name not in found:
        raise UserError(f"there is no run {name!r:.100}")
    return found[name]


def _last(run: Path) -> int | None:
    from hyperbrush.training.loop import checkpoint

    return max(checkpoint.steps(run / "checkpoints"), default=None)


def _has_figures(run: Path) -> bool:
    from hyperbrush.training.loop.metrics import read

    return any("loss" in row for row in read(run / "metrics.jsonl"))


def _place(context: JobContext) -> None:
    """Let Accelerate, which takes what it finds, take this worker's device."""
    kind, _, number = context.worker.device.partition(":")
    if kind == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif kind == "cuda" and number:
        import torch

        torch.cuda.set_device(int(number))


def _begin_log(context: JobContext, last: int | None, finish: bool) -> None:
    if context.jobs.get(context.id).attempts > 1:
        context.log("the worker had died; it is taken up again")
    if finish:
        context.log(f"ends at step {last or 0} and keeps what it learned")
    else:
        context.log("begins" if last is None else f"goes on from step {last}")


def _left(context: JobContext, result: Any) -> dict[str, Any]:
    context.log(f"done: {result.file.name}")
    return {"run": str(context.arguments["run"]), "file": result.file.name, "summary": result.summary()}


def _stages(context: JobContext) -> Callable[[str, int, int], None]:
    """Tells what is done before the first step."""
    run, seen = str(context.arguments["run"]), [""]

    def prepared(what: str, done: int, of: int) -> None:
        if what != seen[0]:
            seen[0] = what
            context.log(f"{what} ({of})")
        context.tell(run=run, stage=what, step=done, steps=of)

    return prepared


def _callbacks(context: JobContext) -> dict[str, Any]:
    """What a training tells and asks."""
    run, stages = str(context.arguments["run"]), _stages(context)

    def prepared(what: str, done: int, of: int) -> None:
        stages(what, done, of)
        context.raise_if_requested()
        context.between()

    def progressed(step: Any) -> None:
        context.tell(now=step.step == step.steps, run=run, stage="training", step=step.step, steps=step.steps)
        if "loss" in step.validation:
            context.log(f"step {step.step}: validation loss {step.validation['loss']:.4f}")
        if step.checkpoint is not None:
            context.log(f"step {step.step}: checkpoint")
            context.got_further()
        for note in step.notes:
            context.log(note)
        context.between()

    return {
        "on_prepare": prepared,
        "on_progress": progressed,
        "should_stop": lambda: bool(context.requested()),
    }


def _config(context: JobContext) -> "HypernetworkRun":
    from hyperbrush.app.train.service import run_config

    request: TrainRequest = checked(TrainRequest, context.arguments)
    return run_config(context.workspace, request.settings, request.presets)

"""Trainings: everything about them is in their run folder; the job only says which."""

from pathlib import Path
from typing import Any

from hyperbrush.app.worker import Asked, Desk
from hyperbrush.errors import UserError
from hyperbrush.files import write_text


def train(desk: Desk) -> dict[str, Any]:
    """Job "train": {"run": NAME, "at": STEP or None}; goes on where the run has a checkpoint."""
    from hyperbrush.training.hypernetwork_run import read_run, train_run
    from hyperbrush.training.trainer import Interrupted

    run = _run(desk)
    config = read_run(run)
    try:
        result = train_run(config, run, **_going_on(desk, run), **_told(desk))
    except Interrupted as stopped:
        if desk.asked() != "finish":
            raise Asked(desk.asked()) from stopped
        _end_at(run, stopped.step)
        result = train_run(read_run(run), run, resume=True)
    return {"run": run.name, "file": result.file.name, "summary": result.summary()}


def hyper_train(desk: Desk) -> dict[str, Any]:
    """Job "hyper-train": as "train", of a generator of weights."""
    from hyperbrush.training.generator_run import GeneratorRun, train_generator
    from hyperbrush.training.settings import read_settings
    from hyperbrush.training.trainer import Interrupted

    run = _run(desk)
    try:
        result = train_generator(
            read_settings(GeneratorRun, run), run, **_going_on(desk, run), **_told(desk)
        )
    except Interrupted as stopped:
        if desk.asked() != "finish":
            raise Asked(desk.asked()) from stopped
        _end_at(run, stopped.step)
        result = train_generator(read_settings(GeneratorRun, run), run, resume=True)
    return {"run": run.name, "file": result.file.name, "summary": result.summary()}


def _run(desk: Desk) -> Path:
    """The run's folder, found among those there are."""
    name = str(desk.arguments.get("run", ""))
    found = {path.name: path for path in desk.workspace.folder("runs").iterdir() if path.is_dir()}
    if name not in found:
        raise UserError(f"there is no run {name!r:.100}")
    return found[name]


def _going_on(desk: Desk, run: Path) -> dict[str, Any]:
    from hyperbrush.training import checkpoint

    kept = checkpoint.steps(run / "checkpoints")
    at = desk.arguments.get("at")
    if at is not None and desk.jobs.get(desk.id).attempts > 1:
        at = None  # it went back there before its worker died
    return {"resume": bool(kept), "at": at if kept else None}


def _told(desk: Desk) -> dict[str, Any]:
    """What a training tells and asks."""
    run = str(desk.arguments["run"])

    def prepared(what: str, done: int, of: int) -> None:
        desk.tell(run=run, stage=what, step=done, steps=of)

    def progressed(step: Any) -> None:
        desk.tell(now=step.step == step.steps, run=run, stage="training", step=step.step, steps=step.steps)
        for note in step.notes:
            desk.log(note)
        desk.between()

    return {
        "on_prepare": prepared,
        "on_progress": progressed,
        "should_stop": lambda: bool(desk.asked()),
    }


def _end_at(run: Path, step: int) -> None:
    """Let a run end at the step it has: what it learned so far is then saved as any finished run's."""
    import yaml

    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["training"]["max_steps"] = step
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

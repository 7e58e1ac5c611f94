"""Small trainings for the tests of runs."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from running import until

from hyperbrush.app.train.service import begin as begin_run
from hyperbrush.app.workspace import Workspace
from hyperbrush.assets import style_folder


def settings(name: str, **training: Any) -> dict[str, Any]:
    """Of a training of seconds."""
    few = {
        "max_steps": 7,
        "batch_size": 4,
        "log_every": 1,
        "validate_every": 4,
        "preview_every": 4,
        "checkpoint_every": 100,
        "preview_steps": 1,
        "prompts": ["cat face", "red heart"],
    }
    folders = {"data": ["datasets/style"], "validation": ["datasets/held-out"]}
    return {"name": name, **folders, "training": few | training}


def give_pictures(root: Path, count: int = 8, held_out: int = 4) -> None:
    """A few captioned pictures in the workspace."""
    for name, kind, number in (("style", "train", count), ("held-out", "validation", held_out)):
        folder = root / "datasets" / name
        if folder.is_dir():
            continue
        folder.mkdir(parents=True)
        found = sorted((style_folder() / kind).iterdir())
        stems = sorted({path.stem for path in found})[:number]
        for path in found:
            if path.stem in stems:
                (folder / path.name).write_bytes(path.read_bytes())


def begin(app: Any, name: str, **training: Any) -> str:
    """Begin a run through the API; its job's id."""
    give_pictures(app.root)
    asked = {"settings": settings(name, **training)}
    answer = app.call("/api/v1/trainings", asked)
    if answer.get("status") in (404, 405):  # that room is not there: as it does it
        begin_run(Workspace(app.root), asked["settings"])
        answer = app.call(f"/api/v1/runs/{quote(name)}/resume", {})
    assert "status" not in answer, answer
    return str(until(lambda: app.call(f"/api/v1/runs/{quote(name)}").get("job")))


def state(app: Any, name: str) -> str:
    return str(app.call(f"/api/v1/runs/{quote(name)}").get("state"))


def step_of(app: Any, name: str) -> int:
    return int((app.call(f"/api/v1/runs/{quote(name)}").get("live") or {}).get("step") or 0)


def pause_at(app: Any, name: str, step: int, how: str = "pause") -> None:
    until(lambda: step_of(app, name) >= step)
    answer = app.call(f"/api/v1/runs/{quote(name)}/{how}", {})
    assert "status" not in answer, answer


def ended(app: Any, name: str) -> dict[str, Any]:
    """The run, once it neither trains nor waits."""
    until(lambda: state(app, name) not in ("queued", "running"))
    return dict(app.call(f"/api/v1/runs/{quote(name)}"))


def final(app: Any, name: str) -> Path:
    return Path(app.root / "runs" / name / f"{name}.safetensors")

"""Runs as their folders tell them: whoever started them, from here or from a terminal."""

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hyperbrush.app.jobs import Job, Jobs
from hyperbrush.app.workspace import Workspace
from hyperbrush.app.errors import NotThere
from hyperbrush.errors import UserError
from hyperbrush.files import read_json

FINAL = (".safetensors", ".pt")


@dataclass(frozen=True)
class Run:
    """How a run stands.

    Args:
        name: of its folder.
        kind: hypernetwork, generator, or another training's.
        state: queued, running, paused, done or failed.
        config: its settings.
        live: as `training.live.Live` writes it.
        checkpoints, saved: steps there are states and usable copies of.
        job: the newest job for it, if the app started it.
        error: why it failed, for a person.
        changed: when its folder changed last, seconds since 1970.
    """

    name: str
    kind: str
    state: str
    config: Mapping[str, Any]
    live: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    job: str = ""
    stage: str = ""
    error: str = ""
    changed: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Runs:
    """The runs of a workspace."""

    def __init__(self, workspace: Workspace, jobs: Jobs) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._configs: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._rows: dict[Path, tuple[int, list[dict[str, Any]]]] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Run folders by name."""
        root = self.workspace.folder("runs")
        return {p.name: p for p in sorted(root.iterdir()) if (p / "config.yaml").is_file()}

    def folder(self, name: str) -> Path:
        """A run's folder, found among those there are.

        Raises:
            UserError: there is none of that name.
        """
        found = self.folders()
        if name not in found:
            raise NotThere(f"there is no run {name!r:.100}")
        return found[name]

    def all(self) -> list[Run]:
        """Every run, the newest first."""
        newest = self._newest_jobs()
        found = [self._read(path, newest.get(name)) for name, path in self.folders().items()]
        return sorted(found, key=lambda run: -run.changed)

    def get(self, name: str) -> Run:
        """How a run stands.

        Raises:
            UserError: there is none of that name.
        """
        return self._read(self.folder(name), self._newest_jobs().get(name))

    def metrics(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl after a step.

        Raises:
            UserError: there is no such run.
        """
        from hyperbrush.training.metrics import read

        path = self.folder(name) / "metrics.jsonl"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return []
        with self._lock:
            if self._rows.get(path, (0, []))[0] != changed:
                self._rows[path] = (changed, [_finite(row) for row in read(path)])
            rows = self._rows[path][1]
        return [row for row in rows if row["step"] > after]

    def previews(self, name: str) -> list[tuple[int, Path]]:
        """(step, file) of every preview picture, in order.

        Raises:
            UserError: there is no such run.
        """
        found = []
        for path in sorted((self.folder(name) / "previews").rglob("*.png")):
            step = next((part[5:] for part in (path.parent.name, path.stem) if part.startswith("step-")), "")
            if step.isdecimal():
                found.append((int(step), path))
        return found

    def log(self, name: str) -> str:
        """What its job wrote down, and the events of its metrics.

        Raises:
            UserError: there is no such run.
        """
        events = [f"step {row['step']}: {row['message']}" for row in self.metrics(name) if row.get("event")]
        job = self._newest_jobs().get(name)
        own = ""
        if job is not None and (self.jobs.folder / job.id / "log.txt").is_file():
            own = (self.jobs.folder / job.id / "log.txt").read_text(encoding="utf-8", errors="replace")
        return "\n".join([*events, own])[-50_000:]

    def _newest_jobs(self) -> dict[str, Job]:
        found: dict[str, Job] = {}
        for job in self.jobs.all(kinds=("train", "hyper-train")):
            found.setdefault(str(job.arguments.get("run")), job)
        return found

    def _read(self, path: Path, job: Job | None) -> Run:
        config = self._config(path / "config.yaml")
        live = {key: _number(value) for key, value in read_json(path / "live.json").items()}
        steps = sorted(
            int(p.stem[5:])
            for p in (path / "checkpoints").glob("step-*.safetensors")
            if p.stem[5:].isdecimal()
        )
        saved = sorted(int(p.name[5:]) for p in (path / "saved").glob("step-*") if p.name[5:].isdecimal())
        times = [p.stat().st_mtime for p in (path / "live.json", path / "config.yaml") if p.exists()]
        return Run(
            path.name,
            str(config.get("kind", "")),
            _state(path, config, job),
            config,
            live,
            tuple(steps),
            tuple(saved),
            "" if job is None else job.id,
            "" if job is None or not job.is_open else str(job.progress.get("stage", "")),
            "" if job is None else job.error,
            max(times, default=0.0),
        )

    def _config(self, path: Path) -> dict[str, Any]:
        try:
            changed = path.stat().st_mtime_ns
            if self._configs.get(path, (0, {}))[0] != changed:
                value = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
                self._configs[path] = (changed, value if isinstance(value, dict) else {})
        except (OSError, yaml.YAMLError):
            return {}
        return self._configs[path][1]


def _state(path: Path, config: Mapping[str, Any], job: Job | None) -> str:
    if _held(path):
        return "running"
    if job is not None and job.is_open:
        return job.state
    name = str(config.get("name", path.name))
    if job is not None and job.state == "failed":
        return "failed"
    if any((path / f"{name}{suffix}").is_file() for suffix in FINAL):
        return "done"
    return "paused"


def _held(path: Path) -> bool:
    """Whether a process on this machine trains in it just now."""
    import socket

    import psutil

    said = read_json(path / "running.json")
    if not said:
        return False
    if said.get("host") != socket.gethostname():
        return True  # another machine's: not ours to judge
    try:
        process = psutil.Process(int(said["pid"]))
        return process.status() != psutil.STATUS_ZOMBIE and process.is_running()
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row that JSON can hold: NaN and inf become None."""
    return {key: _number(value) for key, value in row.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

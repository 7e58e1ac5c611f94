"""Runs as their folders tell them: whoever started them, from here or from a terminal."""

import math
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import yaml

from hyperbrush.app.jobs.jobs import Job, Jobs
from hyperbrush.app.runs.curves import Rows
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere
from hyperbrush.files import finite, read_json, tail

QUIET = 300.0  # seconds of silence after which another machine's training is asked for its lock

_left: dict[Path, float] = {}  # of runs that other machines have left: when something was written there last


def holds(path: Path) -> bool:
    """Whether a process trains in a run's folder just now."""
    said = read_json(path / "running.json")
    if not said:
        return False
    if said.get("host") != socket.gethostname():
        return _holds_elsewhere(path)
    try:
        process = psutil.Process(int(said["pid"]))
        since = datetime.strptime(str(said["since"]), "%Y-%m-%d %H:%M:%S").timestamp()
        same = process.create_time() < since + 2  # else its number was given to another
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (KeyError, TypeError, ValueError, OverflowError, psutil.Error):
        return False


def _holds_elsewhere(path: Path) -> bool:
    """Whether another machine trains in a run's folder; it may be this one, before its name was changed.

    A training writes there all the time, and holds the lock: a silent one is asked for it, once if it has none.
    """
    from filelock import FileLock, Timeout

    from hyperbrush.training.loop.run_folder import LOCK

    files = (path / name for name in ("running.json", "live.json", "metrics.jsonl"))
    try:
        written = max(file.stat().st_mtime for file in files if file.is_file())
        if time.time() - written < QUIET:
            return True
        if _left.get(path) != written:
            with FileLock(path / LOCK, blocking=False):
                _left[path] = written
    except (Timeout, OSError, ValueError):  # or its folder cannot be written from here
        return True
    return False


FINAL = (".safetensors", ".pt")
JOB_KINDS = {  # what trains which kind of run
    "hypernetwork": "train",
    "generator": "hyper-train",
    "diffusion": "ldm-train",
    "first_stage": "ldm-train",
}
FOLDERS_MADE = {"diffusion": "model/model_index.json", "first_stage": "first_stage/config.json"}
OPEN = ("queued", "running")
STAMPED = ("live.json", "config.yaml", "checkpoints", "saved", ".")
LOG_TAIL = 50_000  # characters
LOOKED_AT = 32  # runs whose figures are kept in memory: those that were looked at last


@dataclass(frozen=True)
class Run:
    """How a run stands.

    Args:
        name: of its folder.
        kind: hypernetwork, generator, or another training's.
        state: queued, running, paused, stopped, done or failed.
        config: its settings.
        live: as `training.live.Live` writes it.
        checkpoints, saved: steps there are states and usable copies of.
        job: the newest job for it, if the app started it.
        elsewhere: a process that is no worker of the app trains in it.
        asked: what the user asked of that job: pause, stop or finish.
        stage: what is done before the first step, with stage_step and stage_steps.
        error: why it failed, for the user.
        changed: when its folder changed last, seconds since 1970.
        report: whether report.html is there.
    """

    name: str
    kind: str
    state: str
    config: Mapping[str, Any]
    live: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    job: str = ""
    elsewhere: bool = False
    asked: str = ""
    stage: str = ""
    stage_step: int = 0
    stage_steps: int = 0
    error: str = ""
    changed: float = 0.0
    report: bool = False

    @property
    def can(self) -> tuple[str, ...]:
        """What the user may ask of it now."""
        if self.elsewhere:
            return ()
        if self.state in OPEN:
            return ("pause", "stop", "finish") if self.job else ()
        found = ["delete"]
        if self.kind in JOB_KINDS:
            last, steps = max(self.checkpoints, default=0), _whole(self.live.get("steps"))
            if self.state != "done" or (self.checkpoints and last < steps):
                found.append("resume")
            if self.state != "done" and last > 0:
                found.append("finish")
            if self.checkpoints:
                found.append("rollback")
        return tuple(found)

    def summary(self) -> dict[str, Any]:
        """For JSON, without the settings."""
        told = asdict(self) | {"can": list(self.can)}
        del told["config"]
        return told

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"can": list(self.can)}


@dataclass(frozen=True)
class Preview:
    """A preview picture; prompt: its number among the run's prompts, None for a grid of them all."""

    step: int
    prompt: int | None
    path: Path

    @property
    def stamp(self) -> int:
        """Tells it from an earlier picture at its place."""
        return int(_changed(self.path) * 1000)


class Runs:
    """The runs of a workspace."""

    def __init__(self, workspace: Workspace, jobs: Jobs) -> None:
        self.workspace, self.jobs = workspace, jobs
        self.changing = threading.Lock()  # held by whoever starts, rolls back or removes one
        self._configs: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._rows = lru_cache(LOOKED_AT)(Rows)
        self._found: dict[str, tuple[Any, Run]] = {}
        self._run_of: dict[str, str] = {}  # job → run; "" for jobs of other kinds
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Run folders by name."""
        root = self.workspace.folder("runs")
        return {p.name: p for p in sorted(root.iterdir()) if _changed(p / "config.yaml")}

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
        """Every run: those that are open by name, since each is the newest in turn; then the newest first."""
        newest = self._newest_jobs()
        found = [self._read(path, newest.get(name)) for name, path in self.folders().items()]
        return sorted(found, key=_rank)

    def get(self, name: str) -> Run:
        """How a run stands.

        Raises:
            UserError: there is none of that name.
        """
        return self._read(self.folder(name), self._newest_jobs(name).get(name))

    def metrics(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl after a step.

        Raises:
            UserError: there is no such run.
        """
        path = self.folder(name) / "metrics.jsonl"
        with self._lock:
            rows = self._rows(path).read()
        return [row for row in rows if row["step"] > after] if after else list(rows)

    def previews(self, name: str) -> list[Preview]:
        """Every preview picture, by step and prompt.

        Raises:
            UserError: there is no such run.
        """
        from hyperbrush.training.report.contact_sheet import find_previews

        found = []
        for step, path in find_previews(self.folder(name)).items():
            if not path.is_dir():
                found.append(Preview(step, None, path))
                continue
            numbered = {int(p.stem[7:]): p for p in path.glob("prompt-*.png") if p.stem[7:].isdecimal()}
            found += [Preview(step, number, numbered[number]) for number in sorted(numbered)]
        return found

    def log(self, name: str) -> str:
        """The end of what its jobs wrote down; of a run from a terminal, the events among its figures.

        Raises:
            UserError: there is no such run.
        """
        jobs = [self.jobs.folder / job for job, run in self._train_jobs().items() if run == name]
        written = [tail(folder / "log.txt", LOG_TAIL) for folder in jobs]
        events = [f"step {row['step']}: {row['message']}" for row in self.metrics(name) if row.get("event")]
        return ("".join(filter(None, written)) or "\n".join(events))[-LOG_TAIL:]

    def _train_jobs(self) -> dict[str, str]:
        """Job → run of every training that the app was asked for, the oldest first."""
        there = self.jobs.ids()[::-1]
        for job in there:
            if job not in self._run_of:
                said = read_json(self.jobs.folder / job / "job.json")
                if said:
                    trains = said.get("kind") in JOB_KINDS.values()
                    self._run_of[job] = str((said.get("arguments") or {}).get("run", "")) if trains else ""
        return {job: self._run_of[job] for job in there if self._run_of.get(job)}

    def _newest_jobs(self, only: str = "") -> dict[str, Job]:
        newest = {run: job for job, run in self._train_jobs().items() if only in ("", run)}
        found = {}
        for run, job in newest.items():
            try:
                found[run] = self.jobs.get(job)
            except NotThere:  # removed just now
                continue
        return found

    def _read(self, path: Path, job: Job | None) -> Run:
        if (
            job is not None
            and not job.is_open
            and max(job.created, job.ended or 0) < _changed(path / "config.yaml") - 1
        ):
            job = None  # of an earlier run by that name
        held = holds(path)
        stamp = (tuple(_changed(path / name) for name in STAMPED), job, held)
        if path.name in self._found and self._found[path.name][0] == stamp:
            return self._found[path.name][1]
        config = self._config(path / "config.yaml")
        steps = [
            int(p.stem[5:]) for p in (path / "checkpoints").glob("step-*.safetensors") if _is_step(p.stem)
        ]
        saved = [int(p.name[5:]) for p in (path / "saved").glob("step-*") if _is_step(p.name)]
        is_open = job is not None and job.is_open
        progress = job.progress if job is not None and is_open else {}
        run = Run(
            path.name,
            str(config.get("kind", "")),
            _state(path, config, job, held),
            config,
            finite(read_json(path / "live.json")),
            tuple(sorted(steps)),
            tuple(sorted(saved)),
            "" if job is None else job.id,
            held and not (is_open and job is not None and job.state == "running"),
            job.asked if job is not None and is_open else "",
            str(progress.get("stage", "")),
            _whole(progress.get("step")),
            _whole(progress.get("steps")),
            "" if job is None or is_open else job.error,
            max(_changed(path / name) for name in ("live.json", "config.yaml")),
            (path / "report.html").is_file(),
        )
        self._found[path.name] = (stamp, run)
        return run

    def _config(self, path: Path) -> dict[str, Any]:
        try:
            changed = path.stat().st_mtime_ns
            if self._configs.get(path, (0, {}))[0] != changed:
                value = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
                self._configs[path] = (changed, finite(value) if isinstance(value, dict) else {})
        except (OSError, yaml.YAMLError, RecursionError):
            return {}
        return self._configs[path][1]


def _rank(run: Run) -> tuple[bool, float, str]:
    is_open = run.state in OPEN
    return not is_open, 0.0 if is_open else -run.changed, run.name


def _state(path: Path, config: Mapping[str, Any], job: Job | None, held: bool) -> str:
    if held:
        return "running"
    if job is not None and job.is_open:
        return job.state
    name = str(config.get("name", path.name))
    finals = [
        *(f"{name}{suffix}" for suffix in FINAL),
        *filter(None, [FOLDERS_MADE.get(str(config.get("kind", "")))]),
    ]
    saved = max(_changed(path / final) for final in finals)
    newest = max((_changed(p) for p in (path / "checkpoints").glob("step-*.safetensors")), default=0.0)
    done = saved > 0 and saved >= newest
    if job is not None and job.state == "failed" and not (done and saved > (job.ended or 0)):
        return "failed"
    if done:
        return "done"
    return "stopped" if job is not None and job.state == "stopped" else "paused"


def _whole(value: Any) -> int:
    """A number of steps that a file says; 0 where it says none."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _is_step(name: str) -> bool:
    return name[5:].isdecimal()


def _changed(path: Path) -> float:
    """When a file changed last, seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return 0.0

"""Jobs: each a folder that says what is to be done and how it stands, and a place in a kept queue.

The queue is persist-queue's SQLite one with acknowledgement: what a worker took and did not finish comes back.
A job's folder has one writer for each file: whoever asks writes job.json and stop.json, the worker the others.
"""

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hyperbrush.app.errors import NotThere
from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json

State = Literal["queued", "running", "paused", "done", "failed", "stopped"]
How = Literal["pause", "stop", "finish"]
ENDED = ("paused", "done", "failed", "stopped")
# What a person waits for is drawn between the steps of a training; the others follow each other.
LANES = {
    "draw": "short",
    "style": "short",
    "plan": "short",
    "preflight": "short",
    "try-model": "short",
    "doctor": "short",
    "export": "short",
    "compare": "long",
    "train": "long",
    "hyper-train": "long",
}


@dataclass(frozen=True)
class Job:
    """How a job stands.

    Args:
        id: sorts by time.
        kind: of `LANES`.
        arguments: what its function in `work` takes.
        device: whose worker does it.
        created, started, ended: seconds since 1970.
        state: queued, running, paused, done, failed or stopped.
        progress: what its function told last, such as step and steps.
        result: what it came to.
        error: why it failed, for a person.
        attempts: how often it was begun.
        asked: what a person asked of it: pause, stop or finish.
    """

    id: str
    kind: str
    arguments: Mapping[str, Any]
    device: str
    created: float
    state: State = "queued"
    started: float | None = None
    ended: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    attempts: int = 0
    asked: str = ""

    @property
    def is_open(self) -> bool:
        """Whether anything is still to come of it."""
        return self.state not in ENDED

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Jobs:
    """The jobs of a workspace; state: its .hyperbrush folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.folder = state / "jobs"
        self._queues: dict[tuple[str, str], Any] = {}
        self._ended: dict[str, Job] = {}  # what will change no more
        self._lock = threading.Lock()

    def submit(self, kind: str, arguments: Mapping[str, Any], *, device: str) -> Job:
        """Put a job into the queue; it is there when this returns, whatever happens then.

        Raises:
            UserError: it cannot be written.
        """
        now = time.time()
        job = f"{int(now * 1e6):014x}{secrets.token_hex(2)}"
        try:
            (self.folder / job).mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; make room") from error
        said = {"kind": kind, "arguments": dict(arguments), "device": device, "created": now}
        write_json(self.folder / job / "job.json", said)
        self.put(kind, device, job)
        return self.get(job)

    def put(self, kind: str, device: str, job: str) -> None:
        """Give a job a place in its queue.

        Raises:
            UserError: the queue cannot be written.
        """
        import sqlite3

        try:
            self.queue(device, LANES[kind]).put(job)
        except sqlite3.Error as error:
            raise UserError(f"cannot write the queue in {self.state}: {error}; make room") from error

    def queue(self, device: str, lane: str, *, resume: bool = False) -> Any:
        """The queue of a device's lane; resume: what was taken and not finished is put back (the worker's part)."""
        from persistqueue import SQLiteAckQueue
        from persistqueue.serializers import json as as_json

        with self._lock:
            if (device, lane) not in self._queues:
                path = self.state / "queue" / device.replace(":", "-") / lane
                path.mkdir(parents=True, exist_ok=True)
                self._queues[device, lane] = SQLiteAckQueue(
                    str(path), auto_resume=resume, multithreading=True, serializer=as_json
                )
            return self._queues[device, lane]

    def get(self, job: str) -> Job:
        """How a job stands.

        Raises:
            UserError: there is none of that id.
        """
        folder = self._places().get(job)
        found = None if folder is None else self._read(folder)
        if found is None:
            raise NotThere(f"there is no job {job!r:.40}")
        return found

    def all(self, *, kinds: tuple[str, ...] = (), last: int | None = None) -> list[Job]:
        """Jobs, the newest first; only some kinds, only the last so many."""
        found = []
        for _, folder in sorted(self._places().items(), reverse=True):
            job = self._read(folder)
            if job is not None and (not kinds or job.kind in kinds):
                found.append(job)
            if last is not None and len(found) == last:
                break
        return found

    def ask(self, job: str, how: How) -> Job:
        """Pause, stop or finish a job: at once where it waits, else after its present step.

        Raises:
            UserError: there is none of that id, or it has ended.
        """
        found = self.get(job)
        if not found.is_open:
            raise UserError(f"job {job} is {found.state} already")
        write_json(self.folder / found.id / "stop.json", {"how": how})
        return self.get(job)

    def path(self, job: str) -> Path:
        """A job's folder.

        Raises:
            UserError: there is none of that id.
        """
        return self.folder / self.get(job).id

    def _places(self) -> dict[str, Path]:
        if not self.folder.is_dir():
            return {}
        return {path.name: path for path in self.folder.iterdir()}

    def _read(self, folder: Path) -> Job | None:
        if folder.name in self._ended:
            return self._ended[folder.name]
        said = read_json(folder / "job.json")
        if not said:
            return None
        asked = read_json(folder / "stop.json").get("how", "")
        stands = read_json(folder / "state.json")
        has_ended = stands.get("state") in ENDED
        if asked and stands.get("state", "queued") == "queued":
            stands["state"] = "paused" if asked == "pause" else "stopped"
        known = {key: stands[key] for key in stands if key in Job.__dataclass_fields__}
        job = Job(folder.name, **said, **known, progress=read_json(folder / "progress.json"), asked=asked)
        if has_ended:
            self._ended[folder.name] = job
        return job

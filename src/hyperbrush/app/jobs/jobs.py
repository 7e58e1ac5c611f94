"""Jobs: each a folder that says what is to be done and how it stands, and a place in a kept queue.

The queue is persist-queue's SQLite one with acknowledgement: what a worker took and did not finish comes back.
A job's folder has one writer for each file: whoever asks writes job.json and stop.json, the worker the others.
"""

import contextlib
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hyperbrush.app.jobs.kinds import LANES
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import read_json, write_json

State = Literal["queued", "running", "paused", "done", "failed", "stopped"]
How = Literal["pause", "stop", "finish"]
ENDED = ("paused", "done", "failed", "stopped")
_TAKEN_OFF = ("5", "9")  # of persist-queue: done with
LAST = 60  # jobs that are watched, and every older one that has not ended
KEPT = 500  # jobs that are kept however old they are,
KEPT_DAYS = 30  # and the days that every other is kept after its end
_ID = re.compile(r"[0-9a-z-]{1,64}")  # what a job's folder may be called: no dots, no slashes
_SETTLED = 2e9  # nanoseconds after which a folder's time tells of every change before it


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
        error: why it failed, for the user.
        attempts: how often it was begun.
        forgiven: attempts whose worker died that count no more, since the job got further afterwards.
        asked: what the user asked of it: pause, stop or finish.
        model: the base model that was preferred when it was asked for.
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
    forgiven: int = 0
    asked: str = ""
    model: str = ""

    @property
    def is_open(self) -> bool:
        """Whether anything is still to come of it."""
        return self.state not in ENDED

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end, and has not yet."""
        return self.is_open and bool(self.asked)

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
        self._listed: tuple[int, list[str]] | None = None  # time of the folder, what was in it
        self._lock = threading.Lock()

    def submit(self, kind: str, arguments: Mapping[str, Any], *, device: str, model: str = "") -> Job:
        """Put a job into the queue; it is there when this returns, whatever happens then.

        Raises:
            UserError: it cannot be written; then nothing of it stays.
        """
        now = time.time()
        job = f"{int(now * 1e6):014x}{secrets.token_hex(2)}"
        said = {
            "kind": kind,
            "arguments": dict(arguments),
            "device": device,
            "model": model,
            "created": now,
        }
        try:
            json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"what is asked cannot be written down: {error!s:.200}") from error
        try:
            (self.folder / job).mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; make room") from error
        try:
            write_json(self.folder / job / "job.json", said)
            self.put(kind, device, job)
        except BaseException:  # without a place in the queue it would wait permanently
            shutil.rmtree(self.folder / job, ignore_errors=True)
            raise
        return self.get(job)

    def requeue_lost(self) -> list[str]:
        """Give every open job its place in the queue: a server killed while it took one up left it without.

        A job that has two places is done once: who takes it again finds it ended.

        Raises:
            UserError: the queue cannot be written.
        """
        placed: dict[tuple[str, str], set[str]] = {}
        lost = [job for job in reversed(self.all()) if job.is_open and job.kind in LANES]
        for job in list(lost):
            lane = job.device, LANES[job.kind]
            if lane not in placed:
                rows = self.queue(*lane).queue()
                placed[lane] = {str(row["data"]) for row in rows if str(row["status"]) not in _TAKEN_OFF}
            if job.id in placed[lane]:
                lost.remove(job)
            else:
                self.put(job.kind, job.device, job.id)
        return [job.id for job in lost]

    def put(self, kind: str, device: str, job: str) -> None:
        """Give a job a place in its queue.

        Raises:
            UserError: the queue cannot be written.
        """
        import sqlite3

        try:
            self.queue(device, LANES[kind]).put(job)
        except (OSError, sqlite3.Error) as error:
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
        folder = self.folder / job if _ID.fullmatch(job) else None
        found = None if folder is None or not folder.is_dir() else self._read(folder)
        if found is None:
            raise NotThere(f"there is no job {job!r:.40}; ended ones are removed after {KEPT_DAYS} days")
        return found

    def find(self, job: str, *kinds: str) -> Job | None:
        """A job of an id and one of the kinds (any by default); None where there is none."""
        try:
            found = self.get(job)
        except NotThere:
            return None
        return found if not kinds or found.kind in kinds else None

    def all(self, *, kinds: tuple[str, ...] = (), last: int | None = None) -> list[Job]:
        """Jobs, the newest first; only some kinds, only the last so many."""
        found = []
        for name in self.ids():
            job = self._read(self.folder / name)
            if job is not None and (not kinds or job.kind in kinds):
                found.append(job)
            if last is not None and len(found) == last:
                break
        return found

    def watched(self) -> list[str]:
        """Ids of the last jobs, and of every older one that is not known to have ended."""
        names = self.ids()
        return [*names[:LAST], *(name for name in names[LAST:] if name not in self._ended)]

    def open(self) -> list[Job]:
        """Jobs of which something is still to come, the newest first, however old they are."""
        found = (self._read(self.folder / name) for name in self.watched())
        return [job for job in found if job is not None and job.is_open]

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

    @property
    def order_file(self) -> Path:
        """What the server keeps `order` in."""
        return self.state / "order.json"

    def order(self) -> list[str]:
        """Ids of jobs that are taken before the others of their lanes, in this order."""
        said = read_json(self.order_file).get("jobs")
        return [str(job) for job in said] if isinstance(said, list) else []

    def in_order(self) -> list[Job]:
        """Open jobs as their turn comes: those that run, then those that wait."""
        places = {job: place for place, job in enumerate(self.order())}

        def turn(job: Job) -> tuple[bool, int, str]:
            return job.state != "running", places.get(job.id, len(places)), job.id

        return sorted(self.open(), key=turn)

    def move(self, job: str, by: int) -> None:
        """Have a waiting job taken so many places later (or earlier, below 0) among those of its lane and device.

        Raises:
            UserError: there is none of that id, it does not wait (any more), or the order cannot be written.
        """
        found = self.get(job)
        lane = found.device, LANES[found.kind]
        with self._lock:
            waiting = [one for one in self.in_order() if one.state == "queued"]
            ids = [one.id for one in waiting if (one.device, LANES[one.kind]) == lane]
            if job not in ids:
                raise UserError(f"job {job} is {found.state}: only those that wait are moved")
            place = max(0, ids.index(job) + by)
            ids.remove(job)
            ids.insert(place, job)
            others = {one.id for one in waiting} - set(ids)
            rest = [one for one in self.order() if one in others]
            write_json(self.order_file, {"jobs": ids + rest})

    def path(self, job: str) -> Path:
        """A job's folder.

        Raises:
            UserError: there is none of that id.
        """
        return self.folder / self.get(job).id

    def forget(self, keeps: Callable[[Job], bool]) -> list[str]:
        """Remove jobs that ended long ago (`KEPT`, `KEPT_DAYS`), but for those that somebody keeps; returns their ids."""
        before = time.time() - KEPT_DAYS * 86400
        gone = []
        for name in self.ids()[KEPT:]:
            folder = self.folder / name
            job = self._read(folder)
            with contextlib.suppress(OSError):
                if job is None:  # killed while it was made or removed
                    ended, stays = folder.stat().st_mtime, (folder / "job.json").exists()
                else:
                    ended, stays = job.ended or job.created, job.is_open or keeps(job)
                if stays or ended > before:
                    continue
                # First what makes it a job: one without state.json would seem to wait, and be done again.
                (folder / "job.json").unlink(missing_ok=True)
                self._ended.pop(name, None)
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(name)
        return gone

    def ids(self) -> list[str]:
        """Ids of all jobs, the newest first; the folder is listed again only where it has changed."""
        try:
            changed = self.folder.stat().st_mtime_ns
            kept = self._listed
            if kept is not None and kept[0] == changed:
                return list(kept[1])
            names = sorted((path.name for path in self.folder.iterdir()), reverse=True)
        except OSError:
            return []
        if time.time_ns() - changed > _SETTLED:
            self._listed = changed, names
        return list(names)

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

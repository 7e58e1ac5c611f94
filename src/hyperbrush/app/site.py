"""What pages and API share: the workspace, its jobs and runs, the workers' keeper, and news of what has changed."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hyperbrush.app.jobs.jobs import Job, Jobs
from hyperbrush.app.jobs.worker import lives, server_file, start_worker, worker_file
from hyperbrush.app.runs.run import JOB_KINDS, Runs, holds
from hyperbrush.app.uploads import Uploads
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import read_json, tail, write_json

log = logging.getLogger(__name__)

ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, WSL, ROCm
LOOK = 0.15  # seconds between two looks at the folders
TIDY = 6 * 3600.0  # seconds between two looks for what is too old


@dataclass(frozen=True)
class WorkerCrash:
    """A worker that ended without a word."""

    device: str
    when: float
    log: str


class Site:
    """Everything a request needs.

    News has a name ("job:ID", "run:NAME", "jobs", "runs", "workers", "networks"); `version` counts them, so that whoever
    looks now and then sees at once whether to look closer.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.jobs = Jobs(workspace.state)
        self.runs = Runs(workspace, self.jobs)
        self.uploads = Uploads(workspace.state / "uploads")
        self.crashes: list[WorkerCrash] = []
        self.versions: dict[str, int] = {}
        self._seen: dict[str, Any] = {}
        self._mine: dict[str, subprocess.Popen[bytes]] = {}
        self._known: dict[str, dict[str, Any]] = {}  # of each device, the worker seen alive last
        self._wait_until: dict[str, float] = {}
        self._failures: dict[str, int] = {}  # of each device, workers that died since one was seen alive
        self._reported: dict[str, Any] = {}  # of each device, the process that was told to be dead last
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._best: str | None = None
        self._signed: str | None = None  # the device that server.json names
        self._tidied = -TIDY

    @property
    def device(self) -> str:
        """The device that new jobs are for."""
        chosen = self.workspace.preferences.device
        if chosen != "auto":
            return chosen
        if self._best is None:
            self._best = best_device()
        return self._best

    def submit(self, kind: str, arguments: dict[str, Any]) -> Job:
        """Put a job into the queue of the preferred device.

        Raises:
            UserError: it cannot be written.
        """
        job = self.jobs.submit(kind, arguments, device=self.device)
        self.news("jobs")
        return job

    def version(self, name: str) -> int:
        """How often there was news of this name."""
        return self.versions.get(name, 0)

    def news(self, *names: str) -> None:
        """There is news: whoever waits is woken."""
        for name in names:
            self.versions[name] = self.versions.get(name, 0) + 1
        if names and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)  # requests are answered in threads

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, name: str, seen: int, timeout: float = 15.0) -> int:
        """Until there is news of a name beyond a version, or the time is over; the version then."""
        end = time.monotonic() + timeout
        while self.version(name) == seen and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return self.version(name)

    async def watch(self) -> None:
        """Look at the folders and the workers, for as long as the server runs."""
        self._loop = asyncio.get_running_loop()
        once: list[Callable[[], None]] = [self._requeue_lost]
        told: set[str] = set()
        while True:
            wrong: set[str] = set()
            for do in (self._sign, *once, self._tell_news, self._keep_workers, self._tidy):
                try:
                    await asyncio.to_thread(do)
                    if do in once:
                        once.remove(do)
                except Exception as error:  # the watch goes on, whatever one look meets
                    what = f"{type(error).__name__}: {error}"
                    if what not in told | wrong:  # several times a second it would fill the disk
                        log.exception("a look at the folders failed")
                    wrong.add(what)
            told = wrong
            await asyncio.sleep(LOOK)

    def close(self) -> None:
        """The server ends; the workers go on."""
        server_file(self.workspace.state).unlink(missing_ok=True)

    def worker(self, device: str) -> dict[str, Any]:
        """How a device's worker stands: {"device", "alive", "pid", "since"}."""
        said = read_json(worker_file(self.workspace.state, device))
        alive = lives(said)
        return {
            "device": device,
            "alive": alive,
            "pid": said.get("pid") if alive else None,
            "since": said.get("since") if alive else None,
        }

    def _sign(self) -> None:
        """Say that a server lives, and which device it prefers: the others' workers end when they have nothing to do."""
        import psutil

        device = self._signed or ""
        with contextlib.suppress(UserError):  # the preferences are broken: the next look tells of it
            device = self.device
        if device != self._signed:
            born = psutil.Process().create_time()
            said = {"pid": os.getpid(), "born": born, "device": device}
            write_json(server_file(self.workspace.state), said)
            self._signed = device

    def _requeue_lost(self) -> None:
        if self.jobs.requeue_lost():
            self.news("jobs")

    def _tidy(self) -> None:
        """Remove old jobs; a run's stay as long as the run, since its log is theirs, and so do grids."""
        if time.monotonic() - self._tidied < TIDY:
            return
        runs = {*self.runs.folders(), *(run.name for run in self.workspace.trash.items("run"))}

        def keeps(job: Job) -> bool:
            trains = job.kind in JOB_KINDS.values() and job.arguments.get("run") in runs
            return trains or (self.jobs.folder / job.id / "grid.png").is_file()

        for job in self.jobs.forget(keeps):
            self._seen.pop(f"job:{job}", None)
            self.versions.pop(f"job:{job}", None)
        self._tidied = time.monotonic()

    def _tell_news(self) -> None:
        self.news(*self._look())

    def _look(self) -> list[str]:
        """Which jobs, runs and networks have changed since the last look."""
        news: list[str] = []

        def look(name: str, stamp: Callable[[], Any]) -> None:
            try:
                found = stamp()
            except OSError:
                found = None
            if self._seen.get(name) != found:
                self._seen[name] = found
                news.append(name)

        state = self.workspace.state
        look("queue", lambda: (state / "jobs").stat().st_mtime_ns)
        if "queue" in news:
            news.append("jobs")
        names = ("state.json", "progress.json", "stop.json", "log.txt")
        for job in self.jobs.watched():
            look(f"job:{job}", lambda job=job: _stamps(state / "jobs" / job, names))  # type: ignore[misc]
        for name, folder in self.runs.folders().items():
            files = (
                "live.json",
                "metrics.jsonl",
                "config.yaml",
                "running.json",
                "checkpoints",
                "previews",
                ".",
            )
            look(f"run:{name}", lambda folder=folder, files=files: (*_stamps(folder, files), holds(folder)))  # type: ignore[misc]
        look("runs", lambda: _stamps(self.workspace.folder("runs"), (".",)))  # one was removed
        look("networks", lambda: _tree(self.workspace.folder("hypernetworks")))
        if any(name.startswith("run:") for name in news):
            news.append("runs")
        if any(name.startswith("job:") for name in news):
            news += ["jobs", "runs"]
        return list(dict.fromkeys(news))

    def _keep_workers(self) -> None:
        """Start the workers that are needed; tell of those that died."""
        needed = {job.device for job in self.jobs.open()} | {self.device}
        ended: dict[str, subprocess.Popen[bytes]] = {}
        for device, process in list(self._mine.items()):
            if process.poll() is not None:  # or it would stay a zombie
                ended[device] = self._mine.pop(device)
        for device in self._known.keys() - needed:
            if not lives(read_json(worker_file(self.workspace.state, device))):
                del self._known[device]
                self.news("workers")
        for device in needed:
            file = worker_file(self.workspace.state, device)
            said = read_json(file)
            if lives(said):
                if self._known.get(device) != said:
                    self._known[device] = said
                    self._failures.pop(device, None)
                    self.news("workers")
                continue
            self._known.pop(device, None)
            dead = said.get("pid")
            if not said and device in ended and ended[device].returncode != 0:
                dead = ended[device].pid  # before it could say that it lived
            if said or (dead is not None and dead != self._reported.get(device)):
                self._reported[device] = dead
                self._failures[device] = self._failures.get(device, -1) + 1
                file.unlink(missing_ok=True)
                self._report_crash(device)
            if device not in self._mine and time.monotonic() >= self._wait_until.get(device, 0):
                self._mine[device] = start_worker(self.workspace, device)
                wait = min(60, 5 * 2 ** min(self._failures.get(device, 0), 4))
                self._wait_until[device] = time.monotonic() + wait

    def _report_crash(self, device: str) -> None:
        file = worker_file(self.workspace.state, device).with_suffix(".log")
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        lines = [line for line in text.splitlines() if line.strip()][-12:]
        for job in self.jobs.open():  # what it was at just then
            if job.state == "running" and job.device == device:
                lines += tail(self.jobs.folder / job.id / "log.txt", 2000).splitlines()[-6:]
        self.crashes = [*self.crashes[-4:], WorkerCrash(device, time.time(), "\n".join(lines))]
        self.news("workers")


def best_device() -> str:
    """What "auto" means on this machine; torch is asked only where there may be more than a CPU."""
    if sys.platform == "linux" and not any(map(os.path.exists, ACCELERATORS)):
        return "cpu"
    from hyperbrush.ldm.models.device import placement

    return str(placement("auto", "auto", "auto").device)


def _stamps(folder: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    found = []
    for name in names:
        try:
            found.append((folder / name).stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _tree(folder: Any) -> tuple[tuple[str, int], ...]:
    """Names and times of a folder and its folders."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            with contextlib.suppress(OSError):
                found.append((name, os.stat(os.path.join(parent, name)).st_mtime_ns))  # noqa: PTH116, PTH118
    return tuple(found)

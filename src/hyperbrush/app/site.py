"""What pages and API share: the workspace, its jobs and runs, the workers' keeper, and news of what has changed."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from hyperbrush.app.gallery.index import Index
from hyperbrush.app.jobs.jobs import How, Job, Jobs
from hyperbrush.app.jobs.keeper import Keeper
from hyperbrush.app.jobs.worker import lives, server_file, worker_file
from hyperbrush.app.runs.run import JOB_KINDS, Runs, holds
from hyperbrush.app.uploads import Uploads
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json

log = logging.getLogger(__name__)

ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, WSL, ROCm
LOOK = 0.15  # seconds between two looks at the folders
WALKING = 0.05  # share of the time at most, that walks through the hypernetworks take
TIDY = 6 * 3600.0  # seconds between two looks for what is too old


class Site:
    """Everything a request needs.

    News has a name ("job:ID", "run:NAME", "jobs", "runs", "workers", "networks"; "outputs" where a file there has changed,
    "pictures" where the gallery has); `version` counts them, so that whoever looks now and then sees at once whether to
    look closer.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.jobs = Jobs(workspace.state)
        self.runs = Runs(workspace, self.jobs)
        self.uploads = Uploads(workspace.state / "uploads")
        self.gallery = Index(workspace, self.jobs)
        self.keeper = Keeper(workspace, self.jobs, lambda: self.news("workers"))
        self.versions: dict[str, int] = {}
        self._seen: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._best: str | None = None
        self._signed: str | None = None  # the device that server.json names
        self._tidied = -TIDY
        self._walk_from = 0.0  # when the hypernetworks are walked through again

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
        """Put a job into the queue of the preferred device, with the model that is preferred now.

        Raises:
            UserError: it cannot be written.
        """
        job = self.jobs.submit(kind, arguments, device=self.device, model=self.workspace.preferences.model)
        self.news("jobs")
        return job

    def ask(self, job: str, how: How) -> Job:
        """Pause, stop or finish a job, see `Jobs.ask`.

        Raises:
            UserError: there is none of that id, or it has ended.
        """
        asked = self.jobs.ask(job, how)
        self.news("jobs", f"job:{job}")
        return asked

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
        """Remove old jobs; a run's stay as long as the run, since its log is theirs, and so do grids and starred styles."""
        if time.monotonic() - self._tidied < TIDY:
            return
        runs = {*self.runs.folders(), *(run.name for run in self.workspace.trash.items("run"))}
        starred = self.gallery.starred_jobs()

        def keeps(job: Job) -> bool:
            trains = job.kind in JOB_KINDS.values() and job.arguments.get("run") in runs
            return trains or job.id in starred or (self.jobs.folder / job.id / "grid.png").is_file()

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
        if (begun := time.monotonic()) >= self._walk_from:
            look("networks", lambda: _tree(self.workspace.folder("hypernetworks")))
            self._walk_from = begun + (time.monotonic() - begun) / WALKING
        outputs, today = self.workspace.folder("outputs"), time.strftime("%Y-%m-%d")
        look("outputs", lambda: _stamps(outputs, (".", today)))
        if any(name.startswith("run:") for name in news):
            news.append("runs")
        if any(name.startswith("job:") for name in news):
            news += ["jobs", "runs"]
        return list(dict.fromkeys(news))

    def _keep_workers(self) -> None:
        self.keeper.look(self.device)


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

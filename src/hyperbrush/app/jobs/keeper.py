"""Who starts the workers that are needed, and reports those that crashed."""

import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hyperbrush.app.jobs.jobs import Jobs
from hyperbrush.app.jobs.worker import lives, start_worker, worker_file
from hyperbrush.app.workspace import Workspace
from hyperbrush.files import read_json, tail


@dataclass(frozen=True)
class WorkerCrash:
    """A worker that ended without a word."""

    device: str
    when: float
    log: str


@dataclass
class _Device:
    """What is known of the workers of one device.

    Args:
        process: the one that was started from here, until it is seen to have ended.
        alive: what the worker said of itself that was seen alive last.
        crashes: since one was seen alive.
        reported: number of the process whose crash was reported last.
        wait_until: of the monotonic clock; no other is started before.
    """

    process: "subprocess.Popen[bytes] | None" = None
    alive: dict[str, Any] = field(default_factory=dict)
    crashes: int = 0
    reported: Any = None
    wait_until: float = 0.0


class Keeper:
    """Keeps a workspace's workers; news: called where the state of one has changed."""

    def __init__(self, workspace: Workspace, jobs: Jobs, news: Callable[[], None]) -> None:
        self.workspace, self.jobs, self._news = workspace, jobs, news
        self.crashes: list[WorkerCrash] = []  # the last few
        self._devices: defaultdict[str, _Device] = defaultdict(_Device)

    def look(self, preferred: str) -> None:
        """Start what is missing for the open jobs and the preferred device; report what crashed."""
        needed = {job.device for job in self.jobs.open()} | {preferred}
        ended: dict[str, subprocess.Popen[bytes]] = {}
        for device, known in self._devices.items():
            if known.process is not None and known.process.poll() is not None:  # or it would stay a zombie
                ended[device], known.process = known.process, None
            if device not in needed and known.alive and not lives(self._said(device)):
                known.alive = {}
                self._news()
        for device in needed:
            self._keep(device, ended.get(device))

    def _said(self, device: str) -> dict[str, Any]:
        return read_json(worker_file(self.workspace.state, device))

    def _keep(self, device: str, ended: "subprocess.Popen[bytes] | None") -> None:
        known, said = self._devices[device], self._said(device)
        if lives(said):
            if known.alive != said:
                known.alive, known.crashes = said, 0
                self._news()
            return
        known.alive = {}
        dead = said.get("pid")
        if not said and ended is not None and ended.returncode != 0:
            dead = ended.pid  # before it could say that it lived
        if said or (dead is not None and dead != known.reported):
            known.reported = dead
            known.crashes += 1
            worker_file(self.workspace.state, device).unlink(missing_ok=True)
            self._report(device)
        if known.process is None and time.monotonic() >= known.wait_until:
            known.process = start_worker(self.workspace, device)
            known.wait_until = time.monotonic() + min(60, 5 * 2 ** min(max(known.crashes - 1, 0), 4))

    def _report(self, device: str) -> None:
        file = worker_file(self.workspace.state, device).with_suffix(".log")
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        lines = [line for line in text.splitlines() if line.strip()][-12:]
        for job in self.jobs.open():  # what it was at just then
            if job.state == "running" and job.device == device:
                lines += tail(self.jobs.folder / job.id / "log.txt", 2000).splitlines()[-6:]
        self.crashes = [*self.crashes[-4:], WorkerCrash(device, time.time(), "\n".join(lines))]
        self._news()

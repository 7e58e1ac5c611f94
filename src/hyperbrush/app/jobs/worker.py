"""The worker: a process that takes jobs from a device's queue, outlives page and server, and reports its own crash."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperbrush.app.jobs.context import JobContext, StopRequested
from hyperbrush.app.jobs.jobs import Jobs
from hyperbrush.app.jobs.kinds import KINDS, STEPWISE
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import clear_parts, read_json, write_json

MOST_ATTEMPTS = 3  # of a job whose worker died each time before the job got any further
IDLE = 60.0  # seconds without work, after which a worker that no server wants ends
TAKEN = 2  # status in persist-queue from which a place is a worker's
SAME = 10.0  # seconds between two births that are told to be one process's


class Worker:
    """Takes and does the jobs of one device, one at a time.

    Raises:
        UserError: another worker has the device.
    """

    def __init__(self, workspace: Workspace, device: str) -> None:
        self.workspace, self.device = workspace, device
        self.jobs = Jobs(workspace.state)
        self.ending = False
        self._done_with: dict[str, int] = {}  # by lane, time of the order whose jobs are all taken
        self.kept: dict[str, Any] = {}  # what functions keep open between jobs: models

    def run(self) -> None:
        """Work until told to end, or idle where no server wants it."""
        with self._alone(), self._heart():
            for lane in ("short", "long"):
                queue = self.jobs.queue(self.device, lane, resume=True)
                queue.clear_acked_data(keep_latest=0)
            idle = time.monotonic()
            while not self.ending:
                if self.serve("short") or self.serve("long"):
                    idle = time.monotonic()
                    continue
                if time.monotonic() - idle > IDLE:
                    if not self._is_wanted():
                        break
                    idle = time.monotonic()
                time.sleep(0.05)

    def _is_wanted(self) -> bool:
        """Whether a server runs that has its next work done on this device, as far as it said."""
        said = read_json(server_file(self.workspace.state))
        return lives(said) and (said.get("device") or self.device) == self.device

    def serve(self, lane: str) -> bool:
        """Do the next job of a lane; whether there was one."""
        from persistqueue.exceptions import Empty

        queue = self.jobs.queue(self.device, lane)
        try:
            taken = queue.get(block=False, raw=True, id=self._first(lane, queue))
        except Empty:
            return False
        self._do(str(taken["data"]))
        if self.ending and self._is_open(str(taken["data"])):
            queue.nack(id=taken["pqid"])  # for the next worker
        else:
            queue.ack(id=taken["pqid"])
        return True

    def _first(self, lane: str, queue: Any) -> int | None:
        """The place in a lane's queue of the job that somebody put before the others; None: the oldest is taken."""
        try:
            stamp = self.jobs.order_file.stat().st_mtime_ns
        except OSError:  # nobody put any
            return None
        if self._done_with.get(lane) == stamp:
            return None
        places = {str(row["data"]): int(row["id"]) for row in queue.queue() if int(row["status"]) < TAKEN}
        first = next((places[job] for job in self.jobs.order() if job in places), None)
        if first is None:
            self._done_with[lane] = stamp
        return first

    def _is_open(self, job: str) -> bool:
        try:
            return self.jobs.get(job).is_open
        except UserError:  # its folder was removed
            return False

    def _do(self, job: str) -> None:
        try:
            found = self.jobs.get(job)
        except UserError:  # its folder was removed
            return
        context = JobContext(self.jobs, job, self)
        put = context.put
        if not found.is_open or found.asked in (
            "stop",
            "pause",
        ):  # also where its worker died: never begun again
            if found.ended is None:  # written down, so that nobody looks at it again
                state = "paused" if found.asked == "pause" else "stopped"
                put(state=state, started=found.started, ended=time.time(), attempts=found.attempts)
            return
        if found.attempts - found.forgiven >= MOST_ATTEMPTS:
            put(
                state="failed",
                error=f"its worker died {MOST_ATTEMPTS} times before it got any further; see the log",
                ended=time.time(),
                attempts=found.attempts,
            )
            return
        put()
        clear_parts(context.folder)
        try:
            with contextlib.nullcontext() if found.kind in STEPWISE else context.stoppable():
                result = KINDS[found.kind](context)
            put(state="done", result=result or {}, ended=time.time())
        except StopRequested as stop:
            how = str(
                read_json(context.folder / "stop.json").get("how", "")
            )  # the user's, not the worker's end
            if self.ending and how in ("", "finish"):  # the next worker goes on with it, or finishes it
                put(state="running" if how else "queued", attempts=found.attempts)
            else:
                put(state="paused" if (how or stop.how) == "pause" else "stopped", ended=time.time())
        except UserError as error:
            context.log(str(error))
            put(state="failed", error=str(error), ended=time.time())
        except Exception as error:  # noqa: BLE001  a bug in one job must not end the others
            context.log(traceback.format_exc())
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            put(
                state="failed",
                error=f"a bug of ours ({type(error).__name__}: {error!s:.300}); the log has more",
                ended=time.time(),
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        self.workspace.state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(worker_file(self.workspace.state, self.device).with_suffix(".lock"))
        try:
            lock.acquire(timeout=2)
        except Timeout:
            raise UserError(f"another worker has the device {self.device} already") from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _heart(self) -> Iterator[None]:
        """worker-DEVICE.json while it lives; SIGTERM and Ctrl-C end it after the present step."""
        import psutil

        file = worker_file(self.workspace.state, self.device)
        write_json(
            file,
            {
                "pid": os.getpid(),
                "born": psutil.Process().create_time(),
                "device": self.device,
                "since": time.time(),
            },
        )

        def end(*_: Any) -> None:
            self.ending = True

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, end)
        yield
        file.unlink(missing_ok=True)  # not after an exception: that is a crash


def worker_file(state: Path, device: str) -> Path:
    """Where a device's worker says that it lives."""
    return state / f"worker-{device.replace(':', '-')}.json"


def lives(said: dict[str, Any]) -> bool:
    """Whether the process that wrote {"pid", "born"} still runs."""
    import psutil

    try:
        process = psutil.Process(int(said["pid"]))
        # Told by the clock, which may be set between two looks; a number is not given again within seconds.
        same = abs(process.create_time() - float(said["born"])) < SAME
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False


def server_file(state: Path) -> Path:
    """Where a server says that it lives, and which device is preferred."""
    return state / "server.json"


def server_lives(state: Path) -> bool:
    """Whether a server runs on this workspace."""
    return lives(read_json(server_file(state)))


def start_worker(workspace: Workspace, device: str) -> "subprocess.Popen[bytes]":
    """Start a worker that outlives this process; what it prints goes to worker-DEVICE.log."""
    workspace.state.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "hyperbrush",
        "worker",
        "--folder",
        str(workspace.root),
        "--device",
        device,
    ]
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        detached = {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS, CREATE_NEW_PROCESS_GROUP
    log = worker_file(workspace.state, device).with_suffix(".log")
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **detached
        )

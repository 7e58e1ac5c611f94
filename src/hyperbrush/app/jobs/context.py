"""What the function of a job has at hand: its arguments and folder, progress to report, requests to obey."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hyperbrush.files import read_json, write_json
from hyperbrush.stopping import stoppable

if TYPE_CHECKING:
    from hyperbrush.app.jobs.jobs import Jobs
    from hyperbrush.app.jobs.worker import Worker

TELL = 0.1  # seconds between two reports of progress at least
LOOK = 0.1  # seconds between two looks, while networks compute, whether it is asked to stop


class StopRequested(Exception):
    """A job ended early since the user asked for it."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class JobContext:
    """What a function of a `work` module has of its job: arguments, a folder, progress to report, requests to read."""

    def __init__(self, jobs: "Jobs", job: str, worker: "Worker") -> None:
        self.jobs, self.id, self.worker = jobs, job, worker
        self.workspace = worker.workspace
        self.folder = jobs.folder / job
        found = jobs.get(job)
        self.arguments = dict(found.arguments)
        self.model = found.model or worker.workspace.preferences.model
        self.stands: dict[str, Any] = {
            "state": "running",
            "started": found.started or time.time(),
            "attempts": found.attempts + 1,
            "forgiven": found.forgiven,
        }
        self._told = 0.0

    def put(self, **changes: Any) -> None:
        """Write down how the job stands."""
        self.stands.update(changes)
        write_json(self.folder / "state.json", self.stands)

    def got_further(self) -> None:
        """What is done so far stays, whatever comes: workers that died before count no more."""
        before = self.stands["attempts"] - 1
        if self.stands["forgiven"] < before:
            self.put(forgiven=before)

    def tell(self, *, now: bool = False, **progress: Any) -> None:
        """Say how far it is; most of what comes faster than ten times a second is left out, but for `now`."""
        if now or time.monotonic() - self._told >= TELL:
            self._told = time.monotonic()
            write_json(self.folder / "progress.json", progress, sync=False)

    def requested(self) -> str:
        """What the user (or the end of the worker) asks of it: pause, stop, finish, or nothing."""
        if self.worker.ending:
            return "pause"
        return str(read_json(self.folder / "stop.json").get("how", ""))

    def raise_if_requested(self) -> None:
        """End the job here if it is asked to.

        Raises:
            StopRequested: it is.
        """
        if how := self.requested():
            raise StopRequested(how)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within, a request is obeyed between any two layers of any network, however large the picture.

        Raises:
            StopRequested: it is asked to.
        """
        looked = 0.0

        def ask() -> None:
            nonlocal looked
            if (now := time.monotonic()) - looked >= LOOK:
                looked = now
                self.raise_if_requested()

        with stoppable(ask):
            yield

    def between(self) -> None:
        """Draw what people wait for; a long job calls this between its steps."""
        if not self.worker.ending:
            self.worker.serve("short")

    def log(self, text: str) -> None:
        """Add to the job's log."""
        with (
            contextlib.suppress(OSError),  # a full disk: the work itself tells of it
            (self.folder / "log.txt").open("a", encoding="utf-8", errors="replace") as file,
        ):
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

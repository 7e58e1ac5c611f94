"""The workers of a sweep as jobs of a cluster, submitted by submitit (https://github.com/facebookincubator/submitit)."""

import contextlib
import importlib.util
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.shell import quoted
from hyperbrush.training.sweep.outcome import Teller
from hyperbrush.training.sweep.settings import FILE, Sweep

EXECUTORS = ("slurm", "local")  # local: processes of this machine, to try it out
DAY = 24 * 60  # minutes of a job, where the sweep's file says nothing else
REQUEUED = 50  # times that a job whose time ran out goes on
STOP = "stop"  # a file among the workers', by which they are asked to save and end
PATIENCE = 120.0  # seconds that stopped workers get before their jobs are cancelled
POLL = 1.0  # seconds


@dataclass(frozen=True)
class ClusterWorker:
    """What one job does: trials, until none is left or `STOP` is there.  A job that is preempted or out of time is queued
    again, and goes on from the last checkpoint of its trial.
    """

    work: Callable[..., bool]  # `run.work`
    folder: Path

    def __call__(self) -> bool:
        """See `run.work`."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        stop, asked, looked = self.folder / "workers" / STOP, False, 0.0

        def should_stop() -> bool:
            nonlocal asked, looked
            if not asked and time.monotonic() - looked > POLL:  # a look at a shared disk may be slow
                asked, looked = stop.exists(), time.monotonic()
            return asked

        return self.work(self.folder, should_stop=should_stop)

    def checkpoint(self) -> Any:
        """The same again, for submitit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def by_cluster(
    work: Callable[..., bool],
    sweep: Sweep,
    workers: int,
    executor: str,
    note: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> bool:
    """So many jobs do `run.work` on the sweep, whose folder all nodes must see; this process tells how it goes.  False: stopped.

    Raises:
        UserError: no such executor, no cluster here, a wrong name under ``cluster`` in the sweep's file, or jobs that
            ended with trials to do.
    """
    logs = sweep.folder.absolute() / "workers"
    teller = Teller(sweep, note)
    if not teller.left:
        return True
    submit = _executor(executor, logs, sweep.config.cluster, str(sweep.folder / FILE))
    stop = logs / STOP
    stop.unlink(missing_ok=True)
    worker = ClusterWorker(work, sweep.folder.absolute())
    try:
        with _without_interrupts(executor == "local"), submit.batch():
            jobs = [submit.submit(worker) for _ in range(min(workers, teller.left))]
    except (RuntimeError, OSError) as error:  # of the cluster's own program
        said = " ".join(str(error).split())
        raise UserError(
            f"--executor {executor}: the jobs were refused: {said:.400}; mend 'cluster' in {sweep.folder / FILE}"
        ) from error
    names = ", ".join(job.job_id for job in jobs)
    note(f"{len(jobs)} jobs on {teller.left} trials: {names}; what they say is in {logs}")
    asked: float | None = None
    while not all(job.done() for job in jobs):
        time.sleep(POLL)
        teller.tell()
        if asked is None and should_stop():
            asked = time.monotonic()
            stop.touch()
            waiting = [job for job in jobs if not job.paths.stdout.exists()]  # in the queue
            for job in waiting:
                job.cancel(check=False)
            jobs = [job for job in jobs if job not in waiting]
        if asked is not None and time.monotonic() - asked > PATIENCE:
            for job in jobs:
                job.cancel(check=False)
            break
    teller.tell()
    if not teller.left:
        return True
    if asked is not None:
        return False
    raise UserError(
        f"all jobs ended with {teller.left} trials to do; see {logs}, then go on with "
        f"hyperbrush sweep --resume {quoted(sweep.folder)} --executor {executor} --workers {workers}"
    )


def check_cluster(sweep: Sweep, executor: str, where: str) -> None:
    """See, before anything is written, that jobs can be submitted so.

    where: the file that has the sweep's settings.

    Raises:
        UserError: see `by_cluster`.
    """
    with tempfile.TemporaryDirectory() as folder:
        _executor(executor, Path(folder), sweep.config.cluster, where)


@contextlib.contextmanager
def _without_interrupts(wanted: bool) -> Iterator[None]:
    """Processes that begin within do not hear a terminal's Ctrl-C, which is for this one alone."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _executor(name: str, logs: Path, options: Mapping[str, Any], where: str) -> Any:
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--executor needs the package submitit: pip install 'hyperbrush[cluster]'")
    import submitit

    logs.mkdir(parents=True, exist_ok=True)
    try:
        found = submitit.AutoExecutor(folder=logs, cluster=name, slurm_max_num_timeout=REQUEUED)
        found.update_parameters(**{"name": "hyperbrush", "timeout_min": DAY, **options})
    except RuntimeError as error:
        raise UserError(f"--executor {name}: {error}; run it where the cluster's commands are") from error
    except (NameError, ValueError, TypeError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where}: cluster: {said:.400}; see submitit's names in docs/sweeps.md") from error
    return found

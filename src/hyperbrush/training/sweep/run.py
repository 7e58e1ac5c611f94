"""`hyperbrush sweep`: a training with every setting of a grid or list, one after another or side by side."""

import contextlib
import hashlib
import json
import logging
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.files import clear_parts, read_json, write_json, write_text
from hyperbrush.training.attention.run import read_run, train_run
from hyperbrush.training.data.pictures import PictureSettings
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.progress import Interrupted, PrepareCallback, Progress
from hyperbrush.training.loop.settings import save_run
from hyperbrush.training.report.result import check_file
from hyperbrush.training.sweep.claim import RETRIES, Held, claim
from hyperbrush.training.sweep.outcome import OUTCOME, Outcome, fail_abandoned, outcome_of
from hyperbrush.training.sweep.settings import Sweep, Trial, begin_sweep, read_sweep
from hyperbrush.training.sweep.workers import by_processes

THREADS = "threads.json"  # in a sweep's folder
log = logging.getLogger(__name__)

# What shows one training: name → (told while encoding, told after each step), see `console`.
Bars = Callable[[str], contextlib.AbstractContextManager[tuple[PrepareCallback, Callable[[Progress], None]]]]


def begin(
    path: str | Path,
    run: str | Path | None = None,
    *,
    workers: int = 1,
    executor: str = "",
    overwrite: bool = False,
) -> Path:
    """Check every trial of a sweep's file, and what is to do them, and return the sweep's folder (runs/NAME by default).

    workers, executor: as `work` is going to be told. overwrite: the best network may replace a file of its name in the library.

    Raises:
        UserError: whatever is wrong with any of them; a sweep or a training stands there already.
    """

    def check(sweep: Sweep) -> None:
        _check_workers(workers)
        own = sweep.library / f"{sweep.name}.safetensors"
        check_file(own, sweep.trials[0].config.start_from, overwrite=overwrite)
        if executor:
            from hyperbrush.training.sweep.cluster import check_cluster

            check_cluster(sweep, executor, str(path))

    return begin_sweep(Path(path), None if run is None else Path(run), check).folder


def work(
    folder: str | Path,
    *,
    workers: int = 1,
    executor: str = "",
    note: Callable[[str], None] = log.info,
    bars: Bars | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Do a sweep's trials until none is left, waiting for those that others do; False: stopped before.

    Args:
        folder: of `begin`; workers on other machines share it.
        workers: processes on this machine; 1: this process alone.
        executor: "slurm": the workers are jobs of a cluster, see `cluster.by_cluster`.
        note: told which trial begins and what each came to.
        bars: shows a training of this process.
        should_stop: True saves what runs, to be gone on with by another call.

    Raises:
        UserError: no sweep there; all workers died; no such executor, or what it was told.
    """
    _check_workers(workers)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep starts processes of its own: take --workers in place of accelerate launch")
    sweep = read_sweep(Path(folder))
    if executor:
        from hyperbrush.training.sweep.cluster import by_cluster

        return by_cluster(work, sweep, workers, executor, note, should_stop)
    if workers > 1:
        return by_processes(sweep, workers, note, should_stop)
    with same_threads(sweep, note):
        return _Worker(sweep, note, bars, should_stop).run()


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise UserError(f"--workers {workers}; expected 1 or more")


@dataclass
class _Worker:
    sweep: Sweep
    note: Callable[[str], None]
    bars: Bars | None
    should_stop: Callable[[], bool]

    def run(self) -> bool:
        """Take trials until all have ended, or until it is to stop."""
        waits = False
        while to_do := [trial for trial in self.sweep.trials if outcome_of(trial) is None]:
            free = 0
            for trial in to_do:
                if self.should_stop():
                    return False
                try:
                    with claim(trial.run, self.sweep.config.heartbeat) as deaths:
                        self._do(trial, deaths)
                except Held:
                    continue
                except Interrupted:
                    return False
                free += 1
            if free:
                waits = False
                continue
            if not waits:
                numbers = ", ".join(str(trial.number) for trial in to_do)
                self.note(f"waiting for other workers, who have trial {numbers}")
            waits = True
            self._pause()
        return True

    def _do(self, trial: Trial, deaths: int) -> None:
        """One trial, from where it was left; deaths: of workers that were at it."""
        if outcome_of(trial) is not None:  # another worker was faster
            return
        if deaths > RETRIES:
            outcome = fail_abandoned(trial)
        else:
            self.note(f"trial {trial.number} of {len(self.sweep.trials)}: {trial.label}")
            outcome = self._train(trial)
        write_json(trial.run / OUTCOME, asdict(outcome))
        self.note(f"trial {trial.number}: {outcome}")

    def _train(self, trial: Trial) -> Outcome:
        worker = f"{socket.gethostname()} {os.getpid()}"
        ended = partial(Outcome, trial.number, trial.label, worker=worker)
        try:
            clear_parts(trial.run / "checkpoints")
            resume = bool(checkpoints.steps(trial.run / "checkpoints"))
            config = trial.config
            if resume:
                config = read_run(trial.run).model_copy(update={"hypernetworks": str(trial.run)})
            else:
                save_run(config, trial.run)
            _share_latents(self.sweep, trial)
            with contextlib.ExitStack() as stack:
                shown = (None, None) if self.bars is None else stack.enter_context(self.bars(trial.label))
                result = train_run(
                    config,
                    trial.run,
                    resume=resume,
                    on_prepare=shown[0],
                    on_progress=shown[1],
                    should_stop=self.should_stop,
                )
        except Interrupted:
            raise
        except UserError as error:
            return ended("failed", error=str(error))
        except Exception as error:  # noqa: BLE001 - the other trials go on, and the row says what it was
            write_text(trial.run / "error.txt", traceback.format_exc())
            said = f"{type(error).__name__}: {error} (see {trial.run / 'error.txt'})"
            return ended("failed", error=said)
        return ended(
            "done",
            best_loss=result.best_loss if math.isfinite(result.best_loss) else None,
            base_loss=result.base_loss if math.isfinite(result.base_loss) else None,
            best_step=result.best_step,
            steps=result.steps,
            seconds=result.seconds,
            file=result.file.name,
        )

    def _pause(self) -> None:
        until = time.monotonic() + min(2.0, self.sweep.config.heartbeat)
        while time.monotonic() < until and not self.should_stop():
            time.sleep(0.1)


@contextlib.contextmanager
def same_threads(sweep: Sweep, note: Callable[[str], None]) -> Iterator[None]:
    """As many CPU threads as the sweep's first worker had: on the CPU bits depend on it, and trials are compared."""
    import torch

    file, own = sweep.folder / THREADS, torch.get_num_threads()
    if "threads" not in read_json(file):
        write_json(file, {"threads": own})
    threads = int(read_json(file).get("threads", own))
    if threads == own or torch.cuda.is_available():
        yield
        return
    if threads > max(own, os.cpu_count() or 1):
        note(
            f"the sweep began with {threads} CPU threads a worker, this machine has {os.cpu_count()}: it goes on with {own}; "
            "figures differ in their last digits"
        )
        yield
        return
    note(
        f"the sweep began with {threads} CPU threads a worker, on which its figures depend: it goes on so, not with {own}"
    )
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _share_latents(sweep: Sweep, trial: Trial) -> None:
    """Let trials with the same pictures, prepared in the same way, keep their latents together.

    One encoding serves all of them.  Where a system has no links, each trial has its own.
    """
    about = trial.config.model_dump(mode="json", include={"model", "data", "validation"})
    training = trial.config.training.model_dump(mode="json", include={*PictureSettings.model_fields, "seed"})
    key = hashlib.sha256(json.dumps(about | training, sort_keys=True).encode()).hexdigest()[:16]
    shared = sweep.folder / "latents" / key
    own = trial.run / "cache" / "latents"
    if own.exists():
        return
    shared.mkdir(parents=True, exist_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # where links need rights, each trial encodes its own
        own.symlink_to(os.path.relpath(shared, own.parent), target_is_directory=True)

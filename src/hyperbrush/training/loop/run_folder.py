"""A run folder while one training is at it: locked (by the system, so that a kill frees it), cleared, looked at."""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import clear_parts, write_json
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.caller import AccelerateStates, generators_kept
from hyperbrush.training.loop.processes import join, on_main

LOCK, HOLDER = ".lock", "running.json"
SWEEP = "sweep.yaml"  # in the folder of a sweep, which no training may write into
log = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(run: str | Path) -> Iterator[None]:
    """Hold a run folder for writing; readers never ask.

    The system frees the lock when its process ends, however that happens.  running.json names the holder
    while it lives; one left behind by a kill means nothing.

    Raises:
        UserError: another training holds it (names its process and host); the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(run)
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by another training ({holder(folder)}); wait for it, stop it, or take "
            "another run folder"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot lock {folder / LOCK}: {error.strerror or error}; make room, or choose a run folder "
            "that can be written"
        ) from error
    try:
        write_json(
            folder / HOLDER,
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(run: Path) -> str:
    """Who wrote running.json, in words."""
    try:
        found = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"


@contextlib.contextmanager
def opened_run(run: str | Path, *, resume: bool = False, at: int | None = None) -> Iterator[None]:
    """Hold a run folder from before the first picture is encoded until the last file is written.

    Accelerate's states and the global generators are the caller's again afterwards.  All processes of a training call it together; the main one locks.  What a kill left half-written is gone
    then, and on the CPU the number of threads is the one the run began with, since bits depend on it.  A
    folder that is new and in which nothing was written is gone again afterwards.

    Raises:
        UserError: another training holds it; there are checkpoints already (or, to resume, none; none at
            that step); it cannot be written.
    """
    from accelerate import PartialState

    with contextlib.ExitStack() as stack:
        stack.enter_context(AccelerateStates().entered())
        stack.enter_context(generators_kept())
        folder, device = Path(run), join()
        made_with = on_main(PartialState(), lambda: _open(stack, folder, resume, at))
        stack.enter_context(_threads(made_with, device, PartialState().num_processes))
        yield


def step_to_go_on_from(run: Path, at: int | None = None) -> int:
    """The step of the checkpoint that a training goes on from.

    Raises:
        UserError: there is none, or none at that step.
    """
    there = checkpoints.steps(run / "checkpoints")
    if not there or (at is not None and at not in there):
        raise UserError(f"{run} holds no checkpoint to resume from" + (f" at step {at}" if there else ""))
    return at if at is not None else there[-1]


def begin_anew(run: str | Path) -> None:
    """Take a run folder away, for a new training in its place.

    Raises:
        UserError: a training is at it; it is no run's folder.
    """
    if Path(run).exists():
        there = {entry.name for entry in os.scandir(run)}
        if there and not there & {LOCK, "config.yaml", "checkpoints"}:
            raise UserError(f"{run} holds something else than a training: take another --out")
        with run_lock(run):
            pass
        shutil.rmtree(run, ignore_errors=True)


def made_with(processes: int) -> dict[str, Any]:
    """What the bits of a training on the CPU depend on, beside its settings and the machine."""
    return {"threads": torch.get_num_threads(), "processes": processes, "torch": str(torch.__version__)}


def _open(stack: contextlib.ExitStack, run: Path, resume: bool, at: int | None) -> dict[str, Any]:
    folder = run / "checkpoints"
    if resume and not checkpoints.steps(folder):
        raise UserError(f"{run} holds no checkpoint to resume from")
    if not run.exists():
        stack.callback(_forget, run)
    stack.enter_context(run_lock(run))
    clear_parts(run, deep=True)
    there = checkpoints.steps(folder)
    if not resume and (run / SWEEP).exists():
        raise UserError(f"{run} holds a sweep: take another --run")
    if not resume and there:
        raise UserError(
            f"{run} holds checkpoints of another training: go on with --resume {run}, or take another --run"
        )
    if resume and at is not None and at not in there:
        raise UserError(f"no checkpoint at step {at} in {folder}; there are: {', '.join(map(str, there))}")
    for step in reversed(there):
        if found := checkpoints.extra_of(checkpoints.path_of(folder, step)).get("made_with"):
            return dict(found)
    return {}


def _forget(run: Path) -> None:
    """Take away a folder that holds nothing but the lock."""
    with contextlib.suppress(OSError):
        if [entry.name for entry in os.scandir(run)] == [LOCK]:
            (run / LOCK).unlink()
            run.rmdir()


@contextlib.contextmanager
def _threads(before: dict[str, Any], device: torch.device, processes: int) -> Iterator[None]:
    own, threads = torch.get_num_threads(), before.get("threads")
    same = device.type == "cpu" and threads is not None and before.get("processes") == processes
    if same and before.get("torch") != str(torch.__version__):
        log.warning(
            "the run began with torch %s and goes on with %s: not to the bit as if in one go",
            before.get("torch"),
            torch.__version__,
        )
    if not same or threads == own:
        yield
        return
    assert isinstance(threads, int)
    if threads > max(own, os.cpu_count() or 1):
        log.warning(
            "the run began with %d CPU threads, this machine has %d: it goes on with %d, not to the bit as if in one go",
            threads,
            os.cpu_count(),
            own,
        )
        yield
        return
    log.warning(
        "the run began with %d CPU threads, on which its bits depend: it goes on with them, not with %d",
        threads,
        own,
    )
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(own)

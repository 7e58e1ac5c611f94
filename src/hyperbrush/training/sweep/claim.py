"""Who is at a trial: an operating-system lock, and a file for each attempt at it, in the trial's folder."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, ATTEMPT = ".trial.lock", ".attempt-"
GRACE = 4  # heartbeats without a sign of life, then a worker of another machine counts as dead
RETRIES = 3  # times a trial is taken up again whose worker died


class Held(Exception):
    """Another worker is at the trial."""


@contextlib.contextmanager
def claim(run: Path, heartbeat: float) -> Iterator[int]:
    """Hold a trial's folder for an attempt at it; gives how many workers died at it before.

    heartbeat: seconds between signs of life.

    A killed process leaves its lock free, and its attempt's file, which is counted. Where a file system keeps locks to
    one machine, the others go by the attempt's file, which its worker touches at each heartbeat.

    Raises:
        Held: another worker is at it.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(run / LOCK).acquire(blocking=False)
    except Timeout as error:
        raise Held from error
    with held:
        attempts = sorted(run.glob(f"{ATTEMPT}*"))
        if attempts and _lives_elsewhere(attempts[-1], heartbeat):
            raise Held
        own = run / f"{ATTEMPT}{len(attempts) + 1}"
        try:
            with own.open("x", encoding="utf-8") as file:
                file.write(socket.gethostname())
        except FileExistsError as error:  # a machine that the lock does not reach was faster
            raise Held from error
        ended = threading.Event()
        threading.Thread(target=_beat, args=(own, heartbeat, ended), daemon=True).start()
        try:
            yield len(attempts)
            for attempt in attempts:  # the trial has ended: should it be tried once more, none counts
                attempt.unlink(missing_ok=True)
        finally:
            ended.set()
            own.unlink(missing_ok=True)


def _lives_elsewhere(attempt: Path, heartbeat: float) -> bool:
    """Whether a worker of another machine made the attempt and lives; one of this machine does not, or has the lock."""
    lock = attempt.with_name(LOCK)
    lock.touch()  # two times of the same clock, the file system's
    try:
        age = lock.stat().st_mtime - attempt.stat().st_mtime
        return attempt.read_text(encoding="utf-8") != socket.gethostname() and age < GRACE * heartbeat
    except FileNotFoundError:  # it ends this moment
        return True


def _beat(attempt: Path, heartbeat: float, ended: threading.Event) -> None:
    while not ended.wait(heartbeat):
        with contextlib.suppress(OSError):
            os.utime(attempt)

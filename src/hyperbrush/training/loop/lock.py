"""One training a run folder: an operating-system lock, which a killed process leaves harmless."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.files import write_json

LOCK, HOLDER = ".lock", "running.json"


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

"""Whether a process trains in a run's folder just now, as far as the folder tells."""

import socket
import time
from datetime import datetime
from pathlib import Path

import psutil

from hyperbrush.files import read_json

QUIET = 300.0  # seconds of silence after which another machine's training is asked for its lock

_left: dict[Path, float] = {}  # of runs that other machines have left: when something was written there last


def holds(path: Path) -> bool:
    """Whether a process trains in a run's folder just now."""
    said = read_json(path / "running.json")
    if not said:
        return False
    if said.get("host") != socket.gethostname():
        return _holds_elsewhere(path)
    try:
        process = psutil.Process(int(said["pid"]))
        since = datetime.strptime(str(said["since"]), "%Y-%m-%d %H:%M:%S").timestamp()
        same = process.create_time() < since + 2  # else its number was given to another
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (KeyError, TypeError, ValueError, OverflowError, psutil.Error):
        return False


def _holds_elsewhere(path: Path) -> bool:
    """Whether another machine trains in a run's folder; it may be this one, before its name was changed.

    A training writes there all the time, and holds the lock: a silent one is asked for it, once if it has none.
    """
    from filelock import FileLock, Timeout

    from hyperbrush.training.loop.lock import LOCK

    files = (path / name for name in ("running.json", "live.json", "metrics.jsonl"))
    try:
        written = max(file.stat().st_mtime for file in files if file.is_file())
        if time.time() - written < QUIET:
            return True
        if _left.get(path) != written:
            with FileLock(path / LOCK, blocking=False):
                _left[path] = written
    except (Timeout, OSError, ValueError):  # or its folder cannot be written from here
        return True
    return False

"""The workers of a sweep as processes on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.shell import quoted
from hyperbrush.training.sweep.outcome import Teller
from hyperbrush.training.sweep.settings import Sweep

PATIENCE = 10.0  # seconds that stopped workers get before they are killed


def by_processes(
    sweep: Sweep, workers: int, note: Callable[[str], None], should_stop: Callable[[], bool]
) -> bool:
    """The same command in several processes, whose words go to files; this one tells how it goes."""
    command = [sys.executable, "-m", "hyperbrush", "sweep", "--resume", str(sweep.folder), "--only-work"]
    logs = sweep.folder / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    teller = Teller(sweep, note)
    note(f"{workers} workers on {teller.left} trials; what they say is in {logs}")
    running: dict[Path, subprocess.Popen[bytes]] = {}
    asked = False
    try:
        for number in range(workers):
            path = logs / f"{socket.gethostname()}-{number}.log"
            with path.open("ab") as file:
                running[path] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=worker_environment(number, workers),
                )
        while running:
            time.sleep(0.2)
            teller.tell()
            if should_stop() and not asked:
                asked = True  # a terminal's Ctrl-C has reached them already, which does no harm
                for process in running.values():
                    process.send_signal(signal.SIGTERM)
            for path, process in list(running.items()):
                if process.poll() is not None:
                    del running[path]
                    if process.returncode and not asked:
                        note(f"a worker ended with status {process.returncode}, see {path}")
    finally:
        _end(list(running.values()))
    teller.tell()
    if not teller.left:
        return True
    if asked:
        return False
    raise UserError(
        f"all workers ended with {teller.left} trials to do; see {logs}, then go on with "
        f"hyperbrush sweep --resume {quoted(sweep.folder)} --workers {workers}"
    )


def worker_environment(number: int, workers: int) -> dict[str, str]:
    """The environment of one worker of several: its share of the cores, and one of the GPUs where there are more."""
    import torch

    found = dict(os.environ)
    found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    named = [name for name in found.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = named or [str(index) for index in range(torch.cuda.device_count())]
    if len(devices) > 1:
        found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Stop processes at once, after a moment for those that have heard the second Ctrl-C themselves."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()

"""The same command once more, as several processes that train together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

LAUNCHER = "HYPERBRUSH_LAUNCHER"  # its process's number, by which those it started see that it is gone
PATIENCE = 60.0  # seconds that the others get to end by themselves when one has died


def launch(processes: int, arguments: list[str] | None = None) -> int:
    """Start ``processes`` of this command and wait; returns the exit status, see `run_together`.

    arguments: of the command line; this process's own, without ``--processes``, by default.
    """
    given = _without_processes(sys.argv[1:] if arguments is None else arguments)
    return run_together([sys.executable, "-m", "hyperbrush", *given], processes)


def run_together(command: list[str], processes: int) -> int:
    """Run a command as several processes and wait; returns the status of the first that did not end with 0.

    They are one training (see `Trainer`): on as many GPUs, or on the cores of this machine.  They find each other
    as those of torchrun do.  Ctrl-C, SIGTERM (docker stop, systemd, timeout) and SIGHUP are passed on to each,
    once, and they may take their time: a launcher that kills them after half a minute would lose the checkpoint.
    Where one dies, the others are ended; where this process is killed, they save and end (`stop_on_signal`).
    """
    port = _free_port()
    started: list[subprocess.Popen[bytes]] = []
    with _passed_on(started) as had:
        for number in range(processes):
            if had:  # stopped before all of them were there
                break
            started.append(
                subprocess.Popen(
                    command,
                    env=environment(number, processes, port),
                    start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
                )
            )
        return _wait(started)


def environment(number: int, processes: int, port: int) -> dict[str, str]:
    """What process ``number`` of several on this machine is told, as by torchrun."""
    found = dict(os.environ)
    found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return found | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        LAUNCHER: str(os.getpid()),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _passed_on(started: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within, signals that end a process are sent on to those started; yields those it has had."""
    had: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        had.append(number)
        for process in started:
            _send(process, number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield had
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Ctrl-C as it is, all else as SIGTERM, which a training saves at."""
    with contextlib.suppress(OSError):
        process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _wait(started: list[subprocess.Popen[bytes]]) -> int:
    """The status of the first that died of itself; the others are ended then."""
    status, until = 0, 0.0
    while None in (statuses := [process.poll() for process in started]):
        if not status and (status := next((code for code in statuses if code), 0)):
            until = time.monotonic() + PATIENCE
            if status != 130:  # a stop was asked for, and all save together
                for process in started:
                    if process.poll() is None:
                        process.terminate()
        if status and time.monotonic() > until:
            for process in started:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)
    status = status or next((code for code in statuses if code), 0)
    return 128 - status if status < 0 else status


def _without_processes(arguments: list[str]) -> list[str]:
    kept = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--processes":
            skip = True
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return kept

"""Real processes without the ten seconds that importing torch and diffusers takes each.

`multiprocessing`'s fork server imports them once a session; every process is forked from it with streams, folder,
environment, process group, signals and an exit status of its own.  hyperbrush itself is imported by each process.
What is about starting up (imports, `--help`, threads, variables read by torch at import) starts Python itself.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PIPE = subprocess.PIPE
CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()


class Forked:
    """What the tests use of `subprocess.Popen`, text alone; see `start`."""

    def __init__(
        self,
        command: Sequence[object],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(word) for word in command]
        assert self.args[0] == sys.executable
        read: list[Connection | None] = []
        write: list[Connection | None] = []
        for wanted in (stdout, stderr):
            ends = _context().Pipe(duplex=False) if wanted == PIPE else (None, None)
            read.append(ends[0])
            write.append(ends[1])
        self._process = _context().Process(
            target=_be,
            args=(
                self.args[1:],
                str(cwd or Path.cwd()),
                dict(env or _environment()),
                write,
                start_new_session,
            ),
        )
        self._process.start()
        for end in write:
            if end is not None:
                end.close()
        self.stdout, self.stderr = (
            None if end is None else os.fdopen(os.dup(end.fileno()), encoding="utf-8", newline=None)
            for end in read
        )
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        if (status := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote on both streams, once it has ended."""
        said = {"out": "", "err": ""}
        readers = []
        for name, stream in (("out", self.stdout), ("err", self.stderr)):
            if stream is not None and not stream.closed:
                readers.append(threading.Thread(target=_read, args=(stream, said, name), daemon=True))
                readers[-1].start()
        end = None if timeout is None else time.monotonic() + timeout
        self.wait(timeout)
        for reader in readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return said["out"], said["err"]


Process = Forked | subprocess.Popen[str]


def start(
    command: Sequence[object],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    start_new_session: bool = False,
) -> Process:
    """A process with one thread; command: [this Python, "-m", module | "-c", code | script, words, …]."""
    if CAN_FORK:
        return Forked(
            command, cwd=cwd, env=env, stdout=stdout, stderr=stderr, start_new_session=start_new_session
        )
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=env or _environment(),
        stdout=stdout,
        stderr=stderr,
        start_new_session=start_new_session,
        text=True,
    )


def run(
    command: Sequence[object],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with both streams captured as text."""
    process = start(command, cwd=cwd, env=env, stdout=PIPE, stderr=PIPE)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess([str(word) for word in command], process.returncode, out, err)


def hyperbrush(
    *words: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`hyperbrush …` as a process that has ended."""
    return run([sys.executable, "-m", "hyperbrush", *words], cwd=cwd, env=env)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _read(stream: Any, said: dict[str, str], name: str) -> None:
    said[name] = stream.read()


def _context() -> Any:
    """The fork server's context; the server starts with one thread a process and warm libraries."""
    context = multiprocessing.get_context("forkserver")
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "PYTHONPATH")}
    here = [str(Path(__file__).parent), *filter(None, [before["PYTHONPATH"]])]
    os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)})
    try:
        context.set_forkserver_preload(["warm"])
        forkserver.ensure_running()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    return context


def _be(
    words: list[str],
    folder: str,
    environment: dict[str, str],
    streams: list[Connection | None],
    new_session: bool,
) -> None:
    """In the new process: become what the command says, and end as an interpreter does."""
    if new_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, 1):
        if stream is not None:
            os.dup2(stream.fileno(), number)
            stream.close()
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    status: int | None = None
    try:
        _run(words)
        status = 0
    except SystemExit as left:
        if not isinstance(left.code, int | None):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException as error:  # noqa: BLE001 - as an interpreter shows it
        traceback.print_exc()
        status = None if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status or 0)


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")

"""The real app as processes, for tests, benchmarks and the docs' pictures: a server and its worker on a workspace."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from hyperbrush.app.jobs.worker import lives, worker_file
from hyperbrush.files import read_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 120.0  # seconds: a busy machine opens a model slowly


class App:
    """A running app; root: its workspace; arguments: of `hyperbrush serve`; environment: beside this process's."""

    def __init__(self, root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.root, self.arguments = root, arguments
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "App":
        command = [sys.executable, "-m", "hyperbrush", "serve", "--no-open", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--folder", str(self.root), *self.arguments],
            stdout=subprocess.PIPE,
            stderr=(self.root / "server.log").open("w"),
            text=True,
            env=self.environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http" in line, (self.root / "server.log").read_text()
        self.url = line.split()[3].rstrip("/")
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server; the worker goes on."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def end(self) -> None:
        """End server and worker."""
        self.stop(signal.SIGKILL)
        self.kill_worker()

    @property
    def worker(self) -> dict[str, Any]:
        return read_json(worker_file(self.root / ".hyperbrush", "cpu"))

    def kill_worker(self) -> None:
        """SIGKILL, as the system's out-of-memory killer does."""
        said = self.worker
        if lives(said):
            with contextlib.suppress(psutil.Error):
                psutil.Process(said["pid"]).kill()

    def still_worker(self) -> None:
        """SIGSTOP, where the worker does not hold one of the queues: asked for while it does, jobs are refused."""
        until(lambda: self.worker)
        queues = self.root / ".hyperbrush" / "queue"

        def stands_still() -> bool:
            os.kill(self.worker["pid"], signal.SIGSTOP)
            if any(_is_held(queue) for queue in queues.rglob("*.db")):
                os.kill(self.worker["pid"], signal.SIGCONT)
                time.sleep(0.05)
                return False
            return True

        until(stands_still)

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Ask the REST API; JSON in and out.  Refusals come back as {"status", "detail"}."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
                kind = answer.headers.get("content-type", "")
                return json.loads(content) if "json" in kind else content
        except urllib.error.HTTPError as error:
            return {"status": error.code, "detail": error.read().decode()}

    def wait_for(self, job: str, *states: str) -> dict[str, Any]:
        """Until a job has one of these states (by default: until it has ended)."""
        states = states or ("done", "failed", "stopped", "paused")
        until(lambda: self.call(f"/api/v1/jobs/{job}")["state"] in states)
        return dict(self.call(f"/api/v1/jobs/{job}"))


def _is_held(database: Path) -> bool:
    """Whether somebody is writing it."""
    connection = sqlite3.connect(database, timeout=0.1, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait for a condition and return what it gave; an assertion fails where it never holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"this never came true within {seconds:g} s"
        time.sleep(0.02)
    return found

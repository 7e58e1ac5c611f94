"""The real app for tests: a server and a worker as processes on a workspace of their own, a real Chromium."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyperbrush.app.worker import lives, worker_file
from hyperbrush.files import read_json

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 90.0  # seconds: a busy machine opens a model slowly


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests are slow, but for the main way of each page."""
    for item in items:
        if "open_page" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("main"):
            item.add_marker(pytest.mark.slow)


class App:
    """A running app; root: its workspace."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.root, self.arguments = root, arguments
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "App":
        command = [sys.executable, "-m", "hyperbrush", "serve", "--no-open", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--folder", str(self.root), *self.arguments],
            stdout=subprocess.PIPE,
            stderr=(self.root / "server.log").open("w"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
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


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait for a condition and return what it gave; an assertion fails where it never holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"this never came true within {seconds:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests that leave each other alone."""
    running = App(tmp_path_factory.mktemp("workspace")).start()
    yield running
    running.end()


@pytest.fixture
def own_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Makes an app of the test's own, for killing and filling."""
    made: list[App] = []

    def make(*arguments: str) -> App:
        root = tmp_path / f"workspace-{len(made)}"
        root.mkdir()
        made.append(App(root, *arguments).start())
        return made[-1]

    yield make
    for running in made:
        running.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages in a browser context of their own; errors in the console and foreign requests fail the test."""
    contexts: list[Any] = []
    bad: list[str] = []

    def opened(app: App, path: str = "/", *, locale: str = "en-US", width: int = 1200, **options: Any) -> Any:
        context = browser.new_context(locale=locale, viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: bad.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: bad.append(str(error)))
        page.on("request", lambda r: None if _own(app, r.url) else bad.append(f"foreign request {r.url}"))
        page.goto(app.url + path)
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_function("window.did_handshake")
        page.bad = bad
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not [text for text in bad if "ERR_CONNECTION" not in text and "WebSocket" not in text]


def _own(app: App, url: str) -> bool:
    return url.startswith((app.url, "data:", "blob:", "about:"))

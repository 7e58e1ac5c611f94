"""The web app's figures: how soon it is there, how late its news, what open pages cost, what it keeps in memory.

    python benchmarks/app.py [--pages 50] [--rounds 3] [--seconds 40] [--opened 500] [--out benchmarks/results]

A server and a worker on a fresh workspace, one training on the bundled style set.  Up: from the command to the first answer.
Usable: from the request to the page's heading with its websocket open, in a real Chromium.  Latency: from live.json's time of a
step to the moment the page shows it (a MutationObserver's clock, same machine).  Open pages: the training's steps per second with
and without so many pages of its run, by turns; the pages are bare websocket clients that read all they are sent, so that no
browser's work is counted.  Memory: the server's, before and after so many pages were opened and closed, with drawing between.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from hyperbrush.assets import style_folder
from hyperbrush.files import read_json, write_json

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WATCH = """() => { window.seen = {}; new MutationObserver(() => {
    for (const m of document.querySelector('main').innerText.matchAll(/step (\\d+) of/g))
        window.seen[m[1]] ??= Date.now() / 1000;
}).observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true}); }"""


class App:
    """A server on a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        begin = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "hyperbrush",
            "serve",
            "--no-open",
            "--port",
            "0",
            "--folder",
            str(root),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[3].rstrip("/")
        self.call("/api/v1/status")
        self.up = time.perf_counter() - begin

    def call(self, path: str, body: Any = None) -> Any:
        """Ask the API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def memory(self) -> float:
        """MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def end(self) -> None:
        """End server and worker."""
        for file in (self.root / ".hyperbrush").glob("worker-*.json"):
            psutil.Process(read_json(file)["pid"]).kill()
        self.process.kill()
        self.process.wait()


def live(run: Path) -> dict[str, Any]:
    return read_json(run / "live.json")


def start_training(app: App, steps: int) -> Path:
    """A training of so many steps, once its first steps are made."""
    shutil.copytree(style_folder() / "train", app.root / "datasets/style")
    settings = {
        "name": "bench",
        "data": ["datasets/style"],
        "training": {"max_steps": steps, "batch_size": 4, "validate_every": 10**6, "preview_every": 10**6},
    }
    app.call("/api/v1/trainings", {"settings": settings})
    run = app.root / "runs/bench"
    while live(run).get("step", 0) < 5:
        time.sleep(0.1)
    return run


def usable(app: App, browser: Any, rounds: int) -> list[float]:
    """Seconds until a page can be used, in a fresh browser context each."""
    found = []
    for _ in range(rounds):
        page = browser.new_context().new_page()
        begin = time.perf_counter()
        page.goto(app.url, wait_until="commit")
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_function("window.did_handshake")
        found.append(time.perf_counter() - begin)
        page.context.close()
    return found


def latencies(app: App, browser: Any, run: Path, seconds: float) -> list[float]:
    """Seconds from a step to its showing."""
    page = browser.new_page()
    page.goto(f"{app.url}/runs/bench")
    page.get_by_role("heading", level=1).wait_for()
    page.evaluate(WATCH)
    told: dict[str, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stands = live(run)
        told.setdefault(str(stands["step"]), stands["time"])
        time.sleep(0.005)
    shown = page.evaluate("window.seen")
    page.close()
    return [shown[step] - told[step] for step in told if step in shown]


async def _client(url: str, path: str) -> Any:
    """A page without a browser: it reads what it is sent and acknowledges, as nicegui.js does."""
    import httpx
    import socketio

    async with httpx.AsyncClient() as http:
        text = (await http.get(url + path)).text
    client = re.search(r"'client_id': '([^']+)'", text)
    assert client is not None, text[:500]
    query = {
        "client_id": client[1],
        "document_id": client[1],
        "tab_id": client[1],
        "old_tab_id": "",
        "next_message_id": "0",
        "implicit_handshake": "true",
    }
    connection = socketio.AsyncClient()
    said = "&".join(f"{key}={value}" for key, value in query.items())
    await connection.connect(
        f"{url}?{said}", socketio_path="/_nicegui_ws/socket.io", transports=["websocket"]
    )
    return connection


async def _hold(url: str, path: str, count: int, seconds: float) -> None:
    connections = [await _client(url, path) for _ in range(count)]
    print("open", flush=True)
    await asyncio.sleep(seconds)
    for connection in connections:
        await connection.disconnect()


def rate(run: Path, seconds: float) -> float:
    """The training's steps per second over so long."""
    begin = live(run)
    time.sleep(seconds)
    end = live(run)
    return (end["step"] - begin["step"]) / (end["time"] - begin["time"])


def slowed(app: App, run: Path, pages: int, rounds: int, seconds: float) -> list[float]:
    """Steps per second with open pages, as a share of those without, by turns."""
    found = []
    for _ in range(rounds):
        before = rate(run, seconds)
        holding = [
            sys.executable,
            __file__,
            "--hold",
            app.url,
            "--pages",
            str(pages),
            "--seconds",
            str(seconds + 5),
        ]
        with subprocess.Popen(holding, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdout is not None
            assert clients.stdout.readline().strip() == "open"
            with_pages = rate(run, seconds)
        found.append(with_pages / ((before + rate(run, seconds)) / 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each turn")
    parser.add_argument("--opened", type=int, default=500, help="pages opened and closed for the memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hold", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        asyncio.run(_hold(given.hold, "/runs/bench", given.pages, given.seconds))
        return
    from playwright.sync_api import sync_playwright

    result: dict[str, Any] = {"up": []}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as root:
            app = App(Path(root))
            result["up"].append(app.up)
            time.sleep(3)  # let it start its worker, which is ended too
            app.end()
    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        app = App(Path(root))
        try:
            time.sleep(10)  # torch is imported beside the first requests
            result["usable"] = usable(app, browser, 5)
            result["memory_at_first"] = app.memory()
            run = start_training(app, 100_000)
            late = latencies(app, browser, run, 30)
            result["latency"] = {"median": statistics.median(late), "most": max(late), "steps": len(late)}
            result["slowed"] = slowed(app, run, given.pages, given.rounds, given.seconds)
            app.call("/api/v1/runs/bench/stop", {})
            for number in range(given.opened // 50):
                asyncio.run(_hold(app.url, "/runs/bench", 50, 0))
                app.call("/api/v1/draw", {"prompt": "cat face", "steps": 5, "seed": number})
            time.sleep(70)  # a closed page is kept for a minute
            result["memory_at_last"] = app.memory()
        finally:
            app.end()
    result |= {
        "opened": given.opened,
        "pages": given.pages,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    write_json(given.out / "app.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

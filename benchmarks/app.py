"""The web app's figures: how soon it is there, how late its news, what open pages cost, what it keeps in memory.

    python benchmarks/app.py [--parts start news pages memory] [--pages 50] [--rounds 3] [--minutes 60]

A server and a worker on a fresh workspace; but for "start", one training on the bundled style set.
start: Up is from the command to the first answer; usable, from the request to the page's heading with its websocket
open, in a fresh context of a real Chromium.  news: latency from live.json's time of a step to the moment the page shows
it (a MutationObserver's clock, same machine).  pages: the training's steps per second with and without so many pages of
its run, by turns; the pages are bare websocket clients that read all they are sent, so that no browser's work is
counted.  memory: the server's over so many minutes of use (pages opened and closed, pictures drawn, a training on).
"""

import argparse
import asyncio
import contextlib
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from hyperbrush.assets import style_folder
from hyperbrush.files import read_json, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/app"))
from running import ARGUMENTS, CHROMIUM, App

RUN = "/runs/bench"
SETTLED = 15.0  # seconds after pages were opened or closed
WATCH = """() => { window.seen = {}; new MutationObserver(() => {
    for (const m of document.querySelector('main').innerText.matchAll(/step (\\d+) of/g))
        window.seen[m[1]] ??= Date.now() / 1000;
}).observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true}); }"""


@contextlib.contextmanager
def started() -> Iterator[App]:
    """An app on a workspace of its own, ended with its worker."""
    with tempfile.TemporaryDirectory() as root:
        app = App(Path(root)).start()
        try:
            yield app
        finally:
            app.end()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A real browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


def live(app: App) -> dict[str, Any]:
    """What the training's process said last."""
    return read_json(app.root / "runs/bench/live.json")


def start_training(app: App) -> None:
    """A training longer than any measurement, once its first steps are made."""
    shutil.copytree(style_folder() / "train", app.root / "datasets/style")
    never = 10**6
    training = {"max_steps": never, "batch_size": 4, "validate_every": never, "preview_every": never}
    settings = {"name": "bench", "data": ["datasets/style"], "training": training}
    app.call("/api/v1/trainings", {"settings": settings})
    while live(app).get("step", 0) < 5:
        time.sleep(0.1)


def start(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the first answer, and then until a page can be used."""
    up, usable = [], []
    with chromium() as browser:
        for _ in range(given.rounds):
            begin = time.perf_counter()
            with started() as app:
                app.call("/api/v1/status")
                up.append(time.perf_counter() - begin)
                usable.append(_usable(app, browser))  # at once, as the opened browser does
                time.sleep(10)  # its worker starts beside
                usable += [_usable(app, browser) for _ in range(2)]
    return {"up": up, "usable": usable}


def _usable(app: App, browser: Any) -> float:
    page = browser.new_context().new_page()
    begin = time.perf_counter()
    page.goto(app.url, wait_until="commit")
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_function("window.did_handshake")
    seconds = time.perf_counter() - begin
    page.context.close()
    return seconds


def news(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a step to its showing."""
    with chromium() as browser, started() as app:
        start_training(app)
        page = browser.new_page()
        page.goto(app.url + RUN)
        page.get_by_role("heading", level=1).wait_for()
        page.evaluate(WATCH)
        told: dict[str, float] = {}
        end = time.monotonic() + given.seconds
        while time.monotonic() < end:
            stands = live(app)
            told.setdefault(str(stands["step"]), stands["time"])
            time.sleep(0.005)
        shown = page.evaluate("window.seen")
    late = [shown[step] - told[step] for step in told if step in shown]
    p95 = statistics.quantiles(late, n=20)[-1]
    return {"median": statistics.median(late), "p95": p95, "most": max(late), "steps": len(late)}


def pages(given: argparse.Namespace) -> dict[str, Any]:
    """Steps per second with open pages, as a share of those without, by turns."""
    shares = []
    with started() as app:
        start_training(app)
        for _ in range(given.rounds):
            before = _rate(app, given.seconds)
            with holding(app, given.pages, given.seconds + SETTLED):
                time.sleep(SETTLED)  # being built costs once
                held = _rate(app, given.seconds)
            time.sleep(SETTLED)  # a closed page is kept for some seconds
            shares.append(held / ((before + _rate(app, given.seconds)) / 2))
    return {"pages": given.pages, "share_of_speed": shares}


def _rate(app: App, seconds: float) -> float:
    begin = live(app)
    time.sleep(seconds)
    end = live(app)
    return float((end["step"] - begin["step"]) / (end["time"] - begin["time"]))


@contextlib.contextmanager
def holding(app: App, count: int, seconds: float) -> Iterator[None]:
    """So many open pages of the run, as a process of their own."""
    command = [sys.executable, __file__, "--hold", app.url, "--pages", str(count), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdout is not None
        assert clients.stdout.readline().strip() == "open"
        yield


async def _hold(url: str, count: int, seconds: float) -> None:
    connections = [await _client(url) for _ in range(count)]
    print("open", flush=True)
    await asyncio.sleep(seconds)
    for connection in connections:
        await connection.disconnect()


async def _client(url: str) -> Any:
    """A page without a browser: it reads what it is sent and acknowledges, as nicegui.js does."""
    import httpx
    import socketio

    async with httpx.AsyncClient(timeout=60) as http:
        text = (await http.get(url + RUN)).text
    client = re.search(r"'client_id': '([^']+)'", text)
    assert client is not None, text[:500]
    ids = f"client_id={client[1]}&document_id={client[1]}&tab_id={client[1]}&old_tab_id="
    connection = socketio.AsyncClient()
    await connection.connect(
        f"{url}?{ids}&next_message_id=0&implicit_handshake=true",
        socketio_path="/_nicegui_ws/socket.io",
        transports=["websocket"],
    )
    return connection


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """MiB of the server at first and over the minutes of use."""
    with started() as app:
        assert app.process is not None
        server = psutil.Process(app.process.pid)
        start_training(app)
        with holding(app, 1, 1):
            pass
        found = [round(server.memory_info().rss / 2**20)]
        opened = 0
        for minute in range(1, given.minutes + 1):
            end = time.monotonic() + 60
            drawn = app.call("/api/v1/draw", {"prompt": "cat face", "steps": 5, "seed": minute})
            while time.monotonic() < end:
                with holding(app, 5, 2):
                    opened += 5
                app.call(f"/api/v1/jobs/{drawn['id']}")
                app.call("/api/v1/hypernetworks")
            if minute % 5 == 0:
                found.append(round(server.memory_info().rss / 2**20))
        return {"minutes": given.minutes, "opened": opened, "mib_every_5_minutes": found}


PARTS = {"start": start, "news": news, "pages": pages, "memory": memory}


def main() -> None:
    """Each part on its own; the file keeps what others measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each turn")
    parser.add_argument("--minutes", type=int, default=60, help="of use, for the memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hold", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        asyncio.run(_hold(given.hold, given.pages, given.seconds))
        return
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    for name in given.parts:
        found = {name: PARTS[name](given)}
        print(json.dumps(found, indent=2), flush=True)
        write_json(given.out / "app.json", read_json(given.out / "app.json") | found | machine)


if __name__ == "__main__":
    main()

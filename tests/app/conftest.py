"""The real app for tests: a server and a worker as processes on a workspace of their own, a real Chromium."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file
from running import ARGUMENTS, CHROMIUM, App
from train_helpers import png, put

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # tests run beside each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests are slow, but for the main way of each page."""
    for item in items:
        if "open_page" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("main"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests that leave each other alone."""
    running = App(tmp_path_factory.mktemp("workspace"), environment=ONE_THREAD).start()
    yield running
    running.end()


@pytest.fixture(scope="session")
def colours(app: App) -> str:
    """A dataset of four pictures for the tests that leave it as it is."""
    app.call("/api/v1/datasets", {"name": "api-colours"})
    put(app, "api-colours", [(f"{c} square.png", png(c)) for c in ("red", "green", "blue", "gold")])
    return "api-colours"


@pytest.fixture
def own_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Makes an app of the test's own, for killing and filling."""
    made: list[App] = []

    def make(*arguments: str) -> App:
        root = tmp_path / f"workspace-{len(made)}"
        root.mkdir()
        made.append(App(root, *arguments, environment=ONE_THREAD).start())
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

"""What is around every page, in a real browser."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperbrush.app.messages import Messages
from hyperbrush.app.ui import frame

PLACES = [address for _, address, _ in frame.PLACES]


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.main
def test_every_place_opens_and_says_where_one_is(app: Any, open_page: Callable[..., Any], path: str) -> None:
    page = open_page(app, path)
    here = page.locator('nav a[aria-current="page"]')
    assert here.count() == 1
    assert here.inner_text().split("\n")[-1].strip() == page.get_by_role("heading", level=1).inner_text()


@pytest.mark.parametrize(("locale", "word"), [("ko-KR", "학습"), ("zh-CN", "训练"), ("de-DE", "Train")])
@pytest.mark.main
def test_the_browser_chooses_the_language(
    app: Any, open_page: Callable[..., Any], locale: str, word: str
) -> None:
    page = open_page(app, "/train", locale=locale)
    assert page.get_by_role("heading", level=1).inner_text() == word
    assert page.locator("html").get_attribute("lang")[:2] == {"de": "en"}.get(locale[:2], locale[:2])


@pytest.mark.main
def test_a_file_dropped_beside_a_zone_stays_out_of_the_browser(
    app: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(app, "/settings")
    dropped = """kind => {
        const data = new DataTransfer();
        if (kind === "file") data.items.add(new File(["x"], "a.pt")); else data.setData("text/plain", "x");
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.querySelector("h1").dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert page.evaluate(dropped, "file")
    assert not page.evaluate(dropped, "text")


@pytest.mark.main
def test_a_person_chooses_another(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/runs")
    page.get_by_label("Language").click()
    page.get_by_role("option", name="한국어").click()
    page.get_by_role("heading", level=1, name="실행 기록").wait_for()
    page.goto(app.url + "/model")  # and it stays
    page.get_by_role("heading", level=1, name="모델").wait_for()


def test_the_server_starts_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from hyperbrush.app.server import make_app; from hyperbrush.app.site import Site;"
        "from hyperbrush.app.security import Access; from hyperbrush.app.workspace import Workspace;"
        f"make_app(Site(Workspace({str(tmp_path)!r})), Access()); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


def test_what_is_wrong_within_a_field_is_shown_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "page_messages", lambda: Messages("en"))
    fields = {"training.prompts": SimpleNamespace(error=None), "name": SimpleNamespace(error="before")}
    wrong = [
        "training.prompts.2: must not be empty",
        "training.steps: is missing",
        "no model in a.b: fetch it",
    ]
    assert frame.mark(fields, wrong) == wrong[1:]
    assert {name: field.error for name, field in fields.items()} == {
        "training.prompts": "must not be empty",
        "name": None,
    }


def test_many_pages_look_less_often_and_together() -> None:
    from hyperbrush.app.ui.frame import FEW, TICK, pace

    assert pace(0.2, 1, 7.3) == pace(0.2, FEW, 7.3) == 0.2
    waits = [pace(0.2, 50, now) for now in (7.0, 7.31, 7.77)]
    assert all(wait > 5 for wait in waits)
    assert all(
        (now + wait) % TICK == pytest.approx(0, abs=1e-6) or (now + wait) % TICK == pytest.approx(TICK)
        for now, wait in zip((7.0, 7.31, 7.77), waits, strict=True)
    )

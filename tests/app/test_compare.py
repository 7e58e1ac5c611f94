"""Compare: grids asked for, drawn, looked at, taken along."""

import asyncio
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image
from running import App, until

from hyperbrush.app.compare import service as comparing
from hyperbrush.app.compare.page import ComparePage, outlook
from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import CompareRequest, sound
from hyperbrush.errors import UserError
from hyperbrush.files import read_json

API = "/api/v1"
SMALL = {"prompt": "cat face", "steps": 1, "seed": 3}


@pytest.fixture(scope="module")
def network(app: App) -> str:
    """A hypernetwork that changes pictures."""
    import torch

    from hyperbrush.hypernetworks import AttentionHypernetwork

    torch.manual_seed(0)
    made = AttentionHypernetwork((128,), name="cmp ink, dark", weight_init="Normal")
    made.save(app.root / "models/hypernetworks/cmp ink, dark.safetensors")
    return made.name


@pytest.mark.main
def test_the_page_draws_a_grid_that_stays(app: App, network: str, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/compare?prompt=cat+face&seed=3&steps=2")
    assert page.get_by_label("Prompt", exact=True).input_value() == "cat face"
    assert page.get_by_label("Seed", exact=True).input_value() == "3"
    choose(page, "X varies", "Hypernetwork")
    page.get_by_label("Values of X").click()
    wanted, chosen = {"none", network}, set(page.get_by_role("option", selected=True).all_inner_texts())
    for name in wanted ^ chosen:  # other tests' networks may stand before it
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    choose(page, "Y varies", "Strength")
    page.get_by_label("Values of Y").fill("0-1:0.5")
    page.get_by_text(re.compile(r"pictures, about \d+:\d")).wait_for(
        timeout=90_000
    )  # measured before the start
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text("6 pictures in").wait_for(timeout=90_000)
    job = page.url.split("job=")[1]
    assert app.call(f"{API}/jobs/{job}")["arguments"]["axes"] == [
        f'hypernetwork=none,"{network}"',
        "strength=0-1:0.5",
    ]
    page.reload()  # the form and the grid are there again
    page.get_by_alt_text("Grid of cat face").first.wait_for()
    assert page.get_by_label("Values of Y").input_value() == "0-1:0.5"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download (PNG)").click()
    with Image.open(download.value.path()) as grid:
        assert "X Type: Hypernetwork" in grid.info["parameters"]
        assert "Y Values" in grid.info["parameters"]


def test_a_double_click_draws_one_grid(app: App, open_page: Callable[..., Any]) -> None:
    before = {job["id"] for job in app.call(f"{API}/jobs") if job["kind"] == "compare"}
    page = open_page(app, "/compare?prompt=twice&steps=1&axes=seed%3D1-2")
    page.get_by_role("button", name="Draw the grid").dblclick()
    page.get_by_text("2 pictures in").wait_for(timeout=90_000)
    now = {job["id"] for job in app.call(f"{API}/jobs") if job["kind"] == "compare"}
    assert len(now - before) == 1
    page.get_by_role("button", name="Draw the grid").press("Enter")
    until(lambda: len({job["id"] for job in app.call(f"{API}/jobs") if job["kind"] == "compare"} - now) == 1)


def test_the_form_survives_a_reload_and_another_language(app: App, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/compare?prompt=cat&steps=2&axes=seed%3D1-2")
    page.get_by_label("Values of X").fill("5-6")
    page.get_by_label("Prompt", exact=True).fill("red apple")
    forms = app.root / ".hyperbrush/compare-forms"
    until(lambda: any("red apple" in file.read_text() for file in forms.iterdir()))
    page.get_by_label("Language").click()
    page.get_by_role("option", name="한국어").click()
    page.get_by_role("heading", level=1, name="비교").wait_for()
    assert page.get_by_label(Messages("ko")("compare.prompt"), exact=True).input_value() == "red apple"
    [form] = [said for file in forms.iterdir() if (said := read_json(file)["form"])["prompt"] == "red apple"]
    assert (form["axes"], form["steps"]) == (["seed=5-6"], 2)
    other = open_page(app, "/compare")  # another browser has a form of its own
    assert other.get_by_label("Prompt", exact=True).input_value() == ""


def test_a_form_that_makes_no_sense_opens_as_a_new_one() -> None:
    said = {"prompt": 7, "steps": "many", "seed": "3", "axes": 1, "sampler": "Euler a", "colour": "red"}
    assert sound(CompareRequest, said, prompt="x", axes=["x"]) == {"seed": 3, "sampler": "Euler a"}


def test_a_grid_is_looked_at_large_by_keyboard(app: App, open_page: Callable[..., Any]) -> None:
    job = app.call(f"{API}/compare", {**SMALL, "axes": ["seed=1-2"]})["id"]
    app.wait_for(job)
    page = open_page(app, f"/compare?job={job}")
    page.get_by_role("button", name="Open large").last.press("Enter")
    field = page.get_by_role("region", name="The grid, large")
    field.focus()
    width = field.locator("img").evaluate("e => e.naturalWidth")
    page.keyboard.press("1")
    page.get_by_text("100%", exact=True).wait_for()
    assert field.locator("img").evaluate("e => e.width") == width
    page.keyboard.press("+")
    page.get_by_text("125%", exact=True).wait_for()
    page.get_by_role("button", name="Zoom out (-)").click()
    page.get_by_text("100%", exact=True).wait_for()
    page.keyboard.press("Escape")
    field.wait_for(state="hidden")


def test_a_grid_is_stopped(app: App, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/compare?prompt=cat&steps=100&axes=seed%3D1-40")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text("of 40 pictures").wait_for(timeout=90_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    job = page.url.split("job=")[1]
    assert app.wait_for(job)["state"] == "stopped"
    assert app.call(f"{API}/jobs/{job}/grid")["status"] == 404


def test_a_drawing_does_not_wait_for_a_grid(app: App, network: str) -> None:
    """It is drawn between two batches, and the grid's networks do not reach it."""
    alone = drawn(app)
    grid = app.call(
        f"{API}/compare", {**SMALL, "steps": 30, "axes": ["seed=1-16", f'hypernetwork="{network}"']}
    )["id"]
    app.wait_for(grid, "running")
    assert drawn(app) == alone
    assert app.call(f"{API}/jobs/{grid}")["state"] == "running"
    app.call(f"{API}/jobs/{grid}/stop", {}, "POST")
    app.wait_for(grid)


def drawn(app: App) -> bytes:
    """Pixels of a small drawing."""
    job = app.call(f"{API}/draw", {**SMALL, "steps": 3})["id"]
    assert app.wait_for(job)["state"] == "done"
    with Image.open(io.BytesIO(app.call(f"{API}/jobs/{job}/pictures/0"))) as picture:
        return picture.tobytes()


def test_an_outlook_counts_different_pictures(app: App) -> None:
    app.wait_for(app.call(f"{API}/models/use", {"model": "emoji"})["id"])
    one = app.call(f"{API}/compare/outlook", {**SMALL, "axes": ["seed=1-4"]})
    assert (one["cells"], one["pictures"]) == (4, 4)
    same = app.call(f"{API}/compare/outlook", {**SMALL, "axes": ["seed=1,1,2"]})
    assert (same["cells"], same["pictures"]) == (3, 2)
    longer = app.call(f"{API}/compare/outlook", {**SMALL, "axes": ["seed=1-4", "steps=1,3"]})
    assert longer["seconds"] == pytest.approx(4 * one["seconds"], rel=0.5)
    larger = app.call(f"{API}/compare/outlook", {**SMALL, "axes": ["seed=1-4"], "width": 128, "height": 128})
    assert larger["seconds"] == pytest.approx(4 * one["seconds"], rel=0.5)


def test_a_model_that_cannot_be_measured_leaves_the_count() -> None:
    t = Messages("en")
    assert outlook(t, 4, None, has_tried=False).endswith("the time is being measured…")
    assert outlook(t, 4, None, has_tried=True) == "4 pictures"
    assert outlook(t, 4, 65.0, has_tried=True) == "4 pictures, about 1:05"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"axes": ["strengh=0,1"]}, "did you mean 'strength'"),
        ({"axes": ["strength=0,1"]}, "nothing to act on"),
        ({"axes": ["hypernetwork=nowhere"]}, "unknown hypernetwork 'nowhere'"),
        ({"axes": ["seed=1", "seed=2"]}, "given twice"),
        ({"axes": ["steps=1-100", "seed=1-100"]}, "more than 2000"),
        ({"axes": ["sampler=Eulr"]}, "did you mean 'Euler'"),
        ({"axes": ["steps=0"]}, "steps must be a whole number"),
        ({"axes": ["prompt=dog,cat"]}, "not in the prompt"),
        ({"axes": []}, "expected 1 or more of them"),
        ({"axes": ["seed=1"], "prompt": ""}, "must not be empty"),
    ],
)
def test_a_bad_grid_is_refused_before_it_is_drawn(app: App, changes: dict[str, Any], why: str) -> None:
    before = len(app.call(f"{API}/jobs?last=1000"))
    answer = app.call(f"{API}/compare", {**SMALL, **changes})
    assert answer["status"] in (400, 422, 404)
    assert why in json.loads(answer["detail"], strict=False).__str__()
    assert len(app.call(f"{API}/jobs?last=1000")) == before


def test_the_page_says_what_is_wrong_while_it_is_written(app: App, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/compare?seed=1", width=390)
    page.get_by_text("Write a prompt first.").wait_for()
    page.get_by_label("Prompt", exact=True).fill("<b>cat</b>")
    choose(page, "X varies", "Steps")
    page.get_by_label("Values of X").fill("5-1")
    page.get_by_text("the range '5-1' must go up").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Values of X").fill("1, 2")
    page.get_by_text("2 pictures").wait_for()
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text("2 pictures in").wait_for(timeout=90_000)
    assert page.locator("b", has_text="cat").count() == 0
    until(lambda: page.evaluate("document.documentElement.scrollWidth") <= 390)


def test_typing_is_looked_at_once_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def estimate(*_: Any) -> None:
        looks.append(page._number)
        raise UserError("enough")

    monkeypatch.setattr(comparing, "estimate", estimate)
    page = MagicMock(_number=0, axes=[MagicMock()])

    async def type_three() -> None:
        await asyncio.gather(*(ComparePage._look(page) for _ in range(3)))

    with ThreadPoolExecutor(1) as threads:  # Playwright's own loop may be running in this one
        threads.submit(asyncio.run, type_three()).result()
    assert looks == [3]


def test_a_sampler_that_cannot_draw_is_told(app: App, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/compare?prompt=cat&sampler=Flow+Euler")
    page.get_by_text("The sampler Flow Euler cannot draw with this model; DPM++ 2M Karras takes").wait_for()
    page = open_page(app, "/compare?prompt=cat&sampler=Euler+SGM+Uniform")
    assert page.get_by_label("Sampler", exact=True).input_value() == "Euler SGM Uniform"


def test_networks_of_the_prompt_are_varied_as_they_stand(
    app: App, network: str, open_page: Callable[..., Any]
) -> None:
    page = open_page(app, f"/compare?prompt=cat+%3Chypernet%3A{network}%3A1%3E")
    assert page.get_by_label("Values of X").input_value() == "0-1:0.5"
    page = open_page(app, "/compare?prompt=cat+%3Clora%3Alook%3A1%3E")
    page.get_by_text("none is without any").wait_for()


def choose(page: Any, label: str, option: str) -> None:
    """Choose from a Quasar select."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()

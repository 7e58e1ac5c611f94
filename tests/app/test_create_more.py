"""Create in a real browser: near a seed and larger, LoRAs in the prompt, the model chosen here, a mask taken back."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import PATIENCE, until
from safetensors.torch import save_file
from test_create_tools import prompt
from test_drawings_api import png

from hyperbrush.hypernetworks.library.notes import Notes, write_notes
from hyperbrush.ldm.models import LatentDiffusion

API = "/api/v1"
Open = Callable[..., Any]


def job_of(app: Any, page: Any, button: str = "Draw") -> dict[str, Any]:
    """The drawing that a button of the page asks for, ended."""
    before = page.evaluate("location.search")
    page.get_by_role("button", name=button, exact=True).click()
    asked = "was => location.search != was && location.search.includes('job=')"
    page.wait_for_function(
        asked, arg=before, timeout=1000 * PATIENCE
    )  # the first one has the server import torch
    return dict(app.wait_for(page.evaluate("location.search").partition("job=")[2]))


@pytest.mark.main
def test_near_a_seed_and_larger(app: Any, open_page: Open) -> None:
    page = open_page(app, width=1280)
    prompt(page).fill("cat face")
    page.get_by_label("Steps").fill("1")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_text("Variation", exact=True).click()
    page.get_by_label("Variation strength").fill("0.2")
    page.get_by_text("Draw on, larger (hires fix)").click()
    page.get_by_label("Times as large").fill("1.5")
    page.get_by_label("Drawn anew", exact=True).fill("0.5")
    job = job_of(app, page)
    assert job["state"] == "done", job["error"]
    asked = job["arguments"]
    assert (asked["subseed"], asked["subseed_strength"], asked["hires_scale"]) == (None, 0.2, 1.5)
    [said] = job["result"]["pictures"]
    assert (said["seed"], said["width"], said["height"]) == (7, 96, 96)
    again = job_of(app, page, "Again")  # near the same seed
    assert [one["seed"] for one in again["result"]["pictures"]] == [7]
    assert again["result"]["pictures"][0]["parameters"] != said["parameters"]
    page.reload()
    page.get_by_label("Variation strength").wait_for()  # what counts stays open
    assert page.get_by_label("Times as large").input_value() == "1.5"
    page.get_by_role("button", name="Use as start").click()
    page.get_by_text("Draw on, larger (hires fix)").wait_for(state="hidden")
    page.get_by_label("Steps").fill("2")
    job = job_of(app, page)
    assert job["state"] == "done", job["error"]
    assert job["arguments"]["hires_scale"] is None


@pytest.fixture
def lora(app: Any) -> Iterator[Path]:
    folder = Path(app.root) / "models/loras"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "soft.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    write_notes(path, Notes(activation_text="inky", preferred_weight=0.8))
    Image.new("RGB", (32, 32), "orange").save(folder / "soft.png")
    yield path
    for file in folder.glob("soft*"):
        file.unlink()


@pytest.mark.main
def test_loras_are_completed_picked_and_dragged(app: Any, open_page: Open, lora: Path) -> None:
    page = open_page(app)
    prompt(page).focus()
    page.wait_for_function("document.getElementById('prompt-text').getAttribute('aria-controls')")
    page.keyboard.type("cat <lo")
    page.get_by_role("option", name="soft · LoRA").wait_for()
    page.keyboard.press("Enter")
    assert prompt(page).input_value() == "cat inky <lora:soft:0.8>"
    slider = page.get_by_role("slider", name="Strength of soft")
    slider.locator("[tabindex]").press("ArrowRight")
    until(lambda: prompt(page).input_value() == "cat inky <lora:soft:0.85>")
    page.get_by_role("button", name="Choose hypernetworks").click()
    pick = page.get_by_role("dialog").get_by_role("button", name="soft")
    until(lambda: pick.get_attribute("aria-pressed") == "true")
    page.wait_for_function("i => i.naturalWidth == 32", arg=pick.locator("img").element_handle())
    pick.click()
    until(lambda: prompt(page).input_value() == "cat inky")
    pick.click()
    until(lambda: prompt(page).input_value() == "cat inky <lora:soft:0.8>")
    assert app.call(f"{API}/loras/nobody/preview")["status"] == 404


@pytest.mark.main
def test_a_mask_is_taken_back(app: Any, open_page: Open) -> None:
    page = open_page(app)
    picture = {"name": "start.png", "mimeType": "image/png", "buffer": png()}
    page.get_by_text("Start from a picture").click()
    page.locator('.drop[data-use="start"] input').set_input_files(picture)
    page.locator("canvas[data-ready]").wait_for()
    some, none = page.get_by_text("Only the painted part"), page.get_by_text("Paint over the picture to")
    painted = "document.querySelector('.stage canvas').getContext('2d').getImageData(0, 0, 64, 64).data"
    count = f"{painted}.filter((v, i) => i % 4 == 3 && v).length"
    page.get_by_label("Its width", exact=True).fill("25")
    for number, left in enumerate((0, 50), start=1):
        page.get_by_label("Left", exact=True).fill(str(left))
        page.get_by_role("button", name="Apply the rectangle").press("Enter")
        until(lambda number=number: page.evaluate(count) == number * 16 * 32)
    some.wait_for()
    page.get_by_role("button", name="Undo (Ctrl+Z)").click()
    until(lambda: page.evaluate(count) == 16 * 32)
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("Control+z")
    none.wait_for()
    assert page.evaluate(count) == 0
    page.get_by_role("button", name="Invert the mask").click()
    some.wait_for()
    page.keyboard.press("Control+z")
    none.wait_for()


def test_a_model_that_is_no_longer_wanted_is_not_opened(
    own_app: Callable[..., Any], open_page: Open, make_tiny: Callable[..., LatentDiffusion]
) -> None:
    app = own_app()
    make_tiny().save_pretrained(app.root / "models/stable-diffusion/small")
    page = open_page(app)
    app.still_worker()
    for name in ("small", "emoji"):
        page.get_by_role("combobox", name="Model").click()
        page.get_by_role("option", name=name, exact=True).click()
        shown = "visible" if name == "small" else "hidden"
        page.get_by_text("small is being opened").wait_for(state=shown)
    [job] = [one for one in app.call(f"{API}/jobs") if one["kind"] == "try-model"]
    assert (job["arguments"]["model"], job["state"]) == ("models/stable-diffusion/small", "stopped")
    os.kill(app.worker["pid"], signal.SIGCONT)


@pytest.mark.main
def test_the_model_is_chosen_where_one_draws(
    own_app: Callable[..., Any], open_page: Open, make_tiny: Callable[..., LatentDiffusion]
) -> None:
    app = own_app()
    make_tiny().save_pretrained(app.root / "models/stable-diffusion/small")
    page = open_page(app)
    prompt(page).fill("red square")
    page.evaluate("window.isBefore = true")
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name="small").click()
    page.wait_for_function(
        "!window.isBefore && window.did_handshake", timeout=1000 * PATIENCE
    )  # another page
    assert app.call(f"{API}/preferences")["model"] == "models/stable-diffusion/small"
    page.get_by_text("small", exact=True).wait_for()
    until(lambda: prompt(page).input_value() == "red square")
    page.get_by_label("Steps").fill("1")
    job = job_of(app, page)
    assert job["state"] == "done", job["error"]
    assert job["result"]["pictures"][0]["width"] == 32
    page.goto(app.url)
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name="All models…").click()
    page.get_by_role("heading", level=1, name="Model").wait_for()

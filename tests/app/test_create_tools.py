"""Create in a real browser: where its pictures stand, networks with their pictures, prompts of before, fitting samplers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import until

from hyperbrush.app.create.page_form import fitting_samplers
from hyperbrush.app.model.service import BaseModel, describe
from hyperbrush.app.workspace import Workspace
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.library.notes import Notes, write_notes
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.sampling.names import SAMPLERS

API = "/api/v1"
Open = Callable[..., Any]


def prompt(page: Any) -> Any:
    return page.get_by_label("Prompt", exact=True)


@pytest.mark.main
@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_are_on_top_and_the_form_beside_or_below(app: Any, open_page: Open, width: int) -> None:
    job = app.wait_for(app.call(f"{API}/draw", {"prompt": "cat face", "steps": 1, "count": 1})["id"])
    page = open_page(app, f"/?job={job['id']}", width=width)
    page.locator("article.picture").wait_for()
    picture = page.locator("article.picture img").first.bounding_box()
    form = prompt(page).bounding_box()
    assert picture["width"] == 320, "five times its 64 pixels"
    if width > 1000:
        assert picture["x"] + picture["width"] < form["x"]
        assert picture["y"] < 400
    else:
        assert picture["y"] + picture["height"] < form["y"]
    earlier = page.locator(".pictures.small img").first
    earlier.wait_for()
    below = page.locator("article.picture" if width > 1000 else "form.card").first.bounding_box()
    assert earlier.bounding_box()["y"] > below["y"] + below["height"]
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
    page.get_by_role("link", name="All pictures").click()
    page.get_by_role("heading", level=1, name="Gallery").wait_for()


@pytest.mark.main
def test_networks_are_chosen_by_their_pictures(app: Any, open_page: Open) -> None:
    folder = Path(app.root) / "models/hypernetworks"
    folder.mkdir(parents=True, exist_ok=True)
    unet = LatentDiffusion.from_pretrained("emoji").unet
    network = AttentionHypernetwork.for_unet(unet, name="pick-fits", weight_init="KaimingNormal")
    network.save(folder / "pick-fits.safetensors")
    Image.new("RGB", (32, 32), "orange").save(folder / "pick-fits.png")
    write_notes(folder / "pick-fits.safetensors", Notes(activation_text="inked", preferred_weight=0.5))
    torch.manual_seed(0)
    AttentionHypernetwork((8,), name="pick-other", weight_init="XavierNormal").save(folder / "pick-other.pt")
    try:
        page = open_page(app)
        prompt(page).fill("a cat")
        page.get_by_role("button", name="Choose hypernetworks").click()
        box = page.get_by_role("dialog")
        pick = box.get_by_role("button", name="pick-fits")
        pick.wait_for()
        image = pick.locator("img")
        page.wait_for_function("i => i.naturalWidth > 0", arg=image.element_handle())
        box.get_by_text("not fit the model and are left out").wait_for()
        assert box.get_by_role("button", name="pick-other").count() == 0
        assert pick.get_attribute("aria-pressed") == "false"
        pick.click()
        until(lambda: prompt(page).input_value() == "a cat, inked <hypernet:pick-fits:0.5>")
        until(lambda: pick.get_attribute("aria-pressed") == "true")
        pick.click()
        until(lambda: prompt(page).input_value() == "a cat, inked")
        box.get_by_label("Search").fill("nothing like it")
        box.get_by_text("No hypernetwork of that name.").wait_for()
    finally:
        for path in folder.glob("pick-*"):
            path.unlink()


@pytest.mark.main
def test_prompts_of_before_are_taken_saved_and_forgotten(app: Any, open_page: Open) -> None:
    app.wait_for(app.call(f"{API}/draw", {"prompt": "beforehand cat", "negative": "dog", "steps": 1})["id"])
    (Path(app.root) / "wildcards").mkdir(exist_ok=True)
    (Path(app.root) / "wildcards/tree.txt").write_text("oak\nbirch\n")
    page = open_page(app)
    box = page.get_by_role("dialog")

    def opened() -> None:
        page.get_by_role("button", name="Prompts", exact=True).click()
        box.get_by_text("Drawn last").wait_for()

    opened()
    box.get_by_label("Search prompts").fill("BEFOREHAND")
    until(lambda: box.locator(".prompt-take").count() == 1)
    box.get_by_role("button", name="beforehand cat Negative prompt: dog").click()
    box.wait_for(state="hidden")
    until(lambda: prompt(page).input_value() == "beforehand cat")
    assert page.get_by_label("Negative prompt").input_value() == "dog"
    prompt(page).fill("saved words")
    opened()
    box.get_by_label("Name for the prompt in the form").fill("my own")
    box.get_by_role("button", name="Save", exact=True).click()
    box.get_by_text("my own").wait_for()
    saved = {one["name"]: one["prompt"] for one in app.call(f"{API}/prompts")["saved"]}
    assert saved["my own"] == "saved words"
    box.get_by_role("button", name="Remove the saved prompt my own").click()
    until(lambda: "my own" not in [one["name"] for one in app.call(f"{API}/prompts")["saved"]])
    box.get_by_text("my own").wait_for(state="hidden")  # the list is built anew then
    box.get_by_role("button", name="__tree__").click()
    until(lambda: prompt(page).input_value() == "saved words __tree__")


def test_the_samplers_fit_the_model(make_tiny: Callable[..., LatentDiffusion], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = tmp_path / "models/stable-diffusion/flow"
    make_tiny(prediction="flow_prediction", shift=2.0).save_pretrained(folder)
    flow = describe(workspace, "models/stable-diffusion/flow")
    assert flow.prediction == "flow_prediction"
    names = fitting_samplers(flow)
    assert names == ["DPM++ 2M", "DPM++ 2M SDE", "UniPC", "Flow Euler", "Flow Heun"]
    assert fitting_samplers(flow, also="Euler a") == names
    plain = describe(workspace, "emoji")
    assert plain.prediction == "v_prediction"
    assert "Flow Euler" not in fitting_samplers(plain)
    assert fitting_samplers(plain, also="Euler SGM Uniform")[-1] == "Euler SGM Uniform"
    assert fitting_samplers(plain, also=7) == fitting_samplers(plain)
    assert fitting_samplers(BaseModel("x", "x", "hub")) == list(SAMPLERS)


def test_a_flow_model_is_drawn_with_what_the_form_begins_with(
    own_app: Callable[..., Any], open_page: Open, make_tiny: Callable[..., LatentDiffusion]
) -> None:
    app = own_app()
    make_tiny(prediction="flow_prediction").save_pretrained(app.root / "models/stable-diffusion/flow")
    Workspace(app.root).prefer(model="models/stable-diffusion/flow")
    page = open_page(app)
    prompt(page).fill("red square")
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_function("location.search.includes('job=')")
    job = app.wait_for(page.url.partition("job=")[2])
    assert job["state"] == "done", job["error"]
    assert job["arguments"]["sampler"] == "Flow Euler"
    page.goto(f"{app.url}/compare")
    page.get_by_text("Flow Euler").first.wait_for()

"""Styles from pictures: generated, seen beside the plain model, kept, tuned."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import App, until

from hyperbrush.app.uploads import Uploads
from hyperbrush.assets import generator_file

API = "/api/v1"
LEFT_THREE_TIMES = """() => {
    for (let press = 0; press < 3; press++)
        for (const kind of ["keydown", "keyup"])
            document.activeElement.dispatchEvent(new KeyboardEvent(kind, {keyCode: 37, bubbles: true}))
}"""
QUICK = {"prompts": ["cat face"], "steps": 1, "generator": "small"}


def save_generator(path: Path, context: int | None = None) -> None:
    """A small random generator for the emoji model; context: another model's."""
    import torch

    import hyperbrush as hb
    from hyperbrush.hypernetworks.weights.layers import sd15_targets
    from hyperbrush.ldm.models import LatentDiffusion

    target: Any = (
        sd15_targets(["attn2.to_k"])
        if context
        else hb.TargetNetwork(LatentDiffusion.from_pretrained("emoji"))
    )
    torch.manual_seed(0)
    net = hb.Hypernetwork(target=target, embedding_dim=16, hidden_dim=16, rank=2, depth=1, heads=2)
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # a new one changes nothing
    net.save(path)


@pytest.fixture(scope="module")
def generator(app: App) -> str:
    """A generator in the workspace of the shared app."""
    (app.root / "models/generators").mkdir(parents=True, exist_ok=True)
    save_generator(app.root / "models/generators/small.safetensors")
    return "small"


def picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def put(app: App, colour: str = "red") -> str:
    """An uploaded picture's id."""
    return Uploads(app.root / ".hyperbrush/uploads").keep(picture(colour))


def generate(app: App, **values: Any) -> str:
    job = app.call(f"{API}/styles", {**QUICK, **values})
    assert "id" in job, job
    ended = app.wait_for(job["id"])
    assert ended["state"] == "done", ended["error"]
    return str(job["id"])


@pytest.mark.main
def test_pictures_become_a_style_that_is_kept(
    app: App, generator: str, open_page: Callable[..., Any]
) -> None:
    page = open_page(app, "/styles")
    files = [
        {"name": f"{c} <b>thing</b>.png", "mimeType": "image/png", "buffer": picture(c)}
        for c in ("red", "blue")
    ]
    page.locator("input[type=file]").set_input_files(files)
    page.get_by_alt_text("Picture 2 of the style").wait_for()
    assert page.get_by_label("What picture 1 shows").input_value() == "red <b>thing</b>"
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Prompts to see it on").fill("cat face\na qwertyish pizza")
    page.get_by_text("The model has never seen these words").filter(has_text="qwertyish").wait_for()
    page.get_by_label("Prompts to see it on").fill("cat face\npizza")
    page.get_by_text("The model has never seen these words").wait_for(state="hidden")
    page.get_by_label("Steps", exact=True).fill("2")
    page.get_by_role("button", name="Generate the style").click()
    page.get_by_role("heading", name="Keep it").wait_for(timeout=90_000)
    page.get_by_text("An adapter for emoji, made in").wait_for()
    for side in ("drawn by the plain model", "drawn with the style"):
        assert page.get_by_alt_text(f"pizza, {side}").evaluate("e => e.naturalWidth") == 64
    first = page.url.split("job=")[1]
    page.get_by_role("slider", name="Strength of the style").locator("[tabindex]").focus()
    page.evaluate(LEFT_THREE_TIMES)  # one by one, a slow machine could come to rest between them
    page.wait_for_function("first => !location.href.endsWith(first)", arg=first)
    assert page.get_by_role("slider", name="Strength of the style").is_visible()
    job = page.evaluate("location.href").split("job=")[1]
    assert app.wait_for(job)["arguments"]["strength"] == 0.85
    drawn = [one for one in app.call("/api/v1/jobs") if one["arguments"].get("adapter") == first]
    assert [one["id"] for one in drawn] == [job], "once, where the slider came to rest"
    page.reload()  # everything is there again
    page.get_by_role("heading", name="Keep it").wait_for()
    assert page.get_by_label("What picture 1 shows").input_value() == "red <b>thing</b>"
    page.get_by_label("Name", exact=True).fill("styles-kept")
    page.get_by_role("button", name="Keep", exact=True).click()
    assert page.get_by_role("link", name="Use it in a prompt").get_attribute("href") == "/?add=styles-kept"
    kept = app.root / "models/hypernetworks/styles-kept.safetensors"
    content = kept.read_bytes()
    assert (kept.parent / "styles-kept.preview.png").is_file()
    page.get_by_role("button", name="Keep", exact=True).click()
    page.get_by_text("there is a hypernetwork 'styles-kept' already").wait_for()
    assert kept.read_bytes() == content
    assert page.locator("main b").count() == 0


def test_the_form_survives_a_reload(app: App, generator: str, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/styles?example=1")
    page.get_by_label("What picture 1 shows").fill("a jug of ink")
    page.get_by_label("Or describe the style").fill("black lines")
    forms = app.root / ".hyperbrush/style-forms"
    until(lambda: any("black lines" in (said := f.read_text()) and "a jug" in said for f in forms.iterdir()))
    page.goto(app.url + "/styles")
    assert page.get_by_label("Or describe the style").input_value() == "black lines"
    assert page.get_by_label("What picture 1 shows").input_value() == "a jug of ink"
    assert page.locator(".style-picture").count() == 3


def test_strength_changes_the_styled_side_alone(app: App, generator: str) -> None:
    job = generate(app, text="flat ink")
    weak = generate(app, text="flat ink", adapter=job, strength=0)

    def side(which: str, name: str) -> bytes:
        with Image.open(io.BytesIO(app.call(f"{API}/jobs/{which}/styles/{name}/0"))) as image:
            return image.tobytes()

    assert side(job, "without") == side(weak, "without") == side(weak, "with") != side(job, "with")
    for path in (f"{job}/styles/with/1", f"{job}/styles/with/999", "nowhere/styles/with/0"):
        assert app.call(f"{API}/jobs/{path}")["status"] == 404
    assert app.call(f"{API}/jobs/{job}/styles/beside/0")["status"] == 422


def test_a_style_outlives_its_pictures(app: App, generator: str) -> None:
    job = generate(app, text="flat ink")
    for side in ("without", "with"):
        (app.root / f".hyperbrush/jobs/{job}/{side}-0.png").unlink()  # deleted in Gallery
        gone = app.call(f"{API}/jobs/{job}/styles/{side}/0")
        assert gone["status"] == 404
        assert "no longer in" in gone["detail"]
    assert app.call(f"{API}/styles/{job}/keep", {"name": "styles-bare"})["name"] == "styles-bare"
    folder = app.root / "models/hypernetworks"
    assert [path.name for path in folder.glob("styles-bare*")] == ["styles-bare.safetensors"]
    again = generate(app, text="flat ink", adapter=job, strength=0.5)
    assert app.call(f"{API}/jobs/{again}/styles/without/0")[:4] == b"\x89PNG"


def test_a_kept_style_draws_as_it_was_seen(app: App, generator: str) -> None:
    job = generate(app, text="ink", name="styles-drawn", keep=True)
    drawing = app.call(f"{API}/draw", {"prompt": "cat face <hypernet:styles-drawn>", "steps": 1, "seed": 0})[
        "id"
    ]
    app.wait_for(drawing)
    seen, drawn = (
        Image.open(io.BytesIO(app.call(f"{API}/jobs/{path}"))).tobytes()
        for path in (f"{job}/styles/with/0", f"{drawing}/pictures/0")
    )
    assert seen == drawn
    refused = app.call(f"{API}/styles", {**QUICK, "text": "ink", "name": "Styles-Drawn", "keep": True})
    assert refused["status"] == 400
    assert "styles-drawn" in refused["detail"].lower()


def test_a_style_is_tuned_on_its_pictures(app: App, generator: str, open_page: Callable[..., Any]) -> None:
    images = [put(app, colour) for colour in ("red", "green")]
    job = generate(app, images=images, captions=["red heart"])
    page = open_page(app, f"/styles?job={job}")
    page.get_by_label("Name of the tuned one").fill("styles-tuned")
    page.get_by_label("Training steps").fill("2")
    page.get_by_role("button", name="Tune on the pictures").click()
    page.wait_for_url("**/runs/styles-tuned")
    folder = app.root / "datasets/styles-tuned"
    assert sorted(p.name for p in folder.iterdir()) == [
        "01.png",
        "01.txt",
        "02.png",
        "02.txt",
        "start.safetensors",
    ]
    assert (folder / "01.txt").read_text() == "red heart"
    assert (folder / "02.txt").read_text() == ""
    file = app.root / "models/hypernetworks/styles-tuned.safetensors"
    until(file.is_file, 150)
    import hyperbrush as hb

    tuned = hb.GeneratedWeights.load(file)
    assert tuned.rank == 8
    assert tuned.metadata["step"] <= 2
    again = app.call(f"{API}/styles/{job}/tune", {"name": "styles-tuned"})
    assert again["status"] == 400
    assert "already" in again["detail"]


def test_what_cannot_be_tuned_or_kept_is_refused(app: App, generator: str) -> None:
    words = generate(app, text="ink")
    answer = app.call(f"{API}/styles/{words}/tune", {"name": "styles-words"})
    assert answer["status"] == 400
    assert "made from words" in answer["detail"]
    assert not (app.root / "datasets/styles-words").exists()
    for name in ("../out", "a/b", "", "a:b", "<b>"):
        answer = app.call(f"{API}/styles/{words}/keep", {"name": name})
        assert answer["status"] == 422
        assert "must" in answer["detail"], "in words, not as a pattern"
    answer = app.call(f"{API}/styles/{words}/keep", {"name": ".hidden"})
    assert answer["status"] == 400
    assert "no dot at the ends" in answer["detail"]
    assert app.call(f"{API}/styles/nowhere/keep", {"name": "x"})["status"] == 404


@pytest.mark.parametrize(
    ("values", "status", "why"),
    [
        ({}, 400, "nothing to generate from"),
        ({"text": "ink", "generator": "other"}, 400, "unknown generator 'other'"),
        ({"text": "ink", "prompts": ["cat <hypernet:x>"]}, 400, "has a tag"),
        ({"images": ["0" * 24]}, 404, "no uploaded picture"),
        ({"images": ["x"] * 17}, 422, "expected 16 of them at most"),
        ({"text": "ink", "adapter": "nowhere"}, 404, "no job"),
    ],
)
def test_a_style_that_cannot_be_made_is_refused(
    app: App, generator: str, values: dict[str, Any], status: int, why: str
) -> None:
    answer = app.call(f"{API}/styles", {**QUICK, **values})
    assert answer["status"] == status
    assert why in answer["detail"]


def test_the_menu_shows_the_place_where_a_generator_is(
    own_app: Callable[..., App], open_page: Callable[..., Any]
) -> None:
    app = own_app()
    folder = app.root / "models/generators"
    folder.mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"nothing")
    save_generator(folder / "other.safetensors", context=768)
    page = open_page(app, "/model")
    link = page.get_by_role("link", name="Styles from pictures")
    listed = {g["name"]: g for g in app.call(f"{API}/generators")}
    assert not listed["other"]["fits"]
    assert "no generator" in listed["broken"]["error"]
    if generator_file("emoji") is None:
        assert link.count() == 0
        page.goto(app.url + "/styles")
        page.get_by_role("heading", name="No generator for emoji is here yet").wait_for()
        page.get_by_text("hyperbrush hyper train").wait_for()
        page.get_by_text("other: is for another model").wait_for()
        refused = app.call(f"{API}/styles", {"text": "ink"})
        assert refused["status"] == 400
        assert "hyper train" in json.loads(refused["detail"])["detail"]
    else:
        assert link.count() == 1
        assert listed["emoji"]["ships"]
    save_generator(folder / "mine.safetensors")
    page.goto(app.url + "/model")
    link.wait_for()

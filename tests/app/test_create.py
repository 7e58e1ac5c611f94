"""Create in a real browser: drawing, previews, networks in the prompt, masks, settings out of pictures, reloads."""

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from running import until

import hyperbrush as hb
from hyperbrush.app.create.page_networks import added, changed, written
from hyperbrush.app.create.service import compare_address
from hyperbrush.files import read_json, write_json
from hyperbrush.generation.picture_files import save_picture
from hyperbrush.hypernetworks.library.notes import Notes, write_notes

API = "/api/v1"
NAMES = ("create-ink", "create-sea")


@pytest.fixture(scope="module", autouse=True)
def networks(app: Any) -> Iterator[Path]:
    """Two networks in the workspace; create-sea has trigger words and a preferred strength."""
    from hyperbrush.ldm.models import LatentDiffusion

    folder = Path(app.root) / "models/hypernetworks"
    unet = LatentDiffusion.from_pretrained("emoji").unet
    for name in NAMES:
        hn = hb.AttentionHypernetwork.for_unet(unet, name=name, weight_init="KaimingNormal")
        hn.save(folder / f"{name}.safetensors")
    write_notes(folder / "create-sea.safetensors", Notes(activation_text="deep blue", preferred_weight=0.6))
    yield folder
    for name in NAMES:
        for path in folder.glob(f"{name}*"):
            path.unlink()


@pytest.fixture(scope="module")
def drawn(app: Any) -> dict[str, Any]:
    """A finished drawing."""
    job = app.call(
        f"{API}/draw", {"prompt": "cat face", "negative": "dog", "steps": 2, "seed": 7, "clip_skip": 2}
    )
    return dict(app.wait_for(job["id"]))


def prompt(page: Any) -> Any:
    return page.get_by_label("Prompt", exact=True)


def draw(app: Any, page: Any, text: str = "cat face", steps: int = 2) -> str:
    """Draw from the form; the job's id, once its pictures are there."""
    before = page.url
    prompt(page).fill(text)
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_function(
        "before => location.href != before && location.search.includes('job=')", arg=before
    )
    job = str(page.url.partition("job=")[2])
    assert app.wait_for(job)["state"] == "done"
    page.locator("article.picture").first.wait_for()
    return job


def pixels(app: Any, job: str, number: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(app.call(f"{API}/jobs/{job}/pictures/{number}"))).convert("RGB")


@pytest.mark.main
def test_a_prompt_becomes_pictures(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    page.get_by_label("Pictures").fill("2")
    page.get_by_label("Seed", exact=True).fill("40")
    job = draw(app, page)
    page.locator("article.picture").nth(1).wait_for()
    assert page.get_by_text("Seed 41 · 64×64").is_visible()
    page.locator("article").last.get_by_text("Settings", exact=True).click()
    assert "Steps: 2, Sampler: DPM++ 2M Karras" in page.locator("article .mono").last.inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert re.fullmatch(r"\d{5}-40\.png", download.value.suggested_filename)
    assert pixels(app, job, 1).size == (64, 64)


def test_ctrl_enter_draws(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    page.get_by_label("Steps").fill("2")
    prompt(page).fill("dog face")
    prompt(page).press("Control+Enter")
    page.locator("article.picture").wait_for()


def test_a_reload_shows_the_drawing_still_running_and_stop_ends_it(
    app: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page(app)
    prompt(page).fill("cat face")
    page.get_by_label("Steps").fill("400")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile(r"Step \d+ of 400 · .* left")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Step \d+ of 400")).wait_for()
    preview = page.get_by_alt_text("Preview of the picture being drawn")
    page.wait_for_function("i => i.naturalWidth > 0", arg=preview.element_handle())
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped; what was done by then is kept.").wait_for()
    assert app.call(f"{API}/jobs/{page.url.partition('job=')[2]}")["state"] == "stopped"


def test_the_form_and_the_last_pictures_survive(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    draw(app, page, "red apple")
    page.get_by_label("Negative prompt").fill("green")
    page.get_by_label("Width").fill("96")
    page.get_by_text("More settings").click()
    page.get_by_label("Clip skip").fill("2")
    forms = Path(app.root) / ".hyperbrush/forms"
    until(
        lambda: any(
            '"clip_skip": 2' in f.read_text() and '"width": 96' in f.read_text() for f in forms.iterdir()
        )
    )
    page.goto(app.url + "/")  # without the job in the address: this browser's last
    page.locator("article.picture").wait_for()
    assert prompt(page).input_value() == "red apple"
    assert page.get_by_label("Negative prompt").input_value() == "green"
    assert page.get_by_label("Width").input_value() == "96"
    other = open_page(app)  # another browser has a form of its own
    assert prompt(other).input_value() == ""


@pytest.mark.main
def test_names_are_completed_from_the_keyboard(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    prompt(page).focus()
    page.wait_for_function("document.getElementById('prompt-text').getAttribute('aria-controls')")
    page.keyboard.type("cat <hypernet:create-")
    page.get_by_role("option", name="create-sea").wait_for()
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("option", selected=True).inner_text() == "create-sea"
    page.keyboard.press("Enter")
    assert prompt(page).input_value() == "cat deep blue <hypernet:create-sea:0.6>"
    assert not page.get_by_role("listbox").is_visible()
    page.keyboard.type(" <hypernet:create")
    page.get_by_role("listbox").wait_for()
    page.keyboard.press("Escape")
    assert not page.get_by_role("listbox").is_visible()


def test_a_chip_changes_and_removes_its_tag(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    prompt(page).fill("cat <hypernet:create-ink:0.5:end=0.8>, red <hypernet:create-sea>")
    slider = page.get_by_role("slider", name="Strength of create-ink")
    for _ in range(3):
        slider.locator("[tabindex]").press("ArrowRight")
    until(lambda: "<hypernet:create-ink:0.65:end=0.8>" in prompt(page).input_value())
    page.get_by_role("button", name="Remove create-sea").click()
    until(lambda: prompt(page).input_value() == "cat <hypernet:create-ink:0.65:end=0.8>, red")
    side = page.get_by_role("button", name="create-ink: on the conditional side alone")
    side.click()
    until(
        lambda: (
            prompt(page).input_value() == "cat <hypernet:create-ink:0.65:end=0.8:guidance=conditional>, red"
        )
    )
    page.locator(".chip [aria-pressed=true]").wait_for()
    side.click()
    until(lambda: prompt(page).input_value() == "cat <hypernet:create-ink:0.65:end=0.8>, red")
    assert page.locator(".chip").count() == 1
    prompt(page).fill("cat")
    page.locator(".chip").wait_for(state="detached")


def test_a_card_of_the_hypernetworks_page_leads_here(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/?add=create-sea&prompt=a+cat")
    expected = "a cat, deep blue <hypernet:create-sea:0.6>"
    until(lambda: prompt(page).input_value() == expected)
    page.wait_for_function("location.search == ''")
    page.reload()
    page.get_by_role("slider", name="Strength of create-sea").wait_for()
    assert prompt(page).input_value() == expected
    page.goto(app.url + "/?network=create-nothing")
    page.get_by_text("There is no hypernetwork create-nothing.").wait_for()


AT_ONCE = """
    const type = () => {
        const area = document.getElementById("prompt-text");
        if (!area) return setTimeout(type, 1);
        area.value += " my words";
        area.dispatchEvent(new Event("input", { bubbles: true }));
    };
    if (location.search) type();
"""


def test_what_is_typed_at_once_stays_beside_the_tag(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/settings")
    page.add_init_script(AT_ONCE)
    page.goto(app.url + "/?add=create-sea")
    page.wait_for_function("hyperbrushCreate && location.search == ''")  # the server has had its say
    expected = "deep blue <hypernet:create-sea:0.6> my words"
    assert prompt(page).input_value() == expected
    forms = Path(app.root) / ".hyperbrush/forms"
    until(lambda: any(read_json(file)["form"].get("prompt") == expected for file in forms.iterdir()))
    page.reload()
    assert prompt(page).input_value() == expected


def test_the_page_comes_filled_in(app: Any) -> None:
    """What came after the page itself would take the place of what is being typed."""
    page = app.call("/?add=create-sea&seed=77").decode()
    assert "deep blue" in page
    assert "hypernet:create-sea:0.6" in page
    assert "updateValue" not in page


def test_a_pictures_settings_are_read(
    app: Any, open_page: Callable[..., Any], drawn: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "from elsewhere.png"
    file.write_bytes(app.call(f"{API}/jobs/{drawn['id']}/pictures/0"))
    page = open_page(app)
    page.get_by_label("Drop a picture here to read its settings, or choose one").set_input_files(file)
    until(lambda: prompt(page).input_value() == "cat face")
    assert page.get_by_label("Seed", exact=True).input_value() == "7"
    assert page.get_by_label("Negative prompt").input_value() == "dog"
    page.get_by_text("More settings").click()
    assert page.get_by_label("Clip skip").input_value() == "2"
    text = tmp_path / "text.png"
    text.write_text("no picture")
    page.get_by_label("Drop a picture here to read its settings, or choose one").set_input_files(text)
    page.get_by_text("'text.png' cannot be read as a picture").wait_for()
    page.bad[:] = [said for said in page.bad if "400" not in said]  # Chromium itself tells of the refusal


def test_a_picture_dropped_anywhere_is_read(
    app: Any, open_page: Callable[..., Any], drawn: dict[str, Any]
) -> None:
    page = open_page(app)
    page.evaluate(
        """async address => {
            const blob = await (await fetch(address)).blob();
            const data = new DataTransfer();
            data.items.add(new File([blob], 'a.png', {type: 'image/png'}));
            document.querySelector('h1').dispatchEvent(
                new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        f"{API}/jobs/{drawn['id']}/pictures/0",
    )
    until(lambda: prompt(page).input_value() == "cat face")


def test_a_dropped_pictures_sampler_that_cannot_draw_is_told(
    app: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(app)
    for sampler in ("Euler SGM Uniform", "Flow Euler"):
        file = save_picture(
            Image.new("RGB", (64, 64)),
            tmp_path / "a.png",
            f"a {sampler} cat\nSteps: 2, Sampler: {sampler}, Seed: 1",
        )
        page.locator("[data-use=settings] input").set_input_files(file)
        until(lambda wanted=f"a {sampler} cat": prompt(page).input_value() == wanted)
    page.get_by_text("The sampler Flow Euler cannot draw with this model; Euler SGM Uniform takes").wait_for()
    assert page.get_by_label("Sampler", exact=True).input_value() == "Euler SGM Uniform"


def test_a_mask_painted_on_the_page(app: Any, open_page: Callable[..., Any], drawn: dict[str, Any]) -> None:
    page = open_page(app, f"/?job={drawn['id']}")
    page.get_by_role("button", name="Use as start").click()
    canvas = page.locator("canvas[data-ready]")
    canvas.wait_for()
    # What comes later moves the page: the section opens slowly, the gallery comes with the second look.
    page.locator(".pictures.small img").first.wait_for()
    page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
    canvas.scroll_into_view_if_needed()
    canvas.element_handle().wait_for_element_state("stable")
    box = canvas.bounding_box()
    assert box["height"] == pytest.approx(box["width"], abs=1), (
        "the picture is there, and the canvas lies on it"
    )
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.9 * box["height"], steps=4)
    page.mouse.up()
    page.get_by_text("Only the painted part is drawn anew.").wait_for()
    forms = Path(app.root) / ".hyperbrush/forms"
    until(lambda: any(read_json(file)["form"].get("mask") for file in forms.iterdir()))
    page.reload()  # picture and mask are still there
    page.get_by_text("Only the painted part is drawn anew.").wait_for()
    page.locator("canvas[data-ready]").wait_for()
    page.get_by_role("slider", name="How much is drawn anew").locator("[tabindex]").press("End")
    job = draw(app, page, "green tree", steps=4)
    before, after = pixels(app, drawn["id"]), pixels(app, job)
    assert before.crop((0, 0, 40, 64)).tobytes() == after.crop((0, 0, 40, 64)).tobytes()
    assert before.crop((48, 8, 56, 56)).tobytes() != after.crop((48, 8, 56, 56)).tobytes()


@pytest.mark.main
def test_a_mask_from_the_keyboard(app: Any, open_page: Callable[..., Any], drawn: dict[str, Any]) -> None:
    page = open_page(app, f"/?job={drawn['id']}")
    page.get_by_role("button", name="Use as start").click()
    page.locator("canvas[data-ready]").wait_for()
    for label, value in (("Left", 0), ("Top", 0), ("Its width", 50), ("Its height", 100)):
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Apply the rectangle").press("Enter")
    page.get_by_text("Only the painted part is drawn anew.").wait_for()
    asked = app.call(f"{API}/jobs/{draw(app, page, 'green tree')}")["arguments"]
    mask = Image.open(io.BytesIO(app.call(f"{API}/uploads/{asked['mask']}"))).convert("L")
    assert (mask.getpixel((8, 8)), mask.getpixel((56, 56))) == (255, 0)
    assert asked["mask_padding"] is None
    page.get_by_role("checkbox", name="Draw the painted part alone").click()
    assert app.call(f"{API}/jobs/{draw(app, page, 'green tree')}")["arguments"]["mask_padding"] == 32
    page.get_by_role("button", name="Invert the mask").click()
    page.get_by_role("button", name="Clear the mask").click()
    page.get_by_text("Paint over the picture to draw only that part anew.").wait_for()
    page.get_by_role("button", name="Remove the picture").click()
    page.locator("canvas").wait_for(state="detached")
    assert app.call(f"{API}/jobs/{draw(app, page, 'green tree')}")["arguments"]["image"] == ""


def test_again_and_vary_and_compare(app: Any, open_page: Callable[..., Any], drawn: dict[str, Any]) -> None:
    page = open_page(app, f"/?job={drawn['id']}")
    link = page.get_by_role("link", name="Compare").last.get_attribute("href")
    assert parse_qs(urlsplit(link).query) == {
        "prompt": ["cat face"], "negative": ["dog"], "seed": ["7"], "steps": ["2"], "clip_skip": ["2"],
        "guidance_scale": ["4.0"],
    }  # fmt: skip
    page.get_by_role("button", name="Again").click()
    page.wait_for_function("job => !location.search.includes(job)", arg=drawn["id"])
    again = page.url.partition("job=")[2]
    page.locator("article.picture").wait_for()
    said = app.wait_for(again)
    assert {**said["arguments"], "seed": 7} == drawn["arguments"]
    page.get_by_role("button", name="Vary").click()
    page.wait_for_function("job => !location.search.includes(job)", arg=again)
    varied = app.wait_for(page.url.partition("job=")[2])
    assert varied["state"] == "done", varied["error"]
    assert varied["arguments"]["image_strength"] == 0.5
    start = Image.open(io.BytesIO(app.call(f"{API}/uploads/{varied['arguments']['image']}"))).convert("RGB")
    assert start.tobytes() == pixels(app, again).tobytes()
    page.locator("article.picture").wait_for()
    page.get_by_role("button", name="Reuse the last seed").click()
    seed = str(varied["result"]["seed"])
    until(lambda: page.get_by_label("Seed", exact=True).input_value() == seed)
    page.get_by_role("button", name="Random seed").click()
    until(lambda: page.get_by_label("Seed", exact=True).input_value() == "")


def test_settings_are_copied_without_a_clipboard_too(
    app: Any, open_page: Callable[..., Any], drawn: dict[str, Any]
) -> None:
    page = open_page(app, f"/?job={drawn['id']}")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without HTTPS
    page.locator("article.picture").get_by_text("Settings", exact=True).click()
    copy = page.get_by_role("button", name="Copy")
    copy.click()
    page.get_by_text("Copied", exact=True).wait_for()
    prompt(page).fill("")
    prompt(page).press("Control+v")
    until(lambda: "Negative prompt: dog" in prompt(page).input_value())
    page.evaluate("document.execCommand = () => false")
    copy.click()
    page.get_by_text("It could not be copied").wait_for()


def test_what_cannot_be_drawn_is_told(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("There is no prompt yet: write what to draw.").wait_for()
    prompt(page).fill("cat <hypernet:create-inc>")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("unknown hypernetwork 'create-inc'; did you mean 'create-ink'").wait_for()
    prompt(page).fill("cat")
    page.get_by_label("Width").fill("63")
    page.get_by_label("Height").fill("63")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("size 63x63 is not possible").wait_for()


def test_html_in_a_prompt_stays_text(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app)
    draw(app, page, "<b id=evil>cat</b> \" '")
    assert page.locator("#evil").count() == 0
    assert page.locator("article img").first.get_attribute("alt").endswith("<b id=evil>cat</b> \" '")


def test_a_running_training_is_told_of(own_app: Callable[..., Any], open_page: Callable[..., Any]) -> None:
    """Also when more was drawn since it began than any page lists."""
    app = own_app()
    page = open_page(app)
    said = page.get_by_text("A training is running: pictures are drawn between its steps")
    badge = page.get_by_role("banner").get_by_text("3/9")
    assert not said.is_visible()
    jobs, now = Path(app.root) / ".hyperbrush/jobs", time.time()

    def make(number: int, kind: str, state: str) -> Path:
        folder = jobs / f"{int((now + number) * 1e6):014x}beef"
        about = {"kind": kind, "arguments": {}, "device": "cpu", "created": now + number}
        write_json(folder / "job.json", about)
        write_json(folder / "progress.json", {"step": 3, "steps": 9})
        write_json(folder / "state.json", {"state": state, "started": now, "attempts": 1})
        return folder

    for number in range(70):
        make(number, "draw", "done")
    folder = make(-1, "train", "running")
    said.wait_for()
    badge.wait_for()
    shutil.rmtree(folder)
    said.wait_for(state="hidden")
    badge.wait_for(state="hidden")


@pytest.mark.parametrize(("locale", "word"), [("ko-KR", "그리기"), ("zh-CN", "绘制")])
def test_it_speaks(app: Any, open_page: Callable[..., Any], locale: str, word: str) -> None:
    page = open_page(app, locale=locale)
    assert page.get_by_role("button", name=word, exact=True).is_visible()
    assert "Prompt" not in page.locator("#content").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_with_everything_open_axe_finds_nothing_and_a_phone_shows_it(
    app: Any, open_page: Callable[..., Any], drawn: dict[str, Any], theme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(app, f"/?job={drawn['id']}", width=390, color_scheme=theme)
    prompt(page).fill("cat <hypernet:create-ink:0.5>")
    page.get_by_role("button", name="Use as start").click()
    page.locator("canvas[data-ready]").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Clip skip").wait_for()
    page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
    found = [f"{v['id']}: {n['html'][:120]}" for v in axe.Axe().run(page).response["violations"]
             if v["impact"] in ("serious", "critical") for n in v["nodes"]]  # fmt: skip
    assert not found
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1


def test_broken_memory_opens_an_empty_form(app: Any, open_page: Callable[..., Any]) -> None:
    name = "ab" * 12
    form = {"prompt": 7, "steps": "many", "sampler": "Oiler", "image": "../x", "count": 3}
    write_json(Path(app.root) / f".hyperbrush/forms/{name}.json", {"form": form, "job": "gone"})
    cookie = {"name": "hyperbrush_browser", "value": name, "url": app.url}
    steps = {"name": "steps", "value": "no", "url": app.url}  # closed
    cookies = [_as_state(one) for one in (cookie, steps)]
    page = open_page(app, storage_state={"cookies": cookies, "origins": []})
    assert page.get_by_label("Pictures").input_value() == "3"
    assert page.get_by_label("Steps").input_value() == "25"
    assert page.get_by_text("Your pictures will appear here.").is_visible()


def _as_state(cookie: dict[str, str]) -> dict[str, Any]:
    host = re.sub(r"^https?://|:\d+$", "", cookie.pop("url"))
    return {
        **cookie,
        "domain": host,
        "path": "/",
        "expires": -1,
        "httpOnly": False,
        "secure": False,
        "sameSite": "Strict",
    }


@pytest.mark.parametrize(
    ("text", "strength", "expected"),
    [
        ("a <hypernet:x>", 0.5, "a <hypernet:x:0.5>"),
        ("a <hypernet:x:start=0.2:1>", -0.25, "a <hypernet:x:start=0.2:-0.25>"),
        ("a <hypernet:x:end=0.5:strength=1>", 2, "a <hypernet:x:end=0.5:strength=2>"),
        ("a <hypernet:x:much> b", None, "a b"),
        ("a <lora:x:1>", 0.5, "a <lora:x:0.5>"),
        ("a <lora:x:0.2:0.9> b", 0.5, "a <lora:x:0.5> b"),  # text encoder and UNet alike
        ("a <lyco:x:1>", 0.5, "a <lyco:x:1>"),
    ],
)
def test_a_tag_is_changed_where_it_stands(text: str, strength: float | None, expected: str) -> None:
    assert changed(text, 0, strength) == expected


def test_a_picture_is_compared_with_all_it_was_drawn_with() -> None:
    asked = {
        "prompt": "a cat,\nblue <hypernet:ink:0.5>", "negative": "", "sampler": "Euler a", "steps": 9, "seed": None,
        "guidance_scale": 0, "width": 96, "height": None, "clip_skip": 2, "count": 4, "subseed": 1,
    }  # fmt: skip
    said = {"seed": 12, "parameters": "a cat,\nblue <hypernet:ink:0.5>\nSteps: 9, Seed: 12"}
    assert parse_qs(urlsplit(compare_address(asked, said)).query) == {
        "prompt": [asked["prompt"]], "sampler": ["Euler a"], "steps": ["9"], "seed": ["12"], "guidance_scale": ["0"],
        "width": ["96"], "clip_skip": ["2"], "axes": ["strength=0,0.5,1"],
    }  # fmt: skip
    wild = {**asked, "prompt": "a __animal__,\nblue"}
    said = {"seed": 12, "parameters": "a cat,\nblue\nNegative prompt: dog\nSteps: 9, Seed: 12"}
    found = parse_qs(urlsplit(compare_address(wild, said)).query)
    assert found["prompt"] == ["a cat,\nblue"]
    assert "axes" not in found


def test_tags_are_found_and_added() -> None:
    assert [(tag.name, tag.strength) for tag in written("<hypernet:a:0.5> <hypernet:b:odd>")] == [
        ("a", 0.5),
        ("b", 1),
    ]
    assert added("", "ink") == "<hypernet:ink:1>"
    assert added("a <hypernet:ink:0.2>", "ink", "a") == "a <hypernet:ink:0.2>"
    once = added("a pink cat", "ink", "ink")
    assert once == "a pink cat, ink <hypernet:ink:1>"
    assert added(once, "ink", "ink") == once
    assert added("Ink drawing", "x", "ink") == "Ink drawing <hypernet:x:1>"


def test_a_job_that_is_gone_is_told(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/?job=00000000000000beef")
    page.get_by_text("there is no job '00000000000000beef'; ended ones are removed").wait_for()
    page.get_by_label(re.compile("^Prompt")).wait_for()

"""The gallery in a real browser, and what of it leads to Create."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import App, until

from hyperbrush.files import write_json
from hyperbrush.generation.picture_files import save_picture

Open = Callable[..., Any]
TEXT = "{prompt}\nNegative prompt: grey\nSteps: {steps}, Sampler: Euler a, CFG scale: 4, Seed: {seed}, Size: 64x64, Version: hyperbrush"


def give(app: App, word: str, count: int = 3, size: tuple[int, int] = (64, 64)) -> list[Path]:
    """Pictures whose prompts begin with a word, the newest first; number 0 has seed 100."""
    made = []
    for number in range(count):
        path = Path(app.root) / f"outputs/{word}/{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = TEXT.format(prompt=f"{word} cat {number}", steps=number + 1, seed=100 + number)
        colour = tuple((53 * number + 80 * channel) % 256 for channel in range(3))
        save_picture(Image.new("RGB", size, colour), path, text)
        when = time.time_ns() - int(number * 1e9)
        os.utime(path, ns=(when, when))
        made.append(path)
    return made


def tile(page: Any, text: str) -> Any:
    found = page.locator("article.tile").filter(has_text=text)
    found.first.wait_for()
    return found


def large(page: Any, text: str) -> Any:
    """The large view of a picture, once it stands."""
    tile(page, text).locator("button.tile-open").click()
    page.wait_for_function("document.activeElement.closest('.q-dialog')")
    page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
    return page.get_by_role("dialog")


def open_gallery(app: App, open_page: Open, word: str, **options: Any) -> Any:
    page = open_page(app, f"/gallery?q={word}", **options)
    tile(page, f"{word} cat 0")
    return page


@pytest.mark.main
def test_pictures_are_there_with_their_prompts_and_are_found(app: App, open_page: Open) -> None:
    give(app, "findme")
    page = open_page(app, "/gallery")
    tile(page, "findme cat 1")
    page.get_by_label("Search prompts and settings").fill("findme seed: 102")
    until(lambda: page.locator("article.tile").count() == 1)
    assert tile(page, "findme cat 2").get_by_alt_text("findme cat 2").is_visible()
    until(lambda: "q=findme" in page.url)
    page.reload()
    tile(page, "findme cat 2")
    assert page.locator("article.tile").count() == 1
    page.get_by_label("Search prompts and settings").fill("nothing like it")
    page.get_by_text("No picture fits that search.").wait_for()


def test_what_is_drawn_appears_by_itself(app: App, open_page: Open) -> None:
    page = open_page(app, "/gallery?q=freshly")
    page.get_by_text("No picture fits that search.").wait_for()
    app.call("/api/v1/draw", {"prompt": "freshly drawn", "steps": 1})
    tile(page, "freshly drawn")


@pytest.mark.main
def test_the_arrow_keys_lead_through_the_large_view(app: App, open_page: Open) -> None:
    give(app, "arrows")
    page = open_gallery(app, open_page, "arrows")
    box = large(page, "arrows cat 0")
    box.get_by_text("1 of 3").wait_for()
    picture = box.locator(".fit img")
    assert picture.get_attribute("alt") == "arrows cat 0"
    page.keyboard.press("ArrowRight")
    box.get_by_text("2 of 3").wait_for()
    assert picture.get_attribute("alt") == "arrows cat 1"
    page.keyboard.press("ArrowRight")
    box.get_by_text("3 of 3").wait_for()
    page.keyboard.press("ArrowRight")  # there is none
    page.keyboard.press("ArrowLeft")
    box.get_by_text("2 of 3").wait_for()
    assert "Seed: 101" in box.locator(".mono").inner_text()
    page.keyboard.press("Escape")
    box.wait_for(state="hidden")


@pytest.mark.main
def test_small_pictures_are_crisp_at_whole_multiples_or_smooth(app: App, open_page: Open) -> None:
    give(app, "pixels", 2)
    page = open_gallery(app, open_page, "pixels")

    def shown(place: str) -> tuple[float, str]:
        image = page.locator(place).first
        width = image.bounding_box()["width"]
        return width, image.evaluate("i => getComputedStyle(i).imageRendering")

    assert shown(".tile-open img") == (192, "pixelated")
    large(page, "pixels cat 0")
    page.wait_for_function("document.querySelector('.fit img.pixels')?.style.width")
    width, rendering = shown(".fit img")
    assert rendering == "pixelated"
    assert width >= 512
    assert width % 64 == 0
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    page.get_by_role("switch", name="Smooth pixels").click()
    until(lambda: shown(".tile-open img")[1] == "auto")
    page.reload()
    tile(page, "pixels cat 0")
    assert shown(".tile-open img")[1] == "auto"
    phone = open_gallery(app, open_page, "pixels", width=390)
    assert phone.locator(".tile-open img").first.bounding_box()["width"] == 128


@pytest.mark.main
def test_stars_stay_and_filter(app: App, open_page: Open) -> None:
    give(app, "stars")
    page = open_gallery(app, open_page, "stars")
    star = tile(page, "stars cat 1").get_by_role("button", name="Star", exact=True)
    star.click()
    until(lambda: star.get_attribute("aria-pressed") == "true")
    page.get_by_role("switch", name="Starred only").click()
    until(lambda: page.locator("article.tile").count() == 1)
    page.reload()
    tile(page, "stars cat 1")
    assert page.locator("article.tile").count() == 1


@pytest.mark.main
def test_delete_and_undo(app: App, open_page: Open) -> None:
    files = give(app, "undoing")
    page = open_gallery(app, open_page, "undoing")
    for number in (0, 1):
        tile(page, f"undoing cat {number}").get_by_role("checkbox").click()
    page.get_by_text("2 pictures chosen").wait_for()
    page.get_by_role("button", name="Delete", exact=True).click()
    until(lambda: [file.exists() for file in files] == [False, False, True])
    until(lambda: page.locator("article.tile").count() == 1)
    page.get_by_role("button", name="Undo").first.click()
    until(lambda: all(file.exists() for file in files))
    box = large(page, "undoing cat 0")
    box.get_by_text("1 of 3").wait_for()
    page.keyboard.press("Delete")
    box.get_by_text("1 of 2").wait_for()  # on to the next one
    assert box.locator(".fit img").get_attribute("alt") == "undoing cat 1"
    box.get_by_role("button", name="Undo").click()
    until(files[0].exists)


def test_the_bin_is_emptied_after_a_question(own_app: Callable[..., App], open_page: Open) -> None:
    app = own_app()
    give(app, "rubbish")
    page = open_gallery(app, open_page, "rubbish")
    for one in app.call("/api/v1/gallery?words=rubbish")["pictures"][:2]:
        app.call(f"/api/v1/gallery/{one['id']}", method="DELETE")
    page.get_by_text("Bin (2)").click()
    page.get_by_role("button", name="Empty the bin").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("dialog").wait_for(state="detached")
    assert len(app.call("/api/v1/bin/drawings")) == 2
    page.get_by_role("button", name="Empty the bin").click()
    page.get_by_role("dialog").get_by_text("Remove all 2 things").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Empty the bin").click()
    page.get_by_text("Bin (").wait_for(state="hidden")
    assert app.call("/api/v1/bin/drawings") == []
    assert tile(page, "rubbish cat 2").count() == 1


@pytest.mark.main
def test_its_settings_go_into_the_form(app: App, open_page: Open) -> None:
    give(app, "reuse")
    page = open_gallery(app, open_page, "reuse")

    def use(name: str) -> None:
        page.goto(f"{app.url}/gallery?q=reuse")
        tile(page, "reuse cat 2").locator("button.tile-open").click()
        page.get_by_role("dialog").get_by_role("link", name=name, exact=True).click()
        page.get_by_label("Prompt", exact=True).wait_for()
        page.wait_for_function("location.pathname == '/' && location.search == ''")

    def field(name: str) -> str:
        return str(page.get_by_label(name, exact=True).input_value())

    use("Seed")
    assert (field("Seed"), field("Prompt")) == ("102", "")
    use("Prompt")
    assert (field("Prompt"), field("Negative prompt"), field("Steps")) == ("reuse cat 2", "grey", "25")
    use("All settings")
    assert (field("Prompt"), field("Seed"), field("Steps")) == ("reuse cat 2", "102", "3")
    assert (
        page.locator(".q-field")
        .filter(has_text="Sampler")
        .locator("span, input")
        .first.evaluate("e => e.value || e.textContent")
        .startswith("Euler a")
    )


@pytest.mark.main
def test_two_are_compared(app: App, open_page: Open) -> None:
    give(app, "beside")
    page = open_gallery(app, open_page, "beside")
    for number in (0, 2):
        tile(page, f"beside cat {number}").get_by_role("checkbox").click()
    page.get_by_role("button", name="Compare two").click()
    box = page.get_by_role("dialog")
    box.get_by_text("What differs").wait_for()
    rows = [row.inner_text().split("\t") for row in box.locator("tbody tr").all()]
    assert ["Steps", "1", "3"] in [[cell.strip() for cell in row] for row in rows]
    # At one moment: the dialog still moves as it opens.
    boxes = box.locator(".fit img").evaluate_all("es => es.map(e => e.getBoundingClientRect().toJSON())")
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_pages_of_many(app: App, open_page: Open) -> None:
    give(app, "many", 61, size=(8, 8))
    page = open_gallery(app, open_page, "many")
    assert page.locator("article.tile").count() == 60
    page.get_by_role("button", name="Older").click()
    until(lambda: page.locator("article.tile").count() == 1)
    page.get_by_text("Page 2 of 2").wait_for()
    large(page, "many cat 60")
    page.get_by_text("61 of 61").wait_for()
    page.keyboard.press("ArrowLeft")  # the large view passes from page to page
    page.get_by_text("60 of 61").wait_for()


def test_a_grid_leads_to_its_comparison_and_its_deletion_is_told_there(app: App, open_page: Open) -> None:
    folder = Path(app.root) / f".hyperbrush/jobs/{int(time.time() * 1e6):014x}dada"
    save_picture(Image.new("RGB", (90, 30), "navy"), folder / "grid.png", "gridword\nSteps: 2, Seed: 4")
    result = {"width": 90, "height": 30, "pictures": 3, "seconds": 1.0, "seed": 4}
    write_json(folder / "state.json", {"state": "done", "started": 1.0, "attempts": 1, "result": result})
    about = {"kind": "compare", "arguments": {"prompt": "gridword", "axes": []}, "device": "cpu"}
    write_json(folder / "job.json", {**about, "created": time.time()})
    page = open_page(app, "/gallery?q=gridword")
    tile(page, "gridword").locator("button.tile-open").click()
    page.get_by_role("dialog").get_by_role("link", name="Open in Compare").click()
    page.locator(".grid-button").wait_for()
    [one] = app.call("/api/v1/gallery?words=gridword")["pictures"]
    app.call(f"/api/v1/gallery/{one['id']}", method="DELETE")
    page.goto(f"{app.url}/compare?job={folder.name}")
    page.get_by_text("This grid was deleted.").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_dialogs(app: App, open_page: Open, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    give(app, "axes")

    def findings(page: Any) -> list[str]:
        page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
        page.wait_for_function(
            "[...document.querySelectorAll('.q-loading-bar')].every(b => b.style.opacity == '0')"
        )
        return [
            f"{found['id']}: {node['html'][:160]}"
            for found in axe.Axe().run(page).response["violations"]
            if found["impact"] in ("serious", "critical")
            for node in found["nodes"]
        ]

    page = open_gallery(app, open_page, "axes", width=390, color_scheme=theme)
    assert not findings(page)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1
    large(page, "axes cat 0")
    page.get_by_text("1 of 3").wait_for()
    assert not findings(page)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    for number in (0, 1):
        tile(page, f"axes cat {number}").get_by_role("checkbox").click()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_text("What differs").wait_for()
    assert not findings(page)

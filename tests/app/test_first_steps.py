"""What a new user sees: the first steps on the page one starts at, and the one button of every page that is empty."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import App, until
from test_accessibility import findings

from hyperbrush.assets import style_folder
from hyperbrush.hypernetworks import AttentionHypernetwork

Open = Callable[..., Any]
EMPTY = {  # path → (the button, where it leads)
    "/gallery": ("Draw the first one", "/"),
    "/hypernetworks": ("Train one", "/train"),
    "/runs": ("Train one", "/train"),
    "/train": ("Take the example (48 pictures)", "/train?dataset=fluent-high-contrast"),
    "/styles": ("Take three example pictures", None),
    "/compare": ("Draw an example", None),
}


def steps(page: Any) -> Any:
    return page.get_by_role("region", name="Begin here")


def is_led_by(page: Any, button: str) -> None:
    """The one button of the steps."""
    steps(page).get_by_text(button, exact=True).wait_for()
    assert steps(page).locator(".step .q-btn").count() == 1


@pytest.mark.main
def test_a_new_user_sees_one_trains_one_and_makes_one(own_app: Callable[..., App], open_page: Open) -> None:
    app = own_app()
    page = open_page(app, width=1280)
    is_led_by(page, "Draw them")
    page.wait_for_function("[...document.querySelectorAll('.strip img')].every(i => i.naturalWidth == 64)")
    page.get_by_label("Steps").fill("1")
    steps(page).get_by_text("Draw them").click()
    until(lambda: page.locator("article.picture").count() == 4)
    assert page.get_by_label("Prompt", exact=True).input_value() == "cat face"
    is_led_by(page, "Take the example")
    steps(page).get_by_text("Take the example").click()
    page.get_by_text("1–24 of 48").wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "ink"
    page.reload()  # it is in the draft
    page.get_by_text("1–24 of 48").wait_for()
    folder = Path(app.root) / "models/hypernetworks"
    folder.mkdir(parents=True, exist_ok=True)
    AttentionHypernetwork((8,), name="mine", weight_init="XavierNormal").save(folder / "mine.pt")
    page.goto(app.url)
    is_led_by(page, "Take three pictures")
    assert steps(page).get_by_role("img", name="done").count() == 2
    steps(page).get_by_text("Take three pictures").click()
    page.get_by_alt_text("Picture 3 of the style").wait_for()
    captions = [page.get_by_label(f"What picture {number} shows").input_value() for number in (1, 2, 3)]
    assert captions == ["crab", "sunflower", "cactus"]
    page.get_by_role("button", name="Generate the style").click()
    page.wait_for_function("location.search.includes('job=')")
    page.goto(app.url)
    page.get_by_label("Prompt", exact=True).wait_for()
    assert steps(page).is_hidden()


@pytest.mark.main
def test_the_first_steps_are_closed(own_app: Callable[..., App], open_page: Open) -> None:
    page = open_page(own_app())
    hint = page.get_by_text("Your pictures will appear here.")
    steps(page).wait_for()
    assert hint.is_hidden()
    steps(page).get_by_role("button", name="Hide this").click()
    hint.wait_for()
    page.reload()
    hint.wait_for()
    assert steps(page).is_hidden()


@pytest.mark.main
def test_every_empty_page_has_one_button_that_leads_on(own_app: Callable[..., App], open_page: Open) -> None:
    app = own_app()
    page = open_page(app, "/gallery", width=390, color_scheme="dark")
    for path, (button, target) in EMPTY.items():
        page.goto(app.url + path)
        found = page.locator("#content .q-btn", has_text=button)
        found.wait_for()
        assert found.count() == 1
        assert found.get_attribute("href") == target
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        page.wait_for_timeout(300)
        assert not findings(page), path
        searches = page.get_by_role("textbox", name="Search")
        assert not [one for one in searches.all() if one.is_visible()], "nothing is there to be searched"
    found.click()  # Compare's
    until(lambda: "compare" in [job["kind"] for job in app.call("/api/v1/jobs")])
    assert page.get_by_label("Prompt", exact=True).input_value() == "cat face"
    app.call("/api/v1/datasets", {"name": "bare"})
    page.goto(app.url + "/train?dataset=bare")
    with page.expect_file_chooser() as chooser:
        page.locator("#content .q-btn", has_text="Add pictures").click()
    chooser.value.set_files([style_folder() / "train/crab.png"])
    page.get_by_text("1–1 of 1").wait_for()

"""The pictures of docs/web-app.md and the READMEs, from the real app: python docs/make_screenshots.py.

Starts a server on a fresh workspace, trains on the bundled style set through the API, and photographs the pages.  Takes a few minutes.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from hyperbrush.assets import style_folder
from hyperbrush.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/app"))
from running import ARGUMENTS, CHROMIUM, App, until

OUT = Path(__file__).parent / "app"
PROMPTS = ["red heart", "mushroom", "umbrella"]
STEPS = 150


def shoot(page: Page, name: str) -> None:
    """One picture."""
    page.wait_for_timeout(1200)
    page.screenshot(path=OUT / f"{name}.png")
    print(OUT / f"{name}.png")


def main() -> None:
    """All of them."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = App(Path(folder)).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 860}, locale="en-US")
        try:
            shutil.copytree(style_folder() / "train", app.root / "datasets/black-line")
            page.goto(f"{app.url}/train?dataset=black-line")
            shoot(page, "train")
            training = {"max_steps": STEPS, "prompts": PROMPTS, "preview_every": 25, "validate_every": 25}
            settings = {"name": "ink", "data": ["datasets/black-line"], "training": training}
            app.call("/api/v1/trainings", {"settings": settings})
            page.goto(f"{app.url}/runs/ink")
            until(lambda: read_json(app.root / "runs/ink/live.json").get("step", 0) >= 110, 300)
            shoot(page, "run")
            until(lambda: app.call("/api/v1/runs/ink")["state"] in ("done", "failed"), 300)
            page.goto(f"{app.url}/?add=ink")
            prompt = page.get_by_label(re.compile("^Prompt"))
            page.wait_for_function("document.querySelector('textarea').value.includes('ink')")
            page.wait_for_timeout(1000)  # what the address says is written by then
            prompt.fill("umbrella <hypernet:ink:0.8>")
            prompt.press("Control+Enter")
            page.locator("main img").first.wait_for(timeout=120_000)
            page.wait_for_timeout(8000)
            shoot(page, "create")
            page.goto(f"{app.url}/hypernetworks")
            page.wait_for_timeout(1500)
            shoot(page, "hypernetworks")
            page.goto(f"{app.url}/compare?prompt=umbrella+%3Chypernet%3Aink%3A1%3E&seed=3")
            shoot(page, "compare")
            page.goto(f"{app.url}/styles")
            references = sorted((style_folder() / "train").glob("*.png"))[:3]
            page.locator("input[type=file]").first.set_input_files([str(p) for p in references])
            page.wait_for_timeout(2000)
            page.get_by_role("button", name=re.compile("^(Generate|Make)")).first.click()
            page.wait_for_timeout(25_000)
            shoot(page, "styles")
        finally:
            app.end()


if __name__ == "__main__":
    main()

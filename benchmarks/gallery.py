"""The gallery's figures with many pictures: the first look at them, each later one, a page of them, a search.

    python benchmarks/gallery.py [--pictures 10000]

Pictures of 64 pixels with settings, a hundred a folder; times are of this process's CPU and of the clock.  page: the
REST route's work; shown: from the request to the first tile in a real Chromium, in a fresh context, median of five.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from hyperbrush.app.gallery.index import Query
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.generation.picture_files import save_picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/app"))
from running import ARGUMENTS, CHROMIUM, App

TEXT = "a {} cat in a garden, number {}\nNegative prompt: grey\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: {}, Size: 64x64, Model: emoji"
COLOURS = ("red", "green", "blue", "teal", "navy", "pink", "gold")


def make(root: Path, count: int) -> None:
    """The pictures."""
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        path = root / f"outputs/day-{number // 100:04d}/{number:05d}.png"
        save_picture(Image.new("RGB", (64, 64), colour), path, TEXT.format(colour, number, number))


def timed(name: str, do: Callable[[], object], rounds: int = 1) -> None:
    """Print the median of some rounds."""
    clock, cpu = [], []
    for _ in range(rounds):
        begin = time.perf_counter(), time.process_time()
        do()
        clock.append(time.perf_counter() - begin[0])
        cpu.append(time.process_time() - begin[1])
    print(f"{name}: {statistics.median(clock):.3f} s, CPU {statistics.median(cpu):.3f} s", flush=True)


def shown(app: App) -> None:
    """How soon the page's first tile is there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        found = []
        for _ in range(5):
            page = browser.new_context().new_page()
            begin = time.perf_counter()
            page.goto(f"{app.url}/gallery")
            page.locator("article.tile").first.wait_for()
            found.append(time.perf_counter() - begin)
            page.context.close()
        print(f"shown: {statistics.median(found):.3f} s", flush=True)


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, count)
        site = Site(Workspace(root))
        timed("first look", site.gallery.refresh)
        timed("second look", site.gallery.refresh)
        time.sleep(2.5)  # the folders' times settle
        site.gallery.refresh()
        timed("later looks", site.gallery.refresh, 20)
        timed("a page", lambda: site.gallery.find(Query(), 0, 60), 20)
        timed("the last page", lambda: site.gallery.find(Query(), count - 60, 60), 20)
        timed("a search", lambda: site.gallery.find(Query(words="gold garden 77"), 0, 60), 20)
        app = App(root).start()
        try:
            app.call("/api/v1/gallery")
            shown(app)
        finally:
            app.end()


if __name__ == "__main__":
    main()

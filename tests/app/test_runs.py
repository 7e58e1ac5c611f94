"""The pages of runs in a real browser: queue, history, one run as it goes, several in one chart."""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from running import until
from runs_helpers import begin, ended, give_pictures, settings, state, step_of

from hyperbrush.app.runs.view import MOST
from hyperbrush.app.train.service import begin as begin_run
from hyperbrush.app.workspace import Workspace
from hyperbrush.files import read_json

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def two(app: Any) -> tuple[str, str]:
    """Two finished runs."""
    begin(app, "seen", max_steps=8, keep_checkpoints=3, checkpoint_every=3)
    begin(app, "seen again, brighter", max_steps=6, learning_rate=0.002)
    for name in ("seen", "seen again, brighter"):
        assert ended(app, name)["state"] == "done"
    return "seen", "seen again, brighter"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def test_the_history_shows_runs_and_finds_them(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs")
    page.get_by_role("link", name="seen", exact=True).wait_for()
    row = page.get_by_role("listitem").filter(has=page.get_by_role("link", name="seen", exact=True))
    assert "done" in row.inner_text()
    assert "step 8 of 8" in row.inner_text()
    for kind, width in (("run-picture", 64), ("run-spark", 120)):
        image = row.locator(f"img.{kind}")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == width
    page.get_by_label("Search runs by name").fill("BRIGHT")
    page.get_by_role("link", name="seen", exact=True).wait_for(state="detached")
    assert page.get_by_role("link", name=two[1]).is_visible()
    page.get_by_label("Search runs by name").fill("no such run")
    page.get_by_text("No run of that name.").wait_for()


@pytest.mark.main
def test_runs_are_chosen_and_compared(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs")
    compare = button(page, "Compare")
    assert compare.is_disabled()
    for name in two:
        page.get_by_role("checkbox", name=f"Choose {name} to compare").click()
    compare.click()
    page.wait_for_url("**/runs?compare=*")
    chart = page.get_by_role("img", name="Loss and validation loss")
    chart.locator("svg text").first.wait_for()
    text = chart.inner_text()
    for name in two:
        assert f"{name} · Loss" in text
        assert f"{name} · Validation" in text
    page.get_by_role("cell", name="0.002").wait_for()  # what differs
    dashes = chart.locator("path[stroke-dasharray]").count()
    assert dashes > 0, "lines differ by more than colour"
    page.reload()
    page.get_by_role("img", name="Loss and validation loss").wait_for()


@pytest.mark.main
def test_pictures_of_runs_stand_beside_each_other(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs?compare=" + quote(",".join(two)), width=390)
    table = page.get_by_role("region", name="Pictures beside each other").locator(".run-beside")
    steps = {name: {one["step"] for one in app.call(f"/api/v1/runs/{quote(name)}/previews")} for name in two}
    every = sorted(set().union(*steps.values()))
    assert all(every[0] in known for known in steps.values())
    last, first = {name: max(known) for name, known in steps.items()}, dict.fromkeys(two, every[0])
    assert last != first

    def seen(step: dict[str, int]) -> list[str]:
        prompts = ("cat face", "red heart")
        return [f"{name}: {prompt}, drawn at step {step[name]}" for prompt in prompts for name in two]

    def shown() -> list[Any]:
        return [image.get_attribute("alt") for image in table.locator("img").all()]

    until(lambda: shown() == seen(last))
    for image in table.locator("img").all():
        page.wait_for_function("i => i.naturalWidth == 64", arg=image.element_handle())
    assert table.get_by_text("different seeds").count() == 0
    slider = page.get_by_role("slider", name="Step of the previews").locator("[tabindex]")
    for _ in every[1:]:
        slider.press("ArrowLeft")
    until(lambda: shown() == seen(first), 20)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


@pytest.mark.main
def test_the_queue_is_put_into_another_order(own_app: Callable[..., Any], open_page: Open) -> None:
    app = own_app()
    app.still_worker()
    jobs = {begin(app, name): name for name in ("first", "second", "third")}
    page = open_page(app, "/runs", width=390)
    queue = page.get_by_role("region", name="Queue")

    def shown() -> list[str]:
        return [link.inner_text() for link in queue.get_by_role("link").all()]

    until(lambda: shown() == ["first", "second", "third"])
    queue.get_by_role("button", name="Earlier: third").click()
    until(lambda: shown() == ["first", "third", "second"])
    queue.get_by_role("button", name="Later: first").click()
    until(lambda: shown() == ["third", "first", "second"])
    job = next(job for job, name in jobs.items() if name == "second")
    order = app.call(f"/api/v1/jobs/{job}/move?by=-2", {})
    assert [jobs[one] for one in order] == ["second", "third", "first"]
    until(lambda: shown() == ["second", "third", "first"])
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_more_runs_than_are_told_apart_are_not_compared(own_app: Callable[..., Any], open_page: Open) -> None:
    app = own_app()
    give_pictures(app.root)
    names = [f"run {number}" for number in range(MOST + 1)]
    for name in names:
        begin_run(Workspace(app.root), settings(name))
    page = open_page(app, "/runs")
    for name in names:
        page.get_by_role("checkbox", name=f"Choose {name} to compare").click()
    until(button(page, "Compare").is_disabled)
    page.get_by_role("checkbox", name=f"Choose {names[0]} to compare").click()
    until(button(page, "Compare").is_enabled)


def test_comparing_what_is_not_there(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs?compare=" + quote(f"{two[1]},never"))
    page.get_by_text("There is no run “never”").wait_for()
    page.get_by_role("link", name=two[1]).wait_for()


def test_smoothing_redraws_the_line(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs/seen")
    line = page.get_by_role("img", name="Training loss").locator('path[stroke="#0072b2"]').first
    before = line.get_attribute("d")
    handle = page.get_by_role("slider", name="Smoothing").locator("[tabindex]")
    for _ in range(8):
        handle.press("ArrowLeft")
    until(lambda: line.get_attribute("d") != before, 10)


def test_a_finished_run_shows_everything(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs/seen")
    assert page.get_by_role("heading", level=1).inner_text() == "seen"
    page.get_by_text("step 8 of 8").wait_for()
    legend = page.get_by_role("img", name="Training loss").inner_text()
    assert "Validation" in legend
    assert "Model without it" in legend
    page.get_by_text("Last figures").click()
    page.get_by_role("columnheader", name="Learning rate").wait_for()
    figures = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="8", exact=True))
    assert "–" not in figures.inner_text(), "the last step was validated: every figure is there"
    page.get_by_text("Log", exact=True).click()
    page.get_by_text("done: seen.safetensors").wait_for()
    page.get_by_text("Settings (YAML)").click()
    page.get_by_text("max_steps: 8").wait_for()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Report").click()
    assert opened.value.get_by_role("heading", level=1).inner_text() == "Training of seen"


def test_pictures_are_in_the_first_view(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs/seen", width=1280)
    picture = page.locator(".run-previews img").first
    picture.wait_for()
    assert page.evaluate("innerHeight") > picture.bounding_box()["y"]


def test_previews_over_time(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs/seen")
    last = page.get_by_alt_text("cat face, drawn at step 8")
    last.wait_for()
    assert last.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.get_by_role("slider", name="Step of the previews").locator("[tabindex]").press("ArrowLeft")
    page.get_by_alt_text("red heart, drawn at step 4").wait_for()
    page.get_by_label("Prompt", exact=True).click()
    page.get_by_role("option", name="red heart").click()
    page.get_by_alt_text("cat face, drawn at step 4").wait_for(state="detached")
    page.get_by_text("Contact sheet").click()
    sheet = page.get_by_alt_text("All previews of seen over time")
    until(lambda: sheet.evaluate("image => image.naturalWidth") > 100, 20)


def test_use_it_and_clone(app: Any, open_page: Open, two: Any) -> None:
    page = open_page(app, "/runs/" + quote(two[1]))
    clone = page.get_by_role("link", name="Clone settings")
    assert clone.get_attribute("href") == "/train?clone=seen%20again%2C%20brighter"
    page.get_by_role("link", name="Use it").click()
    page.wait_for_url(lambda url: url.endswith("/?add=seen%20again%2C%20brighter"), wait_until="commit")


@pytest.mark.main
def test_watch_pause_resume_finish(app: Any, open_page: Open) -> None:
    begin(app, "watched", max_steps=500)
    page = open_page(app, "/runs/watched")
    until(lambda: step_of(app, "watched") >= 3)
    step = page.locator(".run-standing")
    first = step.inner_text()
    until(lambda: step.inner_text() != first and "left" in step.inner_text(), 20)
    button(page, "Pause").click()
    page.get_by_text("paused", exact=True).wait_for()
    assert state(app, "watched") == "paused"
    button(page, "Resume").click()
    page.locator("#content").get_by_text("training", exact=True).wait_for()
    at = step_of(app, "watched")
    until(lambda: step_of(app, "watched") > at)
    button(page, "Finish and keep").click()
    page.get_by_text("done", exact=True).wait_for()
    assert (app.root / "models/hypernetworks/watched.safetensors").is_file()


def test_roll_back_says_what_is_dropped(app: Any, open_page: Open) -> None:
    begin(app, "back", max_steps=8, checkpoint_every=2, keep_checkpoints=9)
    assert ended(app, "back")["state"] == "done"
    page = open_page(app, "/runs/back")
    button(page, "Roll back").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="step 2", exact=True).click()
    dialog.get_by_text("The 6 steps after step 2 are dropped").wait_for()
    assert "checkpoints (4, 6, 8)" in dialog.inner_text()
    dialog.get_by_role("button", name="Leave it").click()
    dialog.wait_for(state="detached")
    assert 8 in app.call("/api/v1/runs/back")["checkpoints"], "asked, and left as it was"
    button(page, "Roll back").click()
    page.get_by_role("dialog").get_by_label("Checkpoint").click()
    page.get_by_role("option", name="step 2", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    until(lambda: "goes on from step 2" in app.call("/api/v1/runs/back/log").decode())
    assert ended(app, "back")["state"] == "done"


def test_delete_asks_first_and_is_undone(app: Any, open_page: Open, two: Any) -> None:
    begin(app, "gone", max_steps=2)
    assert ended(app, "gone")["state"] == "done"
    page = open_page(app, "/runs/gone")
    button(page, "Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_url("**/runs?removed=*")
    page.get_by_role("link", name="seen", exact=True).wait_for()
    assert page.get_by_role("link", name="gone", exact=True).count() == 0
    assert "no run" in app.call("/api/v1/runs/gone")["detail"]
    page.reload()  # the way back is still there
    page.get_by_text("“gone” is in the bin now.").wait_for()
    button(page, "Undo").press("Enter")
    page.get_by_role("link", name="gone", exact=True).wait_for()
    button(page, "Undo").wait_for(state="detached")
    assert state(app, "gone") == "done"


def test_the_bin_shows_what_was_removed(app: Any, open_page: Open, two: Any) -> None:
    for name in ("thrown away", "regretted"):
        begin(app, name, max_steps=2)
        assert ended(app, name)["state"] == "done"
        app.call(f"/api/v1/runs/{quote(name)}", method="DELETE")
    page = open_page(app, "/runs")
    page.get_by_text("Bin (").click()
    button(page, "Restore: regretted").click()
    page.get_by_role("link", name="regretted", exact=True).wait_for()
    button(page, "Restore: regretted").wait_for(state="detached")
    button(page, "Remove for good: thrown away").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove for good").click()
    button(page, "Remove for good: thrown away").wait_for(state="detached")
    assert "thrown away" not in [run["name"] for run in app.call("/api/v1/bin/runs")]


def test_the_queue_shows_what_waits_and_cancels_it(app: Any, open_page: Open) -> None:
    begin(app, "front", max_steps=500)
    begin(app, "behind", max_steps=3)
    page = open_page(app, "/runs")
    page.get_by_role("button", name="Cancel: behind").click()
    until(lambda: state(app, "behind") == "stopped")
    page.get_by_role("button", name="Stop: front").click()
    until(lambda: state(app, "front") == "stopped")
    page.get_by_role("heading", name="Queue").wait_for(state="hidden")


def test_names_and_notes_are_text(app: Any, open_page: Open) -> None:
    name = "<img src=x onerror=document.title=1> & 'quoted' \"twice\""
    run = app.root / "runs" / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        "kind: <b>bold</b>\nname: x\ntraining: {prompts: ['<script>1</script>']}\n"
    )
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.5}\n{"step": 2, "event": "<i>", "message": "<img src=y onerror=alert(1)>"}\n'
    )
    page = open_page(app, "/runs")
    page.get_by_role("link", name=name).click()
    page.get_by_role("heading", level=1, name=name).wait_for()
    page.get_by_text("<img src=y onerror=alert(1)>").wait_for()
    assert page.locator('img[src="x"], img[src="y"]').count() == 0
    other = open_page(app, "/runs?compare=" + quote(name))
    other.get_by_role("img", name="Loss and validation loss").locator("svg text").first.wait_for()
    assert other.locator('img[src="x"]').count() == 0


@pytest.mark.parametrize(("locale", "words"), [("ko-KR", "학습률"), ("zh-CN", "学习率")])
def test_in_other_languages(app: Any, open_page: Open, two: Any, locale: str, words: str) -> None:
    page = open_page(app, "/runs/seen", locale=locale)
    page.get_by_text(words, exact=True).first.wait_for()


@pytest.mark.parametrize("path", ["/runs", "/runs/seen", "/runs?compare=seen,seen%20again%2C%20brighter"])
def test_a_phone_needs_no_sideways_scrolling(app: Any, open_page: Open, two: Any, path: str) -> None:
    page = open_page(app, path, width=390)
    page.get_by_role("link", name="seen", exact=True).or_(page.locator(".run-standing")).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_from_the_step_to_the_page_in_half_a_second(app: Any, open_page: Open) -> None:
    """The page's text as often as the browser draws; live.json's own time says when the step was."""
    begin(app, "quick to see", max_steps=500, preview_every=1000, validate_every=1000)
    page = open_page(app, "/runs/" + quote("quick to see"))
    until(lambda: step_of(app, "quick to see") >= 2)
    page.evaluate(
        """() => { window.seen = {}; const line = document.querySelector('.run-standing');
        new MutationObserver(() => { const step = (line.innerText.match(/step (\\d+)/) || [])[1];
          if (step && !(step in window.seen)) window.seen[step] = Date.now() / 1000; })
        .observe(line, {childList: true, characterData: true, subtree: true}); }"""
    )
    told: dict[str, float] = {}
    live = app.root / "runs/quick to see/live.json"
    end = time.monotonic() + 30
    while len(told) < 25 and time.monotonic() < end:
        said = read_json(live)
        if said:
            told.setdefault(str(said["step"]), said["time"])
        time.sleep(0.01)
    seen = page.evaluate("window.seen")
    app.call("/api/v1/runs/" + quote("quick to see") + "/stop", {})
    late = sorted(seen[step] - told[step] for step in seen if step in told)
    assert len(late) >= 5
    print("latency", late[len(late) // 2], late[-1])
    assert late[len(late) // 2] < 0.5
    ended(app, "quick to see")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/runs", "/runs/seen", "/runs?compare=seen,seen%20again%2C%20brighter"])
def test_axe_finds_nothing_serious(app: Any, open_page: Open, two: Any, path: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    if path == "/runs":
        begin(app, f"binned {theme}", max_steps=1)
        ended(app, f"binned {theme}")
        binned = app.call(f"/api/v1/runs/{quote(f'binned {theme}')}", method="DELETE")["id"]
        path += f"?removed={quote(binned)}"
    page = open_page(app, path, color_scheme=theme)
    if "removed" in path:
        page.get_by_text("Bin (").click()
        button(page, f"Remove for good: binned {theme}").wait_for()
        button(page, "Undo").wait_for()
        page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
    else:
        page.locator(".run-chart svg text").first.wait_for()
    if path == "/runs/seen":
        for part in (
            "Last figures",
            "Learning rate over the steps",
            "Contact sheet",
            "Log",
            "Settings (YAML)",
        ):
            page.get_by_text(part, exact=True).click()
        page.get_by_text("done: seen.safetensors").wait_for()
    found = axe.Axe().run(page).response["violations"]
    serious = [f for f in found if f["impact"] in ("serious", "critical")]
    assert not [f"{f['id']}: {node['html'][:160]}" for f in serious for node in f["nodes"]]

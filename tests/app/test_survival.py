"""Nothing is lost: reload, second tab, killed worker, killed server, a job already taken, a full disk."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from running import until
from runs_helpers import begin, ended, final, state, step_of
from safetensors.torch import load_file

from hyperbrush.files import read_json

Open = Callable[..., Any]
STEPS = 16
LONG = {"max_steps": STEPS, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole(app: Any) -> dict[str, torch.Tensor]:
    """Weights of an undisturbed run."""
    begin(app, "never disturbed", **LONG)
    assert ended(app, "never disturbed")["state"] == "done"
    return load_file(final(app, "never disturbed"))


@pytest.fixture(scope="module")
def victim(app: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An app to be killed, in parts and as a whole."""
    running = type(app)(tmp_path_factory.mktemp("victim"), environment=app.environment).start()
    yield running
    running.end()


def same(app: Any, name: str, weights: dict[str, torch.Tensor]) -> bool:
    found = load_file(final(app, name))
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in weights)


def on_disk(app: Any, name: str) -> int:
    return int(read_json(app.root / "runs" / name / "live.json").get("step") or 0)


def shown_step(page: Any) -> int:
    words = page.locator(".run-standing").inner_text().split()
    return int(words[1]) if words[:1] == ["step"] else 0


def test_reload_and_two_tabs_see_the_same(app: Any, open_page: Open) -> None:
    begin(app, "reloaded", max_steps=900)
    first, second = open_page(app, "/runs/reloaded"), open_page(app, "/runs/reloaded")
    until(lambda: shown_step(first) >= 4)
    before = shown_step(first)
    first.reload()
    first.get_by_text("training", exact=True).wait_for()
    assert shown_step(first) >= before, "it is there at once, from the folder"
    first.get_by_role("button", name="Pause").click()
    for page in (first, second):
        page.get_by_text("paused", exact=True).wait_for()
    step = on_disk(app, "reloaded")
    until(lambda: shown_step(first) == shown_step(second) == step, 10)
    lines = [
        page.get_by_role("img", name="Training loss").locator('path[stroke="#0072b2"]').first
        for page in (first, second)
    ]
    until(lambda: lines[0].get_attribute("d") == lines[1].get_attribute("d"), 10)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_loses_nothing(victim: Any, open_page: Open, whole: Any) -> None:
    begin(victim, "killed", **LONG)
    page = open_page(victim, "/runs/killed")
    until(lambda: step_of(victim, "killed") >= 4)
    was = victim.worker["pid"]
    victim.kill_worker()
    killed = time.monotonic()
    notice = page.get_by_text("The worker on cpu died")
    notice.wait_for(timeout=3000)
    assert time.monotonic() - killed < 3
    page.get_by_text("Its last lines").click()
    page.get_by_text("step 3: checkpoint").first.wait_for()
    assert ended(victim, "killed")["state"] == "done"
    assert victim.worker["pid"] != was
    page.get_by_text("done", exact=True).wait_for()
    assert same(victim, "killed", whole)
    log = victim.call("/api/v1/runs/killed/log").decode()
    assert "the worker had died; it is taken up again" in log
    assert "goes on from step 3" in log


@pytest.mark.slow
def test_a_job_already_taken_is_not_lost(victim: Any, whole: Any) -> None:
    job = begin(victim, "taken", **LONG)
    until(lambda: victim.call(f"/api/v1/jobs/{job}")["state"] == "running")
    victim.kill_worker()
    assert on_disk(victim, "taken") == 0, "it had not come to its first step"
    assert ended(victim, "taken")["state"] == "done"
    assert victim.call(f"/api/v1/jobs/{job}")["attempts"] == 2
    assert same(victim, "taken", whole)


@pytest.mark.main
def test_the_training_outlives_the_server(victim: Any, open_page: Open, whole: Any) -> None:
    begin(victim, "outlives", **LONG)
    until(lambda: step_of(victim, "outlives") >= 2)
    worker = victim.worker["pid"]
    victim.stop(signal.SIGKILL)
    at = on_disk(victim, "outlives")
    until(lambda: on_disk(victim, "outlives") > at)
    victim.start()
    page = open_page(victim, "/runs/outlives")
    page.get_by_text("done", exact=True).wait_for(timeout=90_000)
    assert victim.worker["pid"] == worker
    assert same(victim, "outlives", whole)


@pytest.mark.slow
def test_two_runs_one_after_the_other(victim: Any) -> None:
    one, two = begin(victim, "one", max_steps=4), begin(victim, "two", max_steps=4)
    assert state(victim, "two") == "queued"
    for name in ("one", "two"):
        assert ended(victim, name)["state"] == "done"
    first, second = (victim.call(f"/api/v1/jobs/{job}") for job in (one, two))
    assert first["ended"] <= second["started"]


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_told(victim: Any, open_page: Open, whole: Any) -> None:
    """The system refuses the worker's larger files: the run says so, and goes on where it was."""
    begin(victim, "refused", **LONG)
    page = open_page(victim, "/runs/refused")
    until(lambda: step_of(victim, "refused") >= 4)
    worker = psutil.Process(victim.worker["pid"])
    worker.rlimit(psutil.RLIMIT_FSIZE, (100_000, psutil.RLIM_INFINITY))
    try:
        page.get_by_text("failed", exact=True).wait_for()
        said = page.get_by_role("alert").inner_text()
        assert "cannot write" in said
        assert "File too large" in said
        assert "make room" in said
    finally:
        worker.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("done", exact=True).wait_for(timeout=90_000)
    assert same(victim, "refused", whole)


@pytest.mark.slow
def test_a_really_full_disk_is_told(victim: Any, open_page: Open, whole: Any) -> None:
    begin(victim, "full", **LONG)
    page = open_page(victim, "/runs/full")
    job = until(lambda: step_of(victim, "full") >= 2 and victim.call("/api/v1/runs/full")["job"])
    victim.call("/api/v1/runs/full/pause", {})
    victim.wait_for(job)
    disk = Path(victim.root / "runs/full/checkpoints")
    kept = {path.name: path.read_bytes() for path in disk.iterdir()}
    size = sum(map(len, kept.values())) + 100_000
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here; the test above has the system refuse")
    try:
        for name, content in kept.items():
            (disk / name).write_bytes(content)
        victim.call("/api/v1/runs/full/resume", {})
        page.get_by_role("alert").filter(has_text="No space left on device").wait_for()
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("done", exact=True).wait_for(timeout=90_000)
        assert same(victim, "full", whole)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

"""Runs over the REST API: what they tell, and pause, finish, roll back to the bit."""

import json
import shutil
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from running import until
from runs_helpers import begin, ended, final, pause_at, step_of
from safetensors.torch import load_file

SEVEN = {"max_steps": 7}


@pytest.fixture(scope="session")
def whole(app: Any) -> dict[str, torch.Tensor]:
    """Weights of an undisturbed run of seven steps."""
    begin(app, "undisturbed", **SEVEN)
    assert ended(app, "undisturbed")["state"] == "done"
    return load_file(final(app, "undisturbed"))


def same(app: Any, name: str, weights: dict[str, torch.Tensor]) -> bool:
    found = load_file(final(app, name))
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in weights)


def test_a_run_tells_everything(app: Any, whole: Any) -> None:
    found = app.call("/api/v1/runs/undisturbed")
    assert (found["state"], found["kind"], found["live"]["step"]) == ("done", "hypernetwork", 7)
    assert found["config"]["training"]["batch_size"] == 4
    assert found["report"]
    assert "delete" in found["can"]
    assert "resume" not in found["can"]
    listed = app.call("/api/v1/runs?search=UNDIST")
    assert [run["name"] for run in listed] == ["undisturbed"]
    assert "config" not in listed[0]
    rows = app.call("/api/v1/runs/undisturbed/metrics")
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["step"] for row in app.call("/api/v1/runs/undisturbed/metrics?after=5")] == [6, 7]
    log = app.call("/api/v1/runs/undisturbed/log").decode()
    assert "begins" in log
    assert "validation loss" in log
    assert "done: undisturbed.safetensors" in log
    assert final(app, "undisturbed").is_file()
    assert (app.root / "models/hypernetworks/undisturbed.safetensors").is_file()


def test_previews_are_pictures_by_index(app: Any, whole: Any) -> None:
    found = app.call("/api/v1/runs/undisturbed/previews")
    assert [(p["step"], p["prompt"], p["text"]) for p in found] == [
        (4, 0, "cat face"),
        (4, 1, "red heart"),
        (7, 0, "cat face"),
        (7, 1, "red heart"),
    ]
    for index in range(4):
        assert app.call(f"/api/v1/runs/undisturbed/previews/{index}").startswith(b"\x89PNG")
    for index in (-1, 4, 10**6):
        assert app.call(f"/api/v1/runs/undisturbed/previews/{index}")["status"] == 404
    assert app.call("/api/v1/runs/undisturbed/contact-sheet").startswith(b"\x89PNG")
    newest = app.call("/api/v1/runs/undisturbed/previews/2")
    assert app.call("/api/v1/runs/undisturbed/picture") == newest, "the last step's first"
    spark = app.call("/api/v1/runs/undisturbed/sparkline")
    assert b"polyline" in spark


def test_the_report_runs_nothing(app: Any, whole: Any) -> None:
    with urllib.request.urlopen(app.url + "/api/v1/runs/undisturbed/report") as answer:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "sandbox" in policy
        assert b"Training of undisturbed" in answer.read()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("", "GET"),
        ("/metrics", "GET"),
        ("/previews", "GET"),
        ("/previews/0", "GET"),
        ("/contact-sheet", "GET"),
        ("/sparkline", "GET"),
        ("/picture", "GET"),
        ("/log", "GET"),
        ("/report", "GET"),
        ("/events", "GET"),
        ("/pause", "POST"),
        ("/resume", "POST"),
        ("", "DELETE"),
    ],
)
@pytest.mark.parametrize("name", ["nobody", "%2e%2e%2fpreferences", "<script>"])
def test_what_is_not_there_is_404(app: Any, path: str, method: str, name: str) -> None:
    url = f"/api/v1/runs/{name if name.startswith('%') else quote(name)}{path}"
    found = app.call(url, {} if method == "POST" else None, method=method)
    assert found["status"] == 404


def test_pause_and_resume_change_no_bit(app: Any, whole: Any) -> None:
    begin(app, "paused", **SEVEN)
    pause_at(app, "paused", 3)
    found = ended(app, "paused")
    assert found["state"] == "paused"
    assert 3 <= found["live"]["step"] < 7
    assert {"resume", "finish", "rollback", "delete"} <= set(found["can"])
    assert app.call("/api/v1/runs/paused/pause", {})["status"] == 400
    assert app.call("/api/v1/runs/paused/resume", {})["state"] in ("queued", "running")
    assert ended(app, "paused")["state"] == "done"
    assert same(app, "paused", whole)
    assert app.call("/api/v1/runs/paused/resume", {})["status"] == 400, "it is done"


@pytest.mark.slow
def test_finish_keeps_what_was_learned(app: Any, whole: Any) -> None:
    begin(app, "finished", **SEVEN | {"max_steps": 400})
    pause_at(app, "finished", 3, "finish")
    found = ended(app, "finished")
    assert found["state"] == "done"
    assert (app.root / "models/hypernetworks/finished.safetensors").is_file()
    assert found["report"]
    assert found["config"]["training"]["max_steps"] == 400, "the settings stay: it can go on"
    assert "resume" in found["can"]


@pytest.mark.slow
def test_a_paused_run_can_be_finished(app: Any) -> None:
    begin(app, "kept", **SEVEN)
    pause_at(app, "kept", 3)
    step = ended(app, "kept")["live"]["step"]
    assert not (app.root / "models/hypernetworks/kept.safetensors").exists()
    app.call("/api/v1/runs/kept/finish", {})
    assert ended(app, "kept")["state"] == "done"
    assert (app.root / "models/hypernetworks/kept.safetensors").is_file()
    assert step_of(app, "kept") == step, "no step was trained for it"


@pytest.mark.slow
def test_rolling_back_trains_on_from_that_step(app: Any, whole: Any) -> None:
    begin(app, "rolled", **SEVEN, keep_checkpoints=9, checkpoint_every=2)
    assert ended(app, "rolled")["state"] == "done"
    found = app.call("/api/v1/runs/rolled")
    assert {2, 4, 6, 7} <= set(found["checkpoints"])
    refused = app.call("/api/v1/runs/rolled/rollback", {"step": 3})
    assert (refused["status"], "there are: " in refused["detail"]) == (400, True)
    assert app.call("/api/v1/runs/rolled/rollback", {"step": 2, "more": 1})["status"] == 422
    final(app, "rolled").unlink()
    app.call("/api/v1/runs/rolled/rollback", {"step": 2})
    assert ended(app, "rolled")["state"] == "done"
    assert same(app, "rolled", whole)
    assert "goes on from step 2" in app.call("/api/v1/runs/rolled/log").decode()
    assert [row["step"] for row in app.call("/api/v1/runs/rolled/metrics")] == list(range(1, 8))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_gone_back_to(app: Any) -> None:
    begin(app, "damaged", **SEVEN, keep_checkpoints=9, checkpoint_every=2)
    ended(app, "damaged")
    path = app.root / "runs/damaged/checkpoints/step-00000002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused = app.call("/api/v1/runs/damaged/rollback", {"step": 2})
    assert refused["status"] == 400
    assert "cannot be read" in refused["detail"]
    assert {4, 6, 7} <= set(app.call("/api/v1/runs/damaged")["checkpoints"]), "the others stand"


@pytest.mark.slow
def test_a_picture_drawn_in_between_changes_no_bit(app: Any, whole: Any) -> None:
    training = begin(app, "disturbed", **SEVEN)
    until(lambda: step_of(app, "disturbed") >= 1)
    job = app.call("/api/v1/draw", {"prompt": "cat face", "steps": 2, "seed": 1})["id"]
    assert app.wait_for(job)["state"] == "done"
    assert ended(app, "disturbed")["state"] == "done"
    drawn, trained = (app.call(f"/api/v1/jobs/{one}") for one in (job, training))
    assert trained["started"] < drawn["started"] < drawn["ended"] < trained["ended"], "between its steps"
    assert same(app, "disturbed", whole)


def test_the_bin_takes_a_run_that_stands_still(app: Any, whole: Any) -> None:
    begin(app, "unwanted", **SEVEN | {"max_steps": 400})
    until(lambda: step_of(app, "unwanted") >= 1)
    refused = app.call("/api/v1/runs/unwanted", method="DELETE")
    assert (refused["status"], "pause or stop it first" in refused["detail"]) == (400, True)
    app.call("/api/v1/runs/unwanted/stop", {})
    assert ended(app, "unwanted")["state"] == "stopped"
    said = app.call("/api/v1/runs/unwanted", method="DELETE")
    assert (app.root / said["bin"] / "config.yaml").is_file()
    assert app.call("/api/v1/runs/unwanted")["status"] == 404
    assert not (app.root / "runs/unwanted").exists()


def test_the_bin_gives_a_run_back_or_loses_it_for_good(app: Any, whole: Any) -> None:
    copied = app.root / "runs" / "copied"
    shutil.copytree(app.root / "runs/undisturbed", copied)
    before = sorted(path.relative_to(copied) for path in copied.rglob("*"))
    item = app.call("/api/v1/runs/copied", method="DELETE")["id"]
    (found,) = (one for one in app.call("/api/v1/bin/runs") if one["id"] == item)
    assert (found["name"], found["size"] > 1000) == ("copied", True)
    assert abs(found["deleted"] - time.time()) < 60
    place = f"/api/v1/bin/runs/{quote(item)}"
    copied.mkdir()  # somebody takes the name meanwhile
    refused = app.call(f"{place}/restore", {})
    assert (refused["status"], "there is another run 'copied' now" in refused["detail"]) == (400, True)
    copied.rmdir()
    assert app.call(f"{place}/restore", {})["state"] == "done"
    assert sorted(path.relative_to(copied) for path in copied.rglob("*")) == before
    assert app.call(f"{place}/restore", {})["status"] == 404
    item = app.call("/api/v1/runs/copied", method="DELETE")["id"]
    assert app.call(f"/api/v1/bin/runs/{quote(item)}", method="DELETE")["name"] == "copied"
    assert item not in [one["id"] for one in app.call("/api/v1/bin/runs")]
    assert not (app.root / ".hyperbrush/bin/runs" / item).exists()
    for name in ("..", "%2e%2e%2fpreferences", "x" * 3000):
        assert app.call(f"/api/v1/bin/runs/{name}", method="DELETE")["status"] in (404, 405)


def test_cloned_settings_begin_a_new_run(app: Any, whole: Any) -> None:
    cloned = app.call("/api/v1/runs/undisturbed/clone")
    assert cloned["settings"]["name"] == "undisturbed-2"
    assert cloned["settings"]["data"] == [{"path": "style"}]
    assert app.call("/api/v1/trainings/problems", cloned) == []
    cloned["settings"]["training"]["batch_size"] = 0
    assert "batch_size" in app.call("/api/v1/trainings/problems", cloned)[0]
    assert not (app.root / "runs/undisturbed-2").exists(), "nothing was begun"


def test_runs_are_compared(app: Any, whole: Any) -> None:
    other = app.root / "runs" / "another rate, too"
    shutil.copytree(app.root / "runs/undisturbed", other)
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("batch_size: 4", "batch_size: 3"))
    names = ["undisturbed", other.name]
    found = app.call(f"/api/v1/run-comparison?run={names[0]}&run={quote(names[1])}&smoothing=0")
    assert [run["name"] for run in found["runs"]] == names
    rows = app.call("/api/v1/runs/undisturbed/metrics")
    assert found["runs"][0]["loss"] == [[row["step"], row["loss"]] for row in rows]
    assert [step for step, _ in found["runs"][0]["validation"]] == [4, 7]
    best = min(row["validation_loss"] for row in rows if "validation_loss" in row)
    assert found["runs"][0]["best_validation"] == best
    assert {"setting": "training.batch_size", "values": ["4", "3"]} in found["differences"]
    assert app.call("/api/v1/run-comparison?run=undisturbed&run=nobody")["status"] == 404
    assert app.call("/api/v1/run-comparison")["status"] == 422


def test_what_a_run_drew_last_is_its_networks_picture(app: Any, whole: Any) -> None:
    drawn = app.root / "runs/undisturbed/previews/step-00000007/prompt-0.png"
    assert app.call("/api/v1/hypernetworks/undisturbed")["preview"] is True
    assert app.call("/api/v1/hypernetworks/undisturbed/preview") == drawn.read_bytes()
    folder = app.root / "models/hypernetworks"
    shutil.copy(folder / "undisturbed.safetensors", folder / "called otherwise.safetensors")
    assert app.call("/api/v1/hypernetworks/called%20otherwise/preview") == drawn.read_bytes()
    shutil.copy(drawn.with_name("prompt-1.png"), folder / "called otherwise.preview.png")
    own = (folder / "called otherwise.preview.png").read_bytes()
    assert app.call("/api/v1/hypernetworks/called%20otherwise/preview") == own, "its own comes first"
    (folder / "called otherwise.preview.png").unlink()
    shutil.move(
        app.root / "runs/undisturbed", app.root / "runs/set aside"
    )  # what made it may go into the bin
    item = app.call("/api/v1/runs/set%20aside", method="DELETE")["id"]
    try:
        assert app.call("/api/v1/hypernetworks/undisturbed/preview").startswith(b"\x89PNG")
    finally:
        app.call(f"/api/v1/bin/runs/{quote(item)}/restore", {})
        shutil.move(app.root / "runs/set aside", app.root / "runs/undisturbed")
    content = bytearray((folder / "undisturbed.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "of no run.safetensors").write_bytes(content)
    assert app.call("/api/v1/hypernetworks/of%20no%20run")["preview"] is False
    assert app.call("/api/v1/hypernetworks/of%20no%20run/preview")["status"] == 404


def test_events_until_it_ends(app: Any, whole: Any) -> None:
    begin(app, "told", **SEVEN)
    told: list[dict[str, Any]] = []

    def listen() -> None:
        with urllib.request.urlopen(app.url + "/api/v1/runs/told/events", timeout=90) as answer:
            lines = (line.decode() for line in answer)
            told.extend(json.loads(line[6:]) for line in lines if line.startswith("data: "))

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join(90)
    assert not listener.is_alive(), "the stream ends with the run"
    steps = [event.get("step") or 0 for event in told]
    assert told[-1]["state"] == "done"
    assert steps[-1] == 7
    assert len(set(steps)) >= 4
    assert steps == sorted(steps)


def test_a_run_from_the_terminal_shows_too(app: Any, whole: Any) -> None:
    copied = app.root / "runs" / "from a terminal, too"
    shutil.copytree(app.root / "runs/undisturbed", copied)
    name = quote(copied.name)
    found = app.call(f"/api/v1/runs/{name}")
    assert found["state"] == "done"
    assert found["job"] == ""
    assert app.call(f"/api/v1/runs/{name}/log").decode() == ""


def test_a_bad_number_in_the_figures_is_no_error(app: Any) -> None:
    run = Path(app.root / "runs" / "not a number")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("kind: hypernetwork\nname: not a number\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    (run / "live.json").write_text('{"step": 2, "steps": 9, "loss": Infinity, "validation": {"loss": NaN}}')
    name = quote(run.name)
    assert app.call(f"/api/v1/runs/{name}/metrics") == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    assert app.call(f"/api/v1/runs/{name}")["live"]["validation"] == {"loss": None}

"""What a hostile look found: jobs that nobody does, workers that die unheard, answers that are no answers."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from hyperbrush.app import site as site_module
from hyperbrush.app.create.work import size_of
from hyperbrush.app.jobs import keeper
from hyperbrush.app.jobs.context import JobContext, StopRequested
from hyperbrush.app.jobs.jobs import LAST, Jobs
from hyperbrush.app.jobs.kinds import KINDS
from hyperbrush.app.jobs.worker import Worker, lives
from hyperbrush.app.requests import DrawRequest
from hyperbrush.app.security import COOKIE, Access, Guard
from hyperbrush.app.server import Address, make_app, serve
from hyperbrush.app.site import Site
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.service import run_config
from hyperbrush.app.workspace import Workspace, preferences_from
from hyperbrush.errors import UserError
from hyperbrush.files import finite, read_json, write_json

HALF = "\ud800"
API = "/api/v1"


def finished(work: Any) -> Any:
    """What a coroutine comes to; in a thread, since the browser's tests keep a loop running in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / ".hyperbrush")


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(Workspace(tmp_path), "cpu")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The real application in this process, without a worker: (method, path, JSON) → answer."""
    testing = pytest.importorskip("starlette.testclient")
    root = tmp_path_factory.mktemp("asked")
    app = make_app(Site(Workspace(root)), Access())
    client = testing.TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    def asked(method: str, path: str, body: Any = None) -> Any:
        content = body if isinstance(body, str | None) else json.dumps(body)
        return client.request(method, path, content=content, headers={"Content-Type": "application/json"})

    asked.root = root  # type: ignore[attr-defined]
    return asked


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_without_a_place_in_the_queue_is_not_kept(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(jobs, "put", full)
    with pytest.raises(UserError, match="full"):
        jobs.submit("draw", {}, device="cpu")
    assert jobs.all() == []


def test_what_no_file_can_hold_is_refused_before_anything_is_written(jobs: Jobs) -> None:
    for bad in (HALF, float("nan")):
        with pytest.raises(UserError, match="written down"):
            jobs.submit("draw", {"prompt": bad}, device="cpu")
    assert jobs.all() == []


def test_a_job_that_a_killed_server_did_not_queue_gets_its_place(jobs: Jobs) -> None:
    queued = jobs.submit("draw", {}, device="cpu")
    lost = "0060000000000aabbb"
    write_json(
        jobs.folder / lost / "job.json",
        {"kind": "train", "arguments": {"run": "a"}, "device": "cpu", "created": time.time()},
    )
    assert jobs.requeue_lost() == [lost]
    assert jobs.requeue_lost() == []
    assert jobs.queue("cpu", "long").get(block=False) == lost
    assert jobs.requeue_lost() == [], "what a worker has taken has its place"
    assert jobs.queue("cpu", "short").get(block=False) == queued.id


def test_an_old_job_that_goes_on_is_watched(jobs: Jobs) -> None:
    old = jobs.submit("train", {"run": "long"}, device="cuda")
    for _ in range(LAST + 5):
        job = jobs.submit("draw", {}, device="cpu")
        write_json(jobs.folder / job.id / "state.json", {"state": "done", "ended": 1.0})
    jobs.all()
    assert [job.id for job in jobs.open()] == [old.id]
    assert len(jobs.watched()) == LAST + 1


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "a/b", "a\0b", "x" * 300, HALF])
def test_no_other_folder_is_a_job(jobs: Jobs, name: str) -> None:
    jobs.submit("draw", {}, device="cpu")
    with pytest.raises(UserError, match="no job"):
        jobs.get(name)


def test_the_listing_of_jobs_is_as_new_as_the_folder(jobs: Jobs) -> None:
    found = [jobs.submit("draw", {}, device="cpu").id for _ in range(3)]
    assert jobs.ids() == found[::-1]
    (jobs.folder / "stray").mkdir()
    assert "stray" in jobs.ids()


# -- the worker ------------------------------------------------------------------------------------------------------


def test_what_was_stopped_while_it_waited_is_written_down(worker: Worker) -> None:
    job = worker.jobs.submit("draw", {}, device="cpu")
    worker.jobs.ask(job.id, "stop")
    assert worker.serve("short")
    assert read_json(worker.jobs.folder / job.id / "state.json")["state"] == "stopped"
    assert worker.jobs.get(job.id).ended is not None
    assert not worker.serve("short")


@pytest.mark.parametrize(
    ("how", "state"), [("", "queued"), ("finish", "running"), ("stop", "stopped"), ("pause", "paused")]
)
def test_the_end_of_a_worker_loses_no_wish(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, how: str, state: str
) -> None:
    """A person asked to finish a training, and just then its worker was told to end."""

    def work(context: JobContext) -> dict[str, Any]:
        if how:
            context.jobs.ask(context.id, how)  # type: ignore[arg-type]
        worker.ending = True
        raise StopRequested(context.requested())

    monkeypatch.setitem(KINDS, "train", work)  # type: ignore[arg-type]
    job = worker.jobs.submit("train", {"run": "a"}, device="cpu")
    assert worker.serve("long")
    assert worker.jobs.get(job.id).state == state
    left = Jobs(worker.workspace.state).queue("cpu", "long", resume=True)
    assert left.size == (1 if state in ("queued", "running") else 0)


def test_a_log_that_cannot_be_written_ends_nothing(worker: Worker) -> None:
    job = worker.jobs.submit("draw", {}, device="cpu")
    context = JobContext(worker.jobs, job.id, worker)
    (context.folder / "log.txt").mkdir()
    context.log("not heard")


def test_a_job_whose_folder_vanished_ends_no_worker(worker: Worker) -> None:
    import shutil

    job = worker.jobs.submit("draw", {}, device="cpu")
    shutil.rmtree(worker.jobs.folder / job.id)
    worker.ending = True
    assert worker.serve("short")
    assert not worker.serve("short")


def test_a_clock_that_was_set_kills_no_worker() -> None:
    own = psutil.Process()
    assert lives({"pid": own.pid, "born": own.create_time() + 2})
    assert not lives({"pid": own.pid, "born": own.create_time() - 60})


# -- the server's watch ----------------------------------------------------------------------------------------------


def test_a_worker_that_dies_before_its_first_word_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def start(workspace: Workspace, device: str) -> "subprocess.Popen[bytes]":
        (workspace.state / f"worker-{device}.log").write_text("no room for CUDA")
        begun.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
        return begun[-1]

    monkeypatch.setattr(keeper, "start_worker", start)
    site = Site(Workspace(tmp_path))
    site.workspace.prefer(device="cpu")
    site._keep_workers()
    begun[0].wait()
    for _ in range(3):
        site._keep_workers()
    assert [crash.log for crash in site.keeper.crashes] == ["no room for CUDA"]
    assert len(begun) == 1, "the next one waits"


def test_the_watch_outlives_what_it_meets_and_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(Workspace(tmp_path))
    monkeypatch.setattr(site_module, "LOOK", 0.01)
    monkeypatch.setattr(site, "_keep_workers", lambda: None)
    write_json(tmp_path / ".hyperbrush" / "preferences.yaml", {"devise": "cpu"})

    async def watch() -> None:
        watching = asyncio.create_task(site.watch())
        await asyncio.sleep(0.5)
        (tmp_path / ".hyperbrush" / "preferences.yaml").unlink()
        before = site.version("runs")
        (tmp_path / "runs" / "new").mkdir(parents=True)
        (tmp_path / "runs" / "new" / "config.yaml").write_text("name: new")
        end = time.monotonic() + 20
        while site.version("runs") == before and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert site.version("runs") > before
        watching.cancel()

    with caplog.at_level(logging.ERROR):
        finished(watch())
    assert len([record for record in caplog.records if "look" in record.message]) == 1


def test_a_second_server_is_refused_before_the_first_has_signed(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / ".hyperbrush").mkdir()
    with FileLock(tmp_path / ".hyperbrush" / "server.lock"), pytest.raises(UserError, match="another server"):
        serve(Workspace(tmp_path), Address(port=0))


# -- who may ask -----------------------------------------------------------------------------------------------------


def guarded(path: str, query: str = "", **headers: str) -> tuple[int, dict[str, str]]:
    """What the guard answers to a GET; 200 where it lets it through."""
    said: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        said.append(message)

    sent = {"host": "10.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    finished(Guard(app, Access("0.0.0.0", (), "se;cret"))(scope, None, send))
    return said[0]["status"], {k.decode(): v.decode() for k, v in said[0]["headers"]}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("//evil.example/", "/evil.example/"),
        ("/\\evil.example", "/evil.example"),
        ("/a\r\nSet-Cookie: b=c", "/a%0D%0ASet-Cookie%3A%20b%3Dc"),
        ("/runs/그림", "/runs/%EA%B7%B8%EB%A6%BC"),
    ],
)
def test_the_token_leaves_the_address_and_stays_on_this_host(path: str, place: str) -> None:
    status, headers = guarded(path, "token=bad%0D%0AX-Y:%20z&token=se%3Bcret&prompt=a+b")
    assert status == 303
    assert headers["location"] == place + "?prompt=a+b"
    assert headers["set-cookie"].startswith(f"{COOKIE}=se%3Bcret; Path=/;")
    assert guarded("/", cookie=headers["set-cookie"].partition(";")[0])[0] == 200


def test_cookies_of_other_programs_do_not_hide_the_token() -> None:
    assert guarded("/", cookie=f'other={{"a": "b, c"}}; @x[]=1; {COOKIE}=se%3Bcret')[0] == 200
    assert guarded("/", cookie=f"{COOKIE}=wrong")[0] == 401


def test_only_files_may_be_large() -> None:
    assert guarded("/", authorization="Bearer se;cret", content_length=str(100 << 20))[0] == 413
    form = "multipart/form-data; boundary=x"
    large = {"authorization": "Bearer se;cret", "content_length": str(100 << 20), "content_type": form}
    assert guarded("/", **large)[0] == 200
    assert guarded("/", authorization="Bearer se;cret", content_length="9" * 5000)[0] == 413


# -- answers ---------------------------------------------------------------------------------------------------------

PLAN: dict[str, Any] = {"name": "a", "data": ["x"]}


@pytest.mark.parametrize("bad", ["a\0b", "x" * 300, HALF, "../../etc/passwd", "someone/from-the-hub"])
def test_no_name_breaks_an_answer_or_leads_out(ask: Any, bad: str) -> None:
    draw = {"prompt": "cat", "model": bad}
    grid = {"prompt": "cat", "axes": ["steps=1,2"], "model": bad}
    webui = {"prompt": "cat", "override_settings": {"sd_model_checkpoint": bad}}
    asked = [
        ("POST", f"{API}/draw", draw),
        ("POST", f"{API}/compare", grid),
        ("POST", f"{API}/compare/outlook", grid),
        ("POST", "/sdapi/v1/txt2img", webui),
        (
            "PATCH",
            f"{API}/preferences",
            {"datasets": bad if "hub" not in bad and "etc" not in bad else "a\0"},
        ),
        ("PATCH", f"{API}/preferences", {bad: 1}),
        ("POST", "/sdapi/v1/options", {bad: 1}),
        ("POST", "/sdapi/v1/options", {"sd_hypernetwork": "a" + HALF}),
        ("POST", f"{API}/plans", {"settings": {**PLAN, "model": bad}}),
        ("POST", f"{API}/plans", {"settings": {**PLAN, "start_from": bad}}),
        ("POST", f"{API}/plans", {"settings": {**PLAN, "training": {"mask_folder": "../" + bad}}}),
        ("POST", f"{API}/styles", {"text": bad, "adapter": "nothing"}),
    ]
    for method, path, body in asked:
        answer = ask(method, path, body)
        assert 400 <= answer.status_code < 500, (path, body, answer.text)
    assert ask("GET", f"{API}/status").status_code == 200
    assert ask("GET", f"{API}/jobs").json() == []


def test_numbers_that_json_has_not_are_refused(ask: Any) -> None:
    for number in ("NaN", "1e999", "-1e999"):
        assert (
            ask("POST", "/sdapi/v1/options", f'{{"sd_hypernetwork_strength": {number}}}').status_code == 400
        )
    assert ask("GET", "/sdapi/v1/options").json()["sd_hypernetwork_strength"] == 1.0
    assert finite({"a": [float("nan"), b"x", {1: 2}]}) == {"a": [None, "b'x'", {"1": 2}]}


def test_a_style_that_was_stopped_too_early_cannot_be_tuned(ask: Any) -> None:
    kept = Jobs(ask.root / ".hyperbrush")
    job = kept.submit("style", {"images": ["0" * 24]}, device="cpu")
    adapter = kept.folder / job.id / "networks" / "adapter.safetensors"
    adapter.parent.mkdir()
    adapter.write_bytes(b"whole")
    write_json(kept.folder / job.id / "state.json", {"state": "stopped", "ended": 1.0})
    answer = ask("POST", f"{API}/styles/{job.id}/tune", {"name": "tuned"})
    assert (answer.status_code, "has not told" in answer.json()["detail"]) == (400, True)
    assert list(Workspace(ask.root).folder("datasets").iterdir()) == []


def test_odd_files_of_runs_break_no_answer(ask: Any) -> None:
    root = Workspace(ask.root).folder("runs")
    odd = {"binary": "x: !!binary /9j/4A==", "keys": "1: 2\n? [a, b]\n: .nan", "day": "x: 2020-01-01"}
    for name, text in odd.items():
        (root / name).mkdir()
        (root / name / "config.yaml").write_text(text)
        (root / name / "live.json").write_text('{"steps": "many", "step": NaN}')
        assert ask("GET", f"{API}/runs/{name}").status_code == 200
    assert {run["name"] for run in ask("GET", f"{API}/runs").json()} >= set(odd)


def test_a_file_that_vanishes_meanwhile_is_not_there(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "/workspace/datasets/a/gone.png")

    monkeypatch.setattr(Datasets, "pictures", vanished)
    answer = ask("GET", f"{API}/datasets/a")
    assert (answer.status_code, answer.json()["detail"]) == (404, "gone.png: No such file or directory")


# -- files and names -------------------------------------------------------------------------------------------------


def test_templates_beside_the_server_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "workspace"
    elsewhere.mkdir()
    (root / "datasets" / "x").mkdir(parents=True)
    (elsewhere / "secret.txt").write_text("[name] knows it")
    monkeypatch.chdir(elsewhere)
    config = run_config(Workspace(root), {**PLAN, "training": {"templates": "secret.txt"}})
    with pytest.raises(UserError, match="no file of prompt templates"):
        config.training.captioning()


def test_captions_written_at_once_are_all_kept(tmp_path: Path) -> None:
    datasets = Datasets(Workspace(tmp_path))
    folder = tmp_path / "datasets" / "many"
    folder.mkdir(parents=True)
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    rows = [json.dumps({"file_name": name, "text": "old"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    threads = [
        threading.Thread(target=datasets.write_caption, args=("many", index, f"new {index}"))
        for index in range(len(names))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [picture.caption for picture in datasets.pictures("many")[1]] == [f"new {i}" for i in range(8)]


@pytest.mark.parametrize(
    ("said", "meant"), [("cuda:0", "cuda"), ("cuda:01", "cuda:1"), ("cpu", "cpu"), ("auto", "auto")]
)
def test_a_device_has_one_name_and_so_one_worker(said: str, meant: str) -> None:
    assert preferences_from({"device": said}).device == meant


@pytest.mark.parametrize("said", ["cpu:0", "auto:1", "cuda:", "cuda:\u0663", "cuda:-1", "cuda:99999"])
def test_what_is_no_device_is_refused(said: str) -> None:
    with pytest.raises(UserError, match="device"):
        preferences_from({"device": said})


def test_a_start_picture_that_is_a_line_makes_no_endless_picture() -> None:
    line = Image.new("L", (20_000, 1))
    for given in ({}, {"width": 512}, {"height": 512}):
        assert max(size_of(DrawRequest(prompt="a", **given), 512, 8, line)) <= 4096  # type: ignore[arg-type]

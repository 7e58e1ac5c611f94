"""What stays clean and small by itself, and a server whose own disk is full."""

import asyncio
import builtins
import contextlib
import errno
import io
import json
import os
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nicegui
import psutil
import pytest
from PIL import Image
from running import until
from runs_helpers import give_pictures, settings

from hyperbrush.app import site as site_module
from hyperbrush.app import uploads
from hyperbrush.app.jobs import jobs as jobs_module
from hyperbrush.app.jobs import keeper
from hyperbrush.app.jobs import worker as worker_module
from hyperbrush.app.jobs.jobs import Jobs
from hyperbrush.app.jobs.kinds import KINDS
from hyperbrush.app.jobs.worker import MOST_ATTEMPTS, JobContext, Worker
from hyperbrush.app.runs import control as run_control
from hyperbrush.app.runs.page import version
from hyperbrush.app.runs.run import LOOKED_AT, QUIET, Run, holds
from hyperbrush.app.runs.view import kept_view, view_of
from hyperbrush.app.security import Access, Guard
from hyperbrush.app.server import make_app
from hyperbrush.app.site import Site
from hyperbrush.app.train.datasets import thumbnail
from hyperbrush.app.train.service import begin, problems
from hyperbrush.app.uploads import MOST_DECODED, Uploads, open_picture
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import read_json, write_json
from hyperbrush.training.loop.run_folder import run_lock

API = "/api/v1"
LONG_AGO = time.time() - 40 * 86400


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Workspace(tmp_path))


def finished(work: Any) -> Any:
    """What a coroutine comes to; in a thread, since the browser's tests keep a loop running in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


def png(side: int = 16) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((side, side), 80).save(data, "PNG")
    return data.getvalue()


# -- old jobs --------------------------------------------------------------------------------------------------------


def ended(jobs: Jobs, kind: str, when: float = LONG_AGO, state: str = "done", **arguments: Any) -> str:
    job = jobs.submit(kind, arguments, device="cpu").id
    write_json(jobs.folder / job / "state.json", {"state": state, "ended": when})
    return job


def test_old_jobs_go_with_what_only_they_hold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT", 2)
    jobs, runs = site.jobs, site.workspace.folder("runs")
    (runs / "there").mkdir()
    (runs / "there" / "config.yaml").write_text("name: there")
    drawn = site.workspace.folder("outputs") / "2020-01-01" / "00000-1.png"
    drawn.parent.mkdir()
    drawn.write_bytes(png())
    old = [ended(jobs, kind) for kind in ("draw", "export", "style", "compare")]
    (jobs.folder / old[1] / "export").mkdir()
    (jobs.folder / old[1] / "export" / "a.safetensors").write_bytes(b"large")
    old.append(ended(jobs, "train", state="failed", run="gone"))
    grid, trained = ended(jobs, "compare"), ended(jobs, "train", state="failed", run="there")
    (jobs.folder / grid / "grid.png").write_bytes(png())
    (runs / "binned").mkdir()
    site.workspace.trash.put("run", "binned", [runs / "binned"])
    binned = ended(jobs, "train", run="binned")
    waiting = jobs.submit("draw", {}, device="cpu").id
    said = read_json(jobs.folder / waiting / "job.json")
    write_json(jobs.folder / waiting / "job.json", said | {"created": LONG_AGO})
    young = ended(jobs, "draw", time.time() - 86400)
    half = "0000000000000aaaaa"  # killed while it was made
    (jobs.folder / half).mkdir()
    os.utime(jobs.folder / half, (LONG_AGO, LONG_AGO))
    last = [ended(jobs, "draw") for _ in range(2)]
    site._look()
    site._tidy()
    stay = [grid, trained, binned, waiting, young, *last]
    assert sorted(path.name for path in jobs.folder.iterdir()) == sorted(stay)
    assert drawn.is_file()
    assert site.runs.get("there").state == "failed", "its job says why"
    for job in old:
        with pytest.raises(UserError, match="no job .* removed after 30 days"):
            jobs.get(job)
    site._look()
    assert not any(f"job:{job}" in site._seen for job in old)


def test_a_job_half_removed_is_not_done_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT", 0)
    job = ended(site.jobs, "draw")

    def killed(folder: Path, **_: Any) -> None:
        (folder / "state.json").unlink()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("hyperbrush.app.jobs.jobs.shutil.rmtree", killed)
        site.jobs.forget(lambda _: False)
    after = Jobs(site.workspace.state)
    assert after.requeue_lost() == []
    assert after.open() == []
    os.utime(after.folder / job, (LONG_AGO, LONG_AGO))
    assert after.forget(lambda _: False) == [job]


def test_a_watch_tidies_when_it_begins_and_then_seldom(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT", 0)
    ended(site.jobs, "draw")
    site._tidy()
    assert site.jobs.all() == []
    second = ended(site.jobs, "draw")
    site._tidy()
    assert site.jobs.get(second).state == "done"
    site._tidied -= site_module.TIDY
    site._tidy()
    assert site.jobs.all() == []


# -- workers ---------------------------------------------------------------------------------------------------------


class Death(BaseException):
    """Stands for SIGKILL: nothing of the worker runs after it."""


def dies(worker: Worker, job: str) -> None:
    with pytest.raises(Death):
        worker._do(job)


def test_a_job_that_got_further_begins_counting_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Workspace(tmp_path), "cpu")
    job = worker.jobs.submit("train", {"run": "a"}, device="cpu").id
    gets_further = [False, True, True, False, True]

    def work(context: JobContext) -> None:
        if gets_further.pop(0):
            context.got_further()
            context.got_further()
        raise Death

    monkeypatch.setitem(KINDS, "train", work)  # type: ignore[arg-type]
    for _ in range(5):
        dies(worker, job)
    assert worker.jobs.get(job).attempts == 5 > MOST_ATTEMPTS
    gets_further = [False] * MOST_ATTEMPTS
    for _ in range(MOST_ATTEMPTS - 1):  # the last crash above is the first one that counts
        dies(worker, job)
    assert worker.jobs.get(job).state == "running"
    worker._do(job)
    failed = worker.jobs.get(job)
    assert (failed.state, failed.attempts) == ("failed", 5 + MOST_ATTEMPTS - 1)
    assert "died 3 times before it got any further" in failed.error


def test_a_job_that_never_gets_further_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Workspace(tmp_path), "cpu")
    job = worker.jobs.submit("train", {"run": "a"}, device="cpu").id

    def work(_: JobContext) -> None:
        raise Death

    monkeypatch.setitem(KINDS, "train", work)  # type: ignore[arg-type]
    for _ in range(MOST_ATTEMPTS):
        dies(worker, job)
    worker._do(job)
    assert worker.jobs.get(job).state == "failed"


def test_a_checkpoint_is_getting_further(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from hyperbrush.app.train.work import _callbacks

    worker = Worker(Workspace(tmp_path), "cpu")
    job = worker.jobs.submit("train", {"run": "a"}, device="cpu").id
    write_json(worker.jobs.folder / job / "state.json", {"state": "running", "attempts": 2})
    tell = _callbacks(JobContext(worker.jobs, job, worker))["on_progress"]
    step = {"step": 4, "steps": 9, "validation": {}, "notes": []}
    tell(SimpleNamespace(**step, checkpoint=None))
    assert worker.jobs.get(job).forgiven == 0
    tell(SimpleNamespace(**step, checkpoint=Path("step-4")))
    assert (worker.jobs.get(job).forgiven, worker.jobs.get(job).attempts) == (2, 3)


@pytest.mark.parametrize(("preferred", "ends"), [("cuda", True), ("cpu", False), ("", False)])
def test_an_idle_worker_ends_once_another_device_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preferred: str, ends: bool
) -> None:
    monkeypatch.setattr(worker_module, "IDLE", 0.0)
    worker = Worker(Workspace(tmp_path), "cpu")
    own = {"pid": os.getpid(), "born": psutil.Process().create_time()}
    write_json(tmp_path / ".hyperbrush" / "server.json", own | {"device": preferred})
    job = worker.jobs.submit("draw", {}, device="cpu").id
    monkeypatch.setitem(KINDS, "draw", lambda _: None)  # type: ignore[arg-type]
    thread = threading.Thread(target=worker.run)
    thread.start()
    until(lambda: worker.jobs.get(job).state == "done")
    thread.join(20 if ends else 0.5)
    assert thread.is_alive() is not ends
    worker.ending = True
    thread.join()


def test_the_server_says_which_device_it_prefers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> dict[str, Any]:
        return read_json(site.workspace.state / "server.json")

    site.workspace.prefer(device="cpu")
    site._sign()
    assert (said()["device"], said()["pid"]) == ("cpu", os.getpid())
    (site.workspace.state / "preferences.yaml").write_text("devise: cpu")
    site._sign()
    assert said()["device"] == "cpu", "what cannot be read changes nothing"
    fresh = Site(site.workspace)
    fresh._sign()
    assert said()["device"] == ""
    site.workspace._file.unlink()
    monkeypatch.setattr(Site, "device", "cuda:1")
    fresh._sign()
    assert said()["device"] == "cuda:1"


def test_a_worker_that_ended_by_itself_is_news_and_no_death(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def start(workspace: Workspace, device: str) -> "subprocess.Popen[bytes]":
        begun.append(device)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(keeper, "start_worker", start)
    own = {"pid": os.getpid(), "born": psutil.Process().create_time()}
    for device in ("cpu", "mps"):
        write_json(site.workspace.state / f"worker-{device}.json", own | {"device": device})
    site.workspace.prefer(device="cpu")
    site._keep_workers()
    site.workspace.prefer(device="mps")
    site._keep_workers()
    seen = site.version("workers")
    (site.workspace.state / "worker-cpu.json").unlink()
    for _ in range(3):
        site._keep_workers()
    assert site.version("workers") == seen + 1
    assert (site.keeper.crashes, begun) == ([], [])


# -- runs as they are listed -----------------------------------------------------------------------------------------


def test_open_runs_stay_in_their_places_and_ended_ones_come_newest_first(site: Site) -> None:
    for age, name in enumerate(("b", "a", "old", "new")):
        folder = site.workspace.folder("runs") / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"name: {name}")
        os.utime(folder / "config.yaml", (LONG_AGO + age,) * 2)
    for name in ("a", "b"):
        site.submit("train", {"run": name})
    assert [run.name for run in site.runs.all()] == ["a", "b", "new", "old"]
    write_json(site.workspace.folder("runs") / "b" / "live.json", {"step": 3})
    assert [run.name for run in site.runs.all()] == ["a", "b", "new", "old"]


def test_a_run_of_a_name_that_another_had_shows_none_of_its_pictures() -> None:
    first, second = (Run("ink", "hypernetwork", "running", {}, {"step": 3}, job=job) for job in "ab")
    assert version(first) != version(second)
    assert version(first) == version(replace(first, live={"step": 9})), "not a picture anew at each step"
    assert version(first) != version(replace(first, state="done"))


def test_a_large_library_is_seldom_walked_through(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[float] = []

    def slow(_: Path) -> tuple[str, ...]:
        walks.append(time.monotonic())
        time.sleep(0.02)
        return (str(len(walks)),)

    monkeypatch.setattr(site_module, "_tree", slow)
    assert "networks" in site._look()
    assert "networks" not in site._look()
    assert len(walks) == 1
    until(lambda: "networks" in site._look())
    assert walks[1] - walks[0] >= 0.02 / site_module.WALKING


# -- what is kept in memory ------------------------------------------------------------------------------------------


def test_only_the_runs_looked_at_last_stay_in_memory(site: Site) -> None:
    names = [f"run-{number:02}" for number in range(LOOKED_AT + 8)]
    for name in names:
        folder = site.workspace.folder("runs") / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"name: {name}")
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    site.news("runs")
    for name in names:
        assert view_of(site, name).curves.loss == [(1, 0.5)]
    assert kept_view(site, names[0]) is None
    assert kept_view(site, names[-1]) is not None
    assert site.runs._rows.cache_info().currsize == LOOKED_AT
    assert view_of(site, names[0]).curves.loss == [(1, 0.5)], "it is read again"


def keep(path: Path) -> None:
    Uploads(path.parent / "kept").keep(path.read_bytes())


def draw_thumbnail(path: Path) -> None:
    thumbnail(path.parent / "kept", path, 128, "a")


def only_open(path: Path) -> None:
    open_picture(path.read_bytes())


@pytest.mark.parametrize(("work", "last"), [(keep, "convert"), (draw_thumbnail, "thumbnail")])
def test_few_pictures_are_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None], last: str
) -> None:
    """last: of Pillow's, called when a picture is there whole for the last time."""
    now, most, lock = 0, 0, threading.Lock()
    real = getattr(Image.Image, last)

    def slow(self: Any, *given: Any, **more: Any) -> Any:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.05)
        with lock:
            now -= 1
        return real(self, *given, **more)

    monkeypatch.setattr(Image.Image, last, slow)
    paths = [tmp_path / f"{number}.jpg" for number in range(6)]
    for path in paths:
        Image.new("CMYK", (32, 32)).save(path)  # is converted wherever it is taken
    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == MOST_DECODED
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == 6


@pytest.mark.parametrize("work", [draw_thumbnail, only_open])
def test_a_picture_waits_for_its_place_and_leaves_it(tmp_path: Path, work: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    free = threading.Event()

    def hold() -> None:
        with uploads.decoding:
            free.wait(20)

    holders = [threading.Thread(target=hold) for _ in range(MOST_DECODED)]
    for thread in holders:
        thread.start()
    until(lambda: not uploads.decoding._places._value)
    made = threading.Thread(target=work, args=(path,))
    made.start()
    made.join(0.3)
    assert made.is_alive()
    free.set()
    for thread in (made, *holders):
        thread.join(20)
    with pytest.raises(UserError):
        open_picture(b"no picture")
    assert uploads.decoding._places._value == MOST_DECODED, "what fails gives its place back too"


# -- runs that were left ---------------------------------------------------------------------------------------------


def test_a_run_folder_that_was_left_half_made_takes_no_name(tmp_path: Path) -> None:
    give_pictures(tmp_path)
    workspace = Workspace(tmp_path)
    run = workspace.folder("runs") / "half"
    run.mkdir()
    (run / ".config.part-abc.yaml").write_text("na")
    assert problems(workspace, settings("half")) == []
    assert begin(workspace, settings("half")) == "half"
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    for holds_something in ("config.yaml", "checkpoints", "notes.txt"):
        other = workspace.folder("runs") / f"with {holds_something}"
        (other / holds_something).mkdir(parents=True)
        with pytest.raises(UserError, match="already"):
            begin(workspace, settings(other.name))
        assert (other / holds_something).is_dir()


def test_of_two_that_begin_one_run_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first one's folder while it is still empty."""
    give_pictures(tmp_path)
    workspace = Workspace(tmp_path)
    meet, results = threading.Barrier(2, timeout=20), []

    def ask() -> None:
        meet.wait()
        try:
            results.append(begin(workspace, settings("one")))
        except UserError as error:
            results.append(str(error))

    from hyperbrush.training.loop import settings as settings_module

    save = settings_module.save_run

    def slow(config: Any, run: Path) -> None:
        time.sleep(0.5)
        save(config, run)

    monkeypatch.setattr(settings_module, "save_run", slow)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result == "one" for result in results) == [False, True]
    assert any("already" in result for result in results)


def left(folder: Path, *, ago: float) -> None:
    """What a training on another machine has left, or still writes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: a\nkind: hypernetwork")
    write_json(folder / "running.json", {"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00"})
    os.utime(folder / "running.json", (time.time() - ago,) * 2)


def test_another_machines_training_counts_while_it_writes(site: Site) -> None:
    folder = site.workspace.folder("runs") / "a"
    left(folder, ago=10)
    assert holds(folder)
    assert site.runs.get("a").elsewhere
    with pytest.raises(UserError, match=r"process 1 on elsewhere.*five minutes"):
        run_control.resume(site, "a")
    os.utime(folder / "running.json", (time.time() - QUIET - 60,) * 2)
    (folder / "live.json").write_text("{}")
    assert holds(folder), "it is told by any of its files"


def test_what_a_machine_left_that_is_gone_holds_nothing(site: Site) -> None:
    folder = site.workspace.folder("runs") / "a"
    left(folder, ago=QUIET + 60)
    assert not holds(folder)
    run = site.runs.get("a")
    assert (run.state, run.elsewhere, "resume" in run.can) == ("paused", False, True)
    os.utime(folder / "running.json")
    assert holds(folder), "another training has begun there"
    with run_lock(folder):
        left(folder, ago=QUIET + 30)
        assert holds(folder), "and it is asked anew when it is silent"


def test_a_silent_training_that_has_the_lock_is_not_doubled(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with run_lock(folder):
        holder = read_json(folder / "running.json") | {"host": "elsewhere"}
        write_json(folder / "running.json", holder)
        os.utime(folder / "running.json", (time.time() - QUIET - 60,) * 2)
        assert holds(folder)


# -- a full disk -----------------------------------------------------------------------------------------------------


class Disk:
    """A disk under a folder that is full from its n-th write on: new folders and files, and what is forced to it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, writes: int) -> None:
        self.root, self.left, self.met = root, writes, 0
        for module, name, writing in (
            (os, "mkdir", lambda path, *_: self._is_here(path) and not Path(path).exists()),
            (os, "open", lambda path, flags, *_: flags & os.O_CREAT and self._is_here(path)),
            (os, "fsync", lambda file: not stat.S_ISDIR(os.fstat(file).st_mode)),
            (io, "open", self._opens),
            (builtins, "open", self._opens),
        ):
            patch.setattr(module, name, self._limited(getattr(module, name), writing))

    def _is_here(self, path: Any) -> bool:
        return not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(self.root)

    def _opens(self, path: Any, mode: str = "r", *_: Any) -> bool:
        return bool(set(mode) & set("wax+")) and self._is_here(path)

    def _limited(self, real: Callable[..., Any], writing: Callable[..., Any]) -> Callable[..., Any]:
        def limited(what: Any, *given: Any, **more: Any) -> Any:
            if writing(what, *given, **({"mode": more["mode"]} if "mode" in more and not given else {})):
                self.left -= 1
                if self.left < 0:
                    self.met += 1
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(what, *given, **more)

        return limited


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real application in this process, without a worker."""
    testing = pytest.importorskip("starlette.testclient")
    root = tmp_path_factory.mktemp("full")
    give_pictures(root)
    mixed = root / "datasets" / "mixed"
    mixed.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (mixed / name).write_bytes(png())
    rows = ({"file_name": name, "text": "old"} for name in ("b.png", "c.png"))
    (mixed / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = make_app(Site(Workspace(root)), Access())
    made = testing.TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    made.root = root
    assert made.patch(f"{API}/preferences", json={"device": "cpu"}).status_code == 200
    made.job = made.post(f"{API}/draw", json={"prompt": "cat"}).json()["id"]
    return made


def tree(root: Path) -> dict[str, bytes]:
    """Every file but SQLite's own and locks."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {
        name: p.read_bytes() for name, p in found.items() if "/queue/" not in name and p.suffix != ".lock"
    }


MIXED = f"{API}/datasets/mixed/pictures"
ASKED: dict[str, Callable[[Any, str], Any]] = {
    "upload": lambda c, _: c.post(f"{API}/uploads", files={"file": ("a.png", png(64))}),
    "draw": lambda c, new: c.post(f"{API}/draw", json={"prompt": new}),
    "stop": lambda c, _: c.post(f"{API}/jobs/{c.job}/stop"),
    "train": lambda c, new: c.post(f"{API}/trainings", json={"settings": settings(new)}),
    "preferences": lambda c, _: c.patch(f"{API}/preferences", json={"theme": "dark"}),
    "folder": lambda c, new: c.patch(f"{API}/preferences", json={"outputs": f"outputs/{new}"}),
    "options": lambda c, _: c.post("/sdapi/v1/options", json={"sd_hypernetwork_strength": 0.5}),
    "caption": lambda c, new: c.patch(f"{MIXED}/0", json={"caption": new}),
    "row": lambda c, new: c.patch(f"{MIXED}/1", json={"caption": new}),
    "dataset": lambda c, new: c.post(f"{API}/datasets", json={"name": new}),
    "pictures": lambda c, new: c.post(MIXED, files=[("files", (f"{new}.png", png(24)))]),
    "thumbnail": lambda c, _: c.get(f"{MIXED}/0?size=128"),
    "remove": lambda c, _: c.delete(f"{MIXED}/0"),
    "remove a row": lambda c, _: c.delete(f"{MIXED}/1"),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_full_disk_is_told_and_changes_nothing(
    client: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Full at the first write, at the second, …, until there is room for all that it writes."""
    for writes in range(40):
        before = tree(client.root)
        with monkeypatch.context() as patch:
            disk = Disk(client.root, patch, writes)
            answer = ASKED[what](client, f"{what} {writes}")
        if not disk.met:
            assert answer.status_code < 300, answer.text
            break
        said = answer.json().get("detail", answer.text)
        assert answer.status_code in (400, 507), (writes, said)
        assert isinstance(said, str)
        assert said.count("No space left on device") == 1, said
        assert tree(client.root) == before, (writes, said)
        assert client.get(f"{API}/status").status_code == 200
    assert 0 < writes < 39


def test_a_queue_that_takes_no_more_is_told(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite writes past the system's calls that the tests above stand in for."""
    before = tree(client.root)

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("persistqueue.SQLiteAckQueue.put", full)
        answer = client.post(f"{API}/draw", json={"prompt": "cat"})
    assert (answer.status_code, "disk is full" in answer.json()["detail"]) == (400, True)
    assert tree(client.root) == before
    assert client.post(f"{API}/draw", json={"prompt": "cat"}).status_code == 200


def test_no_room_for_what_is_sent_is_told(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large upload lies in the system's temporary folder until it has come in whole."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sent = {"file": ("a.png", png() + bytes(3 << 20))}
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.SpooledTemporaryFile.rollover", full)
        answer = client.post(f"{API}/uploads", files=sent)
    assert answer.status_code in (400, 507)
    assert "No space left on device" in answer.json()["detail"]
    assert client.post(f"{API}/uploads", files=sent).status_code == 200


# -- clients that leave ----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_before_the_answer_fills_no_log(app: Any) -> None:
    host, port = app.url.split("//")[1].split(":")
    log = app.root / "server.log"
    before = log.read_text()
    paths = (
        f"/_nicegui/{nicegui.__version__}/static/nicegui.js",
        "/_nicegui_ws/socket.io/?EIO=4&transport=polling",
    )
    for path in paths * 4:
        leaving = socket.create_connection((host, int(port)))
        leaving.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        leaving.close()
    for path in paths:
        app.call(path)  # the others were met before
    assert app.call(f"{API}/status")["version"]
    assert log.read_text() == before


@pytest.mark.parametrize(
    ("error", "left", "is_quiet"),
    [
        (RuntimeError("No response returned."), True, True),
        (RuntimeError("No response returned."), False, False),
        (RuntimeError("a bug"), True, False),
        (KeyError("a bug"), True, False),
    ],
)
def test_only_what_follows_from_leaving_is_quiet(error: Exception, left: bool, is_quiet: bool) -> None:
    async def bad(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        raise error

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect" if left else "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asked = Guard(bad, Access())(scope, receive, None)
    with contextlib.nullcontext() if is_quiet else pytest.raises(type(error)):
        finished(asked)

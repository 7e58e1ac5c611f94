"""A stop stops: what never began, what is in the middle of a large picture, what lost its worker; the queue goes on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import App, until
from torch import nn

import hyperbrush.generation
from hyperbrush.app.create.work import Progress
from hyperbrush.app.jobs.context import JobContext, StopRequested
from hyperbrush.app.jobs.kinds import LANES
from hyperbrush.app.jobs.worker import Worker
from hyperbrush.app.model.service import far_size
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import DrawRequest
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.assets import model_folder
from hyperbrush.errors import UserError
from hyperbrush.stopping import stoppable

API = "/api/v1"
SMALL = {"prompt": "cat face", "steps": 1, "seed": 5}
LARGE = {"prompt": "cat face", "steps": 50, "seed": 5, "width": 512, "height": 512}


@pytest.fixture(scope="module")
def alone(app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app whose worker is held and killed."""
    running = App(tmp_path_factory.mktemp("stopped"), environment=app.environment).start()
    yield running
    running.end()


def ask(app: App, **changes: Any) -> str:
    return str(app.call(f"{API}/draw", {**SMALL, **changes})["id"])


def test_a_stop_reaches_the_middle_of_a_step_and_the_queue_goes_on(alone: App) -> None:
    plain = alone.wait_for(ask(alone))
    large, behind = ask(alone, **LARGE), ask(alone)
    until(lambda: alone.call(f"{API}/jobs/{large}")["progress"].get("stage") == "sampling")
    told = alone.call(f"{API}/jobs/{large}/stop", {})
    assert told["asked"] == "stop", "pages say at once that it is stopping"
    stands = alone.wait_for(large)
    assert stands["state"] == "stopped"
    assert stands["progress"]["step"] == 0, "no step was waited for"
    assert stands["attempts"] == 1
    after = alone.wait_for(behind)
    assert after["state"] == "done"
    pictures = [alone.call(f"{API}/jobs/{job['id']}/pictures/0") for job in (plain, after)]
    assert pictures[0] == pictures[1], "the model is as it was"


@pytest.mark.slow
def test_a_stopped_drawing_is_not_begun_again_when_its_worker_dies(alone: App) -> None:
    alone.wait_for(ask(alone))
    large = ask(alone, **LARGE)
    until(lambda: alone.call(f"{API}/jobs/{large}")["state"] == "running")
    alone.still_worker()  # as one that is deep in a layer that takes minutes
    assert alone.call(f"{API}/jobs/{large}/stop", {})["state"] == "running"
    behind = ask(alone)
    alone.kill_worker()
    stands = alone.wait_for(large)
    assert (stands["state"], stands["attempts"], stands["error"]) == ("stopped", 1, "")
    assert alone.wait_for(behind)["state"] == "done"


@pytest.mark.parametrize(("how", "state"), [("stop", "stopped"), ("pause", "paused")])
@pytest.mark.parametrize("kind", ["draw", "train"])
def test_the_next_worker_ends_what_was_stopped(tmp_path: Path, kind: str, how: Any, state: str) -> None:
    """Each job is of a worker that died, three times even: none is begun, and what waits behind it is."""
    first = Worker(Workspace(tmp_path), "cpu")
    lost = first.jobs.submit(kind, {}, device="cpu").id
    context = JobContext(first.jobs, lost, first)
    context.put(attempts=3)
    first.jobs.ask(lost, how)
    assert first.jobs.get(lost).stopping
    behind = first.jobs.submit(kind, {}, device="cpu").id
    then = Worker(Workspace(tmp_path), "cpu")
    lane = LANES[kind]
    assert then.serve(lane)
    found = then.jobs.get(lost)
    assert (found.state, found.attempts, found.error, found.is_open) == (state, 3, "", False)
    assert found.ended is not None
    assert then.serve(lane)
    assert then.jobs.get(behind).state == "failed", "it was begun: it says nothing to do"
    assert not then.serve(lane)


def test_a_model_that_is_opened_again_leaves_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyperbrush.generation, "open_model", lambda *_, **__: "the model")
    first = Worker(Workspace(tmp_path), "cpu")
    job = first.jobs.submit("draw", {"prompt": "cat"}, device="cpu").id
    context = JobContext(first.jobs, job, first)
    context.put()
    drawn = {"seed": 7, "subseed": 8, "left_out": 1, "pictures": [{"file": "a.png"}]}
    context.tell(now=True, stage="sampling", **drawn)
    then = Worker(Workspace(tmp_path), "cpu")  # the first one died
    context = JobContext(then.jobs, job, then)
    assert opened(context) == "the model"
    assert then.jobs.get(job).progress == {**drawn, "stage": "opening", "model": "emoji"}
    progress = Progress(context, DrawRequest(prompt="cat"))
    assert (progress.seed, progress.subseed, progress.next) == (7, 8, 2)


def test_a_drawing_waits_for_the_model_that_was_preferred_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(Workspace(tmp_path))
    job = site.submit("draw", {"prompt": "cat"}).id
    site.workspace.prefer(model="owner/another")
    monkeypatch.setattr(hyperbrush.generation, "open_model", lambda where, **_: where)
    context = JobContext(site.jobs, job, Worker(site.workspace, "cpu"))
    assert opened(context) == str(model_folder("emoji"))
    later = JobContext(site.jobs, site.submit("draw", {"prompt": "cat"}).id, context.worker)
    assert opened(later) == "owner/another"


class _Worker:
    """What a context asks of its worker."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.ending = workspace, False


def test_a_stop_is_obeyed_between_two_layers_by_the_job_at_hand_alone(tmp_path: Path) -> None:
    worker: Any = _Worker(Workspace(tmp_path))
    jobs = Worker(worker.workspace, "cpu").jobs
    outer, inner = (jobs.submit("draw", {}, device="cpu").id for _ in range(2))
    two = JobContext(jobs, inner, worker)
    one = JobContext(jobs, outer, worker)
    one.put()
    two.put()
    reached: list[str] = []

    class Layer(nn.Module):
        def __init__(self, name: str, do: Callable[[], Any]) -> None:
            super().__init__()
            self.name, self.do = name, do

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            reached.append(self.name)
            self.do()
            time.sleep(0.15)
            return x

    stops = Layer("first", lambda: jobs.ask(outer, "stop"))
    with pytest.raises(StopRequested), one.stoppable():
        with two.stoppable():  # drawn between the steps of the other
            nn.Sequential(stops, Layer("second", lambda: None))(torch.ones(1))
        Layer("never", lambda: None)(torch.ones(1))
    assert reached == ["first", "second"]
    with pytest.raises(StopRequested), one.stoppable():
        reached.append("not at all")
    assert reached == ["first", "second"]


def test_the_innermost_is_asked() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    asked: list[int] = []
    with stoppable(lambda: asked.append(1)):
        with pytest.raises(Stop), stoppable(stop):
            pass
        before = len(asked)
        nn.Identity()(1)
        assert len(asked) == before + 1


@pytest.mark.parametrize(
    ("own", "width", "height", "told"),
    [
        (64, 64, 64, ""),
        (64, 128, 128, ""),
        (64, 136, 128, "size_large"),
        (64, 32, 32, ""),
        (64, 24, 32, "size_small"),
        (512, 1024, 1024, ""),
        (512, 4096, 4096, "size_large"),
        (None, 4096, 4096, ""),
    ],
)
def test_sizes_far_from_the_models_own_are_told(own: int | None, width: int, height: int, told: str) -> None:
    assert far_size(own, width * height) == told


def test_waiting_jobs_are_done_in_the_order_they_were_put_into(tmp_path: Path) -> None:
    worker = Worker(Workspace(tmp_path), "cpu")
    jobs = worker.jobs
    one, two, three = (jobs.submit("draw", {}, device="cpu").id for _ in range(3))
    other = jobs.submit("compare", {}, device="cpu").id  # waits elsewhere

    def waiting() -> list[str]:
        return [job.id for job in jobs.in_order() if job.id != other]

    assert waiting() == [one, two, three]
    jobs.move(three, -1)
    assert waiting() == [one, three, two]
    jobs.move(three, -1)
    jobs.move(three, -1)  # it is the first already
    jobs.move(one, 1)
    assert waiting() == [three, two, one]
    late = jobs.submit("draw", {}, device="cpu").id
    assert waiting() == [three, two, one, late]
    while worker.serve("short"):
        pass
    done = [jobs.get(job) for job in (three, two, one, late)]
    assert [job.state for job in done] == ["failed"] * 4, "they ask for nothing"
    assert sorted(done, key=lambda job: job.ended or 0) == done
    assert worker.serve("long")
    with pytest.raises(UserError, match="only those that wait"):
        jobs.move(one, 1)
    last = jobs.submit("draw", {}, device="cpu").id
    assert worker.serve("short")
    assert jobs.get(last).state == "failed"

"""live.json: what it holds, how often it is written, and that it never ends a training."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toys import Regression, train

from hyperbrush.files import read_json
from hyperbrush.training.loop import progress
from hyperbrush.training.loop.progress import Live, Progress


def told(step: int, *, steps: int = 100, loss: float = 1.0, seconds: float = 0.0, **more: Any) -> Progress:
    return Progress(step, steps, {"loss": loss}, 1e-3, seconds, 4, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock's time, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_training_tells_how_far_it_is(tmp_path: Path) -> None:
    train(Regression(), tmp_path)
    found = read_json(tmp_path / "live.json")
    assert (found["step"], found["steps"]) == (6, 6)
    assert found["seconds_left"] == 0
    assert found["pictures_per_second"] > 0
    assert found["memory"] > 1e6
    assert found["validation"]["loss"] > 0
    assert min(found["loss"], found["smoothed"], found["learning_rate"], found["seconds"]) > 0


def test_ten_times_a_second_and_at_the_last_step(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "live.json"
    writes = []
    told_by = Live(path)
    for step in range(1, 101):
        clock[0] += 0.03
        told_by.tell(told(step))
        writes.append(read_json(path)["step"])
    assert writes[-1] == 100
    assert len(set(writes)) <= 1 + 3.0 / progress.EVERY
    assert len(set(writes)) >= 20


def test_time_left_goes_by_this_process(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "live.json"
    told_by = Live(path)
    for step, seconds in (
        (51, 1000.0),
        (52, 1002.0),
        (56, 1010.0),
    ):  # resumed: a thousand seconds were before
        clock[0] += 1
        told_by.tell(told(step, seconds=seconds))
    found = read_json(path)
    assert found["seconds_left"] == pytest.approx(44 * 2.0)
    assert found["pictures_per_second"] == pytest.approx(4 / 2.0)


def test_the_last_validation_stays_and_the_loss_is_smoothed(tmp_path: Path, clock: list[float]) -> None:
    told_by = Live(tmp_path / "live.json")
    for step in range(1, 4):
        clock[0] += 1
        told_by.tell(told(step, loss=float(step), validation={"loss": 0.5, "base": 0.7} if step == 2 else {}))
    found = read_json(tmp_path / "live.json")
    assert found["validation"] == {"loss": 0.5, "base": 0.7}
    assert found["loss"] == 3.0
    assert found["smoothed"] == pytest.approx(0.95 * (0.95 + 0.05 * 2) + 0.05 * 3)


def test_readers_never_see_half_of_it(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "live.json"
    told_by = Live(path)
    told_by.tell(told(1))
    real = os.replace
    seen = []

    def look(*arguments: Any, **more: Any) -> None:
        seen.append(json.loads(path.read_text())["step"])  # the older one, whole
        real(*arguments, **more)

    monkeypatch.setattr(os, "replace", look)
    monkeypatch.setattr(Path, "replace", lambda self, target: look(self, target))
    clock[0] += 1
    told_by.tell(told(2))
    assert seen == [1]
    assert read_json(path)["step"] == 2


def test_a_full_disk_is_not_its_to_complain_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Live(tmp_path / "file" / "live.json").tell(told(1))  # a folder that cannot be

"""Stopped anywhere, and gone on with: the same weights, checkpoints and figures, also with a divergence in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Regression, train, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop import judge
from hyperbrush.training.loop.metrics import read


class Bursting(Regression):
    """Its loss grows a hundredfold from a step on, while the rate is above a limit; NaN where told."""

    def __init__(self, burst: int, *, nan_at: int | None = None, limit: float = 6e-3) -> None:
        super().__init__()
        self.burst, self.nan_at, self.limit = burst, nan_at, limit
        self.rate = 0.0

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        batch = super().batch(step, batch_size)
        fast = self.rate > self.limit
        if fast and step == self.nan_at:
            return batch | {"x": batch["x"] * float("nan")}
        return batch | {"y": batch["y"] * 10} if fast and step >= self.burst else batch


LONG: dict[str, Any] = {
    "steps": 18,
    "checkpoint_every": 4,
    "validate_every": 6,
    "log_every": 2,
    "keep_best": True,
    "on_divergence": "back_off",
    "keep_checkpoints": 2,
}


@pytest.fixture(autouse=True)
def _soon_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few losses are enough to call it diverging."""
    monkeypatch.setattr(judge, "NEWEST", 3)
    monkeypatch.setattr(judge, "ENOUGH", 4)


def one(
    run: Path, *, stop_at: int | None = None, resume: bool = False, nan_at: int | None = None
) -> Bursting:
    objective = Bursting(10, nan_at=nan_at)
    made = trainer(objective, run, stop_at=stop_at, **LONG)
    inner = made._one_step

    def step(rate: float) -> dict[str, float]:
        objective.rate = rate
        return inner(rate)

    made._one_step = step  # type: ignore[method-assign]
    made.train(resume=resume)
    return objective


def left(run: Path) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read(run / "metrics.jsonl")]
    found = {}
    for step in checkpoints.steps(run / "checkpoints"):
        state = checkpoints.load(checkpoints.path_of(run / "checkpoints", step))
        rest = {k: v for k, v in state.extra.items() if k not in ("seconds", "plan")}
        found[step] = checkpoints.digest(state.tensors), rest
    return {"rows": rows, "checkpoints": found}


@pytest.mark.parametrize("nan_at", [None, 9], ids=["bursts", "NaN"])
def test_stopped_at_every_step_of_a_run_that_diverges(tmp_path: Path, nan_at: int | None) -> None:
    whole = one(tmp_path / "whole", nan_at=nan_at)
    expected = left(tmp_path / "whole")
    assert any(row.get("event") == "back_off" for row in expected["rows"]), "it has to diverge"
    for stop in range(1, LONG["steps"]):
        run = tmp_path / str(stop)
        with pytest.raises(Interrupted):
            one(run, stop_at=stop, nan_at=nan_at)
        assert stop in checkpoints.steps(run / "checkpoints")
        again = one(run, resume=True, nan_at=nan_at)
        assert torch.equal(weights(again), weights(whole)), stop
        assert left(run) == expected, stop


def test_stopped_at_each_step_one_after_another(tmp_path: Path) -> None:
    whole = one(tmp_path / "whole")
    for stop in range(1, LONG["steps"]):
        with pytest.raises(Interrupted, match=f"after step {stop}$"):
            one(tmp_path / "parts", stop_at=stop, resume=stop > 1)
    again = one(tmp_path / "parts", resume=True)
    assert torch.equal(weights(again), weights(whole))
    assert left(tmp_path / "parts") == left(tmp_path / "whole")


def test_stops_do_not_push_good_checkpoints_out(tmp_path: Path) -> None:
    settings = {"steps": 8, "checkpoint_every": 2, "keep_checkpoints": 2}
    for stop in (5, 7):
        with pytest.raises(Interrupted):
            trainer(Regression(), tmp_path, stop_at=stop, **settings).train(resume=stop > 5)
        assert checkpoints.steps(tmp_path / "checkpoints") == [stop - 3, stop - 1, stop]
    train(Regression(), tmp_path, resume=True, **settings)
    assert checkpoints.steps(tmp_path / "checkpoints") == [6, 8]


def test_a_kill_between_writing_and_deleting_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 8, "checkpoint_every": 2, "keep_checkpoints": 1}

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        train(Regression(), tmp_path, **(settings | {"steps": 2}))
        patch.setattr(checkpoints, "prune", kill)
        with pytest.raises(Killed):
            train(Regression(), tmp_path, resume=True, **settings)
    assert checkpoints.steps(tmp_path / "checkpoints") == [2]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "drop", kill)
        with pytest.raises(Killed):
            train(Regression(), tmp_path, resume=True, **settings)
    monkeypatch.undo()
    train(Regression(), tmp_path, resume=True, **settings)
    assert checkpoints.steps(tmp_path / "checkpoints") == [8]


def test_from_an_earlier_step_the_later_ones_are_of_another_training(tmp_path: Path) -> None:
    """Gone back by hand to step 4, a NaN at 6 must not lead to step 12 of before."""
    settings = LONG | {"steps": 12, "keep_checkpoints": 9, "divergence_factor": None}
    train(Regression(), tmp_path, **settings)
    assert checkpoints.steps(tmp_path / "checkpoints") == [0, 4, 8, 12]
    objective = Bursting(10**6, nan_at=6, limit=0)
    made = trainer(objective, tmp_path, **settings)
    objective.rate = 1.0

    def calm(progress: Any) -> None:
        objective.rate = 1.0 if progress.step < 7 else 0.0

    made.on_progress = calm
    real = made._go_back

    def go_back(why: str) -> None:
        real(why)
        objective.rate = 0.0
        made.on_progress = None

    made._go_back = go_back  # type: ignore[method-assign]
    made.train(resume=True, at=4)
    [event] = [row for row in read(tmp_path / "metrics.jsonl") if row.get("event") == "back_off"]
    assert "Went back from step 6 to 4" in event["message"]


@pytest.mark.parametrize("steps", [(7, 18), (12, 18), (6, 7, 13, 18)], ids=str)
def test_going_on_for_longer_is_as_if_planned(tmp_path: Path, steps: tuple[int, ...]) -> None:
    settings = LONG | {"divergence_factor": None, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2}}
    whole = train(Regression(), tmp_path / "whole", **settings)
    for number, end in enumerate(steps):
        again = train(Regression(), tmp_path / "parts", resume=number > 0, **(settings | {"steps": end}))
    assert torch.equal(weights(again), weights(whole))
    ours, theirs = left(tmp_path / "parts"), left(tmp_path / "whole")
    assert ours == theirs
    assert json.loads((tmp_path / "parts/result.json").read_text()) == weights(whole).tolist()


def test_a_finished_run_resumed_is_what_it_was(tmp_path: Path) -> None:
    settings = LONG | {"steps": 7}
    first = train(Regression(), tmp_path, **settings)
    before = left(tmp_path)
    assert torch.equal(weights(train(Regression(), tmp_path, resume=True, **settings)), weights(first))
    assert left(tmp_path) == before


def test_it_says_where_the_schedule_does_not_allow_it(tmp_path: Path) -> None:
    settings = LONG | {"steps": 8, "optimizer": {"learning_rate": 1e-2, "schedule": "cosine"}}
    train(Regression(), tmp_path, **settings)
    train(Regression(), tmp_path, resume=True, **(settings | {"steps": 16}))
    [event] = [row for row in read(tmp_path / "metrics.jsonl") if row.get("event") == "replanned"]
    assert "16 steps from the begin would have had other learning rates" in event["message"]
    assert "at step 2" in event["message"]


def test_more_steps_after_an_early_end_ask_for_patience(tmp_path: Path) -> None:
    settings = LONG | {"steps": 14, "validate_every": 1, "patience": 1, "optimizer": {"learning_rate": 0.5}}
    train(Regression(), tmp_path, **settings)
    ended = max(checkpoints.steps(tmp_path / "checkpoints"))
    assert ended < 14
    train(Regression(), tmp_path, resume=True, **settings)
    with pytest.raises(UserError, match=rf"ended early, at step {ended}: .*patience=null"):
        train(Regression(), tmp_path, resume=True, **(settings | {"steps": 16}))
    train(Regression(), tmp_path, resume=True, **(settings | {"steps": 16, "patience": None}))
    assert max(checkpoints.steps(tmp_path / "checkpoints")) == 16

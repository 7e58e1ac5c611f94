"""Divergence, overfitting, early stopping: said, logged, acted on."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Regression, train, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.judge import Judge
from hyperbrush.training.loop.metrics import read

SLOW = {"log_every": 1, "validate_every": 1000}


def figures(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read(run / "metrics.jsonl")]


def events(run: Path) -> dict[str, dict[str, Any]]:
    return {row["event"]: row for row in read(run / "metrics.jsonl") if "event" in row}


class Rises(Regression):
    """Its loss is made `times` as large from a step on, as long as the rate is above `limit`."""

    def __init__(self, begin: int, times: float, end: int = 10**9, limit: float = 0.0) -> None:
        super().__init__()
        self.begin, self.times, self.end, self.limit = begin, times, end, limit
        self.rate = lambda: 1.0

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        bad = self.begin <= step < self.end and self.rate() > self.limit
        return super().batch(step, batch_size) | {"times": self.times if bad else 1.0}

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(batch)["loss"] * batch.get("times", 1.0)}


def go(objective: Rises, run: Path, *, resume: bool = False, **change: Any) -> Rises:
    made = trainer(objective, run, **(SLOW | change))
    objective.rate = lambda: made.optimizer.param_groups[0]["lr"]
    made.train(resume=resume)
    return objective


def test_a_judge_needs_enough_losses_and_says_it_once() -> None:
    judge = Judge(divergence_factor=3.0)
    assert not any(judge.train(step, 1.0 if step < 25 else 9.0) for step in range(1, 25))
    judge = Judge(divergence_factor=3.0)
    said = [judge.train(step, 1.0 if step <= 50 else 9.0) for step in range(1, 200)]
    assert [step for step, words in enumerate(said, 1) if words] == [55]
    assert said[54] == "step 55: the loss is 5.0 times its usual since step 46, it diverges"
    assert judge.diverging_since == 46, "the median does not get used to it"
    for step in range(200, 210):
        judge.train(step, 1.0)
    assert judge.diverging_since is None
    off = Judge(divergence_factor=None)
    assert not any(off.train(step, 1.0 if step <= 50 else 9.0) for step in range(1, 200))


def test_single_outliers_are_no_divergence() -> None:
    judge = Judge(divergence_factor=3.0)
    assert not any(judge.train(step, 100.0 if step % 4 == 0 else 1.0) for step in range(1, 300))


def test_validation_verdicts() -> None:
    judge = Judge(overfitting_after=2, patience=3)
    said = [judge.validate(10 * n, loss) for n, loss in enumerate([3.0, 1.0, 2.0, 3.0, 4.0], 1)]
    assert said[:3] == [[], [], []]
    assert said[3] == [
        (
            "overfitting",
            "step 40: the validation loss has risen 2 times in a row, it overfits; the lowest was 1 at step 20",
        )
    ]
    assert [event for event, _ in said[4]] == ["early_stop"]
    again = Judge(overfitting_after=2, patience=4).restored(judge.state())
    assert not again.patience_exceeded, "the settings are those of now"
    assert again.without_better == 3


def test_divergence_is_said_with_the_step_to_go_back_to_and_that_one_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    change = SLOW | {"steps": 120, "checkpoint_every": 10, "optimizer": {"learning_rate": 1e-4}}
    with caplog.at_level(logging.WARNING):
        train(Rises(50, 50.0), tmp_path, on_progress=lambda p: seen.extend(p.notes), **change)
    found = events(tmp_path)["diverging"]
    assert (found["step"], found["back_to"]) == (55, 40)
    assert seen == [found["message"]]
    assert "since step 46, it diverges; resume at step 40 with a lower rate" in caplog.text
    assert checkpoints.steps(tmp_path / "checkpoints") == [40, 110, 120]
    quiet = train(Rises(50, 50.0), tmp_path / "off", **(change | {"divergence_factor": None}))
    assert not events(tmp_path / "off")
    assert weights(quiet).isfinite().all()


@pytest.mark.parametrize("times", [50.0, float("nan")], ids=["diverging", "nan"])
def test_backing_off_goes_on_with_a_lower_rate(tmp_path: Path, times: float) -> None:
    """Bad above a rate of 4e-4: 1e-3 goes back to a half and to a quarter, and ends well."""
    change: dict[str, Any] = {
        "steps": 100,
        "checkpoint_every": 10,
        "keep_checkpoints": 20,
        "on_divergence": "back_off",
        "optimizer": {"learning_rate": 1e-3},
    }
    whole = go(Rises(50, times, limit=4e-4), tmp_path / "whole", **change)
    rows = figures(tmp_path / "whole")
    told = [row for row in rows if row.get("event") == "back_off"]
    assert [row["rate_factor"] for row in told] == [0.5, 0.25]
    assert {row["step"] for row in told} == {31 if times == 50 else 41}
    assert "Went back from step" in told[0]["message"]
    rates = {row["step"]: row["learning_rate"] for row in rows if "loss" in row}
    assert (rates[1], rates[100]) == (1e-3, 2.5e-4)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 101)), "no step is told twice"
    assert weights(whole).isfinite().all()

    for stop in (45, 70):  # before and after it: a resume ends the same
        run = tmp_path / str(stop)
        with pytest.raises(Interrupted):
            go(Rises(50, times, limit=4e-4), run, stop_at=stop, **change)
        again = go(Rises(50, times, limit=4e-4), run, resume=True, **change)
        assert torch.equal(weights(whole), weights(again)), stop
        assert figures(run) == rows, "figures and events"

    strong = change | {"back_off_factor": 0.1}
    go(Rises(50, times, limit=4e-4), tmp_path / "strong", **strong)
    assert events(tmp_path / "strong")["back_off"]["rate_factor"] == 0.1
    with pytest.raises(UserError, match="lowered 1 times in vain"):
        go(Rises(50, times, limit=4e-4), tmp_path / "once", **(change | {"back_off_times": 1}))


def test_backing_off_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    change = {"on_divergence": "back_off", "checkpoint_every": 5, "optimizer": {"learning_rate": 1e-3}}
    objective = go(Rises(3, float("inf"), limit=6e-4), tmp_path, **change)
    assert events(tmp_path)["back_off"]["step"] == 1
    calm = go(Rises(3, float("inf"), limit=6e-4), tmp_path / "calm", optimizer={"learning_rate": 5e-4})
    torch.testing.assert_close(weights(objective), weights(calm))


def test_a_bad_picture_is_named_in_the_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is nan.*3-0\.png.*lowered 3 times in vain"):
        go(Rises(3, float("nan")), tmp_path, on_divergence="back_off")
    assert checkpoints.latest(tmp_path / "checkpoints") is not None


class Validated(Regression):
    """Its validation losses are given."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def validate(self) -> dict[str, float]:
        return {"loss": self.losses.pop(0)}


LOSSES = [3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_early_stopping_keeps_the_best_and_stays_stopped(tmp_path: Path) -> None:
    change = {"validate_every": 1, "steps": 50, "keep_best": True, "ema_decay": None}
    one = train(Validated(LOSSES[:2]), tmp_path / "two", **(change | {"steps": 2}))
    early = train(Validated([*LOSSES]), tmp_path / "early", patience=3, **change)
    assert torch.equal(weights(one), weights(early)), "the weights of the lowest loss"
    assert read(tmp_path / "early/metrics.jsonl")[-1]["step"] == 5
    assert events(tmp_path / "early")["early_stop"]["message"].startswith("stopped early at step 5: ")
    assert events(tmp_path / "early")["overfitting"]["step"] == 5
    before = figures(tmp_path / "early")
    again = train(Validated([]), tmp_path / "early", resume=True, patience=3, **change)
    assert torch.equal(weights(early), weights(again))
    assert figures(tmp_path / "early") == before
    longer = train(Validated(LOSSES[5:]), tmp_path / "early", resume=True, patience=5, **change)
    assert read(tmp_path / "early/metrics.jsonl")[-1]["step"] == 7
    assert torch.equal(weights(one), weights(longer))


def test_overfitting_after_can_be_told(tmp_path: Path) -> None:
    train(Validated([*LOSSES]), tmp_path, validate_every=1, overfitting_after=2)
    assert events(tmp_path)["overfitting"]["step"] == 4


def test_without_held_out_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="patience needs held-out pictures"):
        train(Regression(held_out=False), tmp_path, patience=2)
    seen: list[str] = []
    train(Regression(held_out=False), tmp_path, keep_best=True, on_progress=lambda p: seen.extend(p.notes))
    assert seen == ["no pictures are held out to judge by: the averaged last weights are kept"]
    assert "keep_best" in events(tmp_path)
    train(Regression(), tmp_path / "held", keep_best=True)
    assert not events(tmp_path / "held")

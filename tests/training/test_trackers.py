"""Trackers that Accelerate starts, and what they are told."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from toys import Regression, trainer

from hyperbrush.errors import UserError
from hyperbrush.training.trackers import make_trackers


class Trackio(types.ModuleType):
    """What Accelerate calls of trackio, written down."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
        self.told: list[tuple[str, Any]] = []
        self.config = types.SimpleNamespace(update=lambda values, **_: self.told.append(("config", values)))

    def init(self, **settings: Any) -> Any:
        self.told.append(("init", settings))
        return types.SimpleNamespace(
            log=lambda values, step, **_: self.told.append((f"step {step}", values)),
            finish=lambda: self.told.append(("finish", None)),
        )


def train_with(run: Path, trackers: list[Any]) -> None:
    made = trainer(Regression(), run, trackers=["tensorboard"])
    made.accelerator.log_with = trackers
    made.train()


def test_trackio_is_told_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    train_with(tmp_path / "ink", make_trackers(["trackio", "trackio"], tmp_path / "ink"))
    assert fake.told[0] == ("init", {"project": "hyperbrush", "name": "ink", "resume": "allow"})
    steps = [what for what, _ in fake.told[1:-1]]
    assert steps == [f"step {n}" for n in range(1, 7)]
    assert {"loss", "learning_rate"} <= fake.told[1][1].keys()
    assert any("validation_loss" in values for _, values in fake.told[1:-1]), "validation is told too"
    assert fake.told[-1] == ("finish", None)
    [named] = make_trackers(["trackio"], tmp_path, name="my run")
    named.start()
    assert fake.told[-1][1]["name"] == "my run"


def test_the_real_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    train_with(tmp_path / "ink", make_trackers(["trackio"], tmp_path / "ink"))
    assert (tmp_path / "trackio/hyperbrush.db").stat().st_size > 1000


def test_tensorboard_writes_into_the_run(tmp_path: Path) -> None:
    train_with(tmp_path / "ink", make_trackers(["tensorboard"], tmp_path / "ink"))
    assert list((tmp_path / "ink/tensorboard").glob("events.out.tfevents.*"))


def test_what_is_missing_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_trackers([], tmp_path) == []
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        make_trackers(["tensorbord"], tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    with pytest.raises(UserError, match="tracker 'trackio' needs the package trackio; pip install trackio"):
        make_trackers(["trackio"], tmp_path)

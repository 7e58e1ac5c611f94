"""Trackers that Accelerate starts, and what they are told."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image
from toys import Regression, trainer

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop.trackers import make_trackers


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
    PartialState()  # which Accelerate's logging wants; a training leaves none
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


class Drawn(Regression):
    """A preview of one colour."""

    def preview(self) -> Image.Image:
        return Image.new("RGB", (8, 6), (200, 10, 10))


def test_tensorboard_shows_previews_and_no_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"trackers": ["tensorboard"], "preview_every": 3, "checkpoint_every": 2}
    with pytest.raises(Interrupted):
        trainer(Drawn(), tmp_path, stop_at=5, **settings).train()
    (tmp_path / "checkpoints/step-00000005.safetensors").unlink()  # as after a kill: it goes on from step 4
    trainer(Drawn(), tmp_path, **settings).train(resume=True)
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    shown = found.Images("previews")
    assert [(event.step, event.width, event.height) for event in shown] == [(3, 8, 6), (6, 8, 6)]


def test_wandb_is_told_and_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    told: list[tuple[Any, Any]] = []
    fake.Image = lambda picture: ("picture", picture.size)
    fake.init = lambda **settings: (
        told.append(("init", settings)),
        types.SimpleNamespace(log=lambda values, step, **_: told.append((step, values)), finish=lambda: None),
    )[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = {"trackers": ["wandb"], "preview_every": 3}
    with pytest.raises(Interrupted):
        trainer(Drawn(), tmp_path / "ink", stop_at=3, **settings).train()
    trainer(Drawn(), tmp_path / "ink", **settings).train(resume=True)
    begun = [settings for what, settings in told if what == "init"]
    assert begun[0] == begun[1]
    assert begun[0]["project"] == "hyperbrush"
    assert (begun[0]["name"], begun[0]["resume"]) == ("ink", "allow")
    losses = [step for step, values in told if "loss" in values]
    assert losses == [1, 2, 3, 4, 5, 6]
    assert [(step, v) for step, v in told if "previews" in v] == [
        (step, {"previews": [("picture", (8, 6))]}) for step in (3, 6)
    ]

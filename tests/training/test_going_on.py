"""A run that goes on obeys what it is told, or refuses it by name; nothing that only looks trains."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import Regression, trainer

from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted
from hyperbrush.training.attention.run import HypernetworkRun
from hyperbrush.training.generator.run import GeneratorRun
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.loop.run_folder import opened_run, run_lock
from hyperbrush.training.loop.settings import resumed


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ok(*words: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert ended.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def run(
    tmp_path: Path, pictures: Path, make_tiny: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A finished run of two steps, on a tiny model."""
    monkeypatch.chdir(tmp_path)
    make_tiny().save_pretrained(tmp_path / "model")
    settings = ["-s", "schedule=constant", "-s", "checkpoint_every=1", "-s", "log_every=1"]
    told = ["--data", "pictures", "--name", "ink", "--model", "model", "--steps", "2", "--batch-size", "2"]
    ok("train", *told, *settings, "-s", "validation_share=0")
    return tmp_path / "runs/ink"


def test_flags_of_a_run_that_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    for words, said in (
        (["--batch-size", "4"], "--batch-size (it has 2, given 4)"),
        (["--seed", "1"], "--seed (it has 0, given 1)"),
        (["--name", "other"], "--name (it has 'ink', given 'other')"),
        (["--model", "emoji"], "--model"),
        (["--from", "x.pt"], "--from"),
        (["--run", "elsewhere"], "--run cannot be used with --resume"),
        (["--preset", "quick"], "--preset cannot be used with --resume"),
        (["--find-batch-size"], "--find-batch-size cannot be used with --resume"),
        (["-s", "loss=huber"], "-s training.loss (it has 'mse', given 'huber')"),
        (["-s", "layer_norm=true"], "-s network.layer_norm"),
        (["--steps", "1"], "has made 2 steps already"),
        (["--steps", "-3"], "max_steps"),
        (["--at", "7"], "no checkpoint at step 7"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "pictures", "--data", "pictures"], "the run has 1 folders of data, given 2"),
        ([run / "config.yaml"], "config.yaml cannot be used with --resume"),
    ):
        assert said in refused(capsys, "train", "--resume", run, *words), words
        assert tree(run) == before, words
    assert "--at 1 is the step" in refused(capsys, "train", "--data", "pictures", "--name", "x", "--at", "1")
    assert "--processes 0" in refused(capsys, "train", "--resume", run, "--processes", "0")
    assert not (run.parent / "x").exists()

    ok("train", "--resume", str(run), "--dry-run", "--steps", "5")
    assert "from step 2, 3 to do" in capsys.readouterr().out
    assert tree(run) == before

    shutil.move("pictures", "moved")
    ok("train", "--resume", str(run), "--steps", "3", "--data", "moved", "--hypernetworks", "library")
    assert [row["step"] for row in read(run / "metrics.jsonl") if "loss" in row] == [1, 2, 3]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["training"]["max_steps"] == 3
    assert config["data"][0]["path"] == "moved"
    assert Path("library/ink.safetensors").is_file()


def test_a_run_that_stands_there_is_not_touched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    again = ["train", "--data", "pictures", "--name", "ink", "--model", "model", "--steps", "9"]
    assert "holds checkpoints of another training: go on with --resume" in refused(capsys, *again)
    assert tree(run) == before
    shutil.rmtree(run / "checkpoints")  # as while the first one runs
    with run_lock(run):
        before = tree(run)
        assert f"in use by another training (process {os.getpid()}" in refused(capsys, *again)
        assert tree(run) == before
    wrong = ["train", "--data", "model", "--name", "new", "--model", "model"]
    refused(capsys, *wrong)
    assert not (run.parent / "new").exists(), "nothing is begun"
    Path("file").touch()
    assert "expected a folder for the finished file" in refused(
        capsys, *again, "--run", "other", "--hypernetworks", "file"
    )
    assert not Path("other").exists()


def test_ldm_train_looks_before_it_writes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {
        "kind": "first_stage",
        "data": {"size": 32, "folders": ["pictures"]},
        "model": {"channels": [8, 16]},
        "training": {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "log_every": 1},
    }
    Path("foo.yaml").write_text(yaml.safe_dump(values))
    ok("ldm", "train", "foo.yaml")
    run = tmp_path / "runs/foo"
    before = tree(run)
    Path("foo.yaml").write_text(yaml.safe_dump(values | {"model": {"channels": [8, 8]}}))
    assert "holds checkpoints of another training" in refused(capsys, "ldm", "train", "foo.yaml")
    assert tree(run) == before
    assert "expected 1 or more" in refused(capsys, "ldm", "train", "--resume", run, "--steps", "-3")
    assert "expected 1 or more" in refused(capsys, "ldm", "train", "foo.yaml", "--run", "n", "--steps", 0)
    assert "has made 2 steps already" in refused(capsys, "ldm", "train", "--resume", run, "--steps", "1")
    assert tree(run) == before
    ok("ldm", "train", "--resume", str(run), "--steps", "3")
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] == 3
    assert checkpoints.steps(run / "checkpoints") == [2, 3]
    missing = values | {"data": {"size": 32, "folders": ["nowhere"]}}
    Path("bad.yaml").write_text(yaml.safe_dump(missing))
    refused(capsys, "ldm", "train", "bad.yaml")
    assert not Path("runs/bad").exists()


@pytest.mark.parametrize("kind", [HypernetworkRun, GeneratorRun], ids=lambda k: k.__name__)
def test_a_setting_is_obeyed_or_refused_by_name(tmp_path: Path, kind: Any) -> None:
    """Whatever is changed, the result has it, or the error names it."""
    data: Any = "d" if kind is GeneratorRun else ["d"]
    config = kind.model_validate({"name": "n", "data": data})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    others: dict[str, Any] = {"rank": 2, "size": 32, "batch_size": 5, "seed": 9, "learning_rate": 7e-4}
    others |= {"max_steps": 77, "keep_checkpoints": 7, "flip": 0.25, "patience": 4, "ema_decay": 0.5}
    own = config.training.model_dump() | config.network.model_dump()
    tried = 0
    for key, value in others.items():
        if key not in own:
            continue
        tried += 1
        if key in ("learning_rate", "max_steps", "keep_checkpoints", "patience"):
            after, changed = resumed(kind, tmp_path, settings=[f"{key}={value}"])
            assert changed
            assert getattr(after.training, key) == value
        else:
            with pytest.raises(UserError, match=key.replace("_", "[-_]")):
                resumed(kind, tmp_path, settings=[f"{key}={value}"])
    assert tried >= 8
    assert resumed(kind, tmp_path) == (config, False)


def test_it_goes_on_with_the_threads_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = torch.get_num_threads()
    seen: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    try:
        torch.set_num_threads(3)
        with pytest.raises(Interrupted):
            trainer(Regression(), tmp_path, stop_at=2).train()
        torch.set_num_threads(1)
        with pytest.raises(Interrupted):
            look = trainer(
                Regression(), tmp_path, stop_at=3, on_progress=lambda _: seen.append(torch.get_num_threads())
            )
            look.train(resume=True)
        assert seen == [3]
        assert torch.get_num_threads() == 1, "the caller's own afterwards"
        assert "began with 3 CPU threads" in caplog.text
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        trainer(Regression(), tmp_path, on_progress=lambda _: seen.append(torch.get_num_threads())).train(
            resume=True
        )
        assert set(seen[1:]) == {1}
        assert "this machine has 2" in caplog.text
    finally:
        torch.set_num_threads(own)


def test_whatever_a_kill_left_is_cleared_before_pictures_are_encoded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = [run, run / "cache/latents/0a", run / "cache/texts/context/0b", run / "saved/step-00000002"]
    places += [run / "checkpoints", run / "previews"]
    for place in places:
        place.mkdir(parents=True)
        (place / ".x.part-abcd.safetensors").write_bytes(b"half")
    (run / ".model.part-abcd").mkdir()
    (run / ".first_stage.part-abcd.old").mkdir()
    (run / ".first_stage.part-abcd.old/weights").write_text("whole")
    with opened_run(run):
        assert not list(run.rglob("*.part-*"))
        assert (run / "first_stage/weights").read_text() == "whole", "what was being replaced is back"
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".y.part-abcd.safetensors").write_bytes(b"another machine's")
    (run / "cache/link").symlink_to(shared)
    with opened_run(run):
        assert list(shared.iterdir()), "others may be writing there"

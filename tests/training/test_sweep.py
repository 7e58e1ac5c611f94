"""A sweep: what is tried and checked, one comparison at the end, and nothing lost on the way."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from rich.console import Console

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.cli import console, main
from hyperbrush.errors import UserError
from hyperbrush.generation import grids
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.shell import quoted
from hyperbrush.training.attention.run import train_run
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.progress import Progress
from hyperbrush.training.report.contact_sheet import save_previews
from hyperbrush.training.sweep.claim import Held, claim
from hyperbrush.training.sweep.outcome import outcome_of
from hyperbrush.training.sweep.run import begin, same_threads, work
from hyperbrush.training.sweep.settings import SweepConfig, Trial, read_sweep
from hyperbrush.training.sweep.table import LABELLED, chart, compare, finish
from hyperbrush.training.sweep.workers import worker_environment


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., LatentDiffusion]
) -> dict[str, str]:
    """Eight pictures to train on, two held out, and a small model of the embedded one's pictures."""
    found = {"model": str(tmp_path_factory.mktemp("model"))}
    make_tiny(image_size=64, attention_resolutions=[16]).save_pretrained(found["model"])
    files = sorted((style_folder() / "validation").glob("*.png"))
    for name, chosen in (("data", files[:8]), ("validation", files[8:10])):
        folder = tmp_path_factory.mktemp(name)
        for file in chosen:
            (folder / file.name).write_bytes(file.read_bytes())
        found[name] = str(folder)
    return found


@pytest.fixture
def write(data: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    """Write a sweep's file; training settings by name."""

    def made(sweep: Any, *, training: dict[str, Any] | None = None, **values: Any) -> Path:
        steps = {"max_steps": 2, "batch_size": 4, "validate_every": 1, "checkpoint_every": 1, "log_every": 1}
        about = {**data, "hypernetworks": str(tmp_path / "library"), "training": steps | (training or {})}
        path = tmp_path / "ink.yaml"
        path.write_text(yaml.safe_dump(about | values | {"sweep": sweep}, sort_keys=False))
        return path

    return made


def weights(trial: Trial) -> torch.Tensor:
    network = hb.load(trial.run / "ink.safetensors")
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def ended(folder: Path, **outcomes: Any) -> None:
    """Write what each trial came to, by hand; values by field, one for each trial."""
    for trial in read_sweep(folder).trials:
        own = {name: values[trial.number] for name, values in outcomes.items()}
        about = {"number": trial.number, "label": trial.label, "state": "done", "file": "ink.safetensors"}
        trial.run.mkdir(parents=True)
        (trial.run / "trial.json").write_text(json.dumps(about | own))
        (trial.run / "ink.safetensors").write_bytes(bytes([trial.number]))
        loss = {} if own.get("best_loss") is None else {"validation_loss": own["best_loss"]}
        rows = [{"step": step, **loss} for step in (1, 2)]
        (trial.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tried(folder: Path) -> list[dict[str, Any]]:
    return [dict(trial.settings) for trial in read_sweep(folder).trials]


def test_a_grid_is_compared(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"learning_rate": ["3e-3", 1e-9], "activation": ["relu", "linear"]}
    path = write({"grid": grid}, training={"prompts": ["cat face"], "preview_every": 2, "preview_steps": 1})
    folder = tmp_path / "sweep"
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--run", str(folder)])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "learning_rate" in said.out
    assert "best: trial" in said.out
    assert "trial 3 of 4: learning_rate=1e-09, activation=linear" in said.err

    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    losses = [float(row["validation_loss"]) for row in rows]
    assert losses == sorted(losses)
    assert [row["training.learning_rate"] for row in rows] == ["3e-3", "3e-3", "1e-09", "1e-09"]
    assert {row["network.activation"] for row in rows[:2]} == {"relu", "linear"}
    assert all(float(row["without"]) == pytest.approx(float(rows[0]["without"])) for row in rows)
    assert float(rows[0]["gain"]) == pytest.approx(1 - losses[0] / float(rows[0]["without"]))
    found = json.loads((folder / "sweep.json").read_text())
    assert [row["trial"] for row in found["trials"]] == [int(row["trial"]) for row in rows]

    sweep = read_sweep(folder)
    assert [t.run.name for t in sweep.trials][1] == "0001-learning_rate=3e-3,activation=linear"
    best = sweep.trials[found["best"]]
    assert (tmp_path / "library/ink.safetensors").read_bytes() == (best.run / "ink.safetensors").read_bytes()
    assert list((tmp_path / "library").iterdir()) == [tmp_path / "library/ink.safetensors"]
    for trial in sweep.trials:
        assert (trial.run / "report.html").is_file(), "each is an ordinary run"
        assert (trial.run / "cache/latents").resolve().parent == folder / "latents"
    assert len(list((folder / "latents").iterdir())) == 1, "encoded once for all"
    assert Image.open(folder / "sweep.png").size == (1760, 840)
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 2
    assert "learning_rate=1e-09, activation=linear" in page

    with pytest.raises(UserError, match="holds a sweep already; go on with --resume"):
        begin(path, folder)
    (folder / "sweep.csv").unlink()
    (best.run / "metrics.jsonl").rename(best.run / "kept.jsonl")
    with pytest.raises(SystemExit):
        main(["sweep", "--resume", str(folder)])
    assert (folder / "sweep.csv").is_file()
    assert not (best.run / "metrics.jsonl").exists(), "what is done is not done again"


def test_a_list_with_a_failure(write: Callable[..., Path], tmp_path: Path) -> None:
    broken = {"optimizer": "SGD", "learning_rate": 1e38, "on_divergence": "stop", "warmup_steps": 0}
    missing = {"model": "no such folder"}
    path = write({"list": [broken, missing, {"loss": "l1"}]}, training={"max_steps": 3})
    folder = begin(path, tmp_path / "sweep")
    said: list[str] = []
    assert work(folder, note=said.append)
    found = finish(folder)
    assert [row.outcome.number for row in found.rows] == [2, 0, 1]
    assert [row.outcome.state for row in found.rows] == ["done", "failed", "failed"]
    assert "not finite" in found.rows[1].outcome.error or "is nan" in found.rows[1].outcome.error
    assert "trial 1 failed: " in found.text()
    assert any(line.startswith("trial 0: failed: ") for line in said)
    assert found.file == tmp_path / "library/ink.safetensors"


def test_a_bug_in_one_trial_is_a_row_too(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    folder = begin(write({"list": [{"seed": 1}, {"seed": 2}]}), tmp_path / "sweep")
    monkeypatch.setattr("hyperbrush.training.sweep.run.train_run", fail)
    assert work(folder)
    found = finish(folder)
    assert {row.outcome.error.partition(" (")[0] for row in found.rows} == {"ZeroDivisionError: oh"}
    assert "in fail" in (found.rows[0].trial.run / "error.txt").read_text()
    assert found.best is None
    assert found.file is None

    (found.rows[0].trial.run / "trial.json").unlink()
    monkeypatch.undo()
    assert work(folder), "a row whose trial.json is deleted is tried again"
    assert compare(read_sweep(folder)).rows[0].outcome.state == "done"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"grid": {"learning_rte": [1]}}, "unknown setting 'learning_rte'; did you mean 'learning_rate'"),
        ({"grid": {"seed": [1], "training.seed": [2]}}, "a setting is given twice among seed, training.seed"),
        ({"grid": {"seed": [1]}, "seeds": [1, 2]}, "a setting is given twice"),
        ({"grid": {"hypernetworks": ["a"]}}, "'hypernetworks' is the same for all trials"),
        ({"grid": {"seed": [1]}, "list": [{"seed": 1}]}, r"expected a grid .* or a list"),
        ({}, "expected a grid"),
        ({"grid": {"seed": []}}, "grid: no values for seed"),
        ({"list": [{"seed": 1}], "random": 1}, "random draws from a grid"),
        ({"grid": {"seed": [1]}, "sedes": [1]}, "unknown setting 'sedes', did you mean 'seeds'"),
        (
            {"grid": {"seed": list(range(50)), "max_steps": list(range(1, 50))}},
            "2,450 trainings are too many",
        ),
        (
            {"grid": {"batch_size": [4, 0, -1]}},
            r"trial 1 \(batch_size=0\): .* 1 .*; trial 2 \(batch_size=-1\)",
        ),
        ({"grid": {"layer_structure": [[1, 1 / 2000, 1]]}}, "every layer must be at least 1 wide"),
        ({"grid": {"activation": ["relu", "rellu"]}}, r"trial 1 \(activation=rellu\): unknown activation"),
        ({"grid": {"weight_init": ["zero", "nought"]}}, "unknown weight_init"),
        ({"grid": {"optimizer": ["adamw", "adamm"]}}, "unknown optimizer 'adamm'"),
        ({"grid": {"optimizer_options": [{"nesterof": True}]}}, "unknown setting of optimizer"),
        ({"grid": {"schedule": ["cosin"]}}, "unknown learning-rate schedule"),
        ({"grid": {"weighting": ["min_snt"]}}, "unknown loss weighting"),
        ({"grid": {"timestep_sampling": ["even"]}}, "unknown timestep sampling"),
        ({"grid": {"templates": ["styel"]}}, "unknown set of prompt templates"),
        ({"grid": {"preset": ["quick", "quik"]}}, "unknown preset 'quik'"),
        ({"grid": {"data": ["nowhere"]}}, "there is no folder nowhere"),
        ({"grid": {"start_from": ["nothing.pt"]}}, "there is no file nothing.pt to start from"),
        ({"grid": {"gradient_accumulation": [3]}}, "cannot be split"),
        ({"grid": {"validation_share": [0.0], "validation": [[]]}}, "no pictures are held out to compare by"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_before_the_first_begins(
    write: Callable[..., Path], tmp_path: Path, sweep: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        begin(write(sweep), tmp_path / "sweep")
    assert not (tmp_path / "sweep/sweep.yaml").exists()
    assert not (tmp_path / "sweep/trials").exists()


def test_an_error_of_all_trials_is_told_once(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"grid": {"seed": [1, 2, 3]}}, training={"batch_size": 0})
    with pytest.raises(UserError) as caught:
        begin(path, tmp_path / "sweep")
    assert str(caught.value).count("batch_size") == 1
    assert "trial 0" not in str(caught.value)


def test_files_and_folders_that_are_no_sweep(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="has no 'sweep' to try"):
        begin(write(None), tmp_path / "sweep")
    with pytest.raises(UserError, match="is no sweep's folder"):
        work(tmp_path)
    folder = begin(write({"grid": {"seed": [1, 2]}}), tmp_path / "sweep")
    with pytest.raises(UserError, match="--workers 0; expected 1 or more"):
        work(folder, workers=0)
    with pytest.raises(UserError, match="2 of 2 trials are still to be done; go on with"):
        finish(folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="take --workers in place of accelerate launch"):
        work(folder)


def test_presets_seeds_draws_and_structures(write: Callable[..., Path], tmp_path: Path) -> None:
    narrow = begin(write({"grid": {"layer_structure": [[1, 1 / 16, 1]]}}), tmp_path / "narrow")
    assert read_sweep(narrow).trials[0].config.network.layer_structure[1] == 1 / 16
    sweep: dict[str, Any] = {"grid": {"layer_structure": [[1, 1], [1, 2, 1]], "preset": ["quick", "style"]}}
    path = write(sweep | {"seeds": [5, 6]}, training={"validate_every": 7})
    folder = begin(path, tmp_path / "a")
    found = read_sweep(folder).trials
    assert len(found) == 8
    assert found[0].label == "layer_structure=[1, 1], preset=quick, seed=5"
    assert found[0].run.name == "0000-layer_structure=_1,1_,preset=quick,seed=5"
    assert found[3].config.network.layer_structure == [1, 1]
    assert (found[3].config.training.seed, found[3].config.training.templates) == (6, "style_filewords")
    assert found[0].config.training.validate_every == 7, "the file wins over a preset"

    grid = {"grid": {"seed": list(range(100)), "max_steps": list(range(1, 101))}, "random": 20}
    drawn = [tried(begin(write(grid), tmp_path / name)) for name in "bc"]
    assert drawn[0] == drawn[1]
    assert len({json.dumps(one) for one in drawn[0]}) == 20
    assert drawn[0] != tried(begin(write(grid | {"random": 21}), tmp_path / "d"))[1:]
    everything = SweepConfig.model_validate({"grid": {"a": [1, 2], "b": [3, 4]}, "random": 9}).combinations()
    assert everything == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_interrupted_and_resumed_it_ends_the_same(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write({"list": [{"learning_rate": 1e-3}, {"learning_rate": 3e-3}]}, training={"max_steps": 4})
    whole, parts = begin(path, tmp_path / "whole"), tmp_path / "parts"
    assert work(whole)

    @contextlib.contextmanager
    def patience_exceeded(_: str) -> Iterator[Callable[[Progress], None]]:
        yield lambda told: signal.raise_signal(signal.SIGINT) if told.step == 1 else None

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(console, "training_bar", patience_exceeded)
        main(["sweep", str(path), "--run", str(parts)])
    assert stop.value.code == 130
    assert f"stopped; go on with: hyperbrush sweep --resume {parts}" in capsys.readouterr().err
    first, second = read_sweep(parts).trials
    assert checkpoints.steps(first.run / "checkpoints")[-1] == 2
    assert outcome_of(first) is None
    assert not second.run.exists()
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--resume", str(parts)])
    assert stop.value.code == 0
    for one, other in zip(read_sweep(whole).trials, read_sweep(parts).trials, strict=True):
        assert torch.equal(weights(one), weights(other))
        a, b = outcome_of(one), outcome_of(other)
        assert a is not None
        assert b is not None
        assert (a.best_loss, a.best_step) == (b.best_loss, b.best_step)


def test_two_workers_one_of_them_killed(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial is taken up again from its checkpoint, and ends as if nothing had happened."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sweep = {"list": [{"learning_rate": 1e-3}, {"learning_rate": 3e-3}], "heartbeat": 1}
    training = {"max_steps": 12, "batch_size": 1, "validate_every": 12}
    path = write(sweep, training=training, model="emoji")  # slow enough to be killed on the way
    alone, folder = begin(path, tmp_path / "alone"), begin(path, tmp_path / "sweep")
    assert work(alone)

    said: list[str] = []
    killed: list[tuple[int, int]] = []
    killer = threading.Thread(target=kill_one, args=(folder, killed))
    killer.start()
    assert work(folder, workers=2, note=said.append)
    killer.join()
    assert "2 workers on 2 trials" in said[0]
    assert any("a worker ended with status -9" in line for line in said)
    assert said[-1].endswith("; 2 of 2 done")
    found = [outcome_of(trial) for trial in read_sweep(folder).trials]
    workers = [int(outcome.worker.split()[1]) for outcome in found if outcome is not None]
    assert len(workers) == 2
    number, process = killed[0]
    assert workers[number] != process, "another one finished it"
    assert os.getpid() not in workers
    for one, other in zip(read_sweep(alone).trials, read_sweep(folder).trials, strict=True):
        assert torch.equal(weights(one), weights(other))


def kill_one(folder: Path, killed: list[tuple[int, int]]) -> None:
    """SIGKILL to the first worker that has written a checkpoint; notes (trial's number, process)."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        for holder in folder.glob("trials/*/running.json"):
            run = holder.parent
            if checkpoints.steps(run / "checkpoints"):
                pid = json.loads(holder.read_text())["pid"]
                os.kill(pid, signal.SIGKILL)
                killed.append((int(run.name[:4]), pid))
                return
        time.sleep(0.01)


DOCS = Path(__file__).parents[2] / "docs/sweeps.md"


@pytest.mark.parametrize(("number", "trials"), [(0, 12), (1, 9)])
def test_the_docs_files_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, trials: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures/ink", "pictures/ink-held-out"):
        Path(folder).mkdir(parents=True)
    block = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)[number]
    if "prodigy" in block:
        pytest.importorskip("prodigyopt")
    Path("ink.yaml").write_text(block)
    assert begin("ink.yaml") == Path("runs/ink")
    assert len(tried(Path("runs/ink"))) == trials


def test_the_docs_have_every_setting() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, about in SweepConfig.model_fields.items():
        assert f"| `{about.alias or name}` |" in text


def test_seeds_are_summed_up(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = begin(write({"grid": {"loss": ["mse", "l1"]}, "seeds": [1, 2]}), tmp_path / "sweep")
    ended(
        folder,
        best_loss=[0.3, 0.5, 0.2, None],
        base_loss=[0.5, 0.5, 0.5, None],
        error=["", "", "", "it diverged"],
        state=["done", "done", "done", "failed"],
    )
    found = finish(folder)
    assert [row.outcome.number for row in found.rows] == [2, 0, 1, 3]
    assert found.rows[1].over_seeds == pytest.approx((0.4, 0.02**0.5))
    assert found.rows[0].over_seeds is None, "one seed says nothing of the others"
    assert (tmp_path / "library/ink.safetensors").read_bytes() == b"\x02"
    said = io.StringIO()
    Console(file=said, width=120).print(found.table())
    assert "over seeds" in said.getvalue()
    assert "0.4000 ± 0.1414" in said.getvalue()
    assert "trial 3 failed: it diverged" in found.text()
    records = json.loads((folder / "sweep.json").read_text())["trials"]
    assert records[1]["mean_over_seeds"] == pytest.approx(0.4)
    assert list(csv.DictReader((folder / "sweep.csv").open()))[3]["validation_loss"] == ""


def test_what_cannot_be_compared_is_said(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"grid": {"seed": [1, 2]}})
    unlike, unknown, broken = (begin(path, tmp_path / name) for name in ("unlike", "unknown", "broken"))
    ended(unlike, best_loss=[0.3, 0.2], base_loss=[0.5, 0.4])
    assert "the bare model's loss differs between the trials (0.4000 to 0.5000)" in finish(unlike).text()
    ended(unknown)
    found = finish(unknown)
    assert "no pictures were held out, so none is the best" in found.text()
    assert found.best is None
    ended(broken, state=["failed", "failed"], error=["a", "b"])
    found = finish(broken)
    assert found.notes == ()
    assert "try:" not in found.text()
    assert not (broken / "sweep.png").exists()
    assert (broken / "report.html").is_file()


def test_many_curves_few_names(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = begin(write({"grid": {"seed": list(range(12))}}), tmp_path / "sweep")
    ended(folder, best_loss=[0.1 + 0.01 * n for n in range(12)], base_loss=[0.5] * 12)
    lines = chart(compare(read_sweep(folder))).lines
    named = [line for line in lines if line.name]
    assert [line.name for line in named[:-1]] == [f"seed={n}" for n in range(LABELLED)]
    assert named[-1].name == "without a hypernetwork"
    assert len({(line.colour, line.dash) for line in named}) == LABELLED + 1
    assert len(lines) == 13
    assert all(line.faint for line in lines if not line.name)


@pytest.fixture
def queued(write: Callable[..., Path], tmp_path: Path) -> Path:
    return begin(write({"grid": {"seed": [0]}, "heartbeat": 1}), tmp_path / "sweep")


def test_workers_that_die_again_and_again(queued: Path) -> None:
    run = read_sweep(queued).trials[0].run
    for death in range(4):
        with claim(run, 1) as deaths:
            assert deaths == death
            left = {path: path.read_bytes() for path in run.glob(".attempt-*")}
        for path, content in left.items():  # as a killed worker leaves them
            path.write_bytes(content)
    said: list[str] = []
    assert work(queued, note=said.append)
    assert "its worker died again and again" in finish(queued).text()
    assert said == [line for line in said if line.startswith("trial 0: failed: its worker died")]
    assert not list(run.glob(".attempt-*")), "tried once more, it has its four lives"


def test_a_trial_is_given_to_one_worker(tmp_path: Path) -> None:
    with claim(tmp_path, 1), pytest.raises(Held), claim(tmp_path, 1):
        pass
    with pytest.raises(KeyboardInterrupt), claim(tmp_path, 1) as deaths:
        assert deaths == 0
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [".trial.lock"], "what was stopped did not die"


def test_other_machines_live_as_long_as_their_hearts_beat(tmp_path: Path) -> None:
    """Where a file system keeps locks to one machine."""
    attempt = tmp_path / ".attempt-1"
    attempt.write_text("another-machine")
    with pytest.raises(Held), claim(tmp_path, 1):
        pass
    assert attempt.is_file()
    an_hour_ago = time.time() - 3600
    os.utime(attempt, (an_hour_ago, an_hour_ago))
    with claim(tmp_path, 0.01) as deaths:
        assert deaths == 1
        own = tmp_path / ".attempt-2"
        os.utime(own, (an_hour_ago, an_hour_ago))
        until = time.monotonic() + 60
        while own.stat().st_mtime < an_hour_ago + 60 and time.monotonic() < until:
            time.sleep(0.01)
        assert own.stat().st_mtime > an_hour_ago + 60, "its worker touches it"
    assert not attempt.exists()


def test_a_trial_that_another_process_is_at_is_left_to_it(queued: Path) -> None:
    trial = read_sweep(queued).trials[0]
    trial.run.mkdir(parents=True)
    asked: list[int] = []
    with FileLock(trial.run / ".trial.lock"):
        assert not work(queued, should_stop=lambda: asked.append(0) or len(asked) > 4)  # type: ignore[func-returns-value]
    assert [file.name for file in trial.run.iterdir()] == [".trial.lock"]


def test_processes_are_stopped_and_missed(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(write({"grid": {"seed": [1, 2]}}), tmp_path / "sweep")
    fake = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(fake))

    def program(text: str) -> None:
        fake.write_text(f"#!{shutil.which('sh')}\n{text}\n")
        fake.chmod(0o755)

    program('echo "worker: $*"; exit 3')
    said: list[str] = []
    with pytest.raises(UserError, match="all workers ended with 2 trials to do"):
        work(folder, workers=2, note=said.append)
    assert "a worker ended with status 3" in said[1]
    logs = sorted((folder / "workers").iterdir())
    assert [log.read_text() for log in logs] == [
        f"worker: -m hyperbrush sweep --resume {folder} --only-work\n"
    ] * 2

    program("trap 'echo saved; exit 130' TERM; echo began; while true; do sleep 0.05; done")
    for log in logs:
        log.unlink()
    assert not work(folder, workers=2, should_stop=lambda: all(map(has_begun, logs)))
    assert [log.read_text() for log in logs] == ["began\nsaved\n"] * 2

    def second_time() -> bool:
        if all(map(has_begun, logs)):
            raise KeyboardInterrupt
        return False

    program("trap '' TERM; echo began; while true; do sleep 0.05; done")
    for log in logs:
        log.unlink()
    monkeypatch.setattr("hyperbrush.training.sweep.workers.PATIENCE", 0.1)
    with pytest.raises(KeyboardInterrupt):
        work(folder, workers=2, should_stop=second_time)


def has_begun(log: Path) -> bool:
    return log.is_file() and "began" in log.read_text()


def test_each_worker_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [worker_environment(number, 3) for number in range(3)]
    assert [one["OMP_NUM_THREADS"] for one in found] == ["2"] * 3
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert worker_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert worker_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"
    assert worker_environment(1, 2)["OMP_NUM_THREADS"] == "1"


def test_the_number_of_threads_is_the_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU bits depend on it: trials that begin later, with other --workers, have the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    own, told = torch.get_num_threads(), []
    sweep: Any = SimpleNamespace(folder=tmp_path)
    try:
        torch.set_num_threads(3)
        with same_threads(sweep, told.append):
            assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        with same_threads(sweep, told.append):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(own)
    assert len(told) == 1
    assert "began with 3 CPU threads a worker" in told[0]


@pytest.mark.parametrize(("workers", "more"), [(1, ""), (3, " --workers 3")])
def test_the_command_to_go_on_is_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
    more: str,
) -> None:
    monkeypatch.setattr("hyperbrush.training.sweep.run.work", lambda *_, **__: False)
    folder = tmp_path / "my sweep:1:"
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--resume", str(folder), "--workers", str(workers)])
    assert ended.value.code == 130
    assert (
        f"stopped; go on with: hyperbrush sweep --resume {quoted(folder)}{more}\n" in capsys.readouterr().err
    )


def test_a_sweep_and_a_training_do_not_write_over_each_other(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path, folder = write({"grid": {"seed": [1]}}), tmp_path / "ink"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: ink\n")
    with pytest.raises(UserError, match="holds a training, which a sweep would write over"):
        begin(path, folder)
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]
    begin(path, tmp_path / "sweep")
    config = read_sweep(tmp_path / "sweep").trials[0].config
    with pytest.raises(UserError, match="holds a sweep: take another --run"):
        train_run(config, tmp_path / "sweep")


def test_a_small_machine_does_not_take_a_large_ones_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "threads.json").write_text(json.dumps({"threads": 64}))
    own, said = torch.get_num_threads(), []
    with same_threads(SimpleNamespace(folder=tmp_path), said.append):  # type: ignore[arg-type]
        assert torch.get_num_threads() == own
    assert "began with 64 CPU threads a worker, this machine has 4" in said[0]


def test_the_best_network_replaces_nobody_elses(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"grid": {"seed": [1]}})
    own = tmp_path / "library/ink.safetensors"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already: choose another name, or give --overwrite"):
        begin(path, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    assert begin(path, tmp_path / "sweep", overwrite=True) == tmp_path / "sweep"


def test_the_best_network_has_its_trigger_and_columns_their_prompts(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"grid": {"seed": [1, 2]}}, training={"trigger": "inkish"})
    folder = begin(path, tmp_path / "sweep")
    ended(folder, best_loss=[0.3, 0.2], base_loss=[0.5, 0.5])
    for trial, other in zip(read_sweep(folder).trials, ("dog", "cow"), strict=True):
        save_previews(trial.run, 2, [Image.new("RGB", (8, 8))] * 2, ["cat", other])
    columns: list[Any] = []
    drawn = grids.labelled_grid

    def looked(cells: Any, rows: Any, names: Any, **how: Any) -> Image.Image:
        columns.append(names)
        return drawn(cells, rows, names, **how)

    monkeypatch.setattr(grids, "labelled_grid", looked)
    finish(folder)
    assert columns == [["cat", ""]], "what differs from row to row calls no column"
    assert hb.HypernetworkLibrary(tmp_path / "library").notes("ink").activation_text == "inkish"

"""A sweep whose workers are jobs of a cluster: submitted, preempted, stopped, refused."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
import yaml

from hyperbrush.assets import style_folder
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.sweep.outcome import outcome_of
from hyperbrush.training.sweep.run import begin, work
from hyperbrush.training.sweep.settings import Sweep, read_sweep

pytest.importorskip("submitit")

Write = Callable[..., Path]


@pytest.fixture
def write(make_tiny: Callable[..., LatentDiffusion], tmp_path: Path) -> Write:
    """Write a sweep's file and begin it; returns its folder."""
    make_tiny(image_size=64, attention_resolutions=[16]).save_pretrained(tmp_path / "model")
    for name, files in (("data", slice(0, 8)), ("held-out", slice(8, 10))):
        (tmp_path / name).mkdir()
        for file in sorted((style_folder() / "validation").glob("*.png"))[files]:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())

    def made(cluster: dict[str, Any], workers: int = 1, **training: Any) -> Path:
        steps = {"max_steps": 2, "batch_size": 4, "validate_every": 100, "checkpoint_every": 1}
        about = {
            "model": str(tmp_path / "model"),
            "data": str(tmp_path / "data"),
            "validation": str(tmp_path / "held-out"),
            "hypernetworks": str(tmp_path / "library"),
            "training": steps | training,
            "sweep": {"grid": {"seed": [1, 2]}, "cluster": cluster},
        }
        (tmp_path / "ink.yaml").write_text(yaml.safe_dump(about))
        return begin(tmp_path / "ink.yaml", tmp_path / "sweep", workers=workers)

    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands on PATH; the folder of their state."""
    state: Path = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm/bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return state


def reached(sweep: Sweep) -> list[int]:
    """The last checkpoint of each trial; 0: none."""
    return [max(checkpoints.steps(trial.run / "checkpoints"), default=0) for trial in sweep.trials]


def test_jobs_do_the_trials_also_after_one_is_preempted(write: Write, slurm: Path) -> None:
    folder = write({"timeout_min": 60, "slurm_partition": "gpu", "cpus_per_task": 2}, max_steps=25)
    sweep, said, preempted = read_sweep(folder), [], []

    def preempt_once() -> bool:
        if (
            not preempted
            and (first := next((n for n, step in enumerate(reached(sweep)) if step >= 2), None)) is not None
        ):
            preempted.append(first)
            fake_slurm.preempt(slurm, f"{fake_slurm.JOB}_0")
        return False

    assert work(folder, workers=2, executor="slurm", note=said.append, should_stop=preempt_once)
    assert preempted
    asked = (slurm / "submitted").read_text()
    for line in (
        "--array=0-1%2",
        "--time=60",
        "--partition=gpu",
        "--cpus-per-task=2",
        "--job-name=hyperbrush",
    ):
        assert f"#SBATCH {line}\n" in asked
    assert "2 jobs on 2 trials: 77_0, 77_1" in said[0]
    assert said[-1].endswith("2 of 2 done")
    found = [outcome_of(trial) for trial in sweep.trials]
    assert [(one.state, one.steps) for one in found if one is not None] == [("done", 25)] * 2
    log = (folder / "workers" / "77_0_0_log.out").read_text() + (
        folder / "workers" / "77_0_0_log.err"
    ).read_text()
    assert "this job is preempted" in log
    assert len(re.findall("Starting with JobEnvironment", log)) == 2, "queued again"
    assert fake_slurm.all_ended(slurm)


def test_jobs_are_asked_to_save(write: Write, slurm: Path) -> None:
    folder = write({}, max_steps=100_000)
    sweep = read_sweep(folder)
    assert not work(folder, workers=2, executor="slurm", should_stop=lambda: min(reached(sweep)) >= 1)
    assert fake_slurm.all_ended(slurm)
    assert (folder / "workers/stop").exists()
    assert [outcome_of(trial) for trial in sweep.trials] == [None, None]
    assert min(reached(sweep)) >= 1
    assert "--time=1440" in (slurm / "submitted").read_text(), "a day"


def test_processes_of_this_machine(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = write({})
    said: list[str] = []
    assert work(folder, executor="local", note=said.append)
    assert said[0].startswith("1 jobs on 2 trials")
    assert all(outcome_of(trial) is not None for trial in read_sweep(folder).trials)


def test_what_cannot_be_is_refused_before_a_job(
    write: Write, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write({"gpus_per_nod": 1})
    with pytest.raises(UserError, match="unknown executor 'slurmm'.*slurm"):
        work(folder, executor="slurmm")
    with pytest.raises(UserError, match="cluster: .*gpus_per_nod"):
        work(folder, executor="slurm")
    assert not (slurm / "submitted").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="srun.*where the cluster's commands are"):
        work(folder, executor="slurm")


def test_a_wrong_option_is_mended_in_the_file_it_stands_in(write: Write, slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers 0"):
        write({}, workers=0)
    path = tmp_path / "ink.yaml"
    values = yaml.safe_load(path.read_text())
    values["sweep"]["cluster"] = {"gpus_per_nod": 1}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"ink\.yaml: cluster: .*gpus_per_nod"):
        begin(path, tmp_path / "sweep", executor="slurm")
    assert not (tmp_path / "sweep").exists()
    folder = begin(path, tmp_path / "sweep")
    with pytest.raises(UserError, match=r"sweep\.yaml: cluster: .*gpus_per_nod"):
        work(folder, executor="slurm")


def test_what_the_cluster_refuses_is_one_line(write: Write, slurm: Path, tmp_path: Path) -> None:
    folder = write({})
    (tmp_path / "slurm/bin/sbatch").write_text("#!/bin/sh\necho 'invalid partition specified' >&2\nexit 1\n")
    with pytest.raises(
        UserError, match="--executor slurm: the jobs were refused: .*mend 'cluster' in .*sweep.yaml"
    ):
        work(folder, executor="slurm")

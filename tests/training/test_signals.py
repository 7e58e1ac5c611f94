"""Ctrl-C and SIGTERM on real processes: saved, and the command to go on is said; the second stops at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hyperbrush.assets import style_folder
from hyperbrush.cli.console import stop_on_signal
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Not --cpu, with which accelerate starts one process, whatever --num_processes says.
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def start(run: Path, before: list[str], after: list[str]) -> subprocess.Popen[str]:
    """A training from the command line, in a process group of its own as a terminal gives it."""
    told = [
        "train",
        *after,
        "--data",
        str(style_folder() / "validation"),
        "--name",
        "ink",
        "--steps",
        "100000",
    ]
    return subprocess.Popen(
        [sys.executable, *before, "-m", "hyperbrush", *told, "--batch-size", "2", "--run", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        cwd=run.parent,
        start_new_session=True,
    )


def wait_for_steps(process: subprocess.Popen[str], run: Path) -> None:
    for _ in range(2400):
        if read(run / "metrics.jsonl"):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no step was made")


@pytest.mark.parametrize(
    ("before", "after", "number", "whole_group"),
    [
        ([], [], signal.SIGTERM, False),
        (TWO, [], signal.SIGINT, True),
        ([], ["--processes", "2"], signal.SIGTERM, False),
    ],
    ids=["SIGTERM to one", "Ctrl-C to two", "SIGTERM to the parent of two"],
)
def test_it_saves_and_says_how_to_go_on(
    tmp_path: Path, before: list[str], after: list[str], number: int, whole_group: bool
) -> None:
    run = tmp_path / "run"
    process = start(run, before, after)
    try:
        wait_for_steps(process, run)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        said = process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # processes of --processes are in sessions of their own
            time.sleep(1)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert f"go on with: hyperbrush train --resume {run}" in said.replace("\n", " "), said
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    assert read(run / "metrics.jsonl")[-1]["step"] == found.step
    assert f"stopped after step {found.step}" in said
    if not whole_group:
        assert process.returncode == 130
    assert not (run / "running.json").exists()


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from hyperbrush.cli.console import stop_on_signal
from toys import Regression, SETTINGS
from hyperbrush.training import Trainer, TrainerConfig

class Slow(Regression):
    def batch(self, step, batch_size):
        if step == 3:
            print("in a step", flush=True)
            time.sleep(600)
        return super().batch(step, batch_size)

with stop_on_signal() as should_stop:
    Trainer(Slow(), TrainerConfig.model_validate(SETTINGS), sys.argv[1], should_stop=should_stop).train()
"""


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in a step\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping; once more to stop at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in said
    assert checkpoints.steps(tmp_path / "checkpoints") == [2], "what was saved before stands"


def test_a_launcher_that_passes_ctrl_c_on_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with stop_on_signal() as should_stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert should_stop(), "a second SIGTERM changes nothing"
        signal.raise_signal(signal.SIGINT)


def test_it_stops_when_its_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERBRUSH_LAUNCHER", str(os.getppid()))
    with stop_on_signal() as should_stop:
        assert not should_stop()
        assert "HYPERBRUSH_LAUNCHER" not in os.environ, "what this process starts has another parent"
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert should_stop()


def test_outside_the_main_thread_it_does_nothing() -> None:
    said: list[bool] = []

    def work() -> None:
        with stop_on_signal() as should_stop:
            said.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]

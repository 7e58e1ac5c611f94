"""Two trainings in one folder are refused; a killed one leaves nothing in the way."""

import os
import signal
import socket
import sys
from pathlib import Path

import forked
import pytest

from hyperbrush.errors import UserError
from hyperbrush.training.loop.run_folder import HOLDER, begin_anew, run_lock

HOLD = """
import sys, time
from hyperbrush.training.loop.run_folder import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(run: Path) -> forked.Process:
    process = forked.start([sys.executable, "-c", HOLD, run], stdout=forked.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_training_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = hold(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"in use.*process {first.pid} on {socket.gethostname()}"),
            run_lock(tmp_path),
        ):
            pass
        assert (tmp_path / HOLDER).is_file(), "the refused one leaves the holder's note alone"
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        first.stdout.close()  # type: ignore[union-attr]
    assert (tmp_path / HOLDER).is_file()
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / HOLDER).read_text()
    assert not (tmp_path / HOLDER).exists()


def test_within_one_process_too(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "b"):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), run_lock(tmp_path / "a"):
            pass
        (tmp_path / "a" / HOLDER).write_text("torn")
        with pytest.raises(UserError, match="its process is not known"), run_lock(tmp_path / "a"):
            pass


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot lock .*file"), run_lock(tmp_path / "file"):
        pass


def test_a_run_that_trains_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin_anew(run)
    with run_lock(run):
        (run / "config.yaml").write_text("its own")
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            begin_anew(run)
        assert (run / "config.yaml").read_text() == "its own"
    begin_anew(run)
    assert not run.exists()


def test_a_folder_of_something_else_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/script.sh").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a training: take another --out"):
        begin_anew(tmp_path / "run")
    assert (tmp_path / "run/script.sh").read_text() == "mine"

"""Several processes of one command: signals reach each of them, and their ends are told apart."""

import signal
import sys
import time
from pathlib import Path

import forked
import pytest

PARENT = """
import sys
from hyperbrush.training.loop.launch import run_together
sys.exit(run_together([sys.executable, *sys.argv[1:]], 2))
"""
CHILD = """
import os, signal, sys, time
from pathlib import Path
place, mode = Path(sys.argv[1]), sys.argv[2]
had = []
def stop(number, frame):
    had.append(number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
rank = os.environ["RANK"]
assert os.environ["WORLD_SIZE"] == "2" and os.environ["LOCAL_RANK"] == rank
(place / f"ready-{rank}").write_text(os.environ["MASTER_PORT"])
if mode == "fails" and rank == "1":
    sys.exit(3)
while not had:
    time.sleep(0.02)
time.sleep(0.3)  # it saves
(place / f"saved-{rank}").write_text(f"{[int(n) for n in had]}")
sys.exit(130)
"""


def start(place: Path, mode: str) -> forked.Process:
    (place / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", PARENT, str(place / "child.py"), str(place), mode]
    return forked.start(command, start_new_session=True)


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 300
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, "the processes did not start"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_to_the_parent_alone_reaches_each_once(tmp_path: Path, number: signal.Signals) -> None:
    parent = start(tmp_path, "stops")
    try:
        wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
        parent.send_signal(number)
        assert parent.wait(timeout=300) == 130
    finally:
        parent.kill()
    had = int(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == [f"[{had}]"] * 2
    assert len({(tmp_path / f"ready-{rank}").read_text() for rank in (0, 1)}) == 1


def test_where_one_dies_the_others_are_ended(tmp_path: Path) -> None:
    parent = start(tmp_path, "fails")
    try:
        assert parent.wait(timeout=300) == 3, "its status, not that of those it ended"
    finally:
        parent.kill()
    assert not (tmp_path / "saved-1").exists()

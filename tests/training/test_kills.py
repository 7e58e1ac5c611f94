"""The short form of benchmarks/kills.py: SIGKILL at random moments, some inside a save, and the same end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")
def test_killed_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, SCRIPT, "--kills", "10", "--in-saves", "3", "--cold", "0", "--out", out]
    done = subprocess.run(
        [*map(str, command), "--seed", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(out.read_text())
    assert found["kills"] >= 10
    assert found["inside_a_save"] == sum(found["stages_of_saves"].values()) >= 3
    assert (found["different_parts"], found["left_over"]) == ({}, [])
    assert (found["different_results"], found["unloadable_checkpoints"]) == (0, 0)
    assert found["trainings"] >= 1

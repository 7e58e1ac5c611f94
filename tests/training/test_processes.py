"""Two processes do what one does at the same batch; they stop, fail and run out of memory together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import worker
from toys import Regression, train, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

LONG, SGD, VARIANTS = worker.LONG, worker.SGD, worker.VARIANTS
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CPU = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything the two processes left; they are started once."""
    folder = tmp_path_factory.mktemp("two")
    train(Regression(dropout=0.0), folder / "from one", **(LONG | SGD | {"keep_checkpoints": 9}))
    checkpoints.path_of(folder / "from one/checkpoints", 50).unlink()
    done = subprocess.run(
        [*TWO, worker.__file__, str(folder)],
        env=os.environ | CPU,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> list[dict[str, Any]]:
    return [json.loads((place / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    made = {}
    for name, change in VARIANTS.items():
        made[name] = weights(train(Regression(dropout=0.0), folder / name, **(LONG | change)))
        made[f"{name} losses"] = losses(folder / name)
    return made


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read(run / "metrics.jsonl") if "loss" in row])


def close(two: Any, one: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(torch.as_tensor(two), one, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("sgd", 1e-6), ("adamw", 1e-4), ("parts", 1e-6), ("bf16", 5e-3)]
)
def test_two_give_what_one_gives(
    place: Path, found: list[dict], one: dict[str, torch.Tensor], name: str, tolerance: float
) -> None:
    assert [f["processes"] for f in found] == [2, 2]
    assert found[0][name] == found[1][name], "both end with the same weights"
    close(found[0][name], one[name], tolerance)
    assert len(losses(place / name)) == 50
    close(losses(place / name), one[f"{name} losses"], 10 * max(tolerance, 1e-5))
    assert json.loads((place / name / "result.json").read_text()) == found[0][name]


def test_without_averaging_they_part(found: list[dict], one: dict[str, torch.Tensor]) -> None:
    """What the test above would say if gradients were not synchronised."""
    with pytest.raises(AssertionError):
        close(found[0]["broken"], one["sgd"], 1e-3)


def test_checkpoints_move_between_process_counts(
    place: Path, found: list[dict], one: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    close(found[0]["from one"], one["sgd"])
    assert found[0]["stop"] == found[1]["stop"] == "Interrupted: stopped after step 25", (
        "one asked, both stop"
    )
    shutil.copytree(place / "to one", tmp_path / "run")
    close(weights(train(Regression(dropout=0.0), tmp_path / "run", resume=True, **(LONG | SGD))), one["sgd"])


def test_memory_short_in_one_makes_both_cut_smaller(
    place: Path, found: list[dict], one: dict[str, torch.Tensor]
) -> None:
    assert found[0]["hungry"] == found[1]["hungry"]
    close(found[0]["hungry"], one["sgd"])
    event = next(row for row in read(place / "hungry/metrics.jsonl") if "event" in row)
    assert (event["event"], event["gradient_accumulation"]) == ("out_of_memory", 2)


def test_an_error_of_one_ends_both(found: list[dict]) -> None:
    assert found[0]["one fails"].startswith("UserError: process 0 stops, since another process failed")
    assert found[1]["one fails"] == "UserError: picture a.png is gone"
    assert found[0]["main fails"] == found[1]["main fails"] == "UserError: picture a.png is gone"
    assert "holds checkpoints of another training" in found[0]["used"]
    assert found[0]["used"] == found[1]["used"]


def test_a_real_hypernetwork(place: Path, found: list[dict], tmp_path: Path) -> None:
    assert found[0]["hypernetwork"] == found[1]["hypernetwork"]
    alone = worker.hypernetwork(tmp_path / "run")
    assert alone.abs().max() > 1e-4, "it learned"
    two = torch.tensor(found[0]["hypernetwork"], dtype=alone.dtype)
    assert (two - alone).norm() < 1e-2 * alone.norm()
    close(losses(place / "hypernetwork"), losses(tmp_path / "run"), 1e-4)


def test_processes_that_cannot_be_joined_are_told(tmp_path: Path) -> None:
    program = "from hyperbrush.training.loop.processes import join\njoin()"
    alone = os.environ | CPU | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=alone, capture_output=True, text=True)
    assert "UserError: 2 processes were started (WORLD_SIZE), but they cannot be joined" in done.stderr


def test_a_batch_that_two_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 9 cannot be split"):
        trainer(Regression(), tmp_path, batch_size=9, gradient_accumulation=2)

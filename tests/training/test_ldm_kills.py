"""`ldm train` killed between any two renames, and gone on with: the same end, and nothing half-written left."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.ldm.config import Run, read_config
from hyperbrush.training.ldm.run import train_ldm
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

TRAINING = {"steps": 3, "batch_size": 2, "checkpoint_every": 1, "log_every": 1, "validate_every": 3}


def life(config: Run, run: Path, kill_at: int = 0) -> int:
    """The exit status of one process: 9 where it was killed before its so manieth rename."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(path: Path, target: Path) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os._exit(9)
            return real(path, target)

        return rename

    Path.replace, Path.rename = counted(Path.replace), counted(Path.rename)  # type: ignore[method-assign]
    status = 1
    try:
        train_ldm(config, run, resume=bool(checkpoints.steps(run / "checkpoints")))
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
    finally:
        os._exit(status)


def end(run: Path) -> dict[str, Any]:
    last = checkpoints.load(checkpoints.path_of(run / "checkpoints", 3))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read(run / "metrics.jsonl")]
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {"weights": checkpoints.digest(last.tensors), "rows": rows, "files": files}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")
@pytest.mark.parametrize("kind", ["first_stage", "diffusion"])
def test_killed_at_any_rename(
    pictures: Path, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path, kind: str
) -> None:
    values: dict[str, Any] = {
        "kind": kind,
        "data": {"size": 32, "folders": [str(pictures)], "held_out": [str(pictures)]},
        "training": TRAINING,
    }
    if kind == "first_stage":
        values["model"] = {"channels": [8, 16]}
    else:
        make_tiny().first_stage.save_pretrained(tmp_path / "stage")
        values |= {
            "first_stage": str(tmp_path / "stage"),
            "text": {"width": 32, "layers": 1, "vocabulary": 600},
            "unet": {"channels": [32, 64], "attention_resolutions": [8], "layers_per_block": 1},
        }
    config = read_config(values)
    assert life(config, tmp_path / "whole") == 0
    whole = end(tmp_path / "whole")
    for kill_at in range(1, 200, 2):
        run = tmp_path / str(kill_at)
        status = life(config, run, kill_at)
        if status == 0:
            break
        assert status == 9
        assert life(config, run) == 0
        assert end(run) == whole, kill_at
    assert kill_at > 5, "it was killed a few times"

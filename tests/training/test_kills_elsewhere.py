"""SIGKILL between two renames of `hyper train`, of a sweep and of the app's worker, and gone on with: the same end.

The proof for `train` is test_kills.py (benchmarks/kills.py), for `ldm train` test_ldm_kills.py.
"""

import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

STEPS = 4
TRAINING = {
    "max_steps": STEPS,
    "batch_size": 2,
    "checkpoint_every": 1,
    "validate_every": 2,
    "log_every": 1,
    "preview_every": 2,
    "preview_steps": 1,
}
Life = Callable[[], Any]


def hyper_train(place: Path, model: str, data: Path) -> Life:
    from hyperbrush.training.generator.run import GeneratorRun, train_generator

    config = GeneratorRun.model_validate(
        {
            "name": "ink",
            "data": str(data / "styles"),
            "validation": str(data / "styles"),
            "model": model,
            "generators": str(place / "generators"),
            "network": {
                "target_layers": ["attn2"],
                "embedding_dim": 16,
                "hidden_dim": 16,
                "depth": 1,
                "heads": 2,
            },
            "training": TRAINING | {"shared_steps": 1, "references": 2, "prompts": []},
        }
    )
    run = place / "runs/ink"
    return lambda: train_generator(config, run, resume=bool(checkpoints.steps(run / "checkpoints")))


def sweep(place: Path, model: str, data: Path) -> Life:
    from hyperbrush.training.sweep.run import begin, work

    pictures = str(data / "styles/one")
    place.mkdir()
    (place / "ink.yaml").write_text(
        yaml.safe_dump(
            {
                "data": pictures,
                "validation": pictures,
                "model": model,
                "hypernetworks": str(place / "library"),
                "training": TRAINING | {"prompts": []},
                "sweep": {"list": [{"learning_rate": 1e-3}, {"learning_rate": 3e-3}], "heartbeat": 1},
            }
        )
    )
    folder = begin(place / "ink.yaml", place / "sweep")
    return lambda: work(folder)


def worker(place: Path, model: str, data: Path) -> Life:
    pytest.importorskip("persistqueue")
    from hyperbrush.app.jobs import worker as module
    from hyperbrush.app.train.service import begin
    from hyperbrush.app.workspace import Workspace

    workspace = Workspace(place)
    shutil.copytree(data / "styles/one", place / "datasets/one", dirs_exist_ok=True)
    shutil.copytree(model, place / "models/base/tiny", dirs_exist_ok=True)
    begin(
        workspace,
        {
            "name": "ink",
            "data": ["datasets/one"],
            "validation": ["datasets/one"],
            "model": "models/base/tiny",
            "training": TRAINING,
        },
    )
    module.Worker(workspace, "cpu").jobs.submit("train", {"run": "ink"}, device="cpu")

    def life() -> None:
        module.IDLE = 0.0  # it ends once nothing is left to do
        module.Worker(Workspace(place), "cpu").run()

    return life


def live(life: Life, place: Path, kill_at: int = 0) -> int:
    """One process: its exit status, -9 where SIGKILL came before its so manieth rename; notes how many it made."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count, status = 0, 1

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(path: Path, target: Path) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, target)

        return rename

    Path.replace, Path.rename = counted(Path.replace), counted(Path.rename)  # type: ignore[method-assign]
    try:
        life()
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
    finally:
        place.with_name(f"{place.name}.renames").write_text(str(count))
        os._exit(status)


def end(place: Path) -> dict[str, Any]:
    """What must be the same: every file of weights, the last checkpoints, the metrics (but for the clock)."""
    found: dict[str, Any] = {"half-written": sorted(map(str, place.rglob("*.part-*")))}
    for path in sorted(place.rglob("*.safetensors")):
        name = str(path.relative_to(place))
        if "/checkpoints/" in name:
            if path == checkpoints.path_of(path.parent, STEPS):
                found[name] = checkpoints.digest(checkpoints.load(path).tensors)
        elif "/cache/" not in name and "models/base" not in name:
            found[name] = checkpoints.digest(load_file(path))
    for path in sorted(place.rglob("metrics.jsonl")):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read(path)]
        found[str(path.relative_to(place))] = rows
    return found


@pytest.fixture
def world(pictures: Path, tmp_path: Path, tiny_folder: Path) -> tuple[str, Path]:
    """A tiny model's folder, and pictures as two styles."""
    for number, path in enumerate(sorted(pictures.iterdir())):
        folder = tmp_path / "data/styles" / ("one", "two")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return str(tiny_folder), tmp_path / "data"


KINDS: dict[str, Callable[[Path, str, Path], Life]] = {
    "hyper train": hyper_train,
    "sweep": sweep,
    "worker": worker,
}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")


@forks
@pytest.mark.parametrize("kind", KINDS)
def test_killed_twice_it_ends_the_same(kind: str, world: tuple[str, Path], tmp_path: Path) -> None:
    whole, place = tmp_path / "whole", tmp_path / "killed"
    assert live(KINDS[kind](whole, *world), whole) == 0
    renames = int((tmp_path / "whole.renames").read_text())
    assert renames > 20
    life = KINDS[kind](place, *world)
    chance = random.Random(kind)
    assert live(life, place, chance.randint(renames // 2, renames - 4)) == -signal.SIGKILL, "late"
    assert live(life, place, chance.randint(2, 4)) == -signal.SIGKILL, "and early in the next life"
    assert live(life, place) == 0
    assert end(place) == end(whole)
    assert end(whole)["half-written"] == []


@forks
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_rename(kind: str, world: tuple[str, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert live(KINDS[kind](whole, *world), whole) == 0
    expected, killed = end(whole), 0
    renames = int((tmp_path / "whole.renames").read_text())
    for kill_at in range(1, renames + 1):
        place = tmp_path / str(kill_at)
        life = KINDS[kind](place, *world)
        status = live(life, place, kill_at)
        killed += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL)  # 0: progress is written by the clock, and it was faster
        assert live(life, place) == 0
        assert end(place) == expected, kill_at
        shutil.rmtree(place)
    assert killed > renames * 0.8

"""The training benchmark's ways: that those without caches compute what the cached one computes."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(open_script: Callable[[str], ModuleType]) -> ModuleType:
    return open_script("benchmarks/training.py")


@pytest.fixture(scope="module")
def trainers(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    return {way: benchmark.make(way, folder / "0", folder / str(n)) for n, way in enumerate(benchmark.WAYS)}


def test_all_ways_see_the_same_pictures_and_noise(trainers: dict[str, Any]) -> None:
    losses = {}
    for way, trainer in trainers.items():
        trainer.objective.eval()
        with torch.no_grad():
            losses[way] = float(trainer.objective(trainer.objective.batch(0, 16))["loss"])
    assert len(losses) == 4
    first = next(iter(losses.values()))
    assert all(loss == pytest.approx(first, rel=1e-4) for loss in losses.values()), losses


def test_each_way_trains_and_lora_has_as_many_numbers(
    benchmark: ModuleType, trainers: dict[str, Any]
) -> None:
    counts = {way: sum(p.numel() for p in trainer.trained) for way, trainer in trainers.items()}
    assert counts["hypernetwork"] <= counts["LoRA"] < 1.1 * counts["hypernetwork"]
    for way, trainer in trainers.items():
        before = [p.detach().clone() for p in trainer.trained]
        assert benchmark._steps(trainer, 1) > 0
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer.trained, strict=True)), way


def test_tables_are_written(benchmark: ModuleType) -> None:
    middle = {"median": 1.0, "low": 0.5, "high": 2.0}
    result = {
        "seconds_per_step": dict.fromkeys(benchmark.WAYS, middle),
        "speed": {f"{benchmark.WAYS[0]} to {way}": middle for way in benchmark.WAYS[1:]},
        "parameters": dict.fromkeys(benchmark.WAYS, 1234),
        "peak_megabytes": dict.fromkeys(benchmark.WAYS, 10.0),
        "overheads": {"step": 1.0, "validation": 2.0, "preview": 3.0, "share": 0.1},
        "first_step_seconds": middle,
        "machine": "here",
        "versions": {"torch": torch.__version__},
    }
    text = benchmark.markdown(result)
    for way in benchmark.WAYS:
        assert f"| {way} |" in text
    assert "16.0 (8.0–32.0)" in text

"""The training benchmark's ways: that those without caches compute what the cached one computes."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
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


def test_a_stopwatch_takes_each_parts_own_time(
    open_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, now = open_script("benchmarks/step.py"), [0.0]
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Work:
        def outer(self) -> int:
            now[0] += 2
            return self.inner() + 1

        def inner(self) -> int:
            now[0] += 4
            return 1

    work, watch, found = Work(), step.Stopwatch(), []
    watch.wrap(work, "outer", "outer")
    watch.wrap(work, "inner", "inner")
    watch.step(lambda: found.append(work.outer() + work.inner()))
    assert found == [3]
    assert watch.steps == [{"outer": 2, "inner": 8, "all": 10}]


def test_the_ways_of_a_step_are_timed_part_by_part(
    open_script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    step = open_script("benchmarks/step.py")
    with contextlib.ExitStack() as closing:
        result = step.measure(1, "no", tmp_path, closing)
    for way in (step.OURS, step.LORA):
        own = result["parts"][way]
        assert own["UNet forward"] > 0
        assert own["backward"] > 0
        assert sum(own.values()) <= result["seconds"][way]["median"]
    assert result["parts"][step.OURS]["networks forward, and their hooks"] > 0
    assert result["parts"][step.LORA]["networks forward, and their hooks"] == 0
    text = step.markdown(result)
    assert text.count("\n") == len(step.PARTS) + 9
    assert f"| {step.FLOOR} |" in text

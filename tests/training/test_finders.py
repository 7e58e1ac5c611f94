"""What to set before a training: found by trying, with nothing changed."""

import mmap
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toys import SETTINGS, Regression

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import load_config
from hyperbrush.training import TrainerConfig
from hyperbrush.training.finders import LrCurve, find_batch_size, find_learning_rate
from hyperbrush.training.memory import PeakMemory, free_memory
from hyperbrush.training.optimizers import make_optimizer


def config(**change: Any) -> TrainerConfig:
    return load_config(TrainerConfig, SETTINGS | change)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Counted(Regression):
    """With a buffer that a step changes, and a gradient and a mode of its own before."""

    def __init__(self) -> None:
        super().__init__()
        self.network.insert(1, Counter())
        self.network[0].weight.grad = torch.ones(16, 6)
        self.network[3].eval()


def everything(objective: Regression) -> list[Any]:
    return [
        {k: v.clone() for k, v in objective.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in objective.parameters()],
        [module.training for module in objective.modules()],
        [p.requires_grad for p in objective.parameters()],
        torch.get_rng_state(),
        torch.tensor([random.getstate()[1]]),
        torch.tensor(np.random.get_state()[1].astype(np.int64)),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


FINDERS: list[Callable[..., Any]] = [
    lambda o, **more: find_learning_rate(o, config(), steps=20, **more),
    lambda o, **more: find_batch_size(o, config(), limit=6, **more),
]


@pytest.mark.parametrize("find", FINDERS, ids=["rate", "batch"])
@pytest.mark.parametrize("name", ["adamw", "schedule-free", "prodigy"])
def test_everything_is_put_back_to_the_bit(find: Callable[..., Any], name: str) -> None:
    objective = Counted()
    before = everything(objective)
    find(objective, optimizer_factory=lambda groups: make_optimizer(name, groups))
    assert same(before, everything(objective))
    objective.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        find(objective)
    assert same(before, everything(objective))
    with torch.no_grad():
        next(objective.parameters()).add_(1)
    assert not same(before, everything(objective))


def test_the_suggested_rate_learns_and_one_far_above_does_not() -> None:
    seen: list[tuple[int, int, float]] = []
    curve = find_learning_rate(
        Regression(), config(), high=10.0, steps=60, on_progress=lambda *told: seen.append(told)
    )
    assert 2e-3 < curve.suggestion < curve.lowest < 1.0
    assert curve.suggestion <= curve.lowest / 3
    assert "risen 3fold" in curve.ended
    assert [told[0] for told in seen] == list(range(1, len(curve.losses) + 1))
    assert [told[2] for told in seen] == list(curve.losses)
    ratios = np.diff(np.log(curve.rates))
    assert np.allclose(ratios, ratios[0])
    assert f"learning rate {curve.suggestion:.1e}" in str(curve)
    again = find_learning_rate(Regression(), config(), high=10.0, steps=60)
    assert again == curve


def test_settings_reach_the_sweep() -> None:
    base = find_learning_rate(Regression(), config(), steps=15)
    for change in (
        {"batch_size": 4},
        {"seed": 1},
        {"mixed_precision": "bf16"},
        {"optimizer": {"betas": [0.5, 0.5]}},
        {"optimizer": {"max_grad_norm": 1e-6, "eps": 1e-3}},
    ):
        assert find_learning_rate(Regression(), config(**change), steps=15).losses != base.losses, change
    assert find_learning_rate(Regression(), config(), steps=15, probe=3).start != base.start
    assert find_learning_rate(Regression(), config(), steps=15, low=1e-4).rates[0] == 1e-4
    parts = find_learning_rate(Regression(dropout=0.0), config(gradient_accumulation=2), steps=15)
    whole = find_learning_rate(Regression(dropout=0.0), config(), steps=15)
    assert np.allclose(parts.losses[0], whole.losses[0], rtol=1e-4)

    class Scaled(Regression):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{**group, "scale": 0.1} for group in super().parameter_groups()]

    assert find_learning_rate(Scaled(), config(), steps=15).losses != base.losses


def curve(losses: list[float], start: float = 10.0) -> LrCurve:
    return LrCurve(tuple(10.0 ** (i / 10 - 6) for i in range(len(losses))), tuple(losses), start, "40 steps")


def test_the_suggestion_is_where_the_loss_falls_most() -> None:
    falling = [10.0] * 15 + [9.8, 9.0, 7.0, 5.0, 4.0, 3.6, 3.4, 3.3, 3.25, 3.2, 3.2, 3.2] + [6.0, 20.0, 30.0]
    found = curve(falling)
    assert found.rates[16] <= found.suggestion <= found.rates[20]
    assert found.rates[23] <= found.lowest <= found.rates[27]
    spike = list(falling)
    spike[5] = 1.0  # one lucky step says nothing
    assert curve(spike).suggestion == found.suggestion


@pytest.mark.parametrize(
    "losses", [[10.0] * 30, [10.0 + 0.1 * i for i in range(30)], [10 - 0.001 * i for i in range(30)]]
)
def test_without_a_descent_nothing_is_suggested(losses: list[float]) -> None:
    found = curve(losses)
    assert found.suggestion is None
    assert found.lowest is None
    assert "no learning rate from 1.0e-06 to 7.9e-04 brought the loss down from 10 (40 steps)" in str(found)
    assert found.picture() is not None


def test_the_picture(tmp_path: Path) -> None:
    falling = curve([10.0] * 10 + [8.0, 5.0, 3.0, 2.0, 1.5, 1.4, 1.4, 1.4, 200.0, 300.0])
    svg = falling.save(tmp_path / "rate.svg").read_text()
    assert "suggested" in svg
    assert "learning rate" in svg
    with Image.open(falling.save(tmp_path / "rate.png")) as picture:
        assert picture.size == (1440, 600)
        assert len(picture.getcolors(1 << 20)) > 10
    with pytest.raises(UserError, match=r"rate.pdf; expected a name in .svg or .png"):
        falling.save(tmp_path / "rate.pdf")


class Fragile(Regression):
    """Its loss cannot be computed from a rate, a size or a device's memory on."""

    def __init__(self, *, nan_from: float = 0.0, most: int = 0, error: Exception | None = None) -> None:
        super().__init__(dropout=0.0)
        self.nan_from, self.most, self.error = nan_from, most, error
        self.sizes: list[int] = []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        self.sizes.append(len(batch["x"]))
        if self.error is not None and len(batch["x"]) > self.most:
            raise self.error
        moved = (self.network[0].weight.detach() - Regression().network[0].weight.detach()).abs().max()
        terms = super().forward(batch)
        return {"loss": terms["loss"] * (float("nan") if self.nan_from and moved > self.nan_from else 1.0)}


def test_nan_ends_the_sweep() -> None:
    found = find_learning_rate(Fragile(nan_from=1e-2), config(), high=10.0, steps=40)
    assert "where the loss became nan" in found.ended
    assert 5 < len(found.losses) < 40
    with pytest.raises(UserError, match="not finite after one step at 10"):
        find_learning_rate(Fragile(nan_from=1e-2), config(), low=10.0, high=100.0)
    broken = Fragile(nan_from=-1.0)
    with pytest.raises(UserError, match="the loss is nan before the first step"):
        find_learning_rate(broken, config())


def test_memory_that_is_short_in_the_sweep_only_makes_smaller_parts() -> None:
    tight = Fragile(most=4, error=torch.OutOfMemoryError("CUDA out of memory"))
    found = find_learning_rate(tight, config(), steps=10)
    assert np.allclose(found.losses, find_learning_rate(Fragile(), config(), steps=10).losses, rtol=1e-3)
    with pytest.raises(UserError, match="out of memory with one picture at a time"):
        find_learning_rate(Fragile(error=torch.OutOfMemoryError("CUDA")), config(), steps=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 1e-3, "high": 1e-4}, "a sweep of 100 steps from 0.001 to 0.0001; expected 10 or more"),
        ({"low": 0.0}, "from a rate above 0"),
        ({"steps": 3}, "a sweep of 3 steps"),
        ({"probe": 0}, "probe is 0"),
        ({"high": float("inf")}, "a sweep of"),
    ],
)
def test_wrong_sweeps(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_learning_rate(Regression(), config(), **settings)


def test_nothing_to_train() -> None:
    for find in (find_learning_rate, find_batch_size):
        with pytest.raises(UserError, match="nothing is trainable"):
            find(Regression().requires_grad_(False), config())


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("most", "limit", "found"), [(11, 64, 8), (64, 40, 40), (1, 64, 1), (7, 6, 6)])
def test_the_largest_batch_that_fits(error: Exception, most: int, limit: int, found: int) -> None:
    objective = Fragile(most=most, error=error)
    tried: list[tuple[int, bool]] = []
    size = find_batch_size(objective, config(), limit=limit, on_progress=lambda *told: tried.append(told))
    assert size == found
    assert tried == [(n, n <= most) for n in objective.sizes]


def test_other_errors_and_no_memory_at_all() -> None:
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        find_batch_size(Fragile(error=RuntimeError("a shape is wrong")), config())
    with pytest.raises(UserError, match="out of memory with one picture at a time; take smaller pictures"):
        find_batch_size(Fragile(error=ERRORS[0]), config())
    with pytest.raises(UserError, match="limit is 0"):
        find_batch_size(Regression(), config(), limit=0)
    with pytest.raises(UserError, match="free on cpu cannot be known here; set batch_size"):
        find_batch_size(Regression(), config(), headroom=lambda device: None)


class Hungry(Regression):
    """Each row takes a few megabytes for a moment."""

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        kept = torch.ones(len(batch["x"]), 1 << 18, requires_grad=True) * 2
        return {"loss": super().forward(batch)["loss"] + 0 * (kept * kept).sum()}


def test_a_cpu_stops_before_its_memory_is_full() -> None:
    """In a process of its own: memory that other tests have freed would be taken again unseen."""
    call = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_finders as t; t.look_at_memory()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def look_at_memory() -> None:
    small = find_batch_size(Hungry(), config(), limit=64, headroom=lambda device: 25 << 20)
    large = find_batch_size(Hungry(), config(), limit=64, headroom=lambda device: 100 << 20)
    assert small <= 16
    assert small < large <= 64
    assert find_batch_size(Hungry(), config(), limit=8, headroom=lambda device: 1 << 40) == 8


def test_memory_is_measured() -> None:
    cpu = torch.device("cpu")
    free = free_memory(cpu)
    assert free is not None
    assert 1 << 20 < free < 1 << 50
    assert free_memory(torch.device("meta")) is None
    with PeakMemory(cpu) as peak, mmap.mmap(-1, 64 << 20) as block:  # fresh pages, not those malloc has kept
        block.write(bytes(1) * (64 << 20))
        time.sleep(0.05)
    assert 48 << 20 < peak.grown < 256 << 20


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("3000\n")
    files = (str(tmp_path / "max"), str(tmp_path / "current"))
    monkeypatch.setattr("hyperbrush.training.memory.CGROUPS", (files,))
    assert free_memory(torch.device("cpu")) == 2000
    (tmp_path / "max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1 << 20

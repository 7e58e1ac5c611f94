"""What to set before a training: found by trying, with nothing changed."""

import mmap
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import SETTINGS, Regression

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import load_config
from hyperbrush.training import TrainerConfig
from hyperbrush.training.before.finders import find_batch_size
from hyperbrush.training.loop.memory import PeakMemory, free_memory
from hyperbrush.training.loop.optimizers import make_optimizer


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


@pytest.mark.parametrize("name", ["adamw", "schedule-free", "prodigy"])
def test_everything_is_put_back_to_the_bit(name: str) -> None:
    def find(**more: Any) -> None:
        find_batch_size(objective, config(), limit=6, **more)

    objective = Counted()
    before = everything(objective)
    find(optimizer_factory=lambda groups: make_optimizer(name, groups))
    assert same(before, everything(objective))
    objective.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        find()
    assert same(before, everything(objective))
    with torch.no_grad():
        next(objective.parameters()).add_(1)
    assert not same(before, everything(objective))


class Fragile(Regression):
    """Its loss cannot be computed from a size on."""

    def __init__(self, *, most: int = 0, error: Exception) -> None:
        super().__init__(dropout=0.0)
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        self.sizes.append(len(batch["x"]))
        if len(batch["x"]) > self.most:
            raise self.error
        return super().forward(batch)


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="nothing is trainable"):
        find_batch_size(Regression().requires_grad_(False), config())


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
    monkeypatch.setattr("hyperbrush.training.loop.memory.CGROUPS", (files,))
    assert free_memory(torch.device("cpu")) == 2000
    (tmp_path / "max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1 << 20

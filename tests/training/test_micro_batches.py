"""Out of memory: smaller parts, the same batch, the same result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Regression, train, weights

from hyperbrush.errors import UserError
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read
from hyperbrush.training.loop.micro_batches import is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError(CPU),
    MemoryError(),
]


class Hungry(Regression):
    """Has room for so many rows at once, from a step on."""

    def __init__(self, room: int, error: BaseException = ERRORS[0], begin: int = 0) -> None:
        super().__init__()
        self.room, self.error, self.begin, self.step = room, error, begin, -1
        self.sizes: list[int] = []

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        self.step = step
        return super().batch(step, batch_size)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if self.training:
            self.sizes.append(len(batch["x"]))
        found = super().forward(batch)
        if self.training and len(batch["x"]) > self.room and self.step >= self.begin:
            raise self.error
        return found


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_parts_are_halved_and_nothing_else_changes(tmp_path: Path, error: BaseException) -> None:
    seen: list[str] = []
    hungry = Hungry(2, error)
    train(hungry, tmp_path / "hungry", on_progress=lambda p: seen.extend(p.notes))
    parts = train(Regression(), tmp_path / "parts", gradient_accumulation=4)
    assert torch.equal(weights(hungry), weights(parts)), "as if in four parts from the start"
    assert hungry.sizes == [8, 4, *[2] * 24], "found out once"
    row = next(row for row in read(tmp_path / "hungry/metrics.jsonl") if "event" in row)
    assert (row["step"], row["event"], row["gradient_accumulation"]) == (1, "out_of_memory", 4)
    assert seen == [row["message"]]
    assert (
        seen[0] == "out of memory: 8 pictures at a time became 2, gradient_accumulation 4; the batch stays 8"
    )


def test_a_resume_remembers_and_ends_the_same(tmp_path: Path) -> None:
    whole = train(Hungry(4, begin=3), tmp_path / "whole", keep_checkpoints=9)
    for at, sizes in ((2, [8, 8, 4]), (4, [4, 4])):
        again = Hungry(4, begin=3)
        folder = tmp_path / str(at) / "checkpoints"
        folder.mkdir(parents=True)
        saved = checkpoints.path_of(tmp_path / "whole/checkpoints", at)
        (folder / saved.name).write_bytes(saved.read_bytes())
        train(again, tmp_path / str(at), resume=True)
        assert again.sizes[: len(sizes)] == sizes
        assert torch.equal(weights(whole), weights(again))


def test_a_batch_that_halves_badly(tmp_path: Path) -> None:
    hungry = Hungry(2)
    train(hungry, tmp_path, batch_size=9, steps=1)
    assert hungry.sizes == [9, 3, *[1] * 9]


def test_one_picture_is_the_end(tmp_path: Path) -> None:
    hungry = Hungry(0, begin=3)
    with pytest.raises(
        UserError, match=r"out of memory with one picture at a time \(batch_size 8 in 8 parts\)"
    ):
        train(hungry, tmp_path)
    found = checkpoints.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 2


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(Hungry(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), tmp_path)
    assert not is_out_of_memory(OSError(28, "No space left on device"))


def test_out_of_memory_beside_the_batch_is_said(tmp_path: Path) -> None:
    class Judged(Regression):
        def validate(self) -> dict[str, float]:
            raise ERRORS[0]

    with pytest.raises(UserError, match="out of memory beside the batch, after step 3"):
        train(Judged(), tmp_path)

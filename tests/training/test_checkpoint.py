"""Checkpoints know whether they are intact, and restore an optimizer exactly."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hyperbrush.errors import UserError
from hyperbrush.training import checkpoint as c


def example(step: int = 4) -> c.Checkpoint:
    return c.Checkpoint(
        step, {"model.w": torch.arange(6.0).view(2, 3), "none": torch.zeros(0)}, {"seconds": 1.5}
    )


def rewrite(path: Path, **changes: str | None) -> None:
    """Change a file's header and nothing else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={k: v for k, v in metadata.items() if v is not None})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = c.save(tmp_path, example(), keep=2)
    found = c.load(path)
    assert (found.step, found.extra) == (4, {"seconds": 1.5})
    assert torch.equal(found.tensors["model.w"], example().tensors["model.w"])
    assert c.latest(tmp_path / "nothing") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        c.save(tmp_path, example(step), keep=2)
    assert [p.stem for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "5"}, "is damaged: its content"),
        ({"extra": json.dumps({"seconds": 2.5})}, "is damaged: its content"),
        ({"sha256": "0"}, "is damaged: its content"),
        ({"extra": "{", "sha256_about": None}, "header does not say where it stood"),
        ({"step": None, "sha256_about": None}, "header does not say where it stood"),
        ({"hyperbrush": None}, "is not a hyperbrush checkpoint"),
    ],
    ids=str,
)
def test_an_altered_header_is_seen_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict, message: str
) -> None:
    c.save(tmp_path, example(2), keep=2)
    newest = c.save(tmp_path, example(4), keep=2)
    rewrite(newest, **changes)
    with pytest.raises(UserError, match=message):
        c.load(newest)
    with caplog.at_level(logging.WARNING):
        found = c.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "step-00000004" in caplog.text
    assert "taking an older one" in caplog.text


def test_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        c.load(tmp_path / "step-00000001.safetensors")
    with pytest.raises(UserError, match="no checkpoint at step 3 in .*there are: none"):
        c.latest(tmp_path, 3)


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6.0)
    same = c.digest({"a": x, "b": x})
    assert same == c.digest({"b": x.clone(), "a": x})
    others = [
        {"a": x},
        {"a": x, "c": x},
        {"a": x, "b": x.view(2, 3)},
        {"a": x, "b": x.long()},
        {"a": x, "b": x + 1},
    ]
    assert same not in {c.digest(o) for o in others}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_to_the_bit(
    tmp_path: Path, memory_format: torch.memory_format, fused: bool
) -> None:
    """Fused kernels walk through memory: moments in another layout than their weight would be shuffled."""

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 6, 3).to(memory_format=memory_format)
        return layer, torch.optim.AdamW(layer.parameters(), 1e-2, fused=fused)

    def step(layer: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        layer(x.to(memory_format=memory_format)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, its_optimizer = fresh()
    for number in range(3):
        step(whole, its_optimizer, number)
    tensors, rest = c.flatten_optimizer(its_optimizer)
    state = {k: v.detach().clone() for k, v in whole.state_dict().items()}
    saved = c.save(tmp_path, c.Checkpoint(3, tensors | {f"w.{k}": v for k, v in state.items()}, rest), keep=1)
    found = c.load(saved)

    again, optimizer = fresh()
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.copy_(found.tensors.pop(f"w.{name}"))
    c.restore_optimizer(optimizer, found.tensors, found.extra)
    for number in range(3, 5):
        step(whole, its_optimizer, number)
        step(again, optimizer, number)
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.bias, again.bias)

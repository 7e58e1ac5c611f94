"""Seeds, configs, small helpers."""

import logging

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from hyperbrush.errors import UserError
from hyperbrush.ldm import util


def test_keyed_generators() -> None:
    def draw(*key: int | str) -> list[float]:
        return torch.rand(3, generator=util.keyed_generator(*key)).tolist()

    assert draw(1, "noise", 2) == draw(1, "noise", 2)
    keys = [(1, "noise", 2), (2, "noise", 1), (1, "order", 2), (12,), (1, 2), (0, 1, 2)]
    assert len({tuple(draw(*k)) for k in keys}) == len(keys)
    assert 0 <= util.keyed_seed("x") < 2**63


def test_small_helpers() -> None:
    layer = nn.Linear(3, 2)
    assert util.count_parameters(layer) == 8
    util.setup_logging("INFO")
    assert logging.getLogger().level == logging.INFO


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int
    inner: Inner = Inner()


def test_config_errors_come_together(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("stepz: 3\ninner: {widht: 2}\n")
    with pytest.raises(UserError) as caught:
        util.load_config(Outer, path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "setting 'steps' is missing" in text
    assert "unknown setting 'stepz', did you mean 'steps'?" in text
    assert "unknown setting 'inner.widht', did you mean 'width'?" in text
    path.write_text("steps: 3")
    assert util.load_config(Outer, path, steps=5).steps == 5
    for content, message in (
        ("- 1", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("", "'steps' is missing"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            util.load_config(Outer, path)
    with pytest.raises(UserError, match="does not exist"):
        util.load_config(Outer, tmp_path / "none.yaml")

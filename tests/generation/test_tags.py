"""Prompt tags."""

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.tags import HypernetworkTag, parse_tags


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <hypernet:ink:0.7>", "a cat ", [("ink", 0.7)]),
        ("<hypernet:ink> a cat", " a cat", [("ink", 1.0)]),
        ("<hypernet:ink:-0.3><hypernet:oil:0>", "", [("ink", -0.3), ("oil", 0.0)]),
        ("<hypernet:ink:0.5> and <hypernet:ink:0.25>", " and ", [("ink", 0.75)]),
        ("<hypernet:my style (v2):1>", "", [("my style (v2)", 1.0)]),
        ("a < b > c", "a < b > c", []),
    ],
)
def test_reads_tags(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    assert parse_tags(prompt) == (text, [HypernetworkTag(*t) for t in tags])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<hypernet:ink:strong>", "'strong' is not a number"),
        ("<hypernet:ink:nan>", "must be finite, got nan"),
        ("<hypernet:ink:-inf>", "must be finite, got -inf"),
        ("<lora:ink:1>", "<lora:ink:1> is not understood"),
    ],
)
def test_refuses(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_tags(prompt)

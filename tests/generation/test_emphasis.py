"""Emphasis: every reading of the webui's, and what it leaves open."""

import json
from pathlib import Path
from typing import Any

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.emphasis import BREAK, MOST_OPEN, parse_emphasis

CASES = json.loads((Path(__file__).parent / "reference/prompts.json").read_text(encoding="utf-8"))[
    "attention"
]


def test_there_are_cases() -> None:
    assert len(CASES) == 150
    assert {"(", "[", "BREAK", "\\(", ":2)"} <= {
        mark for mark in ("(", "[", "BREAK", "\\(", ":2)") for c in CASES if mark in c["prompt"]
    }


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prompt"])
def test_reads_as_the_webui(case: dict[str, Any]) -> None:
    assert parse_emphasis(case["prompt"]) == [tuple(part) for part in case["parts"]]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", [("", 1.0)]),
        ("a cat", [("a cat", 1.0)]),
        ("\\[a\\] \\\\ b", [("[a] \\ b", 1.0)]),
        ("a \\cat", [("a cat", 1.0)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:+.5)", [("a", 0.5)]),
        ("[a:0.5]", [("a:0.5", 1 / 1.1)]),
        ("BREAKFAST BREAK", [("BREAKFAST", 1.0), BREAK, ("", 1.0)]),
        ("(a BREAK b:0.5)", [("a", 0.5), ("BREAK", -0.5), ("b", 0.5)]),
    ],
)
def test_reads(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("(a:1.2.3)", r"the weight '1.2.3' in ':1.2.3\)' is not a number; write one like"),
        ("(a:.)", "the weight '.' in"),
        (f"(a:{'9' * 400})", "must be finite"),
        ("(" * (MOST_OPEN + 1), r"more than 100 brackets '\(' are open.*as \\\("),
        ("[" * (MOST_OPEN + 1), r"more than 100 brackets '\[' are open"),
        ("(" * 3 + "a" + f":{'9' * 150})" * 3, "multiply to more than a number holds"),
    ],
)
def test_refuses(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_emphasis(prompt)


def test_brackets_at_the_limit_are_read() -> None:
    [(text, weight)] = parse_emphasis("(" * MOST_OPEN + "a" + ")" * MOST_OPEN)
    assert text == "a"
    assert weight == pytest.approx(1.1**MOST_OPEN)


def test_long_prompts_take_linear_time() -> None:
    """These took minutes with one regular expression for a BREAK and the space around it."""
    assert parse_emphasis(" " * 400_000) == [(" " * 400_000, 1.0)]
    assert parse_emphasis("BREAK" + " " * 400_000 + "BREAK")[2:] == [("", 1.0), BREAK, ("", 1.0)]
    assert parse_emphasis("(a:1.5)" * 20_000) == [("a" * 20_000, 1.5)]

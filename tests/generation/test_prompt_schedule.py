"""Prompt editing, alternation and composition: the webui's own parser's cases, and more that it was run on."""

import json
from pathlib import Path

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.prompt_networks import read_negative
from hyperbrush.generation.prompt_notes import prompt_notes
from hyperbrush.generation.prompt_schedule import Part, schedule, split_parts

REFERENCE = Path(__file__).parent / "reference"
LANDSCAPE = (
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[: in background:0.25] [shoddy:masterful:0.5]"
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i, ("a", "(b:1.1)")[(i - 1) % 2]) for i in range(1, 11)]),
        ("[fe|]male", [(i, ("female", "male")[(i - 1) % 2]) for i in range(1, 11)]),
        ("[fe|||]male", [(i, "female" if i % 4 == 1 else "male") for i in range(1, 11)]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a::0.5]", [(5, "a"), (10, "")]),
        ("[(red:1.2)|blue] cat [dog::0.2]", None),
    ],
)
def test_the_webuis_cases(prompt: str, expected: list[tuple[int, str]] | None) -> None:
    if expected is None:
        found = schedule(prompt, 10)
        assert found[:3] == [(1, "(red:1.2) cat dog"), (2, "blue cat dog"), (3, "(red:1.2) cat ")]
    else:
        assert schedule(prompt, 10) == expected


def test_the_documented_landscape() -> None:
    assert schedule(LANDSCAPE, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]
    assert schedule("a [blue:red:10] car", 20) == [(10, "a blue car"), (20, "a red car")]


def test_what_the_webuis_parser_reads_of_random_texts() -> None:
    """`schedules.json`: texts of random pieces, read by the webui's grammar (run with lark 1.3.1)."""
    cases = json.loads((REFERENCE / "schedules.json").read_text(encoding="utf-8"))
    assert len(cases) > 100
    for prompt, steps, expected in cases:
        assert [list(stretch) for stretch in schedule(prompt, steps)] == expected, prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [Part("a cat")]),
        (
            "a cat :1.2 AND a dog AND a penguin :2.2",
            [Part("a cat", 1.2), Part(" a dog "), Part(" a penguin", 2.2)],
        ),
        ("a AND b:-0.5", [Part("a "), Part(" b", -0.5)]),
        ("a AND b : .5 ", [Part("a "), Part(" b", 0.5)]),
        ("SAND and BRAND", [Part("SAND and BRAND")]),
        ("a AND", [Part("a "), Part("")]),
        ("(a:1.2)", [Part("(a:1.2)")]),
        ("a:2", [Part("a", 2.0)]),
        ("a AND [b:c:0.5]", [Part("a "), Part(" [b:c:0.5]")]),
    ],
)
def test_composition(prompt: str, expected: list[Part]) -> None:
    assert split_parts(prompt) == expected


def test_hostile_prompts() -> None:
    schedule("[" * 20_000, 10)
    schedule("[a:" * 6_000 + ":1]" * 3, 10)
    schedule("[a|" * 50 + "b" + "]" * 50, 10)
    with pytest.raises(UserError, match="nested deeper than 100"):
        schedule("[a:" * 200 + "b" + ":3]" * 200, 10)
    with pytest.raises(UserError, match="must be finite"):
        split_parts(f"a AND b :{'9' * 400}")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("[cat:dog]", "'[cat:dog]' is read as words"),
        ("a [cat:dog:0,5] b", "'[cat:dog:0,5]' is read as words"),
        ("a [cat:dog:50%]", "'[cat:dog:50%]' is read as words"),
        ("[cat;dog;0.5]", "'[cat;dog;0.5]' is read as words"),
        ("[cat：dog：0.5]", "is read as words"),
        ("［cat|dog］ b", "is read as words"),
        ("a | b [c:3]", "makes the whole prompt plain text"),
        ("portrait, 16:9", "9 times the guidance"),
        ("[cat <hypernet:ink:1>:dog:0.5]", "acts at every step"),
        ("cat <hypernet:ink:1> AND dog", "act on all parts"),
    ],
)
def test_what_is_read_otherwise_than_it_looks_is_said(prompt: str, said: str) -> None:
    [note] = prompt_notes(prompt)
    assert said in note


@pytest.mark.parametrize(
    "prompt",
    [
        "[cat]",
        "[cat (red:1.2)]",
        "a [cat:dog:0.5]",
        "[cat|dog]",
        "[[a:b:3]]",
        "(a:1.2), b",
        "a AND b :1.1",
        "[a; b]",
    ],
)
def test_nothing_is_said_of_what_is_clear(prompt: str) -> None:
    assert prompt_notes(prompt) == []


def test_and_in_a_negative_prompt_is_said() -> None:
    assert read_negative("[a:b:0.5]") == []
    [note] = read_negative("a AND b")
    assert "is a word" in note

"""Axes of a comparison: their texts, and what a value changes."""

from typing import Any

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.axes import Cell, axis, read_axis, with_strength
from hyperbrush.generation.settings import Settings

BASE = Cell("a cat <hypernet:ink:0.5:end=0.8>", 7, Settings(negative="dog"))


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("strength=0,0.5,1", "strength", (0, 0.5, 1)),
        ("strength=-0.5-0.5:0.5", "strength", (-0.5, 0, 0.5)),
        ("strength=0-1:0.1", "strength", tuple(i / 10 for i in range(11))),
        ("seed=1-5", "seed", (1, 2, 3, 4, 5)),
        ("steps= 5-15:5, 40", "steps", (5, 10, 15, 40)),
        ("seed=1-6:2", "seed", (1, 3, 5)),
        ("cfg=1,4.5", "cfg", (1, 4.5)),
        ("hypernet=water, ink,None", "hypernetwork", ("water", "ink", "none")),
        ("Hypernetwork=styles/ink:0.5", "hypernetwork", ("styles/ink:0.5",)),
        ("sampler=euler_a,DPM++ 2M Karras", "sampler", ("Euler a", "DPM++ 2M Karras")),
        ('prompt=cat,"a dog, barking",', "prompt", ("cat", "a dog, barking", "")),
        ('prompt="say ""hi""",x', "prompt", ('say "hi"', "x")),
        ("clip-skip=1,2", "clip_skip", (1, 2)),
        ("CFG Scale=3", "cfg", (3,)),
        ("size=64x96", "size", ((96, 64),)),
    ],
)
def test_reads(text: str, kind: str, values: tuple[Any, ...]) -> None:
    found = read_axis(text)
    assert (found.kind, found.values) == (kind, values)
    assert read_axis(f"{kind}={found.written()}") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strenth=1", "unknown axis 'strenth'; did you mean 'strength'"),
        ("strength", "has no values: write it as strength=0,0.5,1"),
        ("strength=", "has an empty value"),
        ("strength=1,,2", "has an empty value"),
        ("hypernet=ink,", "write none for no hypernetwork"),
        ("strength=high", "strength 'high' is no number"),
        ("strength=nan", "strength must be a number"),
        ("strength=1-0", "must go up"),
        ("strength=0-1:0", "must go up"),
        ("seed=1-1000000", "more than 200 values"),
        ("seed=0-99999999999999999999999999999999999:0.00000000001", "more than 200 values"),
        ("seed=1.5", "seed '1.5' is no whole number"),
        ("seed=-1", "seed must be a whole number, 0 to"),
        ("steps=0", "steps must be a whole number, 1 to 1000"),
        ("sampler=Eulr", "unknown sampler 'Eulr'; did you mean"),
        ("hypernet=<ink>", "is no hypernetwork's name"),
        ("size=large", "expected WIDTHxHEIGHT"),
        ('prompt="cat', "are no CSV"),
        (f"seed={','.join(['1'] * 201)}", "has 201 values: expected 1 to 200"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_axis(text)


def test_values_of_the_python_call() -> None:
    assert axis("strength", [0, 0.5]).values == (0.0, 0.5)
    assert axis("size", [(32, 64)]).values == ((32, 64),)
    for kind, values, message in (
        ("strength", [], "has 0 values"),
        ("strength", "0,1", "needs a list of values"),
        ("strength", [True], "must be a number"),
        ("prompt", [3], "a prompt is a text"),
        ("size", [(1, 2, 3)], "size must be"),
    ):
        with pytest.raises(UserError, match=message):
            axis(kind, values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strength=0.2", "a cat <hypernet:ink:0.2:end=0.8>"),
        ("hypernet=water", "a cat <hypernet:ink:0.5:end=0.8> <hypernet:water>"),
        ("hypernet=none", "a cat <hypernet:ink:0.5:end=0.8>"),
    ],
)
def test_a_value_in_the_prompt(text: str, expected: str) -> None:
    one = read_axis(text)
    assert one.apply(BASE, one.values[0]).prompt == expected


def test_a_value_in_the_settings() -> None:
    for text, name, value in (
        ("steps=9", "steps", 9),
        ("cfg=2", "guidance_scale", 2.0),
        ("sampler=DDIM", "sampler", "DDIM"),
        ("clip_skip=2", "clip_skip", 2),
        ("size=64x32", "size", (32, 64)),
    ):
        one = read_axis(text)
        assert getattr(one.apply(BASE, one.values[0]).settings, name) == value
    assert read_axis("seed=9").apply(BASE, 9).seed == 9


def test_the_prompt_axis_searches_for_its_first_value() -> None:
    both = read_axis("prompt=cat,dog")
    assert both.apply(BASE, "dog").prompt == "a dog <hypernet:ink:0.5:end=0.8>"
    negative = read_axis("prompt=dog,bird")
    assert negative.apply(BASE, "bird").settings.negative == "bird"
    with pytest.raises(UserError, match="searches for its first value, and 'bird' is not in the prompt"):
        read_axis("prompt=bird,cat").apply(BASE, "cat")


def test_strength_of_every_form_of_tag() -> None:
    assert with_strength("<hypernet:a> <hypernet:b:1:attn=self> <hypernet:c:strength=1:end=0.5>", -0.25) == (
        "<hypernet:a:-0.25> <hypernet:b:-0.25:attn=self> <hypernet:c:-0.25:end=0.5>"
    )
    assert with_strength("a <b> <lora:x:1>", 0.5) == "a <b> <lora:x:1>"


def test_labels() -> None:
    assert read_axis("strength=0.50").label(0.5) == "strength 0.5"
    assert read_axis("cfg=7").label(7.0) == "cfg 7"
    assert read_axis("size=64x32").label((32, 64)) == "size 64x32"
    assert read_axis("hypernet=ink").label("ink") == "ink"

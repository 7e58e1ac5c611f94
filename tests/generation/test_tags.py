"""Prompt tags."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.tags import (
    HypernetworkTag,
    LoraTag,
    lora_tags,
    near_tags,
    parse_tags,
    repeated_names,
    split_tags,
)

# The webui's own readings of random prompts (shared/reference/text.json).
CASES = json.loads((Path(__file__).parent / "reference/prompts.json").read_text(encoding="utf-8"))["tags"]
HYPERNET = [c for c in CASES if all(n["type"] == "hypernet" for n in c["networks"])]
OTHER = [c for c in CASES if c not in HYPERNET]


def grouped(found: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """In the webui's order: by kind, as each first appears."""
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    return [{"type": kind, "items": items} for kind in kinds for k, items in found if k == kind]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prompt"])
def test_splits_as_the_webui(case: dict[str, Any]) -> None:
    text, found = split_tags(case["prompt"])
    assert (text, grouped(found)) == (case["text"], case["networks"])


@pytest.mark.parametrize("case", HYPERNET, ids=lambda c: c["prompt"])
def test_reads_as_the_webui(case: dict[str, Any]) -> None:
    text, tags = parse_tags(case["prompt"])
    assert text == case["text"]
    total: dict[tuple[str, bool], float] = {}
    for network in case["networks"]:
        name, *rest = network["items"]
        place = name, "start=0.2" in rest  # the one named argument in the cases
        total[place] = total.get(place, 0.0) + float(rest[0] if rest else 1.0)
    assert {(t.name, t.start == 0.2): t.strength for t in tags} == total
    assert len(tags) == len(total)


@pytest.mark.parametrize("case", OTHER, ids=lambda c: c["prompt"])
def test_loras_are_told_apart(case: dict[str, Any]) -> None:
    text, tags = parse_tags(case["prompt"])
    assert text == case["text"]
    hypernets = {n["items"][0] for n in case["networks"] if n["type"] == "hypernet"}
    assert {tag.name for tag in tags} == hypernets
    loras = [n["items"] for n in case["networks"] if n["type"] == "lora"]
    assert loras
    assert [tag.name for tag in lora_tags(case["prompt"])] == [items[0] for items in loras]


def test_the_cases_hold_both() -> None:
    assert len(HYPERNET) > 80
    assert len(OTHER) > 20


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <hypernet:ink:0.7>", "a cat ", [("ink", 0.7)]),
        ("<hypernet:ink> a cat", " a cat", [("ink", 1.0)]),
        ("<hypernet:ink:-0.3><hypernet:oil:0>", "", [("ink", -0.3), ("oil", 0.0)]),
        ("<hypernet:ink:0.5> and <hypernet:ink:0.25>", " and ", [("ink", 0.75)]),
        ("<hypernet:my style (v2):1>", "", [("my style (v2)", 1.0)]),
        ("<hypernet:a=b:2>", "", [("a=b", 2.0)]),
        ("<hypernet:ink:1:2>", "", [("ink", 1.0)]),
        ("<hypernet:>", "<hypernet:>", []),
        ("a < b > c", "a < b > c", []),
    ],
)
def test_reads_tags(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    assert parse_tags(prompt) == (text, [HypernetworkTag(*t) for t in tags])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("0.7:start=0.2:end=0.8:attn=cross", {"start": 0.2, "end": 0.8, "attn": ("attn2",)}),
        ("0.7:attn=self", {"attn": ("attn1",)}),
        ("0.7:attn=both", {}),
        ("0.7:attn=attn1", {"attn": ("attn1",)}),
        ("0.7:attn=attn2", {"attn": ("attn2",)}),
        ("0.7:blocks=down.1+mid+up", {"blocks": ("down.1", "mid", "up")}),
        ("0.7:ramp=0.2", {"ramp": 0.2}),
        ("strength=0.7", {}),
        ("end=0.5:strength=0.7:start=.25", {"start": 0.25, "end": 0.5}),
        ("start=0.5:0.7", {"start": 0.5}),
    ],
)
def test_named_arguments_in_any_order(arguments: str, expected: dict[str, Any]) -> None:
    _, tags = parse_tags(f"a cat <hypernet:water:{arguments}>")
    assert tags == [HypernetworkTag("water", 0.7, **expected)]


def test_one_name_in_two_forms_is_one_network() -> None:
    composed, decomposed = (unicodedata.normalize(form, "물결 é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    prompt = f"<hypernet:{composed}:0.5><hypernet:{decomposed}:0.25>"
    assert parse_tags(prompt)[1] == [HypernetworkTag(composed, 0.75)]
    assert repeated_names(prompt) == [composed]


def test_repeated_names_add_up_where_all_else_agrees() -> None:
    prompt = "<hypernet:ink:1:start=0.5><hypernet:ink:0.5><hypernet:oil><hypernet:ink:0.25>"
    assert parse_tags(prompt)[1] == [
        HypernetworkTag("ink", 1.0, start=0.5),
        HypernetworkTag("ink", 0.75),
        HypernetworkTag("oil"),
    ]
    assert repeated_names(prompt) == ["ink"]
    assert repeated_names("<hypernet:ink:1:start=0.5><hypernet:ink:0.5><hypernet:oil>") == []
    ramps = "<hypernet:ink:1:ramp=0><hypernet:ink:0.5:ramp=0.25><hypernet:ink:2>"
    assert parse_tags(ramps)[1] == [HypernetworkTag("ink", 1.5, ramp=0.25), HypernetworkTag("ink", 2.0)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<hypernet:ink:strong>", "the strength 'strong' is not a number"),
        ("<hypernet:ink:>", "the strength '' is not a number"),
        ("<hypernet:ink:nan>", "the strength must be finite, got nan"),
        ("<hypernet:ink:-inf>", "must be finite, got -inf"),
        ("<hypernet:ink:1:ramp=inf>", "the ramp must be finite"),
        ("<hypernet:ink:1e308><hypernet:ink:1e308>", "strengths of 'ink' add up to inf"),
        (
            "<hypernet:ink:1:begin=0.2>",
            "unknown argument in .*: 'begin'.*Known: attn, blocks, end, guidance, ramp",
        ),
        ("<hypernet:ink:1:atn=self>", "'atn'; did you mean 'attn'"),
        ("<hypernet:ink:1:start=0.1:start=0.2>", "'start' is given twice"),
        ("<hypernet:ink:1:strength=2>", "'strength' is given twice"),
        ("<hypernet:ink:1:start=0.8:end=0.2>", "0 ≤ start < end ≤ 1; got start 0.8 and end 0.2"),
        ("<hypernet:ink:1:end=1.5>", "got start 0 and end 1.5"),
        ("<hypernet:ink:1:guidance=positive>", "guidance in .*: 'positive'"),
        ("<hypernet:ink:1:start=half>", "the start 'half' is not a number"),
        ("<hypernet:ink:1:attn=crss>", "'crss'; did you mean 'cross'"),
        ("<hypernet:ink:1:blocks=down.1+middle>", "no block is called 'middle'; expected down, mid, up"),
        ("<hypernet:ink:1:blocks=>", "no block is called ''"),
        ("<hypernet::1>", "names no network"),
        ("<lyra:ink:1>", "<lyra:ink:1> is not understood; .* did you mean 'lora'"),
        ("<hypernt:ink:1>", "did you mean 'hypernet'"),
    ],
)
def test_refuses(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_tags(prompt)


def test_tags_never_closed_take_linear_time() -> None:
    prompt = "<hypernet:" * 100_000
    assert parse_tags("<hypernet:ink> " + prompt) == (" " + prompt, [HypernetworkTag("ink")])


@pytest.mark.parametrize(
    ("prompt", "text", "tag"),
    [
        ("cat ＜hypernet：ink：0.5＞", "cat ", HypernetworkTag("ink", 0.5)),
        ("cat <hypernet：ink：1>", "cat ", HypernetworkTag("ink", 1.0)),
        ("cat ＜hypernet:ink:1＞ face", "cat  face", HypernetworkTag("ink", 1.0)),
        ("<hypernet:ink：0.3>", "", HypernetworkTag("ink", 0.3)),
        ("＜ hypernet：水墨画：０．７＞", "", HypernetworkTag("水墨画", 0.7)),
        ("＜ｈｙｐｅｒｎｅｔ：ink：－０．５＞", "", HypernetworkTag("ink", -0.5)),
        ("＜hypernet：ink：0.5：ｓｔａｒｔ＝0.5＞", "", HypernetworkTag("ink", 0.5, start=0.5)),
        ("<hypernet:Art：Style:0.5>", "", HypernetworkTag("Art：Style", 0.5)),
    ],
)
def test_full_width_tags_are_understood(prompt: str, text: str, tag: HypernetworkTag) -> None:
    assert parse_tags(prompt) == (text, [tag])


@pytest.mark.parametrize("prompt", ["＜note：x＞", "a：b", "１＜２＞", "cat ＜lyric：la＞"])
def test_other_full_width_text_stays(prompt: str) -> None:
    assert parse_tags(prompt) == (prompt, [])


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("cat <hypernet:ink:1", "<hypernet:ink:1"),
        ("cat &lt;hypernet:ink:1&gt; face", "&lt;hypernet:ink:1&gt; face"),
        ("cat < hypernet:ink:1>", "< hypernet:ink:1>"),
        ("cat [hypernet:ink:1]", "[hypernet:ink:1]"),
        ("cat hypernet:ink:1>", "hypernet:ink:1>"),
        ("cat <hypernet ink 1>", "<hypernet ink 1>"),
        ("cat <Hyper-Network=ink>", "<Hyper-Network=ink>"),
        ("cat <lora:ink:1", "<lora:ink:1"),
    ],
)
def test_near_tags_are_found(prompt: str, near: str) -> None:
    assert near_tags(parse_tags(prompt)[0]) == [near]


@pytest.mark.parametrize(
    "prompt", ["a hypernetwork, drawn", "lora the cat", "<hypernet:ink:1> cat", "3 < 4: yes"]
)
def test_words_are_no_near_tags(prompt: str) -> None:
    assert near_tags(parse_tags(prompt)[0]) == []


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<lora:ink>", LoraTag("ink")),
        ("<lora:ink:0.4>", LoraTag("ink", 0.4, 0.4)),
        ("<lora:ink:0.4:0.8>", LoraTag("ink", 0.4, 0.8)),
        ("<lora:ink:te=0:unet=0.5>", LoraTag("ink", 0.0, 0.5)),
        ("＜lora：ink：0.4＞", LoraTag("ink", 0.4, 0.4)),
        ("<lyco:ink:-1>", LoraTag("ink", -1.0, -1.0)),
    ],
)
def test_loras(prompt: str, tag: LoraTag) -> None:
    assert lora_tags(prompt) == [tag]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:ink:much>", "the strength 'much' is not a number"),
        ("<lora: :1>", "names no LoRA"),
        ("<lora:ink:1:1:1>", "one argument too many"),
        ("<lora:ink:unett=1>", "unknown argument in <lora:ink:unett=1>: 'unett'; did you mean 'unet'"),
    ],
)
def test_loras_that_make_no_sense(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora_tags(prompt)

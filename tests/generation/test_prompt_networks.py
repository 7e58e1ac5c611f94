"""What the tags of a batch mean: which network acts where, when, and for which picture."""

from pathlib import Path

import pytest

from hyperbrush.errors import UserError
from hyperbrush.generation.prompt_networks import acts_on, networks_of, read_prompt, refuse_negative_tags
from hyperbrush.hypernetworks import (
    AttentionHypernetwork,
    HypernetworkLibrary,
    PerPicture,
    Ramp,
    Use,
    Window,
    load,
)

BOTH = ("attn1", "attn2")


@pytest.fixture
def library(tmp_path: Path) -> HypernetworkLibrary:
    for name in ("ink", "water", "Café"):
        AttentionHypernetwork([8], name=name).save(tmp_path / f"{name}.pt")
    return HypernetworkLibrary(tmp_path)


def uses(library: HypernetworkLibrary, *prompts: str) -> list[Use]:
    return networks_of([read_prompt(text, library) for text in prompts], load)


@pytest.mark.parametrize(
    ("tag", "strength", "attn", "blocks"),
    [
        ("ink", 1.0, BOTH, None),
        ("ink:-0.5", -0.5, BOTH, None),
        ("ink:0.5:attn=cross", 0.5, ("attn2",), None),
        ("ink:0.5:blocks=mid+up.1", 0.5, BOTH, ("mid", "up.1")),
        ("ink:0.5:start=0.2:end=0.8", Window(0.5, 0.2, 0.8), BOTH, None),
        ("ink:0.5:ramp=0", Ramp(0, 0.5), BOTH, None),
        ("ink:0.5:ramp=1:end=0.5", Window(Ramp(1, 0.5, 0, 0.5), 0, 0.5), BOTH, None),
    ],
)
def test_a_tag_becomes_a_use(
    library: HypernetworkLibrary, tag: str, strength: object, attn: object, blocks: object
) -> None:
    [use] = uses(library, f"cat <hypernet:{tag}>")
    assert (use.strength, use.attn, use.blocks) == (strength, attn, blocks)
    assert use.hypernetwork.name == "ink"


def test_a_tag_may_act_on_one_side_of_guidance(library: HypernetworkLibrary) -> None:
    [both, one] = uses(library, "cat <hypernet:ink:0.5> <hypernet:ink:0.2:guidance=conditional>")
    assert (both.strength, both.guidance, one.strength, one.guidance) == (0.5, "both", 0.2, "conditional")


def test_each_picture_has_its_own(library: HypernetworkLibrary) -> None:
    found = uses(
        library,
        "a <hypernet:ink:0.5> <hypernet:water:0.2>",
        "b",
        "c <hypernet:water:0.2:start=0.5>",
        "d <hypernet:ink:0.5> <hypernet:Café:0>",
    )
    ink, water = found
    assert (ink.hypernetwork.name, water.hypernetwork.name) == ("ink", "water")
    assert ink.strength == PerPicture([0.5, 0, 0, 0.5])
    assert water.strength == PerPicture([0.2, 0, Window(0.2, 0.5), 0])
    assert [acts_on(ink, i) for i in range(4)] == [True, False, False, True]
    assert uses(library, "a", "b <hypernet:ink:0>") == []


def test_equal_strengths_need_no_list(library: HypernetworkLibrary) -> None:
    [use] = uses(library, "a <hypernet:ink:0.5>", "b <hypernet:ink:0.5>")
    assert use.strength == 0.5
    assert acts_on(use, 1)


def test_each_prompt_keeps_its_order(library: HypernetworkLibrary) -> None:
    """They compose, so that ink after water is not water after ink."""
    a, b = "<hypernet:ink:0.5>", "<hypernet:water:0.2>"
    found = uses(library, a + b, b + a)
    for picture, expected in ((0, ["ink", "water"]), (1, ["water", "ink"])):
        assert [use.hypernetwork.name for use in found if acts_on(use, picture)] == expected
    assert len({id(use.hypernetwork) for use in found}) == 2


def test_a_network_named_twice_adds_up_and_says_so(library: HypernetworkLibrary) -> None:
    read = read_prompt("a <hypernet:ink:0.2> <hypernet:ink:0.3>", library)
    assert list(read.terms.values()) == [0.5]
    assert read.notes == ["'ink' is named more than once: its strengths add up"]
    over = read_prompt(
        "a <hypernet:ink:0.2> <hypernet:ink:0.3:start=0.5> <hypernet:ink:1:attn=self>", library
    )
    term, alone = over.terms.values()
    assert callable(term)
    assert [term(t) for t in (0, 0.4, 0.5, 1)] == [0.2, 0.2, 0.5, 0.5]
    assert alone == 1
    assert over.notes == ["'ink' is named more than once: its strengths add up"]


def test_names_of_one_look_are_one(library: HypernetworkLibrary) -> None:
    read = read_prompt("a <hypernet:Cafe\u0301:0.2> <hypernet:Caf\u00e9:0.3>", library)
    assert list(read.terms.values()) == [0.5]
    assert list(read.files) == ["Caf\u00e9"]


def test_missing_networks(library: HypernetworkLibrary) -> None:
    with pytest.raises(UserError, match=r"unknown hypernetwork 'inc'; did you mean 'ink'"):
        read_prompt("a <hypernet:inc>", library)
    read = read_prompt("a <hypernet:inc:0.5> <hypernet:ink:0.3>", library, "warn")
    assert (read.text, list(read.terms.values())) == ("a", [0.3])
    [note] = read.notes
    assert note.startswith("drawn without 'inc': unknown hypernetwork 'inc'; did you mean 'ink'")
    with pytest.raises(UserError, match="unknown way with missing hypernetworks 'ignore'"):
        read_prompt("a", library, "ignore")


def test_warn_does_not_hide_other_mistakes(library: HypernetworkLibrary) -> None:
    for folder in ("a", "b"):
        AttentionHypernetwork([8]).save(library.folder / folder / "twin.pt")
    with pytest.raises(UserError, match="several hypernetworks are called 'twin'"):
        read_prompt("a <hypernet:twin>", library, "warn")
    with pytest.raises(UserError, match="must be finite"):
        read_prompt("a <hypernet:water:nan>", library, "warn")


def test_negative_prompts_hold_no_tags() -> None:
    refuse_negative_tags("people, (text:1.2)")
    with pytest.raises(UserError, match="write it in the prompt, with a negative strength"):
        refuse_negative_tags("people <hypernet:ink>")
    with pytest.raises(UserError, match="negative prompt holds"):
        refuse_negative_tags("people <hypernet:ink")


def test_near_tags_are_refused_or_told(library: HypernetworkLibrary) -> None:
    with pytest.raises(
        UserError, match=r"'<hypernet:ink:1' is no tag, but nearly: write <hypernet:NAME:STRENGTH>"
    ):
        read_prompt("cat <hypernet:ink:1", library)
    read = read_prompt("cat <hypernet:ink:1", library, "warn")
    assert read.text == "cat <hypernet:ink:1"
    [note] = read.notes
    assert note.endswith("drawn as words")
    assert list(read_prompt("cat ＜hypernet：ink：0.5＞", library).terms.values()) == [0.5]

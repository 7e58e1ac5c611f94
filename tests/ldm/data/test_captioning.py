import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import (
    BatchOrder,
    Captioning,
    FileNames,
    ImageFolder,
    LatentCache,
    Mixture,
    Part,
    Selection,
    cache_latents,
    captions_seen,
    read_templates,
    scan,
)

TAGS = "cat, red hat, grass, sky, cloud"


def over_epochs(captioning, count=200, written=TAGS):
    return [captioning.caption(written, 0, epoch, 0) for epoch in range(count)]


def test_nothing_set_leaves_the_caption_alone():
    assert Captioning().caption(" a ,b ", 0, 0, 0) == " a ,b "


def test_templates_are_drawn_evenly_and_keyed():
    captioning = Captioning(read_templates("style_filewords"), name="anna")
    found = over_epochs(captioning, 800)
    counts = Counter(found)
    assert len(counts) == 8
    assert min(counts.values()) > 60
    assert all("anna" in caption and TAGS in caption for caption in found)
    assert found == over_epochs(captioning, 800)
    for key in ((1, 0), (0, 1)):
        assert found != [captioning.caption(TAGS, key[0], epoch, key[1]) for epoch in range(800)]


def test_shuffle_keeps_every_tag_and_the_first_ones_in_place():
    found = over_epochs(Captioning(shuffle_tags=True, keep_tags=2))
    assert all(caption.startswith("cat, red hat, ") for caption in found)
    assert all(sorted(caption.split(", ")) == sorted(TAGS.split(", ")) for caption in found)
    assert len(set(found)) == 6
    assert len(set(over_epochs(Captioning(shuffle_tags=True), 1000))) > 110


def test_drop_out_has_its_share_and_spares_the_first():
    found = over_epochs(Captioning(drop_tags=0.3, keep_tags=1), 2000)
    kept = Counter(tag for caption in found for tag in caption.split(", "))
    assert kept["cat"] == 2000
    for tag in TAGS.split(", ")[1:]:
        assert abs(kept[tag] / 2000 - 0.7) < 0.04
    order = TAGS.split(", ")
    for caption in found:
        assert [order.index(tag) for tag in caption.split(", ")] == sorted(
            order.index(tag) for tag in caption.split(", ")
        )
    assert over_epochs(Captioning(drop_tags=1.0), 3) == ["", "", ""]


def test_separator_and_suffix():
    captioning = Captioning(drop_tags=1.0, keep_tags=2, separator="|", suffix=", flat style")
    assert captioning.caption("a | b|c", 0, 0, 0) == "a| b, flat style"


def test_the_template_stays_when_tags_are_shuffled_too():
    lines = ("one [filewords]", "two [filewords]", "three [filewords]")
    for epoch in range(20):
        plain = Captioning(lines).caption("x, y, z", 3, epoch, 4)
        both = Captioning(lines, shuffle_tags=True, drop_tags=0.5).caption("x, y, z", 3, epoch, 4)
        assert plain.split()[0] == both.split()[0]


def test_one_of_several_captions_is_drawn_each_time():
    three = ("a cat", "a kitten", "a pet")
    even = Counter(over_epochs(Captioning(), 1500, three))
    assert set(even) == set(three)
    assert min(even.values()) > 430
    often = Counter(over_epochs(Captioning(first_caption=0.8), 1500, three))
    assert abs(often["a cat"] / 1500 - 0.8) < 0.04
    assert abs(often["a kitten"] / 1500 - 0.1) < 0.03
    assert set(over_epochs(Captioning(first_caption=1.0), 50, three)) == {"a cat"}
    assert set(over_epochs(Captioning(first_caption=0.0), 50, three)) == {"a kitten", "a pet"}
    assert over_epochs(Captioning(), 50, three) == over_epochs(Captioning(), 50, list(three))
    for seed, index in ((1, 0), (0, 1)):
        assert over_epochs(Captioning(), 50, three) != [
            Captioning().caption(three, seed, epoch, index) for epoch in range(50)
        ]


@pytest.mark.parametrize(
    ("append", "share"), [([", flat", ", round"], 0.5), ({", flat": 3, ", round": 1}, 0.75)]
)
def test_appended_words_have_their_weights(append, share):
    captioning = Captioning(("an icon of [filewords]",), suffix="!", append=append)
    found = Counter(over_epochs(captioning, 2000, "cat"))
    assert set(found) == {"an icon of cat, flat!", "an icon of cat, round!"}
    assert abs(found["an icon of cat, flat!"] / 2000 - share) < 0.03
    assert over_epochs(captioning, 50) == over_epochs(captioning, 50)


def test_appended_words_may_take_the_caption_in() -> None:
    captioning = Captioning(append={"thin line [filewords]": 3, ", thin line": 1}, suffix="!")
    assert captioning.variants(("cat", "kitten")) == [
        "thin line cat!",
        "cat, thin line!",
        "thin line kitten!",
        "kitten, thin line!",
    ]
    told = [captioning.caption("cat", 0, epoch, 0) for epoch in range(400)]
    assert 0.68 < told.count("thin line cat!") / 400 < 0.82
    assert captioning.without_chance().variants("cat") == ["thin line cat!"]


def test_one_word_is_always_appended_and_an_empty_one_is_nothing():
    assert Captioning(append=[", flat"]).caption("cat", 0, 0, 0) == "cat, flat"
    assert set(over_epochs(Captioning(append=[", flat", ""]), 50, "cat")) == {"cat", "cat, flat"}


def test_what_else_is_drawn_is_the_same_with_one_caption_and_with_several():
    about = {
        "templates": read_templates("style_filewords"),
        "name": "anna",
        "shuffle_tags": True,
        "drop_tags": 0.3,
    }
    alone = over_epochs(Captioning(**about))
    assert over_epochs(Captioning(**about), written=(TAGS,)) == alone
    assert over_epochs(Captioning(**about), written=(TAGS, TAGS)) == alone
    assert over_epochs(Captioning(**about, append=["", ""])) == alone
    # As they came before there were several.
    drawn = Captioning(("one [filewords]", "two [filewords]"), shuffle_tags=True, drop_tags=0.3)
    assert over_epochs(drawn, 3) == ["two sky, cat", "two cat, grass, cloud", "two sky, cloud"]


def test_variants_are_all_that_may_be_told():
    captioning = Captioning(("[filewords]", "my [filewords]"), append={"": 1, ", flat": 2}, suffix="!")
    told = captioning.variants(("cat", "kitten"))
    assert len(told) == len(set(told)) == 8
    assert set(over_epochs(captioning, 300, ("cat", "kitten"))) == set(told)
    assert Captioning(first_caption=1.0).variants(("cat", "kitten")) == ["cat"]
    assert Captioning(first_caption=0.0).variants(("cat", "kitten")) == ["kitten"]
    assert captioning.without_chance().variants(("cat", "kitten")) == ["cat, flat!"]
    assert Captioning(append=["", ", flat"]).without_chance().variants("cat") == ["cat"]
    assert Captioning(append={", a": 2, ", b": 2}).without_chance().variants("cat") == ["cat, a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_caption": 1.5}, r"first_caption is 1\.5; expected a number from 0 to 1"),
        ({"append": ", flat"}, "append is ', flat'; expected a list of texts"),
        ({"append": 3}, "append is 3; expected a list of texts"),
        ({"append": [", flat", 3]}, "append has 3; expected a text"),
        ({"append": {", flat": 0}}, "append gives ', flat' the weight 0; expected a number above 0"),
        ({"append": {", flat": float("inf")}}, "the weight inf; expected"),
        ({"append": {", flat": True}}, "the weight True; expected"),
        ({"drop_tags": 1.5}, r"drop_tags is 1\.5; expected a number from 0 to 1"),
        ({"drop_tags": float("nan")}, "drop_tags is nan"),
        ({"keep_tags": -1}, "keep_tags is -1"),
        ({"separator": " "}, "separator is ' '"),
        ({"templates": ("by [name]",)}, r"the template 'by \[name\]' asks for a name and none is given"),
        ({"templates": "style"}, "templates is the text 'style'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        Captioning(**options)


def test_file_name_rules():
    name = Path("a/0012-04 red_hat-9.png")
    assert FileNames().caption(name) == "0012 04 red hat 9"
    assert FileNames(drop_number=True).caption(name) == "red hat 9"
    assert FileNames(drop_number=True, words=".+").caption(name) == "red_hat-9"
    assert FileNames(words="[a-z]+", join=", ").caption(name) == "red, hat"
    assert FileNames(words=r"_([a-z])").caption(name) == "h"
    assert FileNames(drop_number=True).caption(Path("0042.png")) == ""
    with pytest.raises(UserError, match="words is '\\(', no regular expression"):
        FileNames(words="(")
    with pytest.raises(UserError, match="with 2 groups; expected one at most"):
        FileNames(words="(a)(b)")


def test_file_names_reach_scan_and_folder(paint, tmp_path):
    paint("007-cat.png")
    paint("008-dog.png")
    (tmp_path / "008-dog.txt").write_text("012 is written")
    rules = FileNames(drop_number=True)
    assert [item.caption for item in scan(tmp_path, file_names=rules).items] == ["cat", "012 is written"]
    assert [item.source for item in scan(tmp_path).items] == ["filename", "text"]
    assert ImageFolder(tmp_path, file_names=rules, captions="filename").captions == ["cat", "dog"]


def test_pictures_latents_and_the_list_of_captions_agree(paint, tmp_path):
    for index in range(5):
        paint(f"p/{index}, of five, red.png", seed=index)
    captioning = Captioning(read_templates("hypernetwork"), shuffle_tags=True, drop_tags=0.2)
    dataset = ImageFolder(tmp_path / "p", size=16, captioning=captioning, flip=0.5)
    with LatentCache(tmp_path / "cache", "x") as cache:
        latents = cache_latents(dataset, lambda images: {"mean": images[:, :, ::2, ::2]}, cache)
    order = BatchOrder(dataset.groups, 2)
    listed = captions_seen(latents, order, 30)
    seen = set()
    for step in range(30):
        for epoch, index in order.pairs(step):
            caption = dataset.example(index, epoch)["caption"]
            assert caption == latents.example(index, epoch)["caption"] == dataset.caption(index, epoch)
            seen.add(caption)
    assert set(listed) == seen
    assert len(listed) == len(seen) > 20
    assert dataset.captions[0] == "0, of five, red"
    plain = ImageFolder(tmp_path / "p", size=16, flip=0.5)
    assert torch.equal(plain.example(2, 3)["image"], dataset.example(2, 3)["image"])
    fixed = dataset.without_chance()
    assert {fixed.caption(0, epoch) for epoch in range(20)} == {"0, of five, red"}


def test_several_captions_reach_pictures_latents_and_mixtures(paint, tmp_path):
    rows = [{"file_name": f"{i}.png", "text": [f"cat {i}", f"kitten {i}"]} for i in range(4)]
    for index in range(4):
        paint(f"p/{index}.png", seed=index)
    (tmp_path / "p/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = ImageFolder(tmp_path / "p", size=16, captioning=Captioning(append=[", flat", ""]))
    with LatentCache(tmp_path / "cache", "x") as cache:
        encode = lambda images: {"mean": images[:, :, ::2, ::2]}  # noqa: E731
        latents, part = (
            cache_latents(data, encode, cache)
            for data in (dataset, Mixture([Part(Selection(dataset, [2, 3]))]))
        )
    assert dataset.captions == [f"cat {i}" for i in range(4)]
    assert dataset.alternatives[1] == ("cat 1", "kitten 1")
    for index, epoch in [(index, epoch) for index in range(4) for epoch in range(20)]:
        caption = dataset.example(index, epoch)["caption"]
        assert caption == latents.example(index, epoch)["caption"] == latents.caption(index, epoch)
        assert index < 2 or caption == part.example(index - 2, epoch)["caption"]
    four = ["cat 2, flat", "cat 2", "kitten 2, flat", "kitten 2"]
    assert dataset.variants(2) == latents.variants(2) == part.variants(0) == four
    assert {dataset.caption(2, epoch) for epoch in range(60)} == set(four)
    fixed = dataset.without_chance()
    assert {fixed.caption(2, epoch) for epoch in range(20)} == {"cat 2, flat"}

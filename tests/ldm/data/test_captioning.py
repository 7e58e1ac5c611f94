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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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

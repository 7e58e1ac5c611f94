"""The text-to-image call on the embedded model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.generation import Picture, generate
from hyperbrush.generation.grids import labelled_grid
from hyperbrush.ldm.models import LatentDiffusion


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture
def library(emoji: LatentDiffusion, tmp_path: Path) -> Path:
    hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name="ink", weight_init="KaimingNormal")
    hn.save(tmp_path / "networks" / "ink.safetensors")
    return tmp_path / "networks"


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


def test_tag_changes_the_picture_and_strength_zero_does_not(emoji: LatentDiffusion, library: Path) -> None:
    settings = {"model": emoji, "seed": 3, "steps": 3, "hypernetworks": library}
    [plain] = generate("cat face", **settings)
    [off] = generate("cat face <hypernet:ink:0>", **settings)
    [on] = generate("cat face <hypernet:ink:1>", **settings)
    [again] = generate("cat face", **settings)
    assert (pixels(plain) == pixels(off)).all()
    assert (pixels(plain) == pixels(again)).all(), "the model must be as it was"
    assert (pixels(plain) != pixels(on)).any()
    assert any("projections reached" in text for text in on.notes)


def test_seed_and_count(emoji: LatentDiffusion) -> None:
    both = generate("cat face", model=emoji, seed=5, count=2, steps=2)
    [second] = generate("cat face", model=emoji, seed=6, steps=2)
    assert [p.seed for p in both] == [5, 6]
    assert np.abs(pixels(both[1]) - pixels(second)).max() <= 1
    assert (pixels(both[0]) != pixels(both[1])).any()
    drawn = generate("cat face", model=emoji, steps=1)[0].seed
    assert 0 <= drawn < 2**31


def test_negative_size_guidance_sampler_matter(emoji: LatentDiffusion) -> None:
    base = {"model": emoji, "seed": 0, "steps": 3}
    [plain] = generate("cat face", **base)
    for change in ({"negative": "dog face"}, {"guidance_scale": 1.0}, {"sampler": "Euler a"}):
        [other] = generate("cat face", **base, **change)
        assert (pixels(plain) != pixels(other)).any(), change
    [wide] = generate("cat face", **base, size=(64, 96))
    assert wide.image.size == (96, 64)


def test_unknown_words_are_told(emoji: LatentDiffusion) -> None:
    [picture] = generate("cat fase zyxxy", model=emoji, seed=0, steps=1)
    [note] = picture.notes
    assert "'fase' (near: " in note
    assert "face" in note
    assert "'zyxxy'" in note
    assert generate("cat face", model=emoji, seed=0, steps=1)[0].notes == []


def test_settings_travel_in_the_png(emoji: LatentDiffusion, library: Path, tmp_path: Path) -> None:
    [picture] = generate(
        "cat <hypernet:ink:0.5>",
        model=emoji,
        negative="dog",
        seed=9,
        steps=2,
        sampler="euler_a",
        guidance_scale=3.5,
        hypernetworks=library,
    )
    path = picture.save(tmp_path / "deep" / "cat.png")
    text = Image.open(path).text["parameters"]
    lines = text.splitlines()
    assert lines[:2] == ["cat <hypernet:ink:0.5>", "Negative prompt: dog"]
    assert lines[2].startswith("Steps: 2, Sampler: Euler a, CFG scale: 3.5, Seed: 9, Size: 64x64")
    assert 'Hypernet hashes: "ink: ' in lines[2]
    picture.save(tmp_path / "cat.jpg")
    with pytest.raises(UserError, match=r"'.xyz' is no picture format"):
        picture.save(tmp_path / "cat.xyz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 1000"),
        ({"count": 0}, "count must be 1 or more"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"sampler": "Eulr"}, "unknown sampler 'Eulr'; did you mean"),
        ({"negative": "<hypernet:ink:1>"}, "negative prompt holds a <hypernet"),
        ({"size": (60, 64)}, "multiples of 16 pixels"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["a <hypernet:x>", "b"]}, "must name the same hypernetworks"),
    ],
)
def test_refuses(emoji: LatentDiffusion, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(**{"prompt": "cat", "model": emoji, "steps": 1} | change)


def test_unknown_network_names_the_closest(emoji: LatentDiffusion, library: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'ink'"):
        generate("cat <hypernet:inc:1>", model=emoji, hypernetworks=library)


def test_labelled_grid_shows_every_picture() -> None:
    colours = ["red", "green", "blue", "yellow"]
    cells = [
        [Image.new("RGB", (8, 8), c) for c in colours[:2]],
        [Image.new("RGB", (8, 8), c) for c in colours[2:]],
    ]
    page = labelled_grid(cells, rows=["one", "two"], columns=["a", "b"], side=32, title="t")
    found = {c for _, c in page.getcolors(10**6)}
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)} <= found

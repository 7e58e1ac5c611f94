"""The text-to-image call on the embedded model."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.generation import Picture, generate
from hyperbrush.generation.opened import file_hash, weights_file
from hyperbrush.ldm.models import LatentDiffusion


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture
def library(emoji: LatentDiffusion, tmp_path: Path) -> Path:
    torch.manual_seed(8)
    hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name="ink", weight_init="KaimingNormal")
    hn.save(tmp_path / "networks" / "ink.safetensors")
    torch.manual_seed(9)
    hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name="sea", weight_init="KaimingNormal")
    hn.save(tmp_path / "networks" / "sea.pt")
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
        ({"steps": 0}, "steps must be a whole number, 1 to 1000, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"count": 0}, "count must be a whole number, 1 to"),
        ({"seed": -1}, "a seed must be a whole number"),
        ({"seed": 2**64}, "a seed must be a whole number, 0 to 18446744073709551615"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a number"),
        ({"guidance_scale": -1}, "guidance_scale must be from 0 to 1000"),
        ({"clip_skip": 0}, "clip_skip must be a whole number"),
        ({"clip_skip": 50}, "clip_skip"),
        ({"size": (64,)}, r"size must be \(height, width\)"),
        ({"discretisation": "web"}, "unknown discretisation 'web'; did you mean 'webui'"),
        ({"missing": "ignore"}, "unknown way with missing hypernetworks"),
        ({"prompt": "cat \udc80"}, "no UTF-8 text"),
        ({"prompt": 5}, "a prompt is a text"),
        ({"model": "emojy"}, "unknown model 'emojy'"),
        ({"sampler": "Eulr"}, "unknown sampler 'Eulr'; did you mean"),
        ({"negative": "<hypernet:ink:1>"}, "negative prompt holds a <hypernet"),
        ({"size": (60, 64)}, "multiples of 16 pixels"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["a", "b <hypernet:x>"]}, "no hypernetwork folder at models/hypernetworks"),
    ],
)
def test_refuses(emoji: LatentDiffusion, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(**{"prompt": "cat", "model": emoji, "steps": 1} | change)


def test_unknown_network_names_the_closest(emoji: LatentDiffusion, library: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'ink'"):
        generate("cat <hypernet:inc:1>", model=emoji, hypernetworks=library)


def test_each_prompt_of_a_batch_has_its_own_networks(emoji: LatentDiffusion, library: Path) -> None:
    settings: dict = {"model": emoji, "seed": 4, "steps": 4, "hypernetworks": library}
    prompts = [
        "cat face <hypernet:ink:0.5>",
        "cat face",
        "cat face <hypernet:sea:0.4> <hypernet:ink:-0.3:start=0.5>",
        "cat face <hypernet:ink:0.5:attn=cross>",
    ]
    together = generate(prompts, **settings)
    for prompt, picture in zip(prompts, together, strict=True):
        [alone] = generate(prompt, **settings)
        assert np.abs(pixels(picture) - pixels(alone)).max() <= 1, prompt
        assert picture.settings == alone.settings
        assert picture.notes == alone.notes
    for one, other in itertools.combinations(together, 2):
        assert np.abs(pixels(one) - pixels(other)).max() > 8


def test_guidance_1_keeps_the_pictures_apart(emoji: LatentDiffusion, library: Path) -> None:
    """Without guidance a batch has one row a picture, not two."""
    settings: dict = {
        "model": emoji,
        "seed": 4,
        "steps": 3,
        "guidance_scale": 1.0,
        "hypernetworks": library,
    }
    together = generate(["cat face <hypernet:ink>", "cat face"], **settings)
    for prompt, picture in zip(["cat face <hypernet:ink>", "cat face"], together, strict=True):
        assert np.abs(pixels(picture) - pixels(generate(prompt, **settings)[0])).max() <= 1


@pytest.mark.parametrize(
    "argument", ["start=0.5", "end=0.5", "ramp=0", "attn=self", "attn=cross", "blocks=up", "strength=0.3"]
)
def test_named_arguments_change_the_picture(emoji: LatentDiffusion, library: Path, argument: str) -> None:
    settings: dict = {"model": emoji, "seed": 3, "steps": 4, "hypernetworks": library}
    [plain] = generate("cat face", **settings)
    [whole] = generate("cat face <hypernet:ink:0.6>", **settings)
    strength = "" if argument.startswith("strength") else ":0.6"
    [some] = generate(f"cat face <hypernet:ink{strength}:{argument}>", **settings)
    assert (pixels(some) != pixels(plain)).any()
    assert (pixels(some) != pixels(whole)).any()


def test_a_window_that_ends_before_the_second_step_is_one_step(emoji: LatentDiffusion, library: Path) -> None:
    """The pictures before the window opens are those without a network."""
    seen: dict[str, list] = {"on": [], "off": []}
    settings: dict = {"model": emoji, "seed": 3, "steps": 4, "sampler": "Euler", "hypernetworks": library}
    generate("cat face", **settings, on_step=lambda i, n, x: seen["off"].append(x.clone()))
    generate(
        "cat face <hypernet:ink:1:start=0.5>",
        **settings,
        on_step=lambda i, n, x: seen["on"].append(x.clone()),
    )
    same = [bool((a == b).all()) for a, b in zip(seen["on"], seen["off"], strict=True)]
    assert same == [True, True, False, False]


def test_repeated_names_add_up_and_say_so(emoji: LatentDiffusion, library: Path) -> None:
    settings: dict = {"model": emoji, "seed": 3, "steps": 2, "hypernetworks": library}
    [twice] = generate("cat face <hypernet:ink:0.25> <hypernet:ink:0.25>", **settings)
    [once] = generate("cat face <hypernet:ink:0.5>", **settings)
    assert (pixels(twice) == pixels(once)).all()
    assert "'ink' is named more than once: its strengths add up" in twice.notes


def test_missing_warn_draws_without(emoji: LatentDiffusion, library: Path) -> None:
    settings: dict = {"model": emoji, "seed": 3, "steps": 2, "hypernetworks": library}
    [without] = generate("cat face <hypernet:inc>", **settings, missing="warn")
    assert (pixels(without) == pixels(generate("cat face", **settings)[0])).all()
    assert without.notes[0].startswith("drawn without 'inc'")
    assert without.settings.hypernet_hashes == {}
    assert "<hypernet:inc>" in without.parameters


def test_prompts_are_read_as_the_webui_does(emoji: LatentDiffusion) -> None:
    base: dict = {"model": emoji, "seed": 0, "steps": 2}
    [plain] = generate("cat face", **base)
    for change in (
        {"prompt": "(cat:1.5) face"},
        {"prompt": "cat BREAK face"},
        {"prompt": "cat face", "clip_skip": 2},
        {"prompt": "cat face " + "red " * 80},
        {"prompt": "cat face", "negative": "(dog:1.5)"},
        {"prompt": "cat face", "discretisation": "webui"},
    ):
        [other] = generate(**base | change)
        assert (pixels(plain) != pixels(other)).any(), change
    [skipped] = generate("cat face", **base, clip_skip=2)
    assert skipped.settings.clip_skip == 2
    assert "Clip skip: 2" in skipped.parameters
    assert plain.settings.clip_skip is None


def test_texts_of_several_lengths_keep_their_pictures(emoji: LatentDiffusion) -> None:
    """A short prompt is not padded to a longer neighbour's chunks, and steps count up over both batches."""
    told: list[tuple[int, int]] = []
    base: dict = {"model": emoji, "seed": 0, "steps": 2}
    prompts = ["cat face", "red " * 80, "dog face"]
    together = generate(prompts, **base, on_step=lambda i, n, x: told.append((i, n)))
    for prompt, picture in zip(prompts, together, strict=True):
        assert np.abs(pixels(picture) - pixels(generate(prompt, **base)[0])).max() <= 1
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_begins_from_a_picture(emoji: LatentDiffusion) -> None:
    base: dict = {"model": emoji, "seed": 0, "steps": 5}
    begin = Image.new("RGB", (64, 64), "red")
    [near] = generate("cat face", **base, image=begin, image_strength=0.2)
    [far] = generate("cat face", **base, image=begin, image_strength=0.8)
    distance = [np.abs(pixels(p) - np.asarray(begin)).mean() for p in (near, far)]
    assert distance[0] < distance[1]
    assert near.settings.fields == {"Denoising strength": "0.2"}
    [scaled] = generate("cat face", **base, image=begin, size=(32, 64))
    assert scaled.image.size == (64, 32)


@pytest.mark.parametrize("kind", ["grey", "transparent"])
def test_draws_a_part_of_a_picture(emoji: LatentDiffusion, kind: str) -> None:
    """White is drawn anew, black or transparent is kept to the bit, whatever the mask's size."""
    begin = Image.new("RGB", (64, 64), "teal")
    mask = Image.new("L", (32, 16), 0)
    mask.paste(255, (16, 0, 32, 16))
    if kind == "transparent":
        clear = Image.new("RGBA", mask.size, "white")
        clear.putalpha(mask)
        mask = clear
    base: dict = {"model": emoji, "seed": 0, "steps": 4, "image": begin}
    [part] = generate("cat face", **base, mask=mask, image_strength=1.0)
    change = np.abs(pixels(part) - np.asarray(begin))
    assert change[:, :28].max() == 0, "the blurred edge reaches over few pixels"
    assert change[:, 36:].mean() > 10
    assert part.settings.fields == {"Denoising strength": "1", "Mask blur": "0.5"}
    [all_of_it] = generate("cat face", **base, mask=Image.new("1", (8, 8), 1), image_strength=0.5)
    [plain] = generate("cat face", **base, image_strength=0.5)
    assert (pixels(all_of_it) == pixels(plain)).all()


def test_a_mask_that_draws_nothing_is_refused(emoji: LatentDiffusion) -> None:
    with pytest.raises(UserError, match="the mask is black everywhere: nothing would be drawn"):
        generate("cat", model=emoji, image=Image.new("RGB", (64, 64)), mask=Image.new("L", (9, 9)))
    with pytest.raises(UserError, match="a mask needs an image to start from"):
        generate("cat", model=emoji, mask=Image.new("L", (9, 9), 255))


def test_what_a_picture_says_of_its_model(emoji: LatentDiffusion, library: Path, tmp_path: Path) -> None:
    file = weights_file("emoji")
    assert file is not None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    [picture] = generate("cat <hypernet:ink:0.5>", model="emoji", seed=0, steps=1, hypernetworks=library)
    assert (picture.settings.model, picture.settings.model_hash) == ("emoji", digest)
    ink = hashlib.sha256((library / "ink.safetensors").read_bytes()).hexdigest()[:10]
    assert picture.settings.hypernet_hashes == {"ink": ink}
    assert picture.settings.version == f"hyperbrush {hb.__version__}"
    checkpoint = tmp_path / "old.ckpt"
    checkpoint.write_bytes(bytes(0x100000) + b"x" * 0x10000 + b"rest")
    assert weights_file(checkpoint) == checkpoint
    assert file_hash(checkpoint, like="7460a6fa") == hashlib.sha256(b"x" * 0x10000).hexdigest()[:8]
    assert file_hash(checkpoint) == hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:10]


def test_a_strength_beyond_numbers_is_told(emoji: LatentDiffusion, library: Path) -> None:
    with pytest.raises(UserError, match="came out as no numbers"):
        generate("cat <hypernet:ink:1e30>", model=emoji, steps=2, hypernetworks=library)
    [after] = generate("cat face", model=emoji, seed=0, steps=1)
    [fresh] = generate("cat face", model=LatentDiffusion.from_pretrained("emoji"), seed=0, steps=1)
    assert (pixels(after) == pixels(fresh)).all()

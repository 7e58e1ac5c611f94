"""A picture once more: what its text means for `generate`, and what is told where something differs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.generation import (
    Infotext,
    OpenedModel,
    generate,
    open_model,
    read_infotext,
    repeat_of,
    settings_text,
)
from hyperbrush.generation.opened import file_hash
from hyperbrush.generation.repeat import differences, renamed
from hyperbrush.hypernetworks import HypernetworkLibrary

WEBUI = (
    "cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x96, Clip skip: 2"
)


@pytest.fixture(scope="module")
def emoji() -> OpenedModel:
    return open_model("emoji")


@pytest.fixture
def library(emoji: OpenedModel, tmp_path: Path) -> HypernetworkLibrary:
    torch.manual_seed(0)
    hn = hb.AttentionHypernetwork.for_unet(emoji.model.unet, name="ink", weight_init="KaimingNormal")
    hn.save(tmp_path / "networks" / "ink.pt")
    return HypernetworkLibrary(tmp_path / "networks")


def test_the_webuis_settings_become_arguments() -> None:
    repeat = repeat_of(read_infotext(f"{WEBUI}, RNG: CPU"))
    assert repeat.notes == []
    assert repeat.arguments == {
        "prompt": "cat",
        "negative": "dog",
        "steps": 20,
        "sampler": "Euler a",
        "guidance_scale": 7.0,
        "seed": 5,
        "size": (96, 64),
        "clip_skip": 2,
        "discretisation": "webui",
    }


def test_notes_on_what_may_come_out_otherwise() -> None:
    [noise] = repeat_of(read_infotext(WEBUI)).notes
    assert "does not say RNG: CPU" in noise
    fields = "RNG: CPU, Variation seed: 3, ENSD: 31337, Denoising strength: 0.4"
    [note] = repeat_of(read_infotext(f"{WEBUI}, {fields}")).notes
    assert note == (
        "not repeated from the picture's text: Variation seed, ENSD, Denoising strength; give the picture it began "
        "with as --image"
    )
    begun = repeat_of(read_infotext(f"{WEBUI}, RNG: CPU, Denoising strength: 0.4"), given={"image"})
    assert begun.arguments["image_strength"] == 0.4
    assert begun.notes == []


def test_what_is_given_wins_and_is_not_judged() -> None:
    info = read_infotext(WEBUI.replace("Euler a", "DPM++ 2M SDE Heun"))
    with pytest.raises(UserError, match=r"choose one with --sampler: unknown sampler 'DPM\+\+ 2M SDE Heun'"):
        repeat_of(info)
    arguments = repeat_of(info, given={"sampler", "seed"}).arguments
    assert "sampler" not in arguments
    assert "seed" not in arguments
    assert arguments["steps"] == 20


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "cat face"},
        {"prompt": "cat <hypernet:ink:0.4:start=0.2:attn=cross>", "sampler": "DDIM", "guidance_scale": 2.5},
        {"prompt": "(cat:1.2)\nface", "negative": "dog, red", "clip_skip": 2, "size": (32, 96)},
        {"prompt": "cat", "discretisation": "webui", "sampler": "Euler"},
    ],
    ids=lambda settings: settings["prompt"],
)
def test_repeats_to_the_pixel(
    settings: dict[str, Any], emoji: OpenedModel, library: HypernetworkLibrary, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"model": emoji, "hypernetworks": library.folder}
    [picture] = generate(**settings, seed=11, steps=3, **common)
    info = read_infotext(settings_text(picture.save(tmp_path / "a.png")))
    assert info == picture.settings
    repeat = repeat_of(info)
    assert repeat.notes == differences(info, emoji, library) == []
    [again] = generate(**repeat.arguments, **common)
    assert (np.asarray(again.image) == np.asarray(Image.open(tmp_path / "a.png"))).all()
    assert again.parameters == picture.parameters


def test_the_old_fields_are_the_tag(emoji: OpenedModel, library: HypernetworkLibrary) -> None:
    text = "cat\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64"
    common: dict[str, Any] = {"model": emoji, "hypernetworks": library.folder}
    old = read_infotext(f"{text}, Hypernet: ink(6e6f2a4c), Hypernet strength: 0.7")
    [picture] = generate(**repeat_of(old).arguments, **common)
    tagged = read_infotext(text.replace("cat", "cat <hypernet:ink:0.7>"))
    [expected] = generate(**repeat_of(tagged).arguments, **common)
    [without] = generate(**repeat_of(read_infotext(text)).arguments, **common)
    assert (np.asarray(picture.image) == np.asarray(expected.image)).all()
    assert (np.asarray(picture.image) != np.asarray(without.image)).any()


def test_other_files_are_told(emoji: OpenedModel, library: HypernetworkLibrary) -> None:
    assert emoji.file is not None
    model, ink = file_hash(emoji.file), file_hash(library.find("ink"))
    short = file_hash(library.find("ink"), like="6e6f2a4c")
    same = Infotext(model="emoji", model_hash=model, hypernet_hashes={"ink": ink, "gone": "0123456789"})
    assert differences(same, emoji, library) == differences(same, "emoji", library) == []
    assert differences(Infotext(hypernet_hashes={"ink": short}), emoji, library) == []
    assert differences(Infotext(hypernet_hashes={"ink": ink.upper()}), emoji, library) == []
    other = Infotext(model="v1-5", model_hash="6ce0161689", hypernet_hashes={"ink": "0123456789"})
    assert differences(other, emoji, library) == [
        f"the model is another than the picture's: emoji {model}, not v1-5 6ce0161689; choose with --model",
        f"ink is another file than the picture's: {ink}, not 0123456789",
    ]
    [unsure] = differences(Infotext(model_hash="6ce0161689"), OpenedModel(emoji.model), library)
    assert "cannot be told" in unsure


def test_a_renamed_network_is_found_by_its_hash(emoji: OpenedModel, library: HypernetworkLibrary) -> None:
    ink = file_hash(library.find("ink"))
    info = Infotext("cat <hypernet:old name:0.5> <hypernet:ink:1>", hypernet_hashes={"old name": ink})
    prompt, [note] = renamed(info, info.prompt, library)
    assert prompt == "cat <hypernet:ink:0.5> <hypernet:ink:1>"
    assert note == f"old name is the file ink here: found by its hash {ink}"
    # Another file took its name meanwhile.
    library.find("ink").rename(library.folder / "moved.pt")
    hb.AttentionHypernetwork([128], name="ink").save(library.folder / "ink.pt")
    again = Infotext("cat <hypernet:ink:0.5:start=0.2>", hypernet_hashes={"ink": ink})
    assert renamed(again, again.prompt, library)[0] == "cat <hypernet:moved:0.5:start=0.2>"
    assert differences(again, "emoji", library) == []
    short = Infotext(hypernet_hashes={"gone": file_hash(library.folder / "moved.pt", like="6e6f2a4c")})
    assert renamed(short, "<hypernet:gone>", library)[0] == "<hypernet:moved>"
    nobody = Infotext(hypernet_hashes={"gone": "0123456789"})
    assert renamed(nobody, "<hypernet:gone>", library) == ("<hypernet:gone>", [])
    assert renamed(nobody, "cat", HypernetworkLibrary(library.folder / "nowhere")) == ("cat", [])


def test_textual_inversions_are_told() -> None:
    hashes = 'TI hashes: "easynegative: c74b4e810b03, bad-hands-5: aa7651be154c"'
    [note] = repeat_of(read_infotext(f"{WEBUI}, RNG: CPU, {hashes}")).notes
    assert "not loaded here: easynegative, bad-hands-5 (TI hashes)" in note


@pytest.mark.parametrize(
    ("prompt", "sampler", "fields", "expected"),
    [
        ("[a:b:0.5]", "Euler a", "Version: v1.5.2", "[a:b:0.5]"),
        ("[a:b:1.0]", "Euler a", "Version: v1.5.2", "[a:b:1]"),
        ("[a:b:1.0]", "Euler a", "Version: v1.6.0", "[a:b:1.0]"),
        ("[a:b:1.0]", "Euler a", "Old prompt editing timelines: True", "[a:b:1]"),
        ("[a:b:0.5] [c:d:4]", "Heun", "Version: v1.4.1", "[a:b:10] [c:d:4]"),
        ("[a:b:0.5]", "Heun", "Version: v1.10.1", "[a:b:0.5]"),
        ("[a:b:2.5]", "Heun", "Version: v1.10.1", "[a:b:2.5]"),
    ],
)
def test_the_numbers_of_older_webuis_mean_what_they_meant(
    prompt: str, sampler: str, fields: str, expected: str
) -> None:
    text = f"{prompt}\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 5, Size: 64x96, RNG: CPU, {fields}"
    repeat = repeat_of(read_infotext(text))
    assert repeat.arguments["prompt"] == expected
    assert repeat.notes == []


def test_editing_repeats_to_the_pixel(emoji: OpenedModel, tmp_path: Path) -> None:
    for settings in ({"discretisation": "webui", "sampler": "Euler"}, {"sampler": "DPM++ 2M Karras"}):
        [picture] = generate("[cat|dog] face AND sun :0.5", model=emoji, seed=11, steps=3, **settings)
        repeat = repeat_of(read_infotext(settings_text(picture.save(tmp_path / "a.png"))))
        [again] = generate(**repeat.arguments, model=emoji)
        assert (np.asarray(again.image) == np.asarray(picture.image)).all()


def test_a_member_of_a_pack_is_repeated(
    emoji: OpenedModel, library: HypernetworkLibrary, tmp_path: Path
) -> None:
    pack = library.folder / "looks.pack.safetensors"
    pack.write_bytes(b"a pack")
    files = {"looks/ink": pack / "ink", "looks/oil": pack / "oil"}
    whole = file_hash(pack)
    assert file_hash(pack / "oil") == whole, "its pack's, as pictures carry it"

    class Packed:
        folder = library.folder

        def files(self) -> dict[str, Path]:
            return files

        def find(self, name: str) -> Path:
            if name not in files:
                raise UserError(f"there is no {name}")
            return files[name]

    info = Infotext("cat <hypernet:old/oil:0.5>", hypernet_hashes={"old/oil": whole})
    prompt, [note] = renamed(info, info.prompt, Packed())  # type: ignore[arg-type]
    assert prompt == "cat <hypernet:looks/oil:0.5>"
    assert "found by its hash" in note


@pytest.mark.parametrize(
    "fields",
    [
        "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+",
        "Denoising strength: 0.7, First pass size: 0x0",
    ],
)
def test_a_second_pass_is_not_asked_for_a_first_picture(fields: str) -> None:
    notes = " ".join(repeat_of(read_infotext(f"{WEBUI}, RNG: CPU, {fields}")).notes)
    assert "Denoising strength" in notes
    assert "--image" not in notes

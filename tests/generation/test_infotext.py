"""The `parameters` text: what we write reads back, and what the webui and its forerunners wrote is understood."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from hyperbrush.errors import UserError
from hyperbrush.generation import Infotext, read_infotext, settings_text, write_infotext
from hyperbrush.generation.picture_files import EXIF_IFD, USER_COMMENT, save_picture

WEBUI = """a lighthouse, (storm:1.2), <hypernet:water:0.7>
second line
Negative prompt: people, text
more of it
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, VAE: "a, b: c", Clip skip: 2, RNG: CPU, \
Hypernet hashes: "water: 0123456789, ink: abcdef0123", Version: v1.9.3"""


def test_the_webuis_text() -> None:
    assert read_infotext(WEBUI) == Infotext(
        prompt="a lighthouse, (storm:1.2), <hypernet:water:0.7>\nsecond line",
        negative="people, text\nmore of it",
        steps=20,
        sampler="DPM++ 2M Karras",
        guidance_scale=7.5,
        seed=1234567890,
        size=(768, 512),
        model_hash="6ce0161689",
        model="v1-5-pruned",
        clip_skip=2,
        hypernet_hashes={"water": "0123456789", "ink": "abcdef0123"},
        version="v1.9.3",
        fields={"VAE": "a, b: c", "RNG": "CPU"},
    )


def test_our_text_is_the_webuis_form() -> None:
    info = Infotext("cat", "dog", 20, "Euler a", 7.0, 5, (768, 512), "0123456789", "m", 2, {"ink": "ab12"})
    assert write_infotext(info) == (
        "cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, "
        'Model hash: 0123456789, Model: m, Clip skip: 2, Hypernet hashes: "ink: ab12"'
    )


@pytest.mark.parametrize(
    "info",
    [
        Infotext(),
        Infotext("cat", steps=1),
        Infotext("雨の灯台 🗼, été", "ё", 20, "Euler", 4.25, 0, (64, 96), model="naïve, \"model\": v1"),
        Infotext("a\n\nb: c, d: e", "x\ny", 3, "DDIM", 0.1, 2**32 - 1, version="hyperbrush 0.1.0"),
        Infotext("Steps to the sea", "", 3, "DDIM", 1e-7, 1),
        Infotext("p", steps=2, seed=1, hypernet_hashes={"a, b": "1" * 10, 'q"u:o\\te': "2" * 10, "é": "3" * 8}),
        Infotext("p", steps=2, seed=1, fields={"X Values": '"a, b",c', "Note": "two\nlines", "Tab": " x "}),
        Infotext("p", steps=2, seed=1, fields={"Odd": '"', "Backslash": "\\", "Blank": "a b"}),
    ],
    ids=range(8),
)  # fmt: skip
def test_round_trip(info: Infotext) -> None:
    text = write_infotext(info)
    assert read_infotext(text) == info
    assert read_infotext(text.replace("\n", "\r\n") if '"' not in text else text) == info
    assert write_infotext(read_infotext(text)) == text


@pytest.mark.parametrize(
    ("fields", "prompt", "hashes"),
    [
        ("Hypernet: water(6e6f2a4c)", "cat <hypernet:water:1>", {"water": "6e6f2a4c"}),
        ("Hypernet: water(6e6f2a4c), Hypernet strength: 0.7", "cat <hypernet:water:0.7>", {"water": "6e6f2a4c"}),
        ("Hypernet: water, Hypernet hash: 6e6f2a4c", "cat <hypernet:water:1>", {"water": "6e6f2a4c"}),
        ("Hypernet: ink (old)(6E6F2A4C)", "cat <hypernet:ink (old):1>", {"ink (old)": "6e6f2a4c"}),
        ("Hypernet: ink (old)", "cat <hypernet:ink (old):1>", {}),
        ("Hypernet: None, Hypernet strength: 1.0", "cat", {}),
        ("Hypernet strength: 0.5", "cat", {}),
    ],
)  # fmt: skip
def test_the_fields_before_there_were_tags(fields: str, prompt: str, hashes: dict[str, str]) -> None:
    info = read_infotext(f"cat\nSteps: 20, Sampler: Euler a, Seed: 1, {fields}, Model hash: 7460a6fa")
    assert (info.prompt, info.hypernet_hashes, info.model_hash) == (prompt, hashes, "7460a6fa")
    assert info.fields == {}


def test_a_network_already_in_the_prompt_is_not_added_again() -> None:
    info = read_infotext("cat <hypernet:ink:0.2>\nSteps: 2, Seed: 1, Hypernet: ink(6e6f2a4c)")
    assert info.prompt == "cat <hypernet:ink:0.2>"


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        ("Sampler: Euler, Schedule type: Automatic", "Euler"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras"),
        ("Sampler: LMS Karras, Schedule type: Karras", "LMS Karras"),
        ("Sampler: Euler a, Schedule type: Uniform", "Euler a"),
        ("Sampler: Euler, Schedule type: Karras", "Euler Karras"),
    ],
)
def test_schedules_written_apart(schedule: str, sampler: str) -> None:
    assert read_infotext(f"cat\nSteps: 2, {schedule}, Seed: 1").sampler == sampler


def test_odd_forms_are_read_as_people_mean_them() -> None:
    assert read_infotext("only a prompt, with colons: here").prompt == "only a prompt, with colons: here"
    assert read_infotext("") == Infotext()
    assert read_infotext("Steps: 20, Seed: 1, Sampler: Euler") == Infotext(steps=20, seed=1, sampler="Euler")
    below = read_infotext("cat\nSteps: 20, Sampler: Euler, Seed: 1\nTemplate: x, Extra: y")
    assert (below.prompt, below.fields) == ("cat", {"Template": "x", "Extra": "y"})
    comma = read_infotext("cat\nSteps: 20, Model: one, two, three, Seed: 1, Size: 64X32")
    assert (comma.seed, comma.size, comma.model) == (1, (32, 64), "one")
    assert read_infotext("cat\nSteps: 2, Seed: 1, Seed: 2").seed == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Steps: many, Seed: 1", "'Steps' in the picture's text is 'many': expected a whole number"),
        ("Steps: 2, Seed: 1.5", "'Seed'"),
        ("Steps: 2, Seed: 1" + "0" * 30, "'Seed'"),
        (
            "Steps: 2, Seed: 1, CFG scale: nan",
            "'CFG scale' in the picture's text is 'nan': expected a finite",
        ),
        ("Steps: 2, Seed: 1, CFG scale: high", "'CFG scale'"),
        ("Steps: 2, Seed: 1, Size: large", "'Size' in the picture's text is 'large': expected WIDTHxHEIGHT"),
        ("Steps: 2, Seed: 1, Hypernet: a<b(6e6f2a4c)", "has a name that no tag can hold"),
        ("Steps: 2, Seed: 1, Hypernet: ink, Hypernet strength: inf", "'Hypernet strength'"),
    ],
)
def test_refuses(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_infotext(f"cat\n{line}")


def test_a_text_of_endless_length_is_refused() -> None:
    with pytest.raises(UserError, match="more than 1000000"):
        read_infotext("a" * 1_000_001)


def test_mangled_texts_raise_nothing_else() -> None:
    """Cuts, repeats, swaps and strange characters: a sound result or a UserError."""
    draw = random.Random(0)
    seeds = [WEBUI, "cat\nSteps: 2, Seed: 1, Hypernet: ink(6e6f2a4c), Hypernet strength: 0.7", '{"a": "\\u12'
             ", Steps: 3\n" + json.dumps("x, y: z")]  # fmt: skip
    sound = 0
    for _ in range(3000):
        text = list(draw.choice(seeds))
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(text) + 1)
            match draw.randrange(4):
                case 0:
                    text[at : at + draw.randint(1, 30)] = []
                case 1:
                    text[at:at] = text[: draw.randint(0, 40)]
                case 2:
                    text[at:at] = draw.choice(['"', ":", ",", "\\", "\n", "\0", "\ud800", "é", "x", "<", "("])
                case 3:
                    text[at:at] = draw.choice(
                        ["Steps: 1, ", "Hypernet: ", "Negative prompt:", "Size: 1x", "nan"]
                    )
        try:
            info = read_infotext("".join(text))
        except UserError:
            continue
        sound += 1
        assert isinstance(info.prompt, str)
        assert all(isinstance(v, str) for v in info.fields.values())
    assert sound > 1000


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize(
    "text", ["cat\nSteps: 2, Seed: 1", "雨の灯台 🗼\nSteps: 2, Seed: 1"], ids=["latin", "any"]
)
def test_pictures_carry_it(suffix: str, text: str, tmp_path: Path) -> None:
    path = save_picture(Image.new("RGB", (16, 16), "red"), tmp_path / f"a{suffix}", text)
    assert settings_text(path) == text
    if suffix == ".png":
        kind = b"tEXt" if text.isascii() else b"iTXt"
        assert kind + b"parameters" in path.read_bytes()


def test_pictures_of_other_programs(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", "été", zip=True)
    picture.save(tmp_path / "z.png", pnginfo=info)
    assert settings_text(tmp_path / "z.png") == "été"
    late = PngImagePlugin.PngInfo()
    late.add(b"tEXt", b"parameters\0late", after_idat=True)
    picture.save(tmp_path / "late.png", pnginfo=late)
    assert settings_text(tmp_path / "late.png") == "late"
    for name, comment in (
        ("little", b"UNICODE\0" + "cat ink".encode("utf-16-le")),
        ("ascii", b"ASCII\0\0\0cat ink"),
        ("bare", b"cat ink"),
    ):
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
        picture.save(tmp_path / f"{name}.jpg", exif=exif)
        assert settings_text(tmp_path / f"{name}.jpg") == "cat ink"


def test_files_without_settings_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.jpg")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "bare.png").read_bytes()[:40])
    for name, message in (
        ("bare.png", "holds no settings"),
        ("bare.jpg", "holds no settings"),
        ("text.png", r"cannot read .*text.png as a picture"),
        ("cut.png", r"cannot read .*cut.png as a picture"),
        ("none.png", "does not exist"),
        ("", "is no picture file"),
    ):
        with pytest.raises(UserError, match=message):
            settings_text(tmp_path / name)
    with pytest.raises(UserError, match="no Unicode"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.png", "\ud800")
    assert not (tmp_path / "a.png").exists()

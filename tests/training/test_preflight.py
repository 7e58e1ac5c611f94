"""The preflight names what is wrong with pictures and captions, and changes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from hyperbrush.assets import style_folder
from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Buckets, Captioning, FileNames, ImageFolder, Masks, OriginalSizes, pictures
from hyperbrush.ldm.models.text import default_tokenizer
from hyperbrush.training.before.likeness import COLOUR_LIMIT, Fingerprint, alike
from hyperbrush.training.before.preflight import preflight, preflight_of
from hyperbrush.training.data.pictures import FolderConfig, PictureSettings


def scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A few coloured discs and bars: as different from each other as photographs are."""
    draw_from = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(draw_from.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = (int(draw_from.integers(0, side)) for side in size)
        wide, high = (int(draw_from.integers(8, side)) for side in size)
        shape = draw.ellipse if draw_from.random() < 0.5 else draw.rectangle
        shape((left, top, left + wide, top + high), fill=tuple(draw_from.integers(0, 256, 3)))
    return image


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    folder = tmp_path / "messy"
    folder.mkdir()

    def save(name: str, image: Image.Image, caption: str | None = None, **options) -> Path:
        path = folder / name
        image.save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    for index in range(8):
        save(f"good{index}.png", scene(index), f"a red scene with {index} things")
    save(
        "again.jpg",
        ImageEnhance.Brightness(scene(3)).enhance(0.93).resize((140, 140)),
        "more of it",
        quality=60,
    )
    save("mirror.png", scene(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "seen in a mirror")
    (folder / "copy.png").write_bytes((folder / "good1.png").read_bytes())
    (folder / "copy.txt").write_text("A red scene with 0 things")
    clear = scene(20).convert("RGBA")
    clear.putpixel((1, 1), (0, 0, 0, 0))
    save("clear.png", clear, "clear")
    save("small.png", scene(21, (20, 20)), "small thing")
    save("soft.png", scene(22, (36, 40)), "soft thing")
    save("long.png", scene(23, (300, 80)), "long thing")
    save("IMG_2041.png", scene(24))
    save("wordless.png", scene(25), "  ")
    save("latin.png", scene(26)).with_suffix(".txt").write_bytes("café".encode("latin-1"))
    short = save("short.jpg", scene(27, (200, 200)), "cut", quality=95)
    short.write_bytes(short.read_bytes()[:3000])
    (folder / "rubbish.png").write_text("not a picture")
    save("wordy.png", scene(28), "cat " * 40 + "kuvasz at the end, kuvasz")
    return folder


def kinds(report) -> dict[str, list[str]]:
    return {
        finding.kind: sorted("=".join(sorted(path.name for path in note.paths)) for note in finding.notes)
        for finding in report.findings
    }


def test_every_kind_is_found_in_a_messy_folder(messy: Path) -> None:
    before = files(messy)
    tokenizer = default_tokenizer()
    report = preflight(messy, size=64, tokenizer=tokenizer, batch_size=4)
    assert files(messy) == before
    found = kinds(report)
    assert found.pop("odd_words")[-1] == "wordy.png"
    assert found == {
        "unreadable": ["rubbish.png", "short.jpg"],
        "bad_captions": ["latin.txt"],
        "duplicates": ["again.jpg=good3.png", "copy.png=good1.png", "good5.png=mirror.png"],
        "missing_captions": ["IMG_2041.png"],
        "empty_captions": ["wordless.png"],
        "identical_captions": ["copy.png=good0.png"],
        "cut_captions": ["wordy.png"],
        "upscaled": ["small.png", "soft.png"],
        "aspect": ["long.png"],
        "transparent": ["clear.png"],
    }
    assert [f.severity for f in report.findings] == sorted(
        (f.severity for f in report.findings), key=("error", "warning", "note").index
    )
    assert {path.name for path in report.set_aside} == {"rubbish.png", "short.jpg", "latin.txt"}
    dataset = ImageFolder(messy, size=64, on_problem="skip")
    assert report.found == 21
    assert report.usable == len(dataset) == 18
    assert report.shapes == {(64, 64): 18}
    (odd,) = (note for note in report.of("odd_words").notes if note.figures["word"] == "kuvasz")
    assert odd.figures["times"] == 2
    assert "".join(odd.figures["pieces"]) == "kuvasz"
    (cut,) = report.of("cut_captions").notes
    room = tokenizer.model_max_length - 2
    assert cut.figures["room"] == room
    assert cut.figures["tokens"] == len(tokenizer("cat " * 40 + "kuvasz at the end, kuvasz").input_ids) - 2
    assert cut.figures["cut"].startswith("cat cat")
    assert cut.figures["cut"].endswith("kuvasz")
    distances = {n.paths[0].name: (n.figures["distance"], n.what) for n in report.of("duplicates").notes}
    assert distances["copy.png"] == (0, "the same file")
    near, said = distances["good5.png"]  # made small before it is mirrored: a few bits may differ
    assert near <= 4
    assert said == f"distance {near}, mirrored"
    assert 0 <= distances["again.jpg"][0] <= 8
    losses = {n.paths[0].name: n.figures for n in report.of("upscaled").notes}
    assert losses["small.png"]["scale"] == 3.2
    assert abs(report.of("aspect").notes[0].figures["lost"] - (1 - 80 / 300)) < 1e-3


def test_the_text_names_files_and_what_to_do(messy: Path) -> None:
    text = str(preflight(messy, size=64, tokenizer=default_tokenizer()))
    for part in (
        "18 of 21 pictures can be used",
        "error: 2 pictures cannot be used\n  → open and save them again",
        "\n  rubbish.png: not a picture Pillow can read",
        "\n  latin.txt: the caption is not UTF-8 (byte 3)",
        "again.jpg = good3.png: distance ",
        "IMG_2041.png: its file name 'IMG 2041' is the caption",
        "'kuvasz' is ",
        "pictures of each shape (width×height): 64×64: 18",
    ):
        assert part in text
    short = preflight(messy, size=64).text(limit=1)
    assert "  … and 2 more" in short
    assert "odd_words" not in kinds(preflight(messy, size=64))


def test_as_dict_is_json(messy: Path) -> None:
    value = json.loads(json.dumps(preflight(messy, size=64, tokenizer=default_tokenizer()).as_dict()))
    assert value["found"] == 21
    by_kind = {finding["kind"]: finding for finding in value["findings"]}
    assert by_kind["cut_captions"]["notes"][0]["tokens"] > 30
    assert by_kind["unreadable"]["severity"] == "error"
    assert value["shapes"] == [{"height": 64, "width": 64, "pictures": 18}]
    assert len(value["set_aside"]) == 3


def test_the_style_set_is_clean() -> None:
    style = style_folder()
    report = preflight(style / "train", validation=style / "validation", size=64)
    assert report.findings == ()
    assert "nothing to mend" in str(report)
    assert report.usable == report.found == 48


def test_leaks_into_the_held_out_pictures_are_named(tmp_path: Path) -> None:
    for name, seeds in (("train", range(6)), ("more", range(6, 9)), ("held", range(20, 24))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            scene(seed).save(tmp_path / f"{name}/{name}{seed}.png")
    scene(2).resize((80, 80)).save(tmp_path / "held/like2.png")
    (tmp_path / "held/same7.png").write_bytes((tmp_path / "more/more7.png").read_bytes())
    folders = [tmp_path / "train", tmp_path / "more"]
    report = preflight(folders, validation=tmp_path / "held", size=64)
    assert kinds(report) == {"leaks": ["like2.png=train2.png", "more7.png=same7.png"]}
    assert {note.what for note in report.of("leaks").notes} >= {"the same file"}
    assert report.folders == tuple(folders)
    assert report.usable == 9
    assert not preflight(folders, size=64).findings


def test_distance_says_how_near_is_near(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    scene(1).crop((2, 2, 94, 94)).save(tmp_path / "b.png")
    assert preflight(tmp_path, size=64, distance=0).of("duplicates") is None
    assert preflight(tmp_path, size=64, distance=20).of("duplicates") is not None
    with pytest.raises(UserError, match="distance is 40; expected 0 to 32"):
        preflight(tmp_path, distance=40)


def test_colours_tell_pictures_apart_that_a_hash_does_not(tmp_path: Path) -> None:
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 255)), ("red2", (205, 5, 5))):
        disc = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(disc).ellipse((8, 8, 56, 56), fill=colour)
        disc.save(tmp_path / f"{name}.png")
    assert kinds(preflight(tmp_path, size=64)) == {"duplicates": ["red.png=red2.png"]}


def nearest(
    ones: list[Fingerprint], others: list[Fingerprint] | None, distance: int
) -> set[tuple[int, int, int]]:
    """(one, other, bits) of each other's nearest, one by one."""
    found = set()
    for number, other in enumerate(ones if others is None else others):
        near = [
            (int((one.bits[0] != other.bits[mirrored]).sum()), place)
            for place, one in enumerate(ones[:number] if others is None else ones)
            for mirrored in (0, 1)
            if np.abs(one.colours[0] - other.colours[mirrored]).mean() <= COLOUR_LIMIT
        ]
        if near and min(near)[0] <= distance:
            found.add((min(near)[1], number, min(near)[0]))
    return found


@pytest.mark.parametrize("flips", [0, 2, 12])
def test_the_nearest_is_found_over_blocks_as_one_by_one(flips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(flips)
    origins = chance.random((5, 2, 64)) < 0.5
    prints = []
    for number in range(
        90
    ):  # some differ in a few bits, some in colour alone, some are another's mirror image
        bits = origins[number % 5] ^ (chance.random((2, 64)) < flips / 64)
        colours = np.full((2, 192), 40.0 * (number % 2), np.float32)
        prints.append(Fingerprint(bits[::-1] if number % 7 == 0 else bits, colours, bytes([number])))
    for name, size in (("_ROWS", 7), ("_COLUMNS", 11), ("_CANDIDATES", 5)):
        monkeypatch.setattr(f"hyperbrush.training.before.likeness.{name}", size)
    whole = alike(prints, None, 8)
    assert {(p.one, p.other, p.distance) for p in whole} == nearest(prints, None, 8)
    assert len(whole) < len(prints)
    assert [p.distance for p in whole] == sorted(p.distance for p in whole)
    across = alike(prints[:40], prints[40:], 8)
    assert {(p.one, p.other, p.distance) for p in across} == nearest(prints[:40], prints[40:], 8)
    assert alike([], prints, 8) == []
    assert bool(whole) == bool(across) == (flips < 12)


def test_missing_captions_are_told_where_others_are_written(tmp_path: Path) -> None:
    for index, name in enumerate(("red house", "blue tree")):
        scene(index).save(tmp_path / f"{name}.png")
    assert not preflight(tmp_path, size=64).findings
    (tmp_path / "red house.txt").write_text("a house")
    assert kinds(preflight(tmp_path, size=64)) == {"missing_captions": ["blue tree.png"]}
    report = preflight(tmp_path, size=64, captions="text")
    assert kinds(report) == {"bad_captions": ["blue tree.png"]}
    assert kinds(preflight(tmp_path, size=64, captions="none")) == {}
    scene(9).save(tmp_path / "0001.png")
    rules = FileNames(drop_number=True)
    found = kinds(preflight(tmp_path, size=64, captions="filename", file_names=rules))
    assert found == {"missing_captions": ["0001.png"], "empty_captions": ["0001.png"]}


def test_captions_are_counted_as_the_templates_make_them(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "cat.png")
    tokenizer = default_tokenizer()
    assert preflight(tmp_path, size=64, tokenizer=tokenizer).of("cut_captions") is None
    long = Captioning(("[filewords]", "[filewords]" + " cat" * 40))
    (note,) = preflight(tmp_path, size=64, tokenizer=tokenizer, captioning=long).of("cut_captions").notes
    assert note.figures["tokens"] == 41
    (tmp_path / "cat.txt").write_text("cat\n" + "cat " * 41)
    several = preflight(tmp_path, size=64, tokenizer=tokenizer, caption_lines=True).of("cut_captions")
    assert several.notes[0].figures["tokens"] == 41


def test_captions_are_counted_with_their_folders_own_words(tmp_path: Path) -> None:
    for seed, name in enumerate(("plain", "wordy")):
        (tmp_path / name).mkdir()
        scene(seed).save(tmp_path / name / "cat.png")
    folders = [
        FolderConfig(path=str(tmp_path / "plain")),
        FolderConfig(path=str(tmp_path / "wordy"), caption_suffix=", cat" * 90),
    ]
    about: dict[str, Any] = {"size": 64, "downscale": 4, "multiple": 8, "batch_size": 1}
    report = preflight_of(folders, [], PictureSettings(), tokenizer=default_tokenizer(), **about)
    (note,) = report.of("cut_captions").notes
    assert note.paths[0].parent.name == "wordy"


def test_shapes_and_buckets(tmp_path: Path) -> None:
    for index, size in enumerate([(64, 64), (64, 64), (200, 100), (640, 64)]):
        scene(index, size).save(tmp_path / f"p{index}.png")
    report = preflight(tmp_path, buckets=Buckets(64, step=8), batch_size=2)
    assert report.shapes == {(64, 64): 2, (48, 80): 2}
    assert kinds(report) == {"aspect": ["p3.png"]}
    report = preflight(tmp_path, buckets=OriginalSizes(8), batch_size=2)
    assert report.shapes == {(64, 64): 2, (96, 200): 1, (64, 640): 1}
    assert kinds(report) == {"small_buckets": ["p2.png", "p3.png"]}
    squeezed = preflight(tmp_path, size=64, crop="none").of("aspect")
    assert {note.paths[0].name for note in squeezed.notes} == {"p2.png", "p3.png"}
    assert all("squeezed out of shape" in note.what for note in squeezed.notes)


def test_huge_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene(0, (80, 90)).save(tmp_path / "a.png")
    assert preflight(tmp_path, size=64).of("huge") is None
    monkeypatch.setattr("hyperbrush.training.before.findings.HUGE", 7000)
    assert kinds(preflight(tmp_path, size=64)) == {"huge": ["a.png"]}


def test_masks(tmp_path: Path) -> None:
    for index in range(3):
        scene(index).save(tmp_path / f"p{index}.png")
        Image.new("L", (96, 96), 255).save(tmp_path / f"p{index}.mask.png")
    (tmp_path / "p1.mask.png").write_bytes(b"rubbish")
    report = preflight(tmp_path, size=64, masks=Masks("files"))
    assert kinds(report) == {"bad_masks": ["p1.mask.png"]}
    assert report.usable == 2
    clear = scene(7).convert("RGBA")
    clear.putalpha(90)
    clear.save(tmp_path / "clear.png")
    assert kinds(preflight(tmp_path, size=64)) == {"transparent": ["clear.png"]}
    opaque = {"unmasked": ["p0.png", "p1.png", "p2.png"]}  # which is told, as they count everywhere
    assert kinds(preflight(tmp_path, size=64, masks=Masks("alpha"))) == opaque


def test_progress_and_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene(ord(name)).save(tmp_path / f"{name}/x.png")
    seen: list[tuple[int, int]] = []
    preflight(
        [tmp_path / "a", tmp_path / "b"], size=64, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 1), (1, 1)]
    with pytest.raises(UserError, match="no folder to look at"):
        preflight([])
    with pytest.raises(UserError, match="there is no folder"):
        preflight(tmp_path / "c")


def test_files_that_are_not_read_are_a_warning_and_set_nothing_aside(tmp_path: Path) -> None:
    for index in range(2):
        scene(index).save(tmp_path / f"a{index}.png")
        (tmp_path / f"a{index}.txt").write_text(f"scene {index}")
    (tmp_path / "lost.txt").write_text("x")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    report = preflight(tmp_path, size=64)
    assert kinds(report) == {"unread": ["clip.mp4", "lost.txt"]}
    assert (report.usable, report.found, report.set_aside) == (2, 2, ())
    assert "warning: 2 files are not read" in report.text()
    assert "lost.txt: a caption of no picture; there is none named lost" in report.text()


def test_pictures_it_has_decoded_are_not_decoded_to_be_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        scene(index).save(tmp_path / f"a{index}.png")
    report = preflight(tmp_path, size=64)
    decoded: list[str] = []
    look = pictures.look
    monkeypatch.setattr(pictures, "look", lambda path, small=0: (decoded.append(path.name), look(path))[1])
    known = ImageFolder(tmp_path, size=64, look=report.look)
    assert decoded == []
    assert (known.paths, known.sizes) == (
        [str(tmp_path / f"a{index}.png") for index in range(2)],
        [scene(0).size] * 2,
    )
    scene(2).save(tmp_path / "b.png")
    assert len(ImageFolder(tmp_path, size=64, look=report.look)) == 3
    assert decoded == ["b.png"]

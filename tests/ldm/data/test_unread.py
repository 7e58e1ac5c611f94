"""What a folder holds beside pictures is named; formats of extras are read where these are installed."""

import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder, pictures, scan

MIXED = Path("/work/shared/failing/09/mixed")


def names(found):
    return [item.path.name for item in found.items]


def reasons(found):
    return {problem.path.name: problem.reason for problem in found.problems}


@pytest.fixture
def without_extras(monkeypatch):
    """As on a machine where `pip install hyperbrush[pictures]` was not run."""
    pictures._installed.cache_clear()
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    yield
    pictures._installed.cache_clear()


@pytest.fixture
def mixed(tmp_path, paint):
    """Pictures, and files of all kinds that lie about beside them."""
    for name in ("a.png", "b.png"):
        paint(name)
        (tmp_path / name).with_suffix(".txt").write_text("read")
    paint("twitter.jpg").rename(tmp_path / "twitter.jpg_large")
    paint("bare.webp").rename(tmp_path / "bare")
    for name in ("clip.mp4", "orphan.txt", "nested/lost.caption", "a.caption", "all.zip", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"something")
    return tmp_path


def test_each_file_that_is_not_read_is_named_once(mixed):
    found = scan(mixed)
    assert names(found) == ["a.png", "b.png"]
    said = reasons(found)
    assert len(said) == len(found.problems) == 8
    assert {problem.kind for problem in found.problems} == {"unread"}
    for name, words in {
        "twitter.jpg_large": "it holds a JPEG picture, but is not named as one: give its name the ending .jpg",
        "bare": "it holds a WEBP picture.*ending .webp",
        "clip.mp4": ".mp4 files are not read",
        "orphan.txt": "a caption of no picture; there is none named orphan",
        "lost.caption": "a caption of no picture",
        "a.caption": "not read beside a.txt",
        "all.zip": "plain .tar files alone are read; unpack it",
        "notes.md": ".md files are not read",
    }.items():
        assert re.search(words, said[name]), (name, said[name])


def test_they_stop_nothing_and_are_logged_where_no_preflight_says_them(mixed, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(mixed)) == 2
    assert "8 files in" in caplog.text
    assert "orphan.txt" in caplog.text or "… and 3 more" in caplog.text
    caplog.clear()
    assert len(ImageFolder(mixed, on_problem="skip").problems) == 8
    assert not caplog.records


def test_a_folder_of_unread_files_alone_names_them(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    with pytest.raises(
        UserError, match=r"no picture in (.|\n)*1 files are not read:\n  a\.svg: \.svg files are"
    ):
        scan(tmp_path)


@pytest.mark.parametrize(("suffix", "format_"), [(".heic", "HEIF"), (".hif", "HEIF"), (".jxl", "JXL")])
def test_heic_and_jpeg_xl_are_read_upright_and_as_they_are(suffix, format_, tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    pytest.importorskip("pillow_jxl")
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / f"a{suffix}"
    how = {"lossless": True} if format_ == "JXL" else {"quality": 100}
    Image.fromarray(pixels).save(path, format=format_, exif=exif.tobytes(), **how)
    [item] = scan(tmp_path).items
    assert (item.width, item.height) == (24, 40)
    seen = np.asarray(pictures.read(path, (255, 255, 255))).astype(int)
    wanted = np.rot90(pixels, -1).astype(int)
    assert np.abs(seen - wanted).max() < 12
    assert ImageFolder(tmp_path, size=16).example(0, 0)["image"].shape == (3, 16, 16)
    assert pictures.opened(path, "image").size == (24, 40)


def test_without_the_extra_it_is_named_with_it_wherever_it_comes_in(tmp_path, paint, without_extras):
    paint("a.png")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "c.JXL").write_bytes(b"\xff\x0a" + bytes(40))
    found = scan(tmp_path)
    assert names(found) == ["a.png"]
    install = r"pip install 'hyperbrush\[pictures\]'"
    assert re.fullmatch(f"HEIC is read with an extra: {install}", reasons(found)["b.heic"])
    assert re.fullmatch(f"JPEG XL is read with an extra: {install}", reasons(found)["c.JXL"])
    assert len(ImageFolder(tmp_path)) == 1
    with pytest.raises(UserError, match=f"HEIC.*{install}"):
        pictures.opened(tmp_path / "b.heic", "image")
    (tmp_path / "b.heic").rename(tmp_path / "b.png")  # by its content, whatever its name
    assert "picture in HEIC, which is read with an extra" in reasons(scan(tmp_path))["b.png"]


@pytest.mark.skipif(not MIXED.is_dir(), reason="the reported folder is not here")
def test_the_reported_folder(caplog):
    found = scan(MIXED)
    assert names(found) == ["a0.png", "a1.png", "f.tga", "g.ico", "h.jp2"]
    assert set(reasons(found)) == {"b.heic", "c.jxl", "clip.mp4", "d", "e.jpg_large", "orphan.txt"}


def test_the_extras_are_loaded_for_their_files_alone(tmp_path, paint):
    import subprocess

    paint("a.png")
    code = (
        "import sys; from hyperbrush.ldm.data import scan; scan(sys.argv[1]);"
        "print([m for m in ('pillow_heif', 'pillow_jxl', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"

import json
import os
import sys

import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import scan


def names(found):
    return [item.path.relative_to(found.folder).as_posix() for item in found.items]


def test_nested_folders_in_order_of_their_paths(paint, tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "a.png", ".hidden/x.png", "a/._z.jpg"):
        paint(name)
    (tmp_path / "notes.md").write_text("x")
    found = scan(tmp_path)
    assert names(found) == ["a.png", "a/b/c.webp", "a/z.JPG", "b.png"]
    assert (
        found.report()
        == "  notes.md: .md files are not read; if it is a picture, save it as PNG, JPEG or WebP"
    )
    assert (found.items[0].width, found.items[0].height) == (16, 16)


def test_caption_sources(paint, tmp_path):
    for name in ("both.png", "text_only.png", "name_only.png"):
        paint(name)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "both.png", "text": "row"}))
    (tmp_path / "both.txt").write_text("file")
    (tmp_path / "text_only.TXT").write_text("text file")

    def captions(source):
        return [item.caption for item in scan(tmp_path, source).items]

    assert captions("auto") == ["row", "name only", "text file"]
    assert captions("filename") == ["both", "name only", "text only"]
    assert captions("none") == ["", "", ""]
    assert captions("text") == ["file", "text file"]
    assert captions("metadata") == ["row"]
    assert "name_only.png: no caption; expected name_only.txt" in scan(tmp_path, "text").report()
    assert "no metadata.jsonl has a row" in scan(tmp_path, "metadata").report()
    with pytest.raises(UserError, match=r"unknown source of captions 'txt'.*'text'"):
        captions("txt")


def test_several_captions(paint, tmp_path):
    for name in ("lines.png", "name.png", "row.png"):
        paint(name)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "row.png", "text": ["first", "second"]})
    )
    joined, apart = scan(tmp_path), scan(tmp_path, caption_lines=True)
    assert [item.written for item in joined.items] == [("one two",), ("name",), ("first", "second")]
    assert [item.written for item in apart.items] == [("one", "two"), ("name",), ("first", "second")]
    assert [item.caption for item in apart.items] == ["one", "name", "first"]


def test_every_problem_is_named(paint, tmp_path, monkeypatch):
    paint("good.png")
    paint("empty.png").write_bytes(b"")
    for name in ("short.png", "short.jpg", "short.webp"):
        path = paint(name, size=(64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    flipped = paint("checksum.png", size=(64, 64))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (tmp_path / "text.png").write_text("this is no picture")
    paint("bomb.png", size=(400, 400), colour="red")
    paint("latin.png")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}\n{')
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    found = scan(tmp_path)
    assert names(found) == ["good.png"]
    report = found.report()
    for line in (
        "metadata.jsonl: line 1: there is no picture 'gone.png'",
        "metadata.jsonl: line 2: not JSON",
        "bomb.png: it may be a decompression bomb",
        "checksum.png: ",
        "empty.png: the file is empty (0 bytes)",
        "latin.txt: the caption is not UTF-8",
        "short.jpg: image file is truncated",
        "short.png: ",
        "short.webp: ",
        "text.png: not a picture Pillow can read",
    ):
        assert f"  {line}" in report
    assert len(found.problems) == 10
    assert found.report(limit=3).endswith("\n  … and 7 more")


def test_folders_without_pictures(tmp_path, paint):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; expected a folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no picture in .* looked for \.png \.jpg"):
        scan(tmp_path)
    with pytest.raises(UserError, match=r"a\.png is a file; expected a folder"):
        scan(paint("a.png"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links(paint, tmp_path):
    paint("real/a.png")
    (tmp_path / "real/up").symlink_to(tmp_path)
    (tmp_path / "real/lost.png").symlink_to(tmp_path / "nothing.png")
    found = scan(tmp_path)
    assert names(found) == ["real/a.png"]
    assert "lost.png: the file is gone, or a link leads nowhere" in found.report()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(paint, tmp_path):
    paint("a.png")
    paint("b.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    report = scan(tmp_path).report()
    assert "the file name is not UTF-8; rename it" in report
    report.encode("utf-8")


def test_progress(paint, tmp_path):
    paint("a.png")
    paint("b.png")
    seen = []
    scan(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

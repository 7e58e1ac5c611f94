import json
from pathlib import Path

import pytest

from hyperbrush.ldm.data.captions import (
    CaptionError,
    caption_from_name,
    caption_from_text,
    captions_from_lines,
    read_metadata,
)


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_file_names():
    assert caption_from_name(Path("a/red_panda-face  2.png")) == "red panda face 2"
    assert caption_from_name(Path("cafe\u0301.png")) == "caf\u00e9"


def test_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffun café,\r\n noir \n".encode())
    assert caption_from_text(path) == "un café, noir"
    path.write_bytes(b"")
    assert caption_from_text(path) == ""
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(CaptionError, match=r"not UTF-8 \(byte 3\); save"):
        caption_from_text(path)
    path.write_bytes("cat".encode("utf-16-le"))
    with pytest.raises(CaptionError, match="zero bytes"):
        caption_from_text(path)


def test_each_line_of_a_text_file_is_a_caption(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa  cat\r\n\n  a kitten \n".encode())
    assert captions_from_lines(path) == ("a cat", "a kitten")
    path.write_bytes(b" \n")
    assert captions_from_lines(path) == ("",)


def test_a_row_may_hold_several_captions(tmp_path):
    root = write(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": [" a  cat", "a kitten"]},
        {"file_name": "b.png", "caption": ["a dog"]},
        {"file_name": "sub/c.png", "text": ["far", "farther"]},
        {"file_name": "d.png", "text": []},
        {"file_name": "e.png", "caption": ["fine", 3]},
    )
    near = write(tmp_path / "sub/metadata.jsonl", {"file_name": "c.png", "text": "near"})
    found = read_metadata(tmp_path, [root, near], ["a.png", "b.png", "sub/c.png", "d.png", "e.png"])
    assert {name: said[0] for name, said in found.alternatives.items()} == {
        "a.png": "a cat",
        "b.png": "a dog",
        "sub/c.png": "near",
    }
    assert found.alternatives == {
        "a.png": ("a cat", "a kitten"),
        "b.png": ("a dog",),
        "sub/c.png": ("near",),
    }
    assert [reason for _, reason in found.problems] == [
        'line 4: "text" is an empty list; expected a string, or a list of one or more',
        'line 5: "caption" has 3 as caption 2; expected a string',
    ]
    assert found.bad == {"d.png", "e.png"}


def test_metadata_is_relative_to_its_folder_and_the_nearest_wins(tmp_path):
    root = write(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "root a"},
        "",
        {"file_name": "sub/b.png", "text": "root b"},
        {"file_name": "sub\\c.png", "caption": "root c"},
    )
    sub = write(tmp_path / "sub/metadata.jsonl", {"file_name": "b.png", "text": "near b"})
    found = read_metadata(tmp_path, [sub, root], ["a.png", "sub/b.png", "sub/c.png"])
    assert {name: said[0] for name, said in found.alternatives.items()} == {
        "a.png": "root a",
        "sub/b.png": "near b",
        "sub/c.png": "root c",
    }
    assert not found.problems


def test_every_bad_line_is_named(tmp_path):
    file = write(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "fine"},
        "{not json",
        ["a.png"],
        {"text": "no name"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "notes.doc", "text": "x"},
        {"file_name": "b.png", "label": 3},
        {"file_name": "a.png", "text": "again"},
    )
    with file.open("ab") as handle:
        handle.write(b'\n{"file_name": "a.png", "text": "caf\xe9"}')
    found = read_metadata(tmp_path, [file], ["a.png", "b.png"])
    reasons = [reason for _, reason in found.problems]
    expected = [
        "line 2: not JSON",
        "line 3: is a JSON list",
        "line 4: file_name is None",
        "line 5: there is no picture 'gone.png'",
        "line 6: 'notes.doc' is not a picture; expected one of .png",
        'line 7: no "text" or "caption" with a string (the row has file_name, label)',
        "line 8: a second row for 'a.png', after line 1",
        "line 9: not UTF-8",
    ]
    assert [r[: len(e)] for r, e in zip(reasons, expected, strict=True)] == expected
    assert found.bad == {"a.png", "b.png"}

"""Captions as other programs leave them: NAME.caption, metadata.csv, metadata.parquet, NAME.json."""

import json
import re
from pathlib import Path

import pytest

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import archives, scan

REPORTED = Path("/work/shared/failing/10")


def captions(folder, source="auto", **how):
    return {item.path.stem: (item.caption, item.source) for item in scan(folder, source, **how).items}


def test_caption_files_of_sd_scripts(paint, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        paint(name)
    (tmp_path / "a.caption").write_text("a cat,\nsitting")
    (tmp_path / "b.CAPTION").write_text("from caption")
    (tmp_path / "b.txt").write_text("from txt")
    assert captions(tmp_path) == {
        "a": ("a cat, sitting", "text"),
        "b": ("from txt", "text"),
        "c": ("c", "filename"),
    }
    assert scan(tmp_path).report() == "  b.CAPTION: not read beside b.txt"
    assert scan(tmp_path, caption_lines=True).items[0].written == ("a cat,", "sitting")
    assert "c.png: no caption; expected c.txt (or .caption) beside it" in scan(tmp_path, "text").report()


def test_metadata_csv(paint, tmp_path):
    for name in ("a.png", "b, c.png", "in/d.png", "e.png"):
        paint(name)
    (tmp_path / "metadata.csv").write_bytes(
        '\ufefffile_name,text,extra\r\na.png,"a cat, sitting\r\non a mat",1\r\n"b, c.png","say ""hi""",2\r\n'
        "in/d.png,nested,3\r\ngone.png,x,4\r\n".encode()
    )
    assert captions(tmp_path) == {
        "a": ("a cat, sitting on a mat", "metadata"),
        "b, c": ('say "hi"', "metadata"),
        "d": ("nested", "metadata"),
        "e": ("e", "filename"),
    }
    assert scan(tmp_path).report() == "  metadata.csv: line 6: there is no picture 'gone.png'"
    assert (
        "e.png: no metadata.jsonl has a row for it, nor a metadata.csv" in scan(tmp_path, "metadata").report()
    )


def test_of_several_files_of_metadata_jsonl_counts_and_the_nearest_before(paint, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    paint("a.png")
    paint("in/b.png")
    rows = {"file_name": ["a.png", "in/b.png"], "text": ["parquet", "parquet"]}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "metadata.parquet")
    assert captions(tmp_path) == {"a": ("parquet", "metadata"), "b": ("parquet", "metadata")}
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,csv\nin/b.png,csv\n")
    assert captions(tmp_path)["a"] == ("csv", "metadata")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "jsonl"}))
    (tmp_path / "in/metadata.csv").write_text("file_name,text\nb.png,near\n")
    assert captions(tmp_path) == {"a": ("jsonl", "metadata"), "b": ("near", "metadata")}
    assert not scan(tmp_path).problems


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,text\na.png,x\n", r"line 2: file_name is None; expected a path"),
        (
            b"file_name,words\na.png,x\n",
            r'line 2: no "text" or "caption" with a string \(the row has file_name',
        ),
        (b"file_name,text\na.png,caf\xe9\n", r"not UTF-8 \(byte 24\)"),
        (b'file_name,text\na.png,"x\n', "no CSV file that can be read"),
        (b"file_name,text\na.png,x\na.png,y\n", r"line 3: a second row for 'a.png', after line 2"),
    ],
)
def test_broken_metadata_csv_is_named(content, words, paint, tmp_path):
    paint("a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    assert re.search(f"metadata.csv: {words}", scan(tmp_path).report())


def test_metadata_parquet_without_its_extra_is_an_error(paint, tmp_path, monkeypatch):
    paint("a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(archives, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"metadata.parquet is read with an extra: pip install 'hyperbrush\[parquet\]'"
    ):
        scan(tmp_path)
    assert captions(tmp_path, "filename") == {"a": ("a", "filename")}


def test_json_beside_pictures(paint, tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        paint(name)
    (tmp_path / "a.json").write_text(json.dumps({"caption": "from json", "width": 3}))
    (tmp_path / "b.json").write_text(json.dumps({"text": ["one", "two"]}))
    (tmp_path / "c.json").write_text(json.dumps({"seed": 1}))  # another program's
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "e.json").write_text(json.dumps({"caption": "json"}))
    (tmp_path / "e.txt").write_text("txt first")
    found = scan(tmp_path)
    assert [item.written for item in found.items] == [("from json",), ("one", "two"), ("c",), ("txt first",)]
    assert "d.json: not JSON" in found.report()


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the reported folders are not here")
def test_the_reported_folders():
    assert set(captions(REPORTED / "csv").values()) == {(f"cat face {i}", "metadata") for i in range(8)}
    kohya = captions(REPORTED / "kohya")
    assert set(kohya.values()) == {(f"cat face, drawing {i}", "text") for i in range(8)}

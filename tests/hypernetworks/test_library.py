"""The library: names, their forms, and what they can never reach."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperbrush import file_cache
from hyperbrush.errors import UserError
from hyperbrush.file_cache import FileCache
from hyperbrush.hypernetworks import AttentionHypernetwork, HypernetworkLibrary, Notes, load
from hyperbrush.hypernetworks.library import summary as summarising


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "hypernetworks"
    hn = AttentionHypernetwork([4], name="x")
    for place in ("water.pt", "a/fire.safetensors", "b/fire.pt", "deep/er/Café.bin", "twin.pt"):
        hn.save(root / Path(place).with_suffix(".pt"))
        (root / Path(place).with_suffix(".pt")).replace(root / place)
    (root / "a" / "fire.safetensors").unlink()
    hn.save(root / "a" / "fire.safetensors")
    hn.save(root / "twin.safetensors")
    hn.save(tmp_path / "outside.pt")
    (root / "link.pt").symlink_to(tmp_path / "outside.pt")
    (root / "water.pt.optim").write_text("")
    (root / ".hidden.pt").write_text("")
    return root


def test_names_and_lookup(folder: Path) -> None:
    library = HypernetworkLibrary(folder)
    assert library.names() == ["Café", "a/fire", "b/fire", "twin", "water"]
    assert library.find("water") == folder / "water.pt"
    assert library.find("water.pt") == folder / "water.pt"
    assert library.find("a/fire") == folder / "a" / "fire.safetensors"
    assert library.find("twin") == folder / "twin.safetensors"
    assert library.load("b/fire").widths == [4]
    for form in ("NFC", "NFD"):
        assert library.find(unicodedata.normalize(form, "Café")).suffix == ".bin"
    (folder / "new.pt").write_bytes((folder / "water.pt").read_bytes())
    assert library.find("new") == folder / "new.pt"


def test_errors_say_what_there_is(folder: Path) -> None:
    library = HypernetworkLibrary(folder)
    with pytest.raises(UserError, match=r"unknown hypernetwork 'watr'; did you mean 'water'"):
        library.find("watr")
    with pytest.raises(UserError, match=r"several.*'fire'.*a/fire, b/fire"):
        library.find("fire")
    with pytest.raises(UserError, match="no hypernetwork folder at"):
        HypernetworkLibrary(folder / "none").names()


@pytest.mark.parametrize(
    "name", ["../outside", "../outside.pt", "link", "/etc/passwd", "a\\fire", "x\0", "", "."]
)
def test_names_never_leave_the_folder(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match="unknown hypernetwork"):
        HypernetworkLibrary(folder).find(name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files old enough to be kept in the cache (see `file_cache.MIN_AGE_NS`)."""
    root = tmp_path / "files"
    AttentionHypernetwork(
        [4, 8], name="ink", activation="relu", step=7, metadata={"sd_checkpoint_name": "model.ckpt"}
    ).save(root / "ink.pt")
    AttentionHypernetwork([320, 640, 1280, 768], name="water", layer_structure=(1, 1)).save(
        root / "water.safetensors"
    )
    (root / "broken.pt").write_bytes((root / "ink.pt").read_bytes()[:1000])
    for path in root.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "files.json"


def test_entries_say_what_each_file_is(files: Path, cache: Path) -> None:
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    broken, ink, water = library.entries()
    assert (broken.name, broken.summary) == ("broken", None)
    assert broken.error is not None
    assert "broken.pt is damaged" in broken.error
    assert ink.error is water.error is None
    assert ink.summary is not None
    assert water.summary is not None
    assert ink.summary.as_dict() == {
        "kind": "attention hypernetwork",
        "format": "webui",
        "widths": [4, 8],
        "sites": 0,
        "structure": [1, 2, 1],
        "activation": "relu",
        "layer_norm": False,
        "parameters": sum(p.numel() for p in library.load("ink").parameters()),
        "step": 7,
        "trained_for": "model.ckpt",
    }
    assert water.summary.format == "safetensors"
    assert water.summary.trained_for == "Stable Diffusion 1.x"
    assert water.summary.parameters == sum(p.numel() for p in library.load("water").parameters())
    for entry in (broken, ink, water):
        assert entry.sha256 == hashlib.sha256(entry.path.read_bytes()).hexdigest()
        assert entry.short_hash == entry.sha256[:10]
        assert entry.as_dict().keys() == water.as_dict().keys()
        assert json.loads(json.dumps(entry.as_dict())) == entry.as_dict()
    assert library.entry("ink") == ink
    assert library.sha256("water") == water.sha256


@pytest.mark.parametrize("name", ["ink.pt", "water.safetensors"])
def test_headers_are_read_without_the_numbers(files: Path, name: str) -> None:
    path = files / name
    sound = summarising.summarise(path)
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        for state in content[4]:
            for tensor in state.values():
                tensor.fill_(torch.nan)
        torch.save(content, path)
    else:
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:begin] + b"\xff" * (len(data) - begin))
    assert summarising.summarise(path) == sound
    with pytest.raises(UserError, match="NaN"):
        load(path)


def test_hashes_and_headers_are_kept_by_size_and_time(
    files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = HypernetworkLibrary(files, cache=FileCache(cache)).entries()
    kept = cache.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(file_cache, "sha256", lambda path: pytest.fail(f"{path} was read again"))
        patch.setattr(summarising, "summarise", broken)
        assert HypernetworkLibrary(files, cache=FileCache(cache)).entries() == first
    AttentionHypernetwork([16]).save(files / "ink.pt")
    os.utime(files / "ink.pt", (1_100_000_000, 1_100_000_000))
    entry = HypernetworkLibrary(files, cache=FileCache(cache)).entry("ink")
    assert entry.summary is not None
    assert entry.summary.widths == (16,)
    assert entry.sha256 == hashlib.sha256((files / "ink.pt").read_bytes()).hexdigest()
    assert cache.read_bytes() != kept


def broken(path: Path, summarise: Callable[[Path], Any] = summarising.summarise) -> None:
    """Only the broken file has no header to keep."""
    if path.stem != "broken":
        pytest.fail(f"{path} was read again")
    summarise(path)


def test_a_file_just_written_is_not_trusted_by_its_time(files: Path, cache: Path) -> None:
    path = files / "ink.pt"
    store = FileCache(cache)
    AttentionHypernetwork([4]).save(path)
    before, state = store.sha256(path), path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert store.sha256(path) != before


@pytest.mark.parametrize("content", ["", "[1]", '{"files": 3}', '{"files": {"a": 1}}', "\0", "[" * 99_999])
def test_a_broken_cache_is_as_good_as_none(content: str, files: Path, cache: Path) -> None:
    expected = HypernetworkLibrary(files, cache=FileCache(cache)).entries()
    cache.write_text(content)
    assert HypernetworkLibrary(files, cache=FileCache(cache)).entries() == expected
    assert "sha256" in cache.read_text()


def test_values_of_a_cache_are_judged(files: Path, cache: Path) -> None:
    expected = HypernetworkLibrary(files, cache=FileCache(cache)).entries()
    content = json.loads(cache.read_text())
    for record in content["files"].values():
        record |= {"sha256": 5, "summary/1": {"kind": "x"}}
    cache.write_text(json.dumps(content))
    assert HypernetworkLibrary(files, cache=FileCache(cache)).entries() == expected


def test_where_the_cache_is(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    HypernetworkLibrary(files).entries()
    assert (tmp_path / "xdg" / "hyperbrush" / "files.json").is_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(HypernetworkLibrary(files).entries()) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_is_listed_and_never_read(files: Path, cache: Path) -> None:
    os.mkfifo(files / "pipe.pt")
    entry = HypernetworkLibrary(files, cache=FileCache(cache)).entry("pipe")
    assert entry.error is not None
    assert "is no regular file" in entry.error


def test_notes_are_read_and_written_as_the_webui_does(files: Path, cache: Path) -> None:
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    assert library.notes("ink") == Notes()
    (files / "ink.txt").write_text("waves \n")
    assert library.notes("ink").description == "waves"
    side = {"activation text": "in ink, é", "preferred weight": 0.7, "notes": "n", "sd version": "SD1"}
    (files / "ink.json").write_text(json.dumps(side | {"description": ""}))
    notes = library.notes("ink")
    assert (notes.description, notes.activation_text, notes.preferred_weight) == ("waves", "in ink, é", 0.7)
    assert notes.other == {"sd version": "SD1"}
    assert library.entry("ink").as_dict()["activation_text"] == "in ink, é"
    library.write_notes("ink", replace(notes, preferred_weight=None, description="sea"))
    written = json.loads((files / "ink.json").read_text(encoding="utf-8"))
    assert written == side | {"description": "sea", "preferred weight": 0}
    assert (files / "ink.txt").read_text() == "sea\n"
    assert library.notes("ink").preferred_weight is None
    with pytest.raises(UserError, match="unknown hypernetwork"):
        library.write_notes("../ink", notes)
    with pytest.raises(UserError, match="cannot be written as JSON"):
        library.write_notes("ink", Notes(other={"x": float("nan")}))
    assert json.loads((files / "ink.json").read_text(encoding="utf-8")) == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "holds a list: expected an object"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (
            b'{"preferred weight": "high"}',
            "'preferred weight' must be a finite number such as 0.7, got 'high'",
        ),
        (b'{"preferred weight": NaN}', "'preferred weight' must be a finite number"),
        (b'{"activation text": [1]}', "'activation text' must be a text"),
        (b'{"notes": "' + b"x" * 1_000_000 + b'"}', "more than 1000000: no side file"),
    ],
)
def test_a_bad_side_file_hides_nothing(content: bytes, message: str, files: Path, cache: Path) -> None:
    (files / "ink.json").write_bytes(content)
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    with pytest.raises(UserError, match=message):
        library.notes("ink")
    entry = library.entry("ink")
    assert entry.error is None
    assert entry.summary is not None
    assert entry.warning is not None
    assert "ink.json" in entry.warning


def test_what_is_sound_beside_a_bad_side_file_stays(files: Path, cache: Path) -> None:
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    (files / "ink.txt").write_text("waves")
    (files / "ink.civitai.info").write_text(json.dumps({"trainedWords": ["ink wash"]}))
    (files / "ink.json").write_text("{")
    entry = library.entry("ink")
    assert (entry.notes.description, entry.notes.activation_text) == ("waves", "ink wash")
    assert entry.warning is not None
    side = {"activation text": "in ink", "preferred weight": "high", "notes": [1], "description": "sea"}
    (files / "ink.json").write_text(json.dumps(side))
    entry = library.entry("ink")
    assert (entry.notes.description, entry.notes.activation_text) == ("sea", "in ink")
    assert (entry.notes.preferred_weight, entry.notes.notes) == (None, "")
    assert entry.warning is not None
    for words in ("'preferred weight' must be", "'notes' must be"):
        assert words in entry.warning
    with pytest.raises(UserError, match="'preferred weight'"):  # or an edit would write over it
        library.notes("ink")


FOREIGN_NOTES: dict[str, tuple[str, dict[str, Any]]] = {
    "civitai": (
        "ink.civitai.info",
        {
            "trainedWords": ["ink wash, ", " sumi-e"],
            "description": "<p>Fine &amp; wet</p><p>ink</p>",
            "id": 5,
        },
    ),
    "civitai, of the model": (
        "ink.civitai.info",
        {
            "trainedWords": ["ink wash", "sumi-e"],
            "description": None,
            "model": {"description": "Fine & wet\nink"},
        },
    ),
    "lora manager": (
        "ink.metadata.json",
        {
            "civitai": {"trainedWords": ["ink wash", "sumi-e", "ink wash"]},
            "modelDescription": "<b>Fine &amp; wet</b><br>ink",
            "notes": "mine",
            "usage_tips": '{"strength": 0.8}',
        },
    ),
    "stability matrix": (
        "ink.cm-info.json",
        {"TrainedWords": ["ink wash", "sumi-e"], "ModelDescription": "<div>Fine &amp; wet<br/>ink</div>"},
    ),
}


@pytest.mark.parametrize("name", FOREIGN_NOTES)
def test_trigger_words_of_other_programs(name: str, files: Path, cache: Path) -> None:
    file, content = FOREIGN_NOTES[name]
    (files / file).write_text(json.dumps(content))
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    notes = library.notes("ink")
    assert (notes.activation_text, notes.description) == ("ink wash, sumi-e", "Fine & wet\nink")
    if "usage_tips" in content:
        assert (notes.notes, notes.preferred_weight) == ("mine", 0.8)
    (files / "ink.json").write_text(json.dumps({"activation text": "own", "preferred weight": 0.5}))
    notes = library.notes("ink")
    assert (notes.activation_text, notes.preferred_weight) == ("own", 0.5)
    assert notes.description == "Fine & wet\nink"


@pytest.mark.parametrize("content", ["{", "[]", '{"trainedWords": 5, "description": 7, "civitai": [], "model": 1}',
    '{"usage_tips": "{", "TrainedWords": [1, null, ""], "ModelDescription": {}}', "[" * 99_999])  # fmt: skip
def test_damaged_notes_of_other_programs(
    content: str, files: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    for ending in (".civitai.info", ".metadata.json", ".cm-info.json"):
        (files / f"ink{ending}").write_text(content)
    (files / "ink.json").write_text('{"activation text": "own"}')
    with caplog.at_level("WARNING", "hyperbrush"):
        assert library.notes("ink") == Notes(activation_text="own")
    entry = library.entry("ink")
    assert entry.notes == Notes(activation_text="own")
    assert ("ink.cm-info.json" in str(entry.warning)) is not content.startswith('{"')
    assert ("ink.cm-info.json" in caplog.text) is not content.startswith('{"')
    library.write_notes("ink", Notes(notes="n"))  # they do not stand in the way of an edit


def test_previews(files: Path, cache: Path) -> None:
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    assert library.preview("ink") is None
    Image.new("RGB", (4, 4)).save(files / "ink.webp")
    assert library.preview("ink") == files / "ink.webp"
    Image.new("RGB", (4, 4)).save(files / "ink.preview.jpg")
    assert library.preview("ink") == files / "ink.preview.jpg"
    assert library.set_preview("ink", Image.new("RGB", (5, 4))) == files / "ink.preview.png"
    found = library.preview("ink")
    assert found is not None
    assert Image.open(found).size == (5, 4)


def test_side_files_do_not_lead_out_of_the_folder(files: Path, cache: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"notes": "secret"}')
    (files / "ink.json").symlink_to(secret)
    (files / "ink.preview.png").symlink_to(secret)
    library = HypernetworkLibrary(files, cache=FileCache(cache))
    with pytest.raises(UserError, match="leads out of"):
        library.notes("ink")
    assert library.preview("ink") is None
    library.write_notes("ink", Notes(notes="mine"))
    assert secret.read_text() == '{"notes": "secret"}'
    assert library.notes("ink").notes == "mine"

"""`hyperbrush list` on terminals of any width, into pipes, and as JSON."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hyperbrush.cli import main
from hyperbrush.cli.library import show
from hyperbrush.file_cache import FileCache
from hyperbrush.hypernetworks import AttentionHypernetwork, HypernetworkLibrary

Listed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "models" / "hypernetworks"
    AttentionHypernetwork([320, 640, 1280, 768], layer_structure=(1, 1), name="water", step=1200).save(
        root / "styles" / "water.safetensors"
    )
    AttentionHypernetwork(
        [4], name="ink", activation="relu", layer_norm=True, metadata={"sd_checkpoint_name": "nai.ckpt"}
    ).save(root / "ink.pt")
    (root / "ink.json").write_text('{"activation text": "ink wash, 雨"}', encoding="utf-8")
    (root / "torn.pt").write_bytes(b"PK nothing")
    return root


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Listed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("hyperbrush.cli.console.out", Console(highlight=False, soft_wrap=True))
    monkeypatch.setattr("hyperbrush.cli.console.err", Console(stderr=True, highlight=False, soft_wrap=True))

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["list", *words])
        shown = capfd.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def on_terminal(folder: Path, width: int) -> str:
    out = Console(file=io.StringIO(), force_terminal=True, width=width, color_system="standard")
    show(HypernetworkLibrary(folder, cache=FileCache(folder.parent / "c.json")).entries(), out, folder)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_into_a_pipe_one_line_each_without_colours(folder: Path, listed: Listed) -> None:
    status, shown, _ = listed()
    assert status == 0
    assert "\x1b" not in shown
    head, ink, torn, water = (line.rstrip() for line in shown.splitlines())
    assert re.split(r"  +", head) == [
        *("name", "kind", "widths", "structure", "size", "trained for", "step", "hash", "trigger words"),
        "problem",
    ]
    assert "attention hypernetwork" in ink
    for words in ("4", "1,2,1 relu, LayerNorm", "nai.ckpt", "ink wash, 雨"):
        assert words in ink
    for words in ("320, 640, 768, 1280", "1,1 relu", "Stable Diffusion 1.x", "1200", "MB"):
        assert words in water
    assert "broken" in torn
    assert "torn.pt is damaged" in torn


def test_json_is_the_same_for_programs(folder: Path, listed: Listed) -> None:
    status, shown, _ = listed("--json")
    assert status == 0
    entries = json.loads(shown)
    assert [entry["name"] for entry in entries] == ["ink", "torn", "water"]
    assert [entry["widths"] for entry in entries] == [[4], None, [320, 640, 768, 1280]]
    assert "torn.pt is damaged" in entries[1]["error"]
    assert entries[0]["activation_text"] == "ink wash, 雨"
    assert all(entry["hash"] == entry["sha256"][:10] != "" for entry in entries)


@pytest.mark.parametrize("width", [40, 80, 110, 200])
def test_every_width_of_terminal_is_readable(folder: Path, width: int) -> None:
    shown = on_terminal(folder, width)
    lines = Text.from_ansi(shown).plain.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    together = "".join("".join(lines).split())
    # A table just wide enough folds its cells: only what stands in one line is sought there.
    whole = () if width == 110 else ("1,2,1relu,LayerNorm", "inkwash,雨", "StableDiffusion1.x")
    for words in ("water", "ink", "torn", "nai.ckpt", "isdamaged", *whole):
        assert words in together, words
    red = [line for line in shown.splitlines() if "\x1b[31m" in line]
    assert any("damaged" in line or "torn" in line for line in red)


def test_names_cannot_rewrite_the_terminal(folder: Path, listed: Listed) -> None:
    (folder / "ink.pt").rename(folder / "in\x1b[2Jk.pt")
    assert "\x1b" not in listed()[1]
    assert "\x1b[2J" not in on_terminal(folder, 200)


def test_empty_missing_and_other_folders(
    tmp_path: Path, folder: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    assert listed("--hypernetworks", "empty") == (0, "", "no hypernetworks in empty\n")
    assert listed("--hypernetworks", "empty", "--json")[1] == "[]\n"
    status, shown, told = listed("--hypernetworks", "nowhere")
    assert (status, shown) == (2, "")
    assert told.startswith("hyperbrush: no hypernetwork folder at nowhere")


def test_a_bad_side_file_is_a_note(folder: Path, listed: Listed) -> None:
    (folder / "ink.json").write_text("{")
    status, shown, notes = listed()
    assert status == 0
    assert "1,2,1 relu" in shown
    assert "ink.json is no JSON" in notes


def test_new_files_are_seen(folder: Path, listed: Listed) -> None:
    before = listed()[1]
    AttentionHypernetwork([4], name="new").save(folder / "new.pt")
    after = listed()[1]
    assert "new" not in before
    assert "new" in after

"""The first minute at the command line: a greeting, help by purpose, completion, and what to do next."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from forked import hyperbrush
from PIL import Image

PROGRAM = [sys.executable, "-m", "hyperbrush"]


def on_a_terminal(*words: object, cwd: Path, **environment: str) -> str:
    """What a command shows where a person sits."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.wait()
    return shown.decode()


def test_greeting(tmp_path: Path) -> None:
    done = hyperbrush(cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "hyperbrush demo" in done.stdout
    assert "hyperbrush serve" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("group", ["hyper", "ldm"])
def test_a_group_alone_shows_its_help_and_no_empty_error(tmp_path: Path, group: str) -> None:
    done = hyperbrush(group, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    assert done.stderr == ""


def test_help_is_by_purpose(tmp_path: Path) -> None:
    shown = hyperbrush("--help", cwd=tmp_path).stdout
    places = [
        shown.index(f"─ {title} ─") for title in ("Start here", "Draw", "Train", "Files", "Maintenance")
    ]
    assert places == sorted(places)
    assert "─ Commands ─" not in shown, "a command without a purpose"


def test_what_to_try_next_is_for_a_terminal_alone(tmp_path: Path) -> None:
    (tmp_path / "models/hypernetworks").mkdir(parents=True)
    assert "try: hyperbrush demo" in on_a_terminal("list", cwd=tmp_path)
    assert "try:" not in hyperbrush("list", cwd=tmp_path).stderr


def test_a_plan_ends_with_the_command_that_carries_it_out(tmp_path: Path) -> None:
    (tmp_path / "red cat").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"red cat/{number}.png")
    words = ["train", "--data", "red cat", "--name", "mine", "--steps", 4]
    shown = on_a_terminal(*words, "--dry-run", cwd=tmp_path, COLUMNS="200")
    assert "try: hyperbrush train --data 'red cat' --name mine --steps 4\x1b" in shown
    assert "try:" not in hyperbrush(*words, "--dry-run", cwd=tmp_path).stderr


def test_names_of_the_library_and_files_are_completed(tmp_path: Path) -> None:
    library = tmp_path / "models/hypernetworks"
    library.mkdir(parents=True)
    for name in ("water.pt", "wave.safetensors", "ink.pt", "water.preview.png"):
        (library / name).touch()
    (tmp_path / "wall.pt").touch()
    (tmp_path / "words.txt").touch()

    def completed(*words: str, **environment: str) -> list[str]:
        asked = {
            "_HYPERBRUSH_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["hyperbrush", *words]),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            [Path(sys.executable).with_name("hyperbrush")],
            cwd=tmp_path,
            env=os.environ | asked | environment,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    assert completed("inspect", "wa") == ["wall.pt", "water", "wave"]
    assert completed("convert", "i") == ["ink"]
    assert completed("convert", "ink", "--to", "lora-") == ["lora-diffusers", "lora-peft", "lora-kohya"]
    assert completed("inspect", "models/hypernetworks/w") == [
        f"models/hypernetworks/{name}" for name in ("water.pt", "wave.safetensors")
    ]


def test_pages_open_where_a_person_sits_before_a_screen(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    browser.chmod(0o755)
    show = [
        sys.executable,
        "-c",
        "from pathlib import Path; from hyperbrush.cli.console import show_page; show_page(Path('a.html'))",
    ]

    def opened(screen: dict[str, str], terminal: bool) -> bool:
        (tmp_path / "opened").unlink(missing_ok=True)
        kept = {
            key: value for key, value in os.environ.items() if key not in ("CI", "DISPLAY", "WAYLAND_DISPLAY")
        }
        ours, theirs = pty.openpty()
        out = theirs if terminal else subprocess.DEVNULL
        subprocess.run(
            show,
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=kept | screen | {"BROWSER": str(browser)},
            check=True,
        )
        os.close(theirs)
        os.close(ours)
        if not (tmp_path / "opened").exists():
            return False
        assert (tmp_path / "opened").read_text().strip() == (tmp_path / "a.html").as_uri()
        return True

    assert opened({"DISPLAY": ":0"}, terminal=True)
    assert not opened({}, terminal=True)
    assert not opened({"DISPLAY": ":0"}, terminal=False)
    assert not opened({"DISPLAY": ":0", "CI": "true"}, terminal=True)


def test_names_show_as_they_are_while_one_waits(tmp_path: Path) -> None:
    show = "from hyperbrush.cli import console\nwith console.waiting('looking') as tell:\n    tell('[/b] water:fire:.pt')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", show], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "[/b] water:fire:.pt" in shown

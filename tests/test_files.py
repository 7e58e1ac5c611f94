"""Files are whole or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbrush import files
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import (
    atomic_folder,
    atomic_path,
    check_place,
    clear_parts,
    sha256,
    write_json,
    write_text,
)


def test_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    write_json(path, {"ü": 1})
    assert '"ü": 1' in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o077 == 0o666 & ~_umask() & 0o077
    assert sha256(path) == sha256(path)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_the_content_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, other: (calls.append("rename"), real(self, other))[1])
    write_text(tmp_path / "a", "x")
    assert calls == ["fsync", "rename", "fsync"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device. Nothing was changed"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_name_offers_the_closest() -> None:
    text = str(unknown_name("sampler", "eular", ["Euler", "Euler a", "DDIM"]))
    assert "did you mean 'Euler' or 'Euler a'" in text
    assert str(unknown_name("x", "zzz", [])) == "unknown x 'zzz'. Known: none"


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> None:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "part").mkdir()
            (temporary / "part/a.txt").write_text(text)

    write("one")
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~_umask()
    write("two")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).name == "model" and not self.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write .*model: No space left on device"):
        write("three")
    assert (tmp_path / "model/part/a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(UserError, match=r"cannot write .*: I/O error: No space"), atomic_path(tmp_path / "a"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match="cannot write"), atomic_folder(tmp_path / "b"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_can_be_cleared(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "whole")
    (tmp_path / ".hidden").write_text("someone's")
    with atomic_path(tmp_path / "a.txt") as file, atomic_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("half")
        file.write_text("half")
        file.with_name(file.name.replace("part-", "part-0")).write_text("half")
        folder.with_name(folder.name + "0").mkdir()
    assert len(list(tmp_path.glob(".*.part-*"))) == 2
    clear_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "a.txt", "model"]
    clear_parts(tmp_path / "nowhere")


def test_the_first_write_clears_what_dead_processes_left(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", LEAVES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert dead.returncode == 9, dead.stderr
    assert len(list(tmp_path.glob(".*.part-*"))) == 2
    old = tmp_path / ".c.part-elsewhere-1-x.txt"
    old.write_text("forgotten")
    os.utime(old, (1, 1))
    (tmp_path / ".d.part-elsewhere-1-x.txt").write_text("being written on another machine")
    with atomic_path(tmp_path / "mine.txt") as file:
        file.write_text("mine")
        files._visited.clear()
        write_text(tmp_path / "e.txt", "e")  # another thread's first write
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".d.part-elsewhere-1-x.txt", "e.txt", "mine.txt", "model"]
    assert (tmp_path / "model/weights").read_text() == "whole", "killed between two renames"


LEAVES = """
import os, sys
from pathlib import Path
from hyperbrush import files
place = Path(sys.argv[1])
def write(text):
    with files.atomic_folder(place / "model") as folder:
        (folder / "weights").write_text(text)
write("whole")
real = Path.rename
def rename(self, target):
    if Path(target).name == "model":
        os._exit(9)
    return real(self, target)
Path.rename = rename
write("newer")
"""


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 240 + ".txt", "가" * 80 + ".txt"):
        write_text(tmp_path / name, "long")
        assert (tmp_path / name).read_text() == "long"


@pytest.mark.parametrize("place", ["new/deep", "."])
def test_a_place_is_looked_at_and_nothing_made(tmp_path: Path, place: str) -> None:
    check_place(tmp_path / place, "--out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/x: .*Not a directory; expected .*\(--out\)"):
        check_place(tmp_path / "file/x", "--out")

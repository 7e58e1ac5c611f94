"""The library: names, their forms, and what they can never reach."""

import unicodedata
from pathlib import Path

import pytest

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, HypernetworkLibrary


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

"""Networks' files moved together: all or none, and nothing overwritten."""

from pathlib import Path

import pytest

from hyperbrush import files
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, HypernetworkLibrary
from hyperbrush.hypernetworks.library.rename import (
    check_name,
    discard,
    files_of,
    rename,
    restore,
    safe_name,
    take_in,
)
from hyperbrush.trash import Trash

SIDES = (
    "water.json",
    "water.txt",
    "water.preview.png",
    "water.jpg",
    "water.pt.optim",
    "water.civitai.info",
    "water.metadata.json",
    "water.cm-info.json",
)


@pytest.fixture
def library(tmp_path: Path) -> HypernetworkLibrary:
    root = tmp_path / "hypernetworks"
    hn = AttentionHypernetwork([4], name="x")
    for place in ("sub/water.pt", "sub/water-colour.pt", "fire.pt"):
        hn.save(root / place)
    hn.save(root / "sub" / "water.safetensors")
    for name in SIDES:
        (root / "sub" / name).write_text(name)
    (root / "sub" / "water.md").write_text("not of the network")
    return HypernetworkLibrary(root)


def test_files_of_a_network_are_its_own_only(library: HypernetworkLibrary) -> None:
    path = library.find("water")
    assert path.suffix == ".safetensors"
    found = files_of(path)
    assert found[0] == path
    assert {file.name for file in found} == {"water.pt", "water.safetensors", *SIDES}


def test_rename_takes_all_along(library: HypernetworkLibrary) -> None:
    assert rename(library, "water", " sea ") == library.folder / "sub" / "sea.safetensors"
    left = {path.name for path in (library.folder / "sub").iterdir()}
    assert left == {
        "water.md",
        "water-colour.pt",
        "sea.pt",
        "sea.safetensors",
        *(name.replace("water", "sea") for name in SIDES),
    }
    assert library.names() == ["fire", "sea", "water-colour"]
    assert rename(library, "sea", "sea") == library.folder / "sub" / "sea.safetensors"


@pytest.mark.parametrize("new", ["fire", "FIRE", "water-colour", "orphan"])
def test_rename_overwrites_nothing(library: HypernetworkLibrary, new: str) -> None:
    (library.folder / "sub" / "Orphan.json").write_text("{}")
    before = {path: path.read_bytes() for path in library.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already"):
        rename(library, "water", new)
    assert {path: path.read_bytes() for path in library.folder.rglob("*") if path.is_file()} == before


def test_a_move_that_fails_half_way_is_taken_back(
    library: HypernetworkLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in (library.folder / "sub").iterdir()}
    one = files._move_one
    moved: list[Path] = []

    def failing(source: Path, target: Path) -> None:
        if len(moved) == 3:
            monkeypatch.setattr(files, "_move_one", one)
            raise OSError(28, "No space left on device", str(target))
        moved.append(source)
        one(source, target)

    monkeypatch.setattr(files, "_move_one", failing)
    with pytest.raises(UserError, match="No space left"):
        rename(library, "water", "sea")
    assert len(moved) == 3
    assert {path.name for path in (library.folder / "sub").iterdir()} == before
    moved.clear()
    monkeypatch.setattr(files, "_move_one", failing)
    bin = Trash(library.folder.parent / "bin")
    with pytest.raises(UserError, match="No space left"):
        discard(library, "water", bin)
    assert bin.items("hypernetwork") == []
    assert {path.name for path in (library.folder / "sub").iterdir()} == before


def test_other_file_systems_are_copied_to(
    library: HypernetworkLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    rename_of = Path.rename

    def elsewhere(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))
        return rename_of(self, target)

    monkeypatch.setattr(Path, "rename", elsewhere)
    bin, content = Trash(library.folder.parent / "bin"), library.find("water").read_bytes()
    item = discard(library, "water", bin)
    assert item.size > 0
    assert "water" not in library.names()
    assert restore(library, bin, item.id).read_bytes() == content
    assert {path.name for path in (library.folder / "sub").iterdir()} >= set(SIDES)


def test_the_bin_restores_to_its_place_or_beside_it(library: HypernetworkLibrary) -> None:
    bin = Trash(library.folder.parent / "bin")
    first = discard(library, "water", bin)
    assert (first.name, first.place) == ("water", "sub")
    AttentionHypernetwork([4], name="new").save(library.folder / "sub" / "Water.pt")
    second = discard(library, "Water", bin)
    assert [item.id for item in bin.items("hypernetwork")] == [second.id, first.id]
    assert restore(library, bin, second.id).name == "Water.pt"
    back = restore(library, bin, first.id)
    assert back.name == "water-2.safetensors"
    assert (library.folder / "sub" / "water-2.json").read_text() == "water.json"
    assert bin.items("hypernetwork") == []
    with pytest.raises(UserError, match="no hypernetwork"):
        restore(library, bin, first.id)


def test_a_bin_that_was_tampered_with_restores_inside(library: HypernetworkLibrary) -> None:
    bin = Trash(library.folder.parent / "bin")
    item = discard(library, "fire", bin)
    about = bin.folder / item.id / "about.json"
    about.write_text(about.read_text().replace('"place": ""', '"place": "../../.."'))
    assert restore(library, bin, item.id) == library.folder.resolve() / "fire.pt"
    item = discard(library, "fire", bin)
    assert bin.erase("hypernetwork", item.id).name == "fire"
    assert list(bin.folder.iterdir()) == []


def test_taken_in_under_a_free_name(library: HypernetworkLibrary, tmp_path: Path) -> None:
    for expected in ("fire-2.bin", "fire-3.bin"):
        (tmp_path / "x.bin").write_bytes(b"x")
        assert take_in(library, tmp_path / "x.bin", "fire").name == expected
        assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize(
    "name", ["", "  ", "a/b", "a\\b", "a:b", "<a>", ".a", "a.", "a\nb", "x" * 121, "漢" * 70]
)
def test_impossible_names(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        check_name(name)
    assert check_name(safe_name(name))


@pytest.mark.parametrize("name", ["water", "Café 2", "한국어", "a.b (v1.0)"])
def test_possible_names_stay(name: str) -> None:
    assert check_name(name) == safe_name(name) == name

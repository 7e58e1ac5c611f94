"""The bin: what older versions put there is found and restored."""

from pathlib import Path

import pytest

from hyperbrush import trash as trash_module
from hyperbrush.errors import NotThere
from hyperbrush.files import read_json
from hyperbrush.trash import Trash


@pytest.fixture
def trash(tmp_path: Path) -> Trash:
    return Trash(tmp_path / "bin")


def written(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_kind_lies_apart(trash: Trash, tmp_path: Path) -> None:
    items = {
        kind: trash.put(kind, "a", [written(tmp_path / kind / "a", kind)], place="here")
        for kind in ("hypernetwork", "run", "picture")
    }
    for kind, item in items.items():
        assert trash.items(kind) == [item]
        assert item.size == len(kind)
        with pytest.raises(NotThere, match=f"no {kind} 'b' in the bin"):
            trash.get(kind, "b")
        trash.restore(item, {item.files[0]: tmp_path / kind / "a"})
        assert (tmp_path / kind / "a").read_text() == kind
        assert trash.items(kind) == []


def test_one_thing_is_found_without_reading_the_others(
    trash: Trash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [trash.put("run", name, [written(tmp_path / name)]) for name in "abc"]
    read: list[Path] = []
    monkeypatch.setattr(trash_module, "read_json", lambda path: [read.append(path), read_json(path)][1])
    assert trash.get("run", items[1].id) == items[1]
    assert read == [items[1].folder / "about.json"]
    for outside in ("..", f"../runs/{items[0].id}", ""):
        with pytest.raises(NotThere):
            trash.get("run", outside)


def test_a_folder_is_one_thing(trash: Trash, tmp_path: Path) -> None:
    run = written(tmp_path / "runs" / "a" / "config.yaml").parent
    written(run / "saved" / "step-1", "four")
    item = trash.put("run", "a", [run])
    assert (item.size, run.exists(), item.files[0].name) == (5, False, "a")
    run.mkdir()
    with pytest.raises(FileExistsError):
        trash.restore(item, {item.files[0]: run})
    assert trash.items("run") == [item]
    assert trash.erase("run", item.id) == item
    assert list((trash.folder / "runs").iterdir()) == []

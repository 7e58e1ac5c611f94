"""Pictures of one name from several folders keep their own captions and masks."""

import io
from pathlib import Path

import pytest
from PIL import Image

from hyperbrush.app import picture_bin
from hyperbrush.app.datasets import Added, Datasets
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError


def png(colour: object, kind: str = "PNG", mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Image.new(mode, (16, 16), colour).save(made, kind)  # type: ignore[arg-type]
    return made.getvalue()


RED, BLUE, WHITE, BLACK = png("red"), png("blue"), png(255, mode="L"), png(0, mode="L")


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    found = Datasets(Workspace(tmp_path))
    found.create("set")
    return found


def put(datasets: Datasets, *files: tuple[str, bytes]) -> Added:
    return datasets.add("set", [(name, io.BytesIO(content)) for name, content in files])


def shown(datasets: Datasets) -> dict[str, tuple[str, bytes]]:
    folder = datasets.folder("set")
    return {p.name: (p.caption, (folder / p.name).read_bytes()) for p in datasets.pictures("set")[1]}


def test_folders_are_kept(datasets: Datasets) -> None:
    files = [
        ("10_cat/1.txt", b"a red square"), ("10_cat/1.png", RED), ("10_cat/1.mask.png", WHITE),
        ("10_dog\\1.png", BLUE), ("10_dog/1.mask.png", BLACK), ("10_dog/1.txt", b"a blue square"),
    ]  # fmt: skip
    done = put(datasets, *files)
    assert not done.refused
    assert done.captions == 2
    assert shown(datasets) == {
        "10_cat/1.png": ("a red square", RED),
        "10_dog/1.png": ("a blue square", BLUE),
    }
    folder = datasets.folder("set")
    assert (folder / "10_cat/1.mask.png").read_bytes() == WHITE
    assert (folder / "10_dog/1.mask.png").read_bytes() == BLACK
    assert put(datasets, *files).present == ["10_cat/1.png", "10_dog/1.png"]


def test_what_may_belong_to_two_pictures_is_refused_by_name(datasets: Datasets) -> None:
    files = [("1.png", RED), ("1.png", BLUE), ("1.txt", b"blue"), ("1.txt", b"red"), ("1.mask.png", WHITE)]
    done = put(datasets, *files)
    assert [refused["name"] for refused in done.refused] == ["1.mask.png", "1.txt", "1.txt"]
    assert all("may belong to 1.png, 1-2.png" in refused["reason"] for refused in done.refused)
    assert shown(datasets) == {"1-2.png": ("1 2", BLUE), "1.png": ("1", RED)}


def test_file_by_file_a_caption_is_never_overwritten_by_another_pictures(datasets: Datasets) -> None:
    put(datasets, ("1.png", RED))
    put(datasets, ("1.txt", b"a red square"))
    put(datasets, ("1.png", BLUE))
    with pytest.raises(UserError, match="may belong to"):
        put(datasets, ("1.txt", b"a blue square"))
    assert shown(datasets)["1.png"] == ("a red square", RED)
    put(datasets, ("1.png", RED), ("1.txt", b"still red"))  # with its picture, it is sure
    assert shown(datasets)["1.png"] == ("still red", RED)


def test_one_text_for_one_name_in_two_formats(datasets: Datasets) -> None:
    put(datasets, ("1.png", RED), ("1.webp", png("blue", "WEBP")), ("1.txt", b"a square"))
    assert [caption for caption, _ in shown(datasets).values()] == ["a square", "a square"]


def test_a_mask_follows_its_renamed_picture_and_another_is_refused(datasets: Datasets) -> None:
    put(datasets, ("1.png", RED))
    done = put(datasets, ("1.mask.png", BLACK), ("1.png", BLUE))
    assert done.added == ["1-2.png", "1-2.mask.png"]
    assert sorted(shown(datasets)) == ["1-2.png", "1.png"]
    assert put(datasets, ("1.png", RED), ("1.mask.png", WHITE)).added == ["1.mask.png"]
    again = put(datasets, ("1.png", RED), ("1.mask.png", BLACK))
    assert "has another mask already" in again.refused[0]["reason"]


@pytest.mark.parametrize("name", ["../../a.png", "/etc/a.png", "x/../a.png", "C:\\x\\a.png"])
def test_no_name_leads_out(datasets: Datasets, name: str) -> None:
    assert put(datasets, (name, RED)).added == ["a.png"]


def test_hidden_folders_are_named_plainly(datasets: Datasets) -> None:
    assert put(datasets, (".git/a.png", RED)).added == ["git/a.png"]


def test_a_mask_goes_to_the_bin_and_comes_back_with_its_picture(datasets: Datasets) -> None:
    put(datasets, ("a/1.png", RED), ("a/1.txt", b"red"), ("a/1.mask.png", WHITE), ("b/1.png", BLUE))
    item = picture_bin.put(datasets, "set", 0)
    assert list(shown(datasets)) == ["b/1.png"]
    picture_bin.restore(datasets, item.id)
    assert shown(datasets) == {"a/1.png": ("red", RED), "b/1.png": ("1", BLUE)}
    assert (datasets.folder("set") / "a/1.mask.png").read_bytes() == WHITE

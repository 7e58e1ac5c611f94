"""Pictures of one name from several folders keep their own captions and masks."""

import io
from pathlib import Path

import pytest
from PIL import Image

from hyperbrush.app.train.adding import Added
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.uploads import ACCEPT, FORMATS
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.ldm.data import pictures, scan


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
    item = datasets.remove("set", 0)
    assert list(shown(datasets)) == ["b/1.png"]
    datasets.restore(item.id)
    assert shown(datasets) == {"a/1.png": ("red", RED), "b/1.png": ("1", BLUE)}
    assert (datasets.folder("set") / "a/1.mask.png").read_bytes() == WHITE


def encoded(kind: str) -> bytes:
    made, picture = io.BytesIO(), Image.new("RGB", (16, 16), "red")
    if kind == "MPO":
        picture.save(made, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")])
    elif kind in ("HEIF", "JXL"):
        pytest.importorskip("pillow_heif").register_heif_opener()
        pytest.importorskip("pillow_jxl")
        picture.save(made, kind)
    else:
        picture.save(made, kind)
    return made.getvalue()


@pytest.mark.parametrize("kind", [k for k in FORMATS if k not in ("PNG", "JPEG")])
def test_what_the_library_reads_is_taken(kind: str, datasets: Datasets) -> None:
    content = encoded(kind)
    done = put(datasets, ("a b.picture", content), ("a b.txt", b"red"))  # its name says nothing, its bytes do
    assert done.added == [f"a b{pictures.FORMATS[kind]}"]
    assert shown(datasets) == {done.added[0]: ("red", content)}
    assert datasets.thumbnail("set", 0, 128).is_file()


def test_its_formats_are_the_librarys() -> None:
    assert set(FORMATS) == set(pictures.FORMATS)
    wanted = {suffix for suffix in ACCEPT.split(",") if suffix.startswith(".")}
    browsers_know = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    assert wanted | browsers_know == {*pictures.SUFFIXES, *pictures.EXTRA}


def test_a_reason_is_for_a_person(datasets: Datasets) -> None:
    with pytest.raises(
        UserError, match=r"a.png: a.png cannot be read as a picture \(not a picture Pillow"
    ) as said:
        put(datasets, ("a.png", b"rubbish"))
    assert "BytesIO" not in str(said.value)


def test_captions_of_other_programs_come_along(datasets: Datasets) -> None:
    rows = '{"file_name": "one.png", "text": ["first", "second"]}\n{"file_name": "gone.png", "text": "x"}\n'
    done = put(
        datasets,
        ("10_cat/1.png", RED), ("10_cat/1.caption", b"a cat,\n sitting"), ("10_cat/2.png", BLUE),
        ("10_cat/metadata.csv", b"file_name,text\n2.png,from csv\n"),
        ("one.png", WHITE), ("metadata.jsonl", rows.encode()),
    )  # fmt: skip
    assert [r["reason"] for r in done.refused] == ["line 2: there is no picture 'gone.png'"]
    folder = datasets.folder("set")
    found = {p.name: (p.caption, p.source, p.several) for p in datasets.pictures("set")[1]}
    assert found == {
        "10_cat/1.png": ("a cat, sitting", "text", ("a cat,", "sitting")),
        "10_cat/2.png": ("from csv", "metadata", ()),
        "one.png": ("first", "metadata", ("first", "second")),
    }
    trained = {
        i.path.relative_to(folder).as_posix(): i.written for i in scan(folder, caption_lines=True).items
    }
    assert trained == {
        "10_cat/1.png": ("a cat,", "sitting"),
        "10_cat/2.png": ("from csv",),
        "one.png": ("first", "second"),
    }
    datasets.write_caption("set", 1, "changed")
    assert {p.name: p.caption for p in datasets.pictures("set")[1]}["10_cat/2.png"] == "changed"


def test_folders_that_were_put_there_are_read_and_written_as_they_train(datasets: Datasets) -> None:
    folder = datasets.folder("set")
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.png").write_bytes(RED)
    (folder / "a.caption").write_text("from caption")
    (folder / "metadata.csv").write_text("file_name,text\nb.png,from csv\n")
    (folder / "c.json").write_text('{"caption": "from json"}')

    def both() -> dict[str, str]:
        app = {p.name: p.caption for p in datasets.pictures("set")[1]}
        assert app == {i.path.name: i.caption for i in scan(folder).items}
        return app

    assert both() == {"a.png": "from caption", "b.png": "from csv", "c.png": "from json", "d.png": "d"}
    for index, name in enumerate("abcd"):
        datasets.write_caption("set", index, f"new {name}")
    assert both() == {f"{name}.png": f"new {name}" for name in "abcd"}
    assert (folder / "a.caption").read_text() == "new a\n"
    gone = datasets.remove("set", 2)  # with its JSON
    assert not list(folder.glob("c.*"))
    datasets.restore(gone.id)
    assert both()["c.png"] == "new c"

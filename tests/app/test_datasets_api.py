"""Datasets over HTTP: pictures, captions, one change to all of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from train_helpers import png, put, shown

from hyperbrush.app.train.caption_edits import CaptionEdit
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError


class TestDatasets:
    def test_pictures_go_in_with_their_captions_and_come_out_by_index(self, app: Any) -> None:
        assert app.call("/api/v1/datasets", {"name": "api-in"}) == {"name": "api-in"}
        files = [("b.jpg", png("blue", kind="JPEG")), ("a.png", png()), ("b.txt", b"a blue square")]
        said = put(app, "api-in", files)
        assert (said["added"], said["captions"], said["refused"]) == (["b.jpg", "a.png"], 1, [])
        assert shown(app, "api-in") == {"a.png": "a", "b.jpg": "a blue square"}
        assert app.call("/api/v1/datasets/api-in/pictures/0") == png()
        small = Image.open(io.BytesIO(app.call("/api/v1/datasets/api-in/pictures/1?size=16")))
        assert small.format == "WEBP"
        assert small.size == (40, 40)  # never enlarged
        assert {"name": "api-in", "pictures": 2} in app.call("/api/v1/datasets")

    def test_the_same_again_is_not_doubled_and_another_of_that_name_is_kept_beside_it(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "api-twice"})
        put(app, "api-twice", [("cat.png", png())])
        said = put(app, "api-twice", [("cat.png", png()), ("cat.png", png("blue")), ("cat.txt", b"a cat")])
        assert said["present"] == ["cat.png"]
        assert said["added"] == ["cat-2.png"]
        assert said["refused"][0]["name"] == "cat.txt"  # nobody can tell whose it is
        assert "may belong to cat.png, cat-2.png" in said["refused"][0]["reason"]
        again = put(app, "api-twice", [("cat.png", png("blue")), ("cat.txt", b"a cat")])
        assert again["present"] == ["cat-2.png"]
        assert shown(app, "api-twice") == {"cat-2.png": "a cat", "cat.png": "cat"}

    def test_what_is_no_picture_is_named_and_the_rest_is_kept(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "api-bad"})
        files = [("ok.png", png()), ("virus.exe", b"MZ"), ("half.png", png()[:60]), ("lone.txt", b"?")]
        said = put(app, "api-bad", files)
        assert said["added"] == ["ok.png"]
        assert [r["name"] for r in said["refused"]] == ["virus.exe", "half.png", "lone.txt"]
        assert "cannot be read as a picture" in said["refused"][0]["reason"]
        only_bad = put(app, "api-bad", [("x.png", b"no")])
        assert only_bad["status"] == 400
        assert "x.png" in only_bad["detail"]
        assert list(shown(app, "api-bad")) == ["ok.png"]

    @pytest.mark.parametrize("name", ["../../up.png", "..\\up.png", "/etc/up.png"])
    def test_a_file_name_leads_nowhere_else(self, app: Any, colours: str, name: str) -> None:
        app.call("/api/v1/datasets", {"name": "api-up"})
        put(app, "api-up", [(name, png("pink"))])
        assert list(shown(app, "api-up")) == ["up.png"]
        assert not list(app.root.glob("up.png"))

    @pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a:b", "<b>", "x" * 101, " ", "a\x00b"])
    def test_names_that_are_no_folders_are_refused(self, app: Any, name: str) -> None:
        before = app.call("/api/v1/datasets")
        assert app.call("/api/v1/datasets", {"name": name})["status"] in (400, 422)
        assert app.call("/api/v1/datasets") == before

    def test_what_is_not_there(self, app: Any, colours: str) -> None:
        for path in ("nope", f"{colours}/pictures/4", f"{colours}/pictures/-1", "..%2F..%2Fetc/pictures/0"):
            assert app.call(f"/api/v1/datasets/{path}")["status"] == 404

    def test_captions_are_written_beside_the_picture(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "api-captions"})
        put(app, "api-captions", [("a.png", png())])
        said = app.call(
            "/api/v1/datasets/api-captions/pictures/0", {"caption": " 빨간\n네모 "}, method="PATCH"
        )
        assert (said["caption"], said["source"]) == ("빨간 네모", "text")
        assert (app.root / "datasets/api-captions/a.txt").read_text(encoding="utf-8") == "빨간 네모\n"
        wrong = {"caption": "x", "name": "other.png"}
        refused = app.call("/api/v1/datasets/api-captions/pictures/0", wrong, method="PATCH")
        assert refused["status"] == 400
        assert "a.png" in refused["detail"]

    def test_a_caption_of_metadata_stays_there(self, tmp_path: Path) -> None:
        datasets = Datasets(Workspace(tmp_path))
        folder = tmp_path / "datasets" / "rows"
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(png())
        row = '{"file_name": "b.png", "text": "bee", "seen": 1}'
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "ay"}\n' + row + "\n")
        datasets.write_caption("rows", 0, "new")
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        assert json.loads(lines[0]) == {"file_name": "a.png", "caption": "new"}
        assert lines[1] == row
        assert not (folder / "a.txt").exists()
        several = {"file_name": "a.png", "text": ["first", "second"]}
        (folder / "metadata.jsonl").write_text(f"{json.dumps(several)}\n{row}\n")
        datasets.write_caption("rows", 0, "new")
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["text"] == ["new", "second"]
        binned = datasets.remove("rows", 1).id
        assert (folder / "metadata.jsonl").read_text().splitlines() == lines[:1]
        datasets.restore(binned)
        assert [p.caption for p in datasets.pictures("rows")[1]] == ["new", "bee"]

    def test_removed_pictures_lie_in_the_bin(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "api-bin"})
        put(app, "api-bin", [("a.png", png()), ("a.txt", b"one"), ("b.png", png("blue"))])
        binned = app.call("/api/v1/datasets/api-bin/pictures/0?expected=a.png", method="DELETE")["bin"]
        assert shown(app, "api-bin") == {"b.png": "b"}
        kept = {path.name for path in (app.root / ".hyperbrush/bin/pictures" / binned / "files").iterdir()}
        assert kept == {"a.png", "a.txt"}
        refused = app.call("/api/v1/datasets/api-bin/pictures/0?expected=a.png", method="DELETE")
        assert refused["status"] == 400
        (item,) = (one for one in app.call("/api/v1/bin/pictures") if one["id"] == binned)
        assert (item["dataset"], item["picture"]) == ("api-bin", "a.png")
        put(app, "api-bin", [("a.png", png("green"))])  # its place is taken
        taken = app.call(f"/api/v1/bin/pictures/{binned}/restore", {})
        assert (taken["status"], "there is another 'a.png' now" in taken["detail"]) == (400, True)
        app.call("/api/v1/datasets/api-bin/pictures/0?expected=a.png", method="DELETE")
        assert app.call(f"/api/v1/bin/pictures/{binned}/restore", {})["picture"] == "a.png"
        assert shown(app, "api-bin") == {"a.png": "one", "b.png": "b"}
        assert app.call(f"/api/v1/bin/pictures/{binned}/restore", {})["status"] == 404
        assert "api-bin" in [one["dataset"] for one in app.call("/api/v1/bin/pictures")], "the green one"

    def test_the_example_is_there_when_it_is_asked_for(self, app: Any) -> None:
        name = app.call("/api/v1/datasets/example", {})["name"]
        assert app.call(f"/api/v1/datasets/{name}")["count"] == 48
        assert app.call("/api/v1/datasets/example", {})["name"] == name, "and stays as it is"

    def test_html_in_names_and_captions_stays_text(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "api-html"})
        put(app, "api-html", [("<img src=x onerror=alert(1)>.png", png()), ("b.txt", b"")])
        (name,) = shown(app, "api-html")
        assert "<" not in name


class TestAllCaptions:
    """One change to every caption of a dataset."""

    def made(self, tmp_path: Path) -> tuple[Datasets, Path]:
        datasets = Datasets(Workspace(tmp_path))
        folder = datasets.folder(datasets.create("all"))
        for name in ("a", "b", "c-d"):
            (folder / f"{name}.png").write_bytes(png())
        (folder / "a.txt").write_text("kitty, Blurry, red\nred kitty\n")
        (folder / "metadata.jsonl").write_text(
            '{"file_name": "b.png", "text": ["bee", "blurry"], "kept": 1}\n'
        )
        return datasets, folder

    def test_each_caption_is_changed_where_it_stands_and_comes_back(self, tmp_path: Path) -> None:
        datasets, folder = self.made(tmp_path)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        edit = CaptionEdit(find="kitty", replace="cat", drop=("blurry",), prefix="ink, ")
        planned = datasets.caption_changes("all", edit)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        changes, kept = datasets.edit_captions("all", edit)
        assert changes == planned
        assert (folder / "a.txt").read_text() == "ink, cat, red\nink, red cat\n"
        assert json.loads((folder / "metadata.jsonl").read_text()) == {
            "file_name": "b.png", "text": ["ink, bee", "ink,"], "kept": 1,
        }  # fmt: skip
        assert (folder / "c-d.txt").read_text() == "ink, c d\n"
        assert datasets.caption_changes("all", CaptionEdit(prefix="ink, ")) == []
        (folder / "a.txt").write_text("mine\n")
        with pytest.raises(UserError, match="a.txt was changed since"):
            datasets.restore_captions(kept)
        assert (folder / "c-d.txt").read_text() == "ink, c d\n"
        (folder / "a.txt").write_text("ink, cat, red\nink, red cat\n")
        datasets.restore_captions(kept)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize("edit", [{"prefix": "  ink, "}, {"suffix": ", flat "}, {"prefix": "ink "}])
    def test_twice_is_as_once(self, edit: dict[str, str]) -> None:
        once = CaptionEdit(**edit).apply("red cat")
        assert once != "red cat"
        assert CaptionEdit(**edit).apply(once) == once
        assert CaptionEdit(**edit).apply("") == "".join(edit.values()).strip()

    def test_thousands_at_once(self, tmp_path: Path) -> None:
        datasets = Datasets(Workspace(tmp_path))
        folder = datasets.folder(datasets.create("many"))
        rows = [json.dumps({"file_name": f"{i}.png", "text": f"thing {i}"}) for i in range(1000)]
        (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
        for i in range(2000):
            (folder / f"{i}.png").write_bytes(b"x")
        changes, _ = datasets.edit_captions("many", CaptionEdit(prefix="ink "))
        assert len(changes) == 2000
        assert (
            json.loads((folder / "metadata.jsonl").read_text().splitlines()[999])["text"] == "ink thing 999"
        )
        assert (folder / "1999.txt").read_text() == "ink 1999\n"

    def test_all_or_none(self, tmp_path: Path) -> None:
        datasets, folder = self.made(tmp_path)
        (folder / "c-d.txt").write_text("x" * 19_990)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError, match="more than 20000 characters"):
            datasets.edit_captions("all", CaptionEdit(suffix=", of the longer kind"))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_over_the_api(self, app: Any) -> None:
        app.call("/api/v1/datasets", {"name": "all-captions"})
        put(
            app,
            "all-captions",
            [("a.png", png()), ("b.png", png()), ("a.txt", b"red, cat"), ("b.txt", b"cat")],
        )
        assert app.call("/api/v1/datasets/all-captions/tags") == [
            {"tag": "cat", "pictures": 2},
            {"tag": "red", "pictures": 1},
        ]
        change = {"find": "red", "replace": "blue"}
        said = app.call("/api/v1/datasets/all-captions/captions", {**change, "dry_run": True})
        assert said == {
            "changed": 1,
            "captions": [{"name": "a.png", "before": ["red, cat"], "after": ["blue, cat"]}],
        }
        assert shown(app, "all-captions") == {"a.png": "red, cat", "b.png": "cat"}
        assert app.call("/api/v1/datasets/all-captions/captions", change) == said
        assert shown(app, "all-captions") == {"a.png": "blue, cat", "b.png": "cat"}
        refused = app.call("/api/v1/datasets/all-captions/captions", {"replace": "x"})
        assert "nothing to find" in refused["detail"]

"""Datasets, trainings, plans and the settings over the REST API; and the command line as a client of it."""

import io
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from PIL import Image
from running import until

from hyperbrush.app.messages import FOLDER as MESSAGES
from hyperbrush.app.model.service import known_words
from hyperbrush.app.train.caption_edits import CaptionEdit
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import KINDS, LENGTHS, Draft, with_presets
from hyperbrush.app.train.page_apart import apart
from hyperbrush.app.train.page_words import sentences
from hyperbrush.app.train.places import inside
from hyperbrush.app.train.schema import FILE, folder_settings, groups, settings
from hyperbrush.app.train.service import begin, cloned, problems, run_config
from hyperbrush.app.workspace import Workspace
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.files import write_json
from hyperbrush.generation.known_words import never_seen
from hyperbrush.training.attention.run import setting_names

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
TINY = {
    "max_steps": 2,
    "batch_size": 2,
    "validate_every": 1,
    "preview_every": 100,
    "validation_share": 0,
    "prompts": [],
}


def png(colour: str = "red", side: int = 40, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


def put(app: Any, dataset: str, files: list[tuple[str, bytes]]) -> Any:
    """POST files as a browser does."""
    edge = "edge0123456789"
    body = b""
    for name, content in files:
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
    body += f"--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(f"{app.url}/api/v1/datasets/{dataset}/pictures", body, kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return {"status": error.code, "detail": error.read().decode()}


def shown(app: Any, dataset: str) -> dict[str, str]:
    """Captions by picture."""
    return {p["name"]: p["caption"] for p in app.call(f"/api/v1/datasets/{dataset}")["pictures"]}


@pytest.fixture(scope="module")
def colours(app: Any) -> str:
    """A dataset of four pictures for the tests that leave it as it is."""
    app.call("/api/v1/datasets", {"name": "api-colours"})
    put(app, "api-colours", [(f"{c} square.png", png(c)) for c in ("red", "green", "blue", "gold")])
    return "api-colours"


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


class TestSettings:
    def test_every_setting_has_one_place(self, app: Any) -> None:
        said = app.call("/api/v1/settings-schema")
        placed = [s["key"] for group in said["groups"] for s in group["settings"]]
        assert len(placed) == len(set(placed))
        assert set(placed) | {"hypernetworks"} == set(setting_names())
        assert "other" not in [group["name"] for group in said["groups"]], "give the new setting a group"
        assert all(s["help"] for group in said["groups"] for s in group["settings"])
        assert said["presets"]["quick"]["max_steps"] == 150

    def test_kinds_and_limits_are_the_models(self) -> None:
        known = settings()
        assert known["training.loss"].choices == ("mse", "l1", "huber")
        assert (known["training.batch_size"].kind, known["training.batch_size"].least) == ("integer", 1)
        assert known["training.learning_rate"].open
        assert known["network.layer_structure"].kind == "yaml"
        assert known["training.prompts"].kind == "lines"
        assert groups()["first"][0] == "name"

    def test_the_webuis_names_are_those_of_the_docs(self) -> None:
        said = yaml.safe_load(FILE.read_text(encoding="utf-8"))
        rows = re.findall(r"^\| (.+?) \| (.+) \|$", DOCS.read_text(encoding="utf-8"), re.M)
        for key, name in [*said["webui"].items(), *said["monkeypatch"].items()]:
            assert key in settings()
            short = key.rpartition(".")[2]
            assert any(name in left.replace("`", "") and f"{short}" in right for left, right in rows), (
                key,
                name,
            )
        named = set(re.findall(r"`((?:training|network)\.[a-z_]+)", "\n".join(right for _, right in rows)))
        assert named <= set(said["webui"]) | set(said["monkeypatch"])


class TestChecks:
    @pytest.fixture(scope="class")
    def workspace(self, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
        made = Workspace(tmp_path_factory.mktemp("checks"))
        Datasets(made).example()
        return made

    def test_all_errors_are_told_together(self, workspace: Workspace) -> None:
        training = {"batch_size": 0, "loss": "x", "learing_rate": 1}
        said = problems(workspace, {"name": "a", "data": "fluent-high-contrast", "training": training})
        assert len(said) == 3
        assert "did you mean 'learning_rate'" in said[2]

    def test_names_are_tried_before_the_start(self, workspace: Workspace) -> None:
        training = {"optimizer": "adamm", "templates": "stile", "preview_sampler": "Eulr", "schedule": "cos"}
        network = {"layer_structure": [1, 2], "activation": "relu"}
        values = {"name": "a", "data": "nope", "training": training, "network": network}
        text = "\n".join(problems(workspace, values))
        for part in ("adamm", "stile", "Eulr", "layer_structure", "nope"):
            assert part in text

    def test_a_folder_without_pictures_is_told_before_it_is_queued(self, workspace: Workspace) -> None:
        empty = workspace.folder("datasets") / "empty"
        (empty / "deep").mkdir(parents=True)
        (empty / "deep/notes.txt").write_text("none yet")
        values = {"name": "a", "data": "empty"}
        assert [said.split(":")[0] for said in problems(workspace, values)] == [
            f"there are no pictures in {empty}"
        ]
        (empty / "deep/a.PNG").write_bytes(png())
        assert problems(workspace, values) == []

    def test_near_schedules_are_told(self, workspace: Workspace) -> None:
        for schedule in ("5e-5:100;5e-6:200", "0,00005:100", "5e-5:200,5e-6:100"):
            values = {"name": "a", "data": "fluent-high-contrast", "training": {"schedule": schedule}}
            said = problems(workspace, values)
            assert len(said) == 1
            assert "training.schedule" in said[0]
        for schedule in ("5e-5：100，5e-6：200", "5e-5:100, 5e-6"):
            values = {"name": "a", "data": "fluent-high-contrast", "training": {"schedule": schedule}}
            assert problems(workspace, values) == []

    @pytest.mark.parametrize("path", ["/etc", "../x", "datasets/../../x", ".hyperbrush", "a\x00b"])
    def test_paths_out_of_the_workspace_are_refused(self, workspace: Workspace, path: str) -> None:
        with pytest.raises(UserError, match=r"outside of the workspace|is no path"):
            inside(workspace, path)
        with pytest.raises(UserError, match=r"outside of the workspace|is no path"):
            run_config(workspace, {"name": "a", "data": path})
        for key in ("templates", "mask_folder"):
            if path != ".hyperbrush":
                with pytest.raises(UserError):
                    run_config(
                        workspace, {"name": "a", "data": "fluent-high-contrast", "training": {key: path}}
                    )

    def test_a_link_out_of_the_workspace_is_refused(self, workspace: Workspace, tmp_path: Path) -> None:
        (workspace.root / "out").symlink_to(tmp_path)
        with pytest.raises(UserError, match="outside"):
            inside(workspace, "out")

    @pytest.mark.parametrize("name", ["..", ".", "a/b", "", "x" * 200, ".run"])
    def test_names_that_are_no_folders(self, workspace: Workspace, name: str) -> None:
        assert problems(workspace, {"name": name, "data": "fluent-high-contrast"})

    @pytest.mark.parametrize(
        "values",
        [
            {"training": "x"},
            {"training": {"learning_rate": float("inf")}},
            {"presets": "x"},
            {"source": 1, "settings": 2},
            {"training": {"optimizer_options": {"a": "\ud800"}}},
            {"data": 5},
        ],
    )
    def test_odd_values_are_refused(self, workspace: Workspace, values: dict[str, Any]) -> None:
        with pytest.raises(UserError):
            run_config(workspace, {"name": "a", "data": "fluent-high-contrast", **values})

    def test_a_name_is_taken_once(self, workspace: Workspace) -> None:
        values = {"name": "taken", "data": "fluent-high-contrast"}
        assert begin(workspace, values, "quick") == "taken"
        with pytest.raises(UserError, match="already: choose another name"):
            begin(workspace, values)
        (workspace.folder("hypernetworks") / "old.safetensors").write_bytes(b"")
        assert "there is a hypernetwork 'old' already" in problems(workspace, {**values, "name": "old"})[0]

    def test_a_clone_has_what_was_said_and_another_name(self, workspace: Workspace) -> None:
        said = {"name": "first", "data": "fluent-high-contrast", "training": {"loss": "huber"}}
        config = run_config(workspace, said, "quick,style").model_dump(mode="json")
        (workspace.folder("runs") / "first-2").mkdir(exist_ok=True)
        found = cloned(workspace, config)
        assert found["name"] == "first-3"
        assert found["data"] == [{"path": "fluent-high-contrast"}]
        assert found["training"]["loss"] == "huber"
        assert found["training"]["max_steps"] == 150
        assert "hypernetworks" not in found
        again = run_config(workspace, found).model_dump()
        before = run_config(workspace, said, "quick,style").model_dump()
        before["training"]["trigger"] = "first"  # the word it was trained with, not the clone's name
        assert {**again, "name": "first"} == before
        assert run_config(workspace, *with_presets(found)).model_dump() == again
        with pytest.raises(UserError, match="generator"):
            cloned(workspace, {"kind": "generator"})

    @pytest.mark.parametrize("length", ["", *LENGTHS])
    @pytest.mark.parametrize("kind", ["", *KINDS])
    @pytest.mark.parametrize(
        "training", [{}, {"max_steps": 77}, {"flip": 0.25, "templates": "style"}, {"trigger": "ink"}]
    )
    def test_what_a_clone_shows_is_what_it_trains(
        self, workspace: Workspace, length: str, kind: str, training: dict[str, Any], tmp_path: Path
    ) -> None:
        """Every setting of the run is a preset that is shown, one of the first fields, or in the list beside them."""
        presets = ",".join(filter(None, (length, kind)))
        said = {
            "name": "a run",
            "data": [{"path": "fluent-high-contrast", "repeats": 3}],
            "network": {"layer_norm": True},
            "training": training,
        }
        config = run_config(workspace, said, presets)
        draft = Draft(workspace, tmp_path.name)
        draft.clone("a run", *with_presets(cloned(workspace, config.model_dump(mode="json"))))
        trained = run_config(workspace, draft.request["settings"], draft.request["presets"])
        expected = config.model_dump()
        expected["name"] = "a run-2"
        if config.training.templates:
            expected["training"]["trigger"] = config.training.trigger or "a run"
        assert trained.model_dump() == expected
        plain = run_config(
            workspace, {"name": "a run-2", "data": "fluent-high-contrast"}, draft.request["presets"]
        )
        told = dict(apart(draft))
        first = {key.rpartition(".")[2] for key in groups()["first"]}
        for name, value in trained.training.model_dump().items():
            if value != getattr(plain.training, name) and name not in first:
                assert f"training.{name}" in told
        assert told["network.layer_norm"] == "True"
        assert told["model"] == "emoji", "another may be preferred by now"
        assert told["data 1 repeats"] == "3"
        assert draft.values["cloned"] == "a run"
        if not training and presets != "":
            assert draft.request["presets"] == presets, "the page's choices say it"


def test_a_clone_can_be_taken_back_and_a_draft_is_a_browsers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    mine, other = Draft(workspace, "a" * 24), Draft(workspace, "b" * 24)
    mine.put("training.loss", "l1")
    assert other.request["settings"] == {}
    before = mine.request
    mine.clone("one", {"name": "one-2", "training": {"templates": "style"}}, "balanced")
    mine.clone("two", {"name": "two-2"}, "")
    assert (mine.values["cloned"], mine.request["settings"]) == ("two", {"name": "two-2"})
    mine.put_back()
    assert mine.request == before
    assert mine.values["cloned"] == ""
    assert mine.without("training.loss") == {}


def test_the_words_of_a_draft_are_compared_with_the_models(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    draft = Draft(workspace, "a" * 24)
    known = known_words(workspace)
    assert known is not None
    assert {"cat", "face", "heart"} <= known
    assert known_words(workspace, "models/none.safetensors") is known_words(workspace, "some/hub-id") is None
    assert sentences(draft, workspace) == []
    draft.keep(presets="quick,style")
    draft.put("name", "inkish")
    said = sentences(draft, workspace)
    assert said[0] == "a work done in the manner of inkish:  "
    assert {"manner", "inkish"} <= set(never_seen(known, said))
    assert not {"name", "filewords"} & set(never_seen(known, said))
    draft.put("training.trigger", "cat")
    assert "inkish" not in never_seen(known, sentences(draft, workspace))
    draft.put("training.templates", "")  # said wins over the preset
    assert sentences(draft, workspace) == []
    (tmp_path / "mine.txt").write_text("heart of [name]", encoding="utf-8")
    draft.put("training.templates", "mine.txt")
    assert sentences(draft, workspace) == ["heart of cat"]


def test_the_draft_that_was_everybodys_is_the_first_browsers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_json(workspace.state / "train-draft.json", {"settings": {"name": "old"}, "presets": "quality"})
    assert Draft(workspace, "a" * 24).request == {"settings": {"name": "old"}, "presets": "quality"}
    assert Draft(workspace, "b" * 24).request["settings"] == {}
    assert Draft(workspace, "a" * 24).get("name") == "old"


def test_a_draft_is_changed_key_by_key(tmp_path: Path) -> None:
    one, other = Draft(Workspace(tmp_path), "a" * 24), Draft(Workspace(tmp_path), "a" * 24)
    one.put("training.loss", "l1")
    other.put("training.max_steps", 3)
    other.put("name", "x")
    assert one.request == {
        "settings": {"training": {"loss": "l1", "max_steps": 3}, "name": "x"},
        "presets": "quick",
    }
    one.clear("training.loss")
    one.clear("training.max_steps")
    assert other.request["settings"] == {"name": "x"}


class TestTrainings:
    def test_a_training_goes_into_the_queue_and_ends(self, app: Any, colours: str) -> None:
        values = {"name": "api-run", "data": colours, "training": TINY}
        said = app.call("/api/v1/trainings", {"settings": values})
        assert said["run"] == "api-run"
        assert app.wait_for(said["job"])["state"] == "done"
        assert (app.root / "models/hypernetworks/api-run.safetensors").is_file()
        again = app.call("/api/v1/trainings", {"settings": values})
        assert again["status"] == 400
        assert "choose another name" in again["detail"]

    def test_the_plan_and_the_report(self, app: Any, colours: str) -> None:
        request = {"settings": {"name": "api-plan", "data": colours, "training": TINY}}
        plan = app.call("/api/v1/plans", request)
        look = app.call("/api/v1/preflights", request)
        found = app.wait_for(plan["id"])["result"]
        assert (found["steps"], found["batch_size"], found["pictures"]) == (2, 2, 4)
        assert found["seconds"] > 0
        assert found["report"] == app.wait_for(look["id"])["result"]
        assert found["report"]["usable"] == 4
        assert not (app.root / "runs" / "api-plan").exists()

    @pytest.mark.parametrize("route", ["trainings", "plans", "preflights"])
    def test_what_cannot_be_is_refused_at_once(self, app: Any, route: str) -> None:
        before = len(app.call("/api/v1/jobs"))
        refused = app.call(f"/api/v1/{route}", {"settings": {"name": "no", "data": "/etc"}})
        assert refused["status"] == 400
        assert "outside of the workspace" in refused["detail"]
        assert app.call(f"/api/v1/{route}", {"settings": {}, "more": 1})["status"] == 422
        assert len(app.call("/api/v1/jobs")) == before
        assert not (app.root / "runs" / "no").exists()


class TestCommandLine:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return forked.run([sys.executable, "-m", "hyperbrush", "train", *arguments], timeout=180)

    def tiny(self) -> list[str]:
        return [part for key, value in TINY.items() for part in ("-s", f"{key}={value}")]

    def test_a_local_folder_is_sent_trained_on_and_summed_up(self, app: Any, tmp_path: Path) -> None:
        folder = tmp_path / "cli-local"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.png").write_bytes(png())
        (folder / "a.txt").write_text("red")
        (folder / "deep" / "a.png").write_bytes(png("blue"))
        done = self.run("--data", str(folder), "--name", "cli-run", *self.tiny(), "--server", app.url)
        assert done.returncode == 0, done.stderr
        assert "cli-run.safetensors  (2 steps" in done.stdout
        assert "step 2/2" in done.stderr
        assert shown(app, "cli-local") == {"a.png": "red", "deep/a.png": "a"}
        plan = self.run(
            "--data", str(folder), "--name", "cli-plan", *self.tiny(), "--server", app.url, "--dry-run"
        )
        assert "2 to train on" in plan.stdout, plan.stderr
        names = {d["name"] for d in app.call("/api/v1/datasets")}
        assert "cli-local-2" not in names, "the same pictures are not sent twice"

    def test_folders_captions_and_masks_are_sent_as_they_are(self, app: Any, tmp_path: Path) -> None:
        import tarfile

        from hyperbrush.cli import remote
        from hyperbrush.ldm.data import Masks, scan
        from hyperbrush.ldm.data.masks import find_masks

        folder = tmp_path / "sent"
        for name, colour in (("10_cat/1", "red"), ("10_cat/2", "blue"), ("3_dog/1", "green"), ("row", "red")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(png(colour))
        (folder / "10_cat/1.caption").write_text("a cat,\nsitting")
        (folder / "3_dog/1.txt").write_text("a dog")
        (folder / "metadata.jsonl").write_text('{"file_name": "row.png", "text": ["one", "two"]}')
        (folder / "10_cat/1.mask.png").write_bytes(png("white"))
        with tarfile.open(tmp_path / "sent.tar", "w") as tar:
            tar.add(folder, ".")
        aside = tmp_path / "aside"
        (aside / "3_dog").mkdir(parents=True)
        (aside / "3_dog/1.png").write_bytes(png("white"))

        def all_of(place: Path, masks: Path | None = None) -> Any:
            found = scan(place, caption_lines=True)
            items, files, _ = find_masks(Masks("files", masks, needed=False), place, found.items)
            return {
                item.path.relative_to(place).with_suffix("").as_posix(): (
                    item.path.relative_to(place).suffix and item.written,
                    None if file is None else file.read_bytes(),
                )
                for item, file in zip(items, files, strict=True)
            }

        server = remote.Server(app.url)
        name = remote.dataset(server, str(folder))
        there = app.root / "datasets" / name
        assert all_of(there) == all_of(folder)
        assert all_of(there)["10_cat/1"] == (("a cat,", "sitting"), png("white"))
        assert remote.dataset(server, str(folder)) == name  # nothing new is sent
        assert remote.dataset(server, str(tmp_path / "sent.tar")) != name
        assert {k: v[0] for k, v in all_of(app.root / "datasets/sent.tar").items()} == {
            k: v[0] for k, v in all_of(folder).items()
        }
        other = remote.dataset(server, str(folder), mask_folder=str(aside))
        assert other == f"{name}-2"
        masks = {k: v[1] for k, v in all_of(app.root / "datasets" / other).items() if v[1]}
        assert masks == {"3_dog/1": png("white")}

    def test_it_trains_there_with_masks_of_a_folder_that_is_here(self, app: Any, tmp_path: Path) -> None:
        for i, colour in enumerate(("red", "blue", "green", "white")):
            for place in ("masked", "masks"):
                (tmp_path / place).mkdir(exist_ok=True)
                (tmp_path / place / f"{i}.png").write_bytes(png(colour if place == "masked" else "white"))
        done = self.run(
            *("--data", str(tmp_path / "masked"), "--name", "cli-masks", *self.tiny(), "-s", "masks=files"),
            *("-s", f"mask_folder={tmp_path / 'masks'}", "--server", app.url),
        )
        assert done.returncode == 0, done.stderr
        assert "8 pictures and masks of" in done.stderr
        assert (app.root / "datasets/masked/3.mask.png").is_file()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--data", "nowhere"), "no dataset of that name"),
            (("--data", "x", "--server", "http://127.0.0.1:9"), "does not answer"),
            (("--data", "x", "--server", "ftp://x"), "expected an address"),
            (("--data", "x", "--server", "http://x:y"), "expected an address"),
            (("--resume", "runs/x"), "--resume cannot be used with --server"),
            (("--data", "x", "-s", "loss=x"), "training.loss"),
        ],
    )
    def test_what_goes_wrong_is_said_in_a_line(
        self, app: Any, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
    ) -> None:
        text = self.refused(capsys, "--server", app.url, "--name", "x", *arguments)
        assert said in text
        assert text.count("\n") == 1

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["train", *arguments])
        assert ended.value.code == 2
        return capsys.readouterr().err

    @pytest.mark.slow
    def test_ctrl_c_leaves_the_training_running(self, app: Any, colours: str) -> None:
        tiny = [*self.tiny(), "-s", "max_steps=100000"]
        command = [sys.executable, "-m", "hyperbrush", "train", "--data", colours, "--name", "cli-left"]
        client = subprocess.Popen([*command, *tiny, "--server", app.url], stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: (app.root / "runs" / "cli-left" / "live.json").exists())
            client.send_signal(signal.SIGINT)
            _, said = client.communicate(timeout=60)
        finally:
            client.kill()
        (job,) = (j for j in app.call("/api/v1/jobs") if j["arguments"].get("run") == "cli-left")
        assert client.returncode == 130
        assert "the training goes on there" in said
        assert job["state"] == "running"
        app.call(f"/api/v1/jobs/{job['id']}/stop", {})
        app.wait_for(job["id"])

    @pytest.mark.slow
    def test_a_token_is_asked_and_taken(self, own_app: Any, capsys: pytest.CaptureFixture[str]) -> None:
        url = own_app("--token", "secret-word").url.partition("?")[0].rstrip("/")
        wanted = ("--data", "none", "--name", "x", "--server")
        assert "asks for a token" in self.refused(capsys, *wanted, url)
        assert "no dataset of that name" in self.refused(capsys, *wanted, url, "--token", "secret-word")
        assert "no dataset of that name" in self.refused(capsys, *wanted, f"{url}/?token=secret-word")


def test_the_help_is_the_models() -> None:
    said = yaml.safe_load((MESSAGES / "en" / "train_help.yaml").read_text(encoding="utf-8"))
    known = {key: setting.help for key, setting in settings().items() if key != "hypernetworks"}
    known |= {f"data.{setting.key}": setting.help for setting in folder_settings()}
    assert said == {key: sentence(text) for key, text in known.items()}


def sentence(text: str) -> str:
    """What begins with a value, such as "none: …", keeps its small letter."""
    value = text.split()[0].endswith((":", ","))
    return f"{text if value else text[:1].upper() + text[1:]}".rstrip(".") + "."


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


class TestOtherKinds:
    """Generators, first stages and diffusion models are trained by the app too."""

    def done(self, app: Any, settings: dict[str, Any]) -> dict[str, Any]:
        """Train it, and tell how its run stands at the end."""
        begun = app.call("/api/v1/trainings", {"settings": settings})
        assert begun.get("run") == settings["name"], begun
        until(lambda: app.call(f"/api/v1/runs/{begun['run']}")["state"] in ("done", "failed"), 120)
        found: dict[str, Any] = app.call(f"/api/v1/runs/{begun['run']}")
        return found

    def test_each_kind_from_its_settings_to_its_file(self, app: Any, colours: str) -> None:
        short = {"steps": 2, "batch_size": 2, "validate_every": 1}
        stage = {"kind": "first_stage", "name": "own-stage", "data": {"size": 16, "folders": [colours]}}
        run = self.done(app, {**stage, "model": {"channels": [8, 16], "latent_dim": 2}, "training": short})
        assert (run["state"], run["kind"], run["error"]) == ("done", "first_stage", "")
        assert (app.root / "runs/own-stage/first_stage/config.json").is_file()
        model = {
            "kind": "diffusion",
            "name": "own-model",
            "first_stage": "runs/own-stage/first_stage",
            "data": {"size": 16, "folders": [colours]},
            "text": {"width": 16, "layers": 1, "num_heads": 2},
            "unet": {
                "channels": [32, 32],
                "attention_resolutions": [8],
                "num_heads": 2,
                "layers_per_block": 1,
            },
            "prompts": [],
            "training": short,
        }
        run = self.done(app, model)
        assert (run["state"], run["kind"], run["checkpoints"]) == ("done", "diffusion", [2])
        app.call("/api/v1/preferences", {"model": "runs/own-model/model"}, method="PATCH")
        job = app.call("/api/v1/draw", {"prompt": "red square", "steps": 2, "seed": 1})
        until(lambda: app.call(f"/api/v1/jobs/{job['id']}")["state"] in ("done", "failed"), 60)
        app.call("/api/v1/preferences", {"model": "emoji"}, method="PATCH")
        assert app.call(f"/api/v1/jobs/{job['id']}")["error"] == ""

    def test_finishing_keeps_what_a_model_learned(self, app: Any, colours: str) -> None:
        """Also where its warm-up was to be longer than that."""
        optimizer = {"schedule": "cosine", "warmup_steps": 500}
        training = {
            "steps": 5000,
            "batch_size": 2,
            "checkpoint_every": 1,
            "log_every": 1,
            "optimizer": optimizer,
        }
        settings = {"kind": "first_stage", "name": "own-short", "data": {"size": 16, "folders": [colours]}}
        settings |= {"model": {"channels": [8, 16], "latent_dim": 2}, "training": training}
        app.call("/api/v1/trainings", {"settings": settings})
        run = "/api/v1/runs/own-short"
        until(lambda: max(app.call(run)["checkpoints"], default=0) >= 2, 60)
        app.call(f"{run}/finish", {})
        until(lambda: app.call(run)["state"] in ("done", "failed"), 60)
        found = app.call(run)
        assert (found["state"], found["error"]) == ("done", "")
        assert max(found["checkpoints"]) < 5000
        assert (app.root / "runs/own-short/first_stage/config.json").is_file()

    def test_a_generator(self, app: Any) -> None:
        for style, colour in (("warm", "red"), ("cold", "blue"), ("dark", "black")):
            folder = app.root / "datasets/looks" / style
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"thing {number}.png").write_bytes(png(colour))
        settings = {
            "kind": "generator",
            "name": "own-generator",
            "data": "looks",
            "model": "emoji",
            "network": {"embedding_dim": 16, "hidden_dim": 16, "depth": 1, "heads": 2, "rank": 1},
            "training": {
                "max_steps": 2,
                "batch_size": 2,
                "validate_every": 2,
                "shared_steps": 1,
                "validation_share": 0.34,
            },
        }
        run = self.done(app, settings)
        assert (run["state"], run["error"]) == ("done", "")
        assert (app.root / "models/generators/own-generator.safetensors").is_file()
        again = app.call("/api/v1/trainings", {"settings": settings})
        assert "there is a run 'own-generator' already" in again["detail"]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"kind": "video"}, "kind of training"),
            ({"kind": ["generator"]}, "kind of training"),
            ({"kind": "generator", "data": "api-colours", "training": 2000}, "training: expected settings by name"),
            ({"kind": "first_stage", "data": {"folders": ["api-colours"]}, "loss": {"perceptual": 1}}, "loss.perceptual"),
            ({"kind": "diffusion", "data": {"folders": ["api-colours"]}}, "'first_stage'"),
            ({"kind": "diffusion", "start_from": "emoji", "data": {"folders": ["/etc"]}}, "outside of the workspace"),
            ({"kind": "diffusion", "start_from": "/etc", "data": {"folders": ["api-colours"]}}, "no model"),
            ({"kind": "first_stage", "data": {"folders": ["nowhere"]}}, "there is no folder"),
            ({"kind": "first_stage", "data": {"folders": ["api-colours"], "mask_folder": "../.."}}, "outside"),
            ({"kind": "diffusion", "start_from": "emoji", "data": {"folders": ["api-colours"], "cache": "x"}}, "data.cache"),
            ({"kind": "generator", "data": "api-colours", "generators": "/tmp", "model": "../x"}, "there is no model"),
            ({"kind": "first_stage", "data": {"folders": ["api-colours"]}, "stepz": 1}, "stepz"),
            ({"kind": "first_stage", "name": "../x", "data": {"folders": ["api-colours"]}}, "name"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said_and_nothing_begun(
        self, app: Any, colours: str, settings: dict[str, Any], said: str
    ) -> None:
        before = {path.name for path in (app.root / "runs").iterdir()}
        wanted = {"name": "wrong", **settings}
        answer = app.call("/api/v1/trainings", {"settings": wanted})
        assert said in str(answer["detail"]), answer
        assert {path.name for path in (app.root / "runs").iterdir()} == before

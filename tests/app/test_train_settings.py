"""Settings of a training on the page: their places, checks before the start, drafts, help."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from train_helpers import png

from hyperbrush.app.messages import FOLDER as MESSAGES
from hyperbrush.app.model.service import known_words
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import KINDS, LENGTHS, Draft, with_presets
from hyperbrush.app.train.page_apart import apart
from hyperbrush.app.train.page_words import sentences
from hyperbrush.app.train.places import inside
from hyperbrush.app.train.schema import FILE, folder_settings, groups, settings
from hyperbrush.app.train.service import begin, cloned, problems, run_config
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError
from hyperbrush.files import write_json
from hyperbrush.generation.known_words import never_seen
from hyperbrush.training.attention.run import setting_names

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


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
        for key in ("templates", "mask_folder", "condition_folder"):
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
    assert Draft(Workspace(tmp_path), "a" * 24).request == {
        "settings": {"training": {"loss": "l1", "max_steps": 3}, "name": "x"},
        "presets": "quick",
    }
    one.clear("training.loss")
    one.clear("training.max_steps")
    assert Draft(Workspace(tmp_path), "a" * 24).request["settings"] == {"name": "x"}


def test_a_tab_trains_what_it_shows_or_nothing(tmp_path: Path) -> None:
    one, other = Draft(Workspace(tmp_path), "a" * 24), Draft(Workspace(tmp_path), "a" * 24)
    one.put("training.betas", (0.9, 0.99))
    one.keep(plan="a job")
    assert not one.is_overtaken
    assert other.is_overtaken
    assert other.values["plan"] == "a job"
    other = Draft(Workspace(tmp_path), "a" * 24)  # reloaded
    assert not other.is_overtaken
    other.put("name", "x")
    assert one.is_overtaken
    assert one.request["settings"] == {"training": {"betas": [0.9, 0.99]}}
    other.clear("name")
    assert not one.is_overtaken
    other.keep(presets="quality")
    assert one.is_overtaken


def test_the_help_is_the_models() -> None:
    said = yaml.safe_load((MESSAGES / "en" / "train_help.yaml").read_text(encoding="utf-8"))
    known = {key: setting.help for key, setting in settings().items() if key != "hypernetworks"}
    known |= {f"data.{setting.key}": setting.help for setting in folder_settings()}
    assert said == {key: sentence(text) for key, text in known.items()}


def sentence(text: str) -> str:
    """What begins with a value, such as "none: …", keeps its small letter."""
    value = text.split()[0].endswith((":", ","))
    return f"{text if value else text[:1].upper() + text[1:]}".rstrip(".") + "."

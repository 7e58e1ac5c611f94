"""Trainings over HTTP and from the command line, of every kind."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from running import until
from train_helpers import TINY, png, shown

from hyperbrush.app.train.service import run_config
from hyperbrush.app.workspace import Workspace
from hyperbrush.cli import main


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

    def test_a_folder_of_conditions_is_of_the_workspace(self, app: Any, colours: str) -> None:
        before = {path.name for path in (app.root / "runs").iterdir()}
        values = {"name": "api-conditions", "data": colours, "training": {**TINY, "condition_folder": "/etc"}}
        refused = app.call("/api/v1/trainings", {"settings": values})
        assert refused["status"] == 400
        assert "outside of the workspace" in refused["detail"]
        assert {path.name for path in (app.root / "runs").iterdir()} == before
        values["training"]["condition_folder"] = f"datasets/{colours}"
        found = run_config(Workspace(app.root), values)
        assert found.training.condition_folder == str(app.root / "datasets" / colours)
        values["training"]["condition_folder"] = colours
        assert run_config(Workspace(app.root), values) == found

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
        done = self.run(
            *(
                "--data",
                str(tmp_path / "masked"),
                "--name",
                "cli-conditions",
                *self.tiny(),
                "--server",
                app.url,
            ),
            *("-s", f"condition_folder={tmp_path / 'masks'}"),
        )
        assert "condition_folder is for models conditioned by pictures" in " ".join(done.stderr.split())
        assert (app.root / "datasets/masks/3.png").is_file(), (
            "it was sent, and the model there is told of none"
        )

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
            ({"kind": "diffusion", "start_from": "emoji", "data": {"folders": ["api-colours"], "masks": "files", "mask_folder": "../.."}}, "outside"),
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

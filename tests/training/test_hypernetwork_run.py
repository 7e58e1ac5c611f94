"""Runs of `hyperbrush train`: settings from everywhere, plans, going on from a file, what is left at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.cli import train as cli_train
from hyperbrush.errors import UserError
from hyperbrush.generation.infotext import read_infotext
from hyperbrush.generation.picture_files import settings_text
from hyperbrush.hypernetworks.files.optimizer import read_optimizer, sidecar_of
from hyperbrush.hypernetworks.library.notes import Notes, write_notes
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.piecewise import parse_piecewise
from hyperbrush.training.attention.config import PRESETS
from hyperbrush.training.attention.objective import HypernetworkObjective
from hyperbrush.training.attention.run import (
    HypernetworkRun,
    configured,
    open_network,
    setting_names,
    train_run,
)
from hyperbrush.training.before import plan as plan_module
from hyperbrush.training.before.plan import plan, suggest_batch_size
from hyperbrush.training.generator.run import GeneratorRun, configured_generator
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.launch import _without_processes
from hyperbrush.training.loop.settings import resumed, save_run
from hyperbrush.training.report.contact_sheet import run_prompts
from hyperbrush.training.report.result import RunResult, figures_of

DATA = style_folder() / "validation"
SHORT = {"max_steps": 4, "batch_size": 4, "validate_every": 2, "validation_share": 0.1, "prompts": []}


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Twelve pictures of the style."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted(DATA.glob("*.png"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def small(tmp_path: Path, data: object, **values: object) -> HypernetworkRun:
    training = SHORT | values.pop("training", {})  # type: ignore[operator]
    network = {"layer_structure": [1, 1], "activation": "linear"}
    given = {"name": "t", "network": network, "hypernetworks": str(tmp_path / "library")} | values
    return HypernetworkRun.of(data=data, training=training, **given)


def test_settings_come_from_presets_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "ink.yaml"
    values = {"preset": "quick", "data": "a", "training": {"max_steps": 7, "seed": 3}}
    file.write_text(yaml.safe_dump(values))
    found = configured(file, settings=["training.seed=5", "layer_norm=true"], training={"batch_size": 2})
    assert found.name == "ink"
    assert found.training.validate_every == PRESETS["quick"]["validate_every"]
    assert (found.training.max_steps, found.training.seed, found.training.batch_size) == (7, 5, 2)
    assert found.network.layer_norm
    assert configured(file, presets="style").training.templates == "style_filewords"
    assert configured(name="x", data=["a", "b"]).data[1].path == "b"


def test_epochs_a_person_gives_win_and_what_moved_goes_on(tmp_path: Path) -> None:
    def steps(**given: object) -> int:
        return configured(name="x", data="a", presets="quick", **given).training.steps(32)

    assert steps() == PRESETS["quick"]["max_steps"]
    assert steps(settings=["max_epochs=3"]) == 6
    assert steps(settings=["max_epochs=3", "max_steps=5"]) == 5
    file = tmp_path / "ink.yaml"
    file.write_text(yaml.safe_dump({"preset": "quick", "data": "a", "training": {"max_epochs": 4}}))
    assert configured(file).training.steps(32) == 8
    save_run(configured(name="x", data="a", presets="quick"), tmp_path / "run")
    longer, _ = resumed(HypernetworkRun, tmp_path / "run", settings=["max_epochs=100"])
    assert longer.training.steps(32) == 200
    masks = {"masks": "files", "mask_folder": "here"}
    save_run(configured(name="m", data="a", training=masks), tmp_path / "masked")
    moved, changed = resumed(HypernetworkRun, tmp_path / "masked", settings=["mask_folder=there"])
    assert (moved.training.mask_folder, changed) == ("there", True)
    with pytest.raises(UserError, match="training.mask_folder"):
        resumed(HypernetworkRun, tmp_path / "masked", settings=["mask_folder=null"])
    by_steps = configured(name="y", data="a", settings=["schedule=5e-5:100"])
    save_run(by_steps, tmp_path / "by_steps")
    with pytest.raises(UserError, match="would change nothing"):
        resumed(HypernetworkRun, tmp_path / "by_steps", training={"learning_rate": 1e-4})
    generated = configured_generator(name="g", data="a", settings=["schedule=5e-5:100"])
    assert generated.training.learning_rate == 3e-4, "the default says nothing"
    save_run(generated, tmp_path / "generated")
    assert resumed(GeneratorRun, tmp_path / "generated", training={"max_steps": 9})[1]


def test_a_presets_patience_does_not_refuse_a_few_pictures(
    tmp_path: Path, emoji: LatentDiffusion, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "few").mkdir()
    for path in sorted(DATA.glob("*.png"))[:4]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    training = PRESETS["balanced"] | {"max_steps": 2, "batch_size": 2}
    train_run(small(tmp_path, str(tmp_path / "few"), training=training), tmp_path / "run", model=emoji)
    assert "patience is left out" in caplog.text
    half = small(tmp_path, str(tmp_path / "few"), name="h", training={"mixed_precision": "fp16"})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="mixed_precision fp16 needs a GPU"):
            train_run(half, tmp_path / "h", model=emoji)
        assert not (tmp_path / "h" / "cache").exists(), "said before anything is encoded"
        with pytest.raises(UserError, match="mixed_precision fp16 needs a GPU"):
            plan(half, emoji)
    with pytest.raises(UserError, match="patience needs held-out pictures"):
        none = training | {"validation_share": 0.0}
        train_run(
            small(tmp_path, str(tmp_path / "few"), name="n", training=none), tmp_path / "n", model=emoji
        )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss"], "expected KEY=VALUE"),
        (["lose=3"], "did you mean 'loss'"),
        (["loss=l3"], "training.loss"),
        (["betas=[1"], "is not valid YAML"),
        (["training.timestep_range=[0.5, 0.2]"], "is empty"),
        (["filename_words=("], "filename_words"),
        (["size=[64]"], "size"),
        (
            ["schedule=5e-5:100;5e-6:200"],
            "training.schedule: .*holds a ';'.* did you mean '5e-5:100, 5e-6:200'",
        ),
        (["schedule=0,00005:100"], "training.schedule: part '0' .*did you mean '0.00005:100'"),
        (["schedule=5e-5:200,5e-6:100"], "training.schedule: .*part '5e-6:100' ends before it begins"),
        (["schedule=5e-5:100 5e-6:200"], "without a comma"),
        (["schedule=0:100"], "nothing would be learnt"),
        (["learning_rate=5e-5:100, 5e-6:200"], "training.learning_rate: .*'schedule'"),
        (
            ["num_cycles=2"],
            "num_cycles is of cosine_with_restarts, and the schedule is 'cosine': leave one out",
        ),
        (["bucket_step=8"], "bucket_step is of buckets, and there are none"),
        (
            ["bucket_ratio=3", "buckets=original"],
            "bucket_ratio is of buckets: aspect, and they are 'original'",
        ),
        (
            ["learning_rate=1e-4", "schedule=5e-5:100"],
            "learning_rate 0.0001 would change nothing: the schedule",
        ),
        (["max_grad_norm=1:30;2"], "training.max_grad_norm: .*clip schedule '1:30;2' holds a ';'"),
    ],
)
def test_wrong_settings_are_one_error(settings: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        configured(name="x", data="a", settings=settings)


def test_schedules_as_people_and_yaml_write_them(tmp_path: Path) -> None:
    file = tmp_path / "ink.yaml"
    for text in ("5e-5:100,5e-6:200", "５e-5：100，5e-6：200", "5e-5: 100, 5e-6 : 200"):
        schedule = configured(name="x", data="a", settings=[f"schedule={text}"]).training.schedule
        assert parse_piecewise(schedule) == [(5e-5, 100), (5e-6, 200)]
        file.write_text(yaml.safe_dump({"data": "a", "training": {"schedule": text}}), encoding="utf-8")
        assert configured(file).training.schedule == text
    file.write_text("{data: a, training: {schedule: {5e-5: 100, 5e-6: 200}, max_grad_norm: 1:30}}")
    training = configured(file).training
    assert parse_piecewise(training.schedule) == [(5e-5, 100), (5e-6, 200)]
    assert training.max_grad_norm == "1:30", "not YAML 1.1's ninety"
    assert configured(name="x", data="a", settings=["max_grad_norm=1:30"]).training.max_grad_norm == "1:30"
    assert configured(name="x", data="a", settings=["schedule=0.001"]).training.schedule == "0.001"
    file.write_text("{data: a, training: {schedule: 5e-5:100;5e-6:200}}")
    with pytest.raises(UserError, match="training.schedule: .*did you mean"):
        configured(file)


def test_every_setting_has_a_name_and_a_description() -> None:
    names = setting_names()
    assert "training.loss" in names
    assert "start_from" in names
    assert len(names) == len(set(names))


def test_presets_are_valid_and_complete_in_the_command_line() -> None:
    assert tuple(PRESETS) == cli_train.PRESETS
    for name in PRESETS:
        configured(name="x", data="a", presets=name)
    assert cli_train.complete_preset("quick,s") == ["quick,style", "quick,subject"]


def test_older_configs_are_read(tmp_path: Path) -> None:
    old = {"name": "x", "data": "a", "validation": None}
    found = HypernetworkRun.of(**old)
    assert found.validation == []
    assert found.data[0].path == "a"


def test_a_run_leaves_report_curve_sheet_and_preflight(
    tmp_path: Path, few: Path, emoji: LatentDiffusion
) -> None:
    (few / "torn.png").write_bytes(b"not a picture")
    previews = {
        "preview_sampler": "DDIM",
        "preview_steps": 3,
        "preview_negative": "dog",
        "preview_seed": 7,
        "preview_guidance": 2,
    }
    saving = {"preview_every": 2, "save_every": 2}
    config = small(tmp_path, str(few), training={"prompts": ["cat face", "rocket"]} | previews | saving)
    told = []
    result = train_run(config, tmp_path / "run", model=emoji, on_report=told.append)
    assert [p.name for p in told[0].set_aside] == ["torn.png"]
    assert (few / "torn.png").exists()
    for name in ("report.html", "loss.png", "contact_sheet.png", "preflight.json", "t.safetensors"):
        assert (tmp_path / "run" / name).is_file(), name
    with Image.open(tmp_path / "run/previews/step-00000004/prompt-1.png") as preview:
        about = preview.info["parameters"]
    for said in ("rocket", "Negative prompt: dog", "Sampler: DDIM", "Steps: 3", "Seed: 8", "CFG scale: 2"):
        assert said in about
    assert hb.load(tmp_path / "run/saved/step-00000002/t.safetensors").widths == hb.load(result.file).widths
    lines = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert lines[0].split(",")[:2] == ["step", "loss"]
    assert len(lines) >= 3
    assert "torn.png" in (tmp_path / "run/preflight.json").read_text()
    assert result.report.name in result.summary()
    assert result.command() in (tmp_path / "run/report.html").read_text().replace("&lt;", "<").replace(
        "&gt;", ">"
    ).replace("&quot;", '"')


def test_previews_show_captions_of_held_out_pictures_where_nobody_says_what(
    tmp_path: Path, few: Path, emoji: LatentDiffusion
) -> None:
    settings = {"prompts": None, "max_steps": 1, "preview_steps": 1, "validation_share": 0.3}
    train_run(small(tmp_path, str(few), training=settings), tmp_path / "run", model=emoji)
    said = run_prompts(tmp_path / "run")
    assert len(said) == len(set(said)) == 4
    assert set(said) <= {path.stem.replace("-", " ") for path in few.iterdir()}
    assert len(list((tmp_path / "run/previews/step-00000001").iterdir())) == 4
    assert said[0] in read_infotext(settings_text(tmp_path / "run/contact_sheet.png")).prompt
    config = small(tmp_path, str(few), training={"prompts": [], "max_steps": 1})
    train_run(config, tmp_path / "none", overwrite=True, model=emoji)
    assert not (tmp_path / "none/previews").exists()


def test_several_folders_with_weights_and_a_prior(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    data = [{"path": str(few), "repeats": 2}, {"path": str(DATA), "loss_weight": 0.5, "keep_prior": True}]
    settings = {"training": {"buckets": "aspect", "templates": "style_filewords", "validation_share": 0.2}}

    def run(name: str, *changes: dict) -> torch.Tensor:
        folders = [one | change for one, change in zip(data, changes or ({}, {}), strict=True)]
        train_run(small(tmp_path, folders, **settings), tmp_path / name, overwrite=True, model=emoji)
        made = hb.load(tmp_path / name / "t.safetensors")
        return torch.cat([p.flatten() for p in made.parameters()])

    base = run("base")
    assert not torch.equal(base, run("weight", {}, {"loss_weight": 0.1}))
    assert not torch.equal(base, run("repeats", {"repeats": 1}, {}))


def test_a_size_the_model_cannot_make(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    with pytest.raises(UserError, match=r"size is 50; .* multiples of 16"):
        train_run(small(tmp_path, str(few), training={"size": 50}), tmp_path / "run", model=emoji)


def test_masks_weigh_the_loss(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in few.glob("*.png"):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 32, 64))
        mask.save(masks / path.name)

    def run(name: str, **training: object) -> torch.Tensor:
        train_run(small(tmp_path, str(few), training=training), tmp_path / name, overwrite=True, model=emoji)
        made = hb.load(tmp_path / name / "t.safetensors")
        return torch.cat([p.flatten() for p in made.parameters()])

    plain = run("plain")
    assert not torch.equal(plain, run("masked", masks="files", mask_folder=str(masks)))


def test_goes_on_from_a_file_with_its_optimizer(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    first = small(tmp_path, str(few), save_optimizer=True, training={"ema_decay": None, "keep_best": False})
    made = train_run(first, tmp_path / "first", model=emoji)
    state = read_optimizer(made.file)
    assert state is not None
    assert state.optimizer_name == "AdamW"
    assert state.warning is None
    webui = hb.load(made.file).save(tmp_path / "old.pt")
    sidecar_of(made.file).rename(sidecar_of(webui))

    def go_on(name: str, source: Path) -> hb.AttentionHypernetwork:
        config = HypernetworkRun.of(
            name=name,
            data=str(few),
            start_from=str(source),
            hypernetworks=str(tmp_path / "library"),
            training=SHORT | {"warmup_steps": 0},
        )
        return hb.load(train_run(config, tmp_path / name, model=emoji).file)

    with_state = go_on("with", webui)
    assert with_state.step > made.best_step
    assert with_state.metadata["sd_checkpoint_name"] == "emoji"
    sidecar_of(webui).unlink()
    without = go_on("without", webui)
    pairs = zip(with_state.parameters(), without.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with pytest.raises(UserError, match="start_from brings its own network"):
        open_network(small(tmp_path, str(few), start_from=str(webui)), emoji)


def test_steps_are_counted_from_the_file_a_run_goes_on_from(
    tmp_path: Path, few: Path, emoji: LatentDiffusion
) -> None:
    def trained(steps: int, **how: object) -> int:
        training = {"max_steps": steps, "validation_share": 0.0, "checkpoint_every": 1, "save_every": 1}
        config = small(tmp_path, str(few), start_from=str(file), training=training, network={})
        return hb.load(train_run(config, tmp_path / "run", model=emoji, **how).file).step

    file = tmp_path / "library" / "t.safetensors"  # which the finished one takes the place of
    hb.AttentionHypernetwork.for_unet(emoji.unet, layer_structure=[1, 1], name="t", step=100).save(file)
    assert trained(2) == 102
    assert trained(3, resume=True) == 103
    for step in (1, 2, 3):
        assert hb.load(tmp_path / f"run/saved/step-{step:08d}/t.safetensors").step == 100 + step


def test_the_plan_counts_pictures_once_and_computes_as_the_training(
    tmp_path: Path, few: Path, emoji: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few / "5_more").mkdir()
    for number, path in enumerate(sorted(DATA.glob("*.png"))[12:14]):
        (few / "5_more" / f"{number}.png").write_bytes(path.read_bytes())
    seen = []
    planned = plan_module.timed

    def looked(objective: HypernetworkObjective, loop: TrainerConfig) -> tuple[float, int | None]:
        unet = objective.model.unet
        weight = unet.conv_in.weight
        seen.append((unet.is_gradient_checkpointing, weight.is_contiguous(memory_format=torch.channels_last)))
        return planned(objective, loop)

    monkeypatch.setattr(plan_module, "timed", looked)
    memory = {"gradient_checkpointing": True, "channels_last": True}
    found = plan(small(tmp_path, str(few), training=memory | {"validation_share": 0.0}), emoji)
    assert seen == [(True, True)]
    assert not emoji.unet.is_gradient_checkpointing
    assert (found.pictures, sum(found.shapes.values())) == (14, 14)
    assert found.epochs == pytest.approx(4 * 4 / 14)


def test_networks_of_single_sites_in_one_block(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    config = small(
        tmp_path,
        str(few),
        network={"per_site": True},
        training={"blocks": ["mid"], "target_layers": ["attn2"], "max_steps": 2},
    )
    made = hb.load(train_run(config, tmp_path / "run", model=emoji).file)
    assert made.sites
    assert all("mid_block" in site and "attn2" in site for site in made.sites)
    for part in ({"blocks": ["mid"]}, {"target_layers": ["attn2"]}):
        with pytest.raises(
            UserError, match=f"{next(iter(part))}: a network of a width acts on every attention"
        ):
            open_network(small(tmp_path, str(few), training=part), emoji)
        file = hb.AttentionHypernetwork.for_unet(emoji.unet, name="a").save(tmp_path / "a.safetensors")
        with pytest.raises(UserError, match="acts on every attention so wide"):
            on = small(tmp_path, str(few), network={}, training=part, start_from=str(file))
            open_network(on, emoji)


def test_the_plan_counts_and_keeps_nothing(
    tmp_path: Path, few: Path, emoji: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network, _ = open_network(small(tmp_path, str(few)), emoji)
    before = {path for path in tmp_path.rglob("*")}
    found = plan(small(tmp_path, str(few), training={"optimizer": "prodigy", "learning_rate": 1e-4}), emoji)
    assert {path for path in tmp_path.rglob("*")} == before
    assert (found.pictures, found.held_out, found.captions, found.steps) == (11, 1, 11, 4)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.seconds > 0
    assert found.memory is None or found.memory > 0
    assert found.epochs == pytest.approx(16 / 11)
    text = found.text()
    for said in ("11 to train on, 1 held out", "64×64: 11", "finds its own learning rate"):
        assert said in text
    assert not any(m._forward_pre_hooks for m in emoji.unet.modules())


def test_finders_work_on_a_runs_own_pictures(tmp_path: Path, few: Path, tiny_folder: Path) -> None:
    config = small(tmp_path, str(few), model=str(tiny_folder), training={"batch_size": 2, "size": 32})
    seen = []
    assert suggest_batch_size(config, tmp_path / "run", lambda what, done, of: seen.append(what)) >= 1
    assert {"pictures", "captions"} <= set(seen)


def test_two_processes_through_the_command(tmp_path: Path, few: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hyperbrush", "train", "--data", few, "--name", "two", "--steps", "2"),
            *("--batch-size", "4", "--processes", "2", "--run", tmp_path / "run"),
            *("--hypernetworks", tmp_path / "library", "-s", "validate_every=1"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two.safetensors") == 1, "one process speaks"
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert hb.load(tmp_path / "library/two.safetensors").step in (1, 2)


@pytest.mark.parametrize("name", [".hid", "a.", "a\nb", "none", "None", "a/b", "a<b", "x" * 121, " ", "a|b"])
@pytest.mark.parametrize("kind", ["hypernetwork", "generator"])
def test_names_are_looked_at_before_anything_else(name: str, kind: str) -> None:
    with pytest.raises(UserError, match="name"):
        if kind == "generator":
            configured_generator(name=name, data="d")
        else:
            HypernetworkRun.of(name=name, data="d")


def test_processes_are_taken_out_of_the_command() -> None:
    given = ["train", "--processes", "2", "--name", "x", "--processes=3"]
    assert _without_processes(given) == ["train", "--name", "x"]


def test_a_run_folder_is_not_begun_twice(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    config = small(tmp_path, str(few))
    save_run(config, tmp_path / "run")
    train_run(config, tmp_path / "run", model=emoji)
    with pytest.raises(UserError, match="holds a run already"):
        save_run(config, tmp_path / "run")
    with pytest.raises(UserError, match="holds checkpoints of another training: go on with --resume"):
        train_run(config, tmp_path / "run", model=emoji)
    with pytest.raises(UserError, match="there is no folder"):
        train_run(small(tmp_path, "nowhere"), tmp_path / "other", model=emoji)


@pytest.mark.parametrize(
    ("training", "noted", "expected"),
    [
        ({"templates": "style_filewords"}, "", "t"),
        ({"templates": "style_filewords", "trigger": "inkish"}, "", "inkish"),
        ({"trigger": "inkish"}, "", "inkish"),
        ({"templates": "hypernetwork"}, "", ""),  # sentences without [name]
        ({}, "", ""),
        ({"trigger": "inkish"}, "mine", "mine"),
    ],
)
def test_the_trigger_word_goes_into_the_networks_notes(
    tmp_path: Path, few: Path, emoji: LatentDiffusion, training: dict, noted: str, expected: str
) -> None:
    library = hb.HypernetworkLibrary(tmp_path / "library")
    if noted:
        write_notes(tmp_path / "library" / "t.safetensors", Notes(activation_text=noted, notes="kept"))
    short = {"max_steps": 1, "batch_size": 1, "validation_share": 0.0}
    train_run(small(tmp_path, str(few), training=short | training), tmp_path / "run", model=emoji)
    found = library.notes("t")
    assert found.activation_text == expected
    assert found.notes == ("kept" if noted else "")
    assert (tmp_path / "library" / "t.json").exists() == bool(expected)


def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    config = small(tmp_path, str(few))
    file = Path(config.hypernetworks) / f"{config.name}.safetensors"
    file.parent.mkdir(parents=True)
    hb.AttentionHypernetwork.for_unet(emoji.unet, name="anime").save(file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists already: choose another name, or give --overwrite"):
        train_run(config, tmp_path / "run", model=emoji)
    assert file.read_bytes() == before
    assert not (tmp_path / "run").exists()
    on = config.model_copy(update={"start_from": str(file), "network": type(config.network)()})
    train_run(on, tmp_path / "on", model=emoji)
    assert file.read_bytes() != before, "what it goes on from is its own"
    assert train_run(config, tmp_path / "run", overwrite=True, model=emoji).file == file


def test_a_run_that_goes_on_replaces_its_own_file_alone(
    tmp_path: Path, few: Path, emoji: LatentDiffusion
) -> None:
    config = small(tmp_path, str(few), training={"max_steps": 1, "validation_share": 0.0})
    file = train_run(config, tmp_path / "run", model=emoji).file
    longer = small(tmp_path, str(few), training={"max_steps": 2, "validation_share": 0.0})
    go_on = {"resume": True, "model": emoji}
    before = file.read_bytes()
    train_run(longer, tmp_path / "run", **go_on)
    assert file.read_bytes() != before
    others = hb.AttentionHypernetwork.for_unet(emoji.unet, name="t").save(file).read_bytes()
    longest = small(tmp_path, str(few), training={"max_steps": 3, "validation_share": 0.0})
    with pytest.raises(
        UserError, match="is not what .* left there: take another folder, or give --overwrite"
    ):
        train_run(longest, tmp_path / "run", **go_on)
    assert file.read_bytes() == others
    train_run(longest, tmp_path / "run", overwrite=True, **go_on)
    assert file.read_bytes() != others


def test_the_figures_are_of_the_weights_that_are_kept(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0, "validation_loss": loss} for step, loss in ((1, 0.5), (2, 0.7))]
    rows[-1]["seconds"] = 3.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best, last = (RunResult(tmp_path, tmp_path / "x", **figures_of(tmp_path, keep)) for keep in (True, False))
    assert (best.best_step, best.best_loss) == (1, 0.5)
    assert (last.best_step, last.best_loss) == (2, 0.7)
    assert best.judged().endswith("0.5000 with it (best, at step 1)")
    assert last.judged().endswith("0.7000 with it (the last step's)")


def test_a_rank_to_tune_is_of_generated_weights(tmp_path: Path, few: Path, emoji: LatentDiffusion) -> None:
    with pytest.raises(UserError, match="tune_rank is of generated weights to go on from"):
        open_network(small(tmp_path, str(few), tune_rank=8), emoji)
    file = hb.AttentionHypernetwork.for_unet(emoji.unet, name="a").save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is a hypernetwork: leave it out"):
        open_network(small(tmp_path, str(few), network={}, tune_rank=8, start_from=str(file)), emoji)

"""`ldm train` has what `train` has: shapes, crops, held-out shares, plans, the preflight, settings as KEY=VALUE."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from test_going_on import ok, refused, tree

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.before.plan import plan_ldm
from hyperbrush.training.ldm.config import read_config, settings_of
from hyperbrush.training.ldm.run import build
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

TRAINING = {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "log_every": 1, "validate_every": 1}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Twelve pictures, every other one twice as wide as high."""
    folder = tmp_path / "wide"
    folder.mkdir()
    for i in range(12):
        size = (64, 32) if i % 2 else (32, 64)
        Image.radial_gradient("L").resize(size).point(lambda v, i=i: v // (1 + i)).convert("RGB").save(
            folder / f"red thing {i}.png"
        )
    return folder


def first_stage(folder: Path, **data: Any) -> dict[str, Any]:
    shape = {"size": 32, "folders": [str(folder)]} | data
    return {"kind": "first_stage", "data": shape, "model": {"channels": [8, 16]}, "training": TRAINING}


def diffusion(folder: Path, stage: Path, **data: Any) -> dict[str, Any]:
    return {
        "kind": "diffusion",
        "data": {"size": 32, "folders": [str(folder)]} | data,
        "first_stage": str(stage),
        "text": {"width": 32, "layers": 1, "vocabulary": 600},
        "unet": {"channels": [32, 64], "attention_resolutions": [16], "layers_per_block": 1},
        "training": TRAINING,
    }


@pytest.fixture
def stage(tmp_path: Path, make_tiny: Callable[..., LatentDiffusion]) -> Path:
    make_tiny().first_stage.save_pretrained(tmp_path / "stage")
    return tmp_path / "stage"


def written(tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "own.yaml"


@pytest.mark.parametrize("kind", ["first_stage", "diffusion"])
@pytest.mark.parametrize(
    "data",
    [
        {"buckets": "aspect", "bucket_step": 8, "validation_share": 0.5},
        {"buckets": "original", "bucket_step": 8, "validation_share": 0.5},
        {"size": [32, 64], "validation_share": 0.25},
        {"crop": "random", "crop_variants": 3, "validation_share": 0.25},
        {"crop": "none", "validation_share": 0.25},
    ],
    ids=["aspect", "original", "32x64", "random", "none"],
)
def test_shapes_crops_and_shares(
    wide: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: dict[str, Any]
) -> None:
    """Trained from the command line, with a share held out, a preview and a figure of it."""
    values = first_stage(wide) if kind == "first_stage" else diffusion(wide, stage)
    written(tmp_path, values, monkeypatch)
    told = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"
        for key, value in data.items()
    ]
    ok("ldm", "train", "own.yaml", *(word for setting in told for word in ("-s", setting)))
    run = tmp_path / "runs/own"
    assert "validation_loss" in read(run / "metrics.jsonl")[-1]
    config = read_config(run / "config.yaml")
    for key, value in data.items():
        assert getattr(config.data, key) == (tuple(value) if isinstance(value, list) else value)
    objective = build(config, run)
    held = 12 - len(objective.data)
    assert held == {0.5: 6, 0.25: 3}[data["validation_share"]]
    assert not set(objective.data.paths) & set(objective.held_out.paths)
    shapes = set(objective.data.groups)
    if "buckets" in data:
        assert len(shapes) == 2
        assert all(height != width for height, width in shapes)
    elif data.get("size") == [32, 64]:
        assert shapes == {(32, 64)}
    if kind == "diffusion" and data.get("crop") == "random":
        seen = {objective.data.example(0, epoch)["latent_mean"].sum().item() for epoch in range(20)}
        assert len(seen) == 3
    again = build(config, run)
    assert again.data.paths == objective.data.paths, "the same ones are held out"


def test_few_pictures_and_given_ones(pictures: Path, tmp_path: Path) -> None:
    """Nothing is held out of fewer than ten, nor where a folder is given."""
    given = first_stage(pictures, held_out=[str(pictures)], validation_share=0.5)
    objective = build(read_config(given), tmp_path)
    assert len(objective.data) == len(objective.held_out) == 12
    for path in sorted(pictures.iterdir())[9:]:
        path.unlink()
    assert build(read_config(first_stage(pictures, validation_share=0.5)), tmp_path).held_out is None
    assert build(read_config(first_stage(pictures)), tmp_path).held_out is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"masks": "alpha"}, "data.masks: a first stage learns whole pictures"),
        ({"latent_sampling": "random", "cache": "x"}, r"data.latent_sampling, data.cache: a first stage"),
        ({"size": [32, 31]}, r"data.size is \(32, 31\).* such as \[32, 32\]"),
        ({"size": 4}, "data.size"),
        ({"buckets": "aspect", "bucket_step": 3}, "bucket_step is 3; .* multiples of 2"),
        ({"validation_share": 1.5}, "data.validation_share"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    pictures: Path, tmp_path: Path, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build(read_config(first_stage(pictures, **data)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masks_weigh_a_diffusion_models_loss(wide: Path, stage: Path, tmp_path: Path) -> None:
    for path in sorted(wide.glob("*.png"))[:6]:
        mask = Image.new("L", Image.open(path).size, 0)
        mask.paste(255, (0, 0, 20, 20))
        mask.save(wide / f"{path.stem}.mask.png")
    values = diffusion(wide, stage, masks="files", mask_floor=0.5)
    objective = build(read_config(values), tmp_path / "run")
    assert objective.batch(0, 2)["masks"].shape[-2:] == (16, 16)
    assert objective(objective.batch(0, 2))["loss"].isfinite()


def test_files_that_cannot_be_used(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before the first step and left out, or, as `on_problem: raise`, the end."""
    (pictures / "broken.png").write_bytes(b"no picture")
    written(tmp_path, first_stage(pictures), monkeypatch)
    said = refused(capsys, "ldm", "train", "own.yaml", "-s", "on_problem=raise")
    assert "broken.png" in said
    assert not (tmp_path / "runs/own").exists(), "nothing is left of what was refused"
    ok("ldm", "train", "own.yaml")
    said = capsys.readouterr().err
    assert "error: 1 picture" in said
    assert "broken.png" in said
    report = json.loads((tmp_path / "runs/own/preflight.json").read_text())
    assert (report["found"], report["usable"]) == (13, 12)


@pytest.mark.parametrize("kind", ["first_stage", "diffusion", "start_from"])
def test_a_dry_run_writes_nothing(
    wide: Path,
    stage: Path,
    tmp_path: Path,
    make_tiny: Callable[..., LatentDiffusion],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    values = first_stage(wide) if kind == "first_stage" else diffusion(wide, stage)
    if kind == "start_from":
        make_tiny().save_pretrained(tmp_path / "model")
        values = {k: values[k] for k in ("kind", "data", "training")} | {
            "start_from": str(tmp_path / "model")
        }
    shutil.copy(wide / "red thing 0.png", wide / "red twin.png")
    written(tmp_path, values, monkeypatch)
    before = tree(tmp_path)
    ok("ldm", "train", "own.yaml", "--dry-run", "--steps", "40", "-s", "validation_share=0.3")
    said = capsys.readouterr().out
    assert tree(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    assert "9 to train on, 4 held out" in said
    assert "40 of 2 pictures; each picture 8.9 times" in said
    assert "warning: 1 picture" in said
    assert "red twin.png" in said
    ok("ldm", "train", "own.yaml")
    before = tree(tmp_path)
    capsys.readouterr()
    ok("ldm", "train", "--resume", "runs/own", "--dry-run", "--steps", "5")
    assert "from step 2, 3 to do" in capsys.readouterr().out
    assert "no checkpoint to resume from at step 9" in refused(
        capsys, "ldm", "train", "--resume", "runs/own", "--dry-run", "--at", "9"
    )
    assert tree(tmp_path) == before


def test_the_plan_knows_the_parameters(pictures: Path, tmp_path: Path, stage: Path) -> None:
    config = read_config(diffusion(pictures, stage))
    found = plan_ldm(config)
    objective = build(config, tmp_path / "run")
    assert found.parameters == sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert (found.pictures, found.held_out, found.shapes) == (12, 0, {(32, 32): 12})
    assert found.seconds > 0


def test_flags_win_over_the_file(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, first_stage(pictures), monkeypatch)
    found = settings_of(
        file,
        settings=["flip=0.25", "training.optimizer.name=sgd", "betas=[0.5, 0.6]", "codebook=7", "type=vq"],
        training={"steps": 9, "optimizer": {"learning_rate": 0.5}},
    )
    assert (found.training.steps, found.training.batch_size, found.data.flip) == (9, 2, 0.25)
    optimizer = found.training.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.betas) == ("sgd", 0.5, (0.5, 0.6))
    assert (found.model.codebook, found.model.type) == (7, "vq")
    for wrong, said in (("flp=1", "did you mean 'flip'"), ("flip", "expected KEY=VALUE")):
        with pytest.raises(UserError, match=said):
            settings_of(file, settings=[wrong])


def test_flags_of_a_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, first_stage(pictures), monkeypatch)
    told = ["--lr", "0.002", "--batch-size", "3", "--seed", "4", "--steps", "1", "-s", "schedule=linear"]
    ok("ldm", "train", "own.yaml", *told, "--run", "r")
    training = read_config(tmp_path / "r/config.yaml").training
    assert (training.steps, training.batch_size, training.seed) == (1, 3, 4)
    assert (training.optimizer.learning_rate, training.optimizer.schedule) == (0.002, "linear")
    before = tree(tmp_path / "r")
    for words, said in (
        (["--batch-size", "4"], "--batch-size (it has 3, given 4)"),
        (["-s", "crop=random"], "-s data.crop (it has 'center', given 'random')"),
        (["-s", "validation_share=0.1"], "-s data.validation_share"),
        (["--prompt", "cat"], "prompts"),
    ):
        assert said in refused(capsys, "ldm", "train", "--resume", "r", *words), words
        assert tree(tmp_path / "r") == before
    ok("ldm", "train", "--resume", "r", "--steps", "2", "--lr", "0.001")
    assert checkpoints.steps(tmp_path / "r/checkpoints")[-1] == 2
    assert read_config(tmp_path / "r/config.yaml").training.optimizer.learning_rate == 0.001


@pytest.mark.parametrize("rate", [None, 0, 2e-4])
def test_the_text_encoders_own_rate(
    pictures: Path, tmp_path: Path, stage: Path, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, it stays as it was; at a fifth of the rate it learns a fifth of what it learns else."""
    monkeypatch.chdir(tmp_path)
    values = diffusion(pictures, stage) | {"text_learning_rate": rate}
    values["training"] = TRAINING | {"steps": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-3}}
    values["process"] = {"condition_dropout": 0.0}
    config = read_config(values)
    objective = build(config, tmp_path / "run")
    begin = {k: v.clone() for k, v in objective.model.text_encoder.state_dict().items()}
    unet = objective.model.unet.conv_out.bias.detach().clone()
    groups = objective.parameter_groups()
    assert [g.get("scale", 1.0) for g in groups] == {None: [1.0, 1.0], 0: [1.0], 2e-4: [1.0, 0.2]}[rate]
    from hyperbrush.training import Trainer

    torch.nn.init.normal_(objective.model.unet.conv_out.weight, std=0.1)  # else nothing reaches the text yet
    Trainer(objective, config.training, tmp_path / "run").train()
    moved = max(
        float((v - begin[k]).abs().max()) for k, v in objective.model.text_encoder.state_dict().items()
    )
    assert (moved > 0) == (rate != 0)
    assert not torch.equal(unet, objective.model.unet.conv_out.bias)

"""`ldm train` with a transformer in the UNet's place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.commands.evaluation import evaluate_folder
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted, Trainer
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.run import build, train_ldm
from hyperbrush.training.loop.objectives import Objective, trained_tensors

Make = Callable[..., LatentDiffusion]


@pytest.fixture
def settings(pictures: Path, make_tiny: Make, tmp_path: Path) -> dict[str, Any]:
    make_tiny().first_stage.save_pretrained(tmp_path / "stage")
    folders = [{"path": str(pictures)}]
    return {
        "kind": "diffusion",
        "data": {"size": 32, "folders": folders, "held_out": folders},
        "first_stage": str(tmp_path / "stage"),
        "text": {"width": 32, "layers": 1, "vocabulary": 600},
        "transformer": {"width": 16, "layers": 1, "num_heads": 2, "dropout": 0.1},
        "prompts": ["a red square"],
        "training": {
            "steps": 4,
            "batch_size": 2,
            "checkpoint_every": 2,
            "validate_every": 4,
            "preview_every": 4,
            "gradient_checkpointing": True,
        },
    }


def weights(objective: Objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


@pytest.mark.parametrize("prediction", ["v_prediction", "flow_prediction"])
def test_it_is_trained_resumed_to_the_bit_saved_and_drawn_with(
    settings: dict[str, Any], prediction: str, pictures: Path, tmp_path: Path
) -> None:
    config, run = read_config(settings | {"process": {"prediction": prediction}}), tmp_path / "run"
    assert read_config(config.model_dump(mode="json")) == config
    objective = build(config, tmp_path / "whole")
    before = weights(objective).clone()
    Trainer(objective, config.training, tmp_path / "whole").train()
    seen: list[int] = []
    with pytest.raises(Interrupted):
        train_ldm(config, run, on_progress=lambda p: seen.append(p.step), should_stop=lambda: 2 in seen)
    again = build(config, run, resume=True)
    Trainer(again, config.training, run).train(resume=True)
    assert torch.equal(weights(objective), weights(again))
    assert not torch.equal(before, weights(again))
    assert list((run / "previews").glob("*.png"))
    opened = LatentDiffusion.from_pretrained(run / "model")
    kept = opened.unet.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.model.unet.state_dict().items())
    assert type(opened.unet).__name__ == "PixArtTransformer2DModel"

    model, grid = str(run / "model"), tmp_path / "grid.png"
    assert len(list(evaluate_folder(pictures, model=model, limit=2))) > 1
    with pytest.raises(SystemExit) as stop:
        main(["ldm", "sample", "a red square", "--model", model, "--steps", "2", "--out", str(grid)])
    assert stop.value.code in (0, None)
    assert grid.is_file()
    drawn = hb.generate("a (red:1.2) square", model=model, steps=2, seed=0)
    assert "Model hash: " in drawn[0].parameters
    go_on = {
        key: value for key, value in settings.items() if key not in ("first_stage", "text", "transformer")
    }
    objective = build(read_config(go_on | {"start_from": model}), tmp_path / "further")
    assert type(objective.model.unet).__name__ == "PixArtTransformer2DModel"


def test_hyperbrush_train_on_it(settings: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    objective = build(read_config(settings), tmp_path / "run")
    with torch.no_grad():
        for parameter in objective.model.unet.parameters():  # a fresh one's output is 0
            parameter.normal_(std=0.2)
    objective.model.save_pretrained(tmp_path / "model")
    words = [
        "train",
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(pictures),
        "--name",
        "mine",
        "--steps",
        "2",
    ]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--run", str(tmp_path / "mine"), "--hypernetworks", str(tmp_path / "library")])
    assert stop.value.code in (0, None)
    made = hb.load(tmp_path / "library/mine.safetensors")
    assert isinstance(made, hb.AttentionHypernetwork)
    assert made.sites == ["transformer_blocks.0.attn1.picture", "transformer_blocks.0.attn2.text"]
    drawn = {
        strength: hb.generate(
            f"a red square <hypernet:mine:{strength}>",
            model=str(tmp_path / "model"),
            hypernetworks=tmp_path / "library",
            steps=2,
            seed=0,
        )[0].image.tobytes()
        for strength in (0, 20)
    }
    assert drawn[0] != drawn[20]


def test_hyper_train_on_it(settings: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    model = build(read_config(settings), tmp_path / "run").model
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.normal_(std=0.2)
    target, name = hb.TargetNetwork(model), "gen"
    net = hb.Hypernetwork(["ff"], 16, 16, target=target, rank=2, heads=2, depth=1, name=name)
    config = {"max_steps": 1, "batch_size": 2, "pictures_per_style": 1, "shared_steps": 0, "prompts": []}
    styles = {"one": str(pictures), "two": str(pictures)}
    file = hb.HypernetworkTrainer(net, config, run=tmp_path / "gen").train(model, styles)
    with torch.no_grad():
        made = hb.Hypernetwork.load(file, model).generate_weights([str(next(pictures.glob("*.png")))])
    assert made.layers == hb.TargetNetwork(model, ["ff"]).layers
    assert made.squared_norm() > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"unet": {"channels": [16, 32]}}, "transformer takes the UNet's place"),
        ({"conditioning": "class", "text": {}}, "reads text alone, not conditioning 'class'"),
        ({"transformer": {"width": 18, "num_heads": 4}}, "width 18 is not divisible by 4 heads"),
        ({"transformer": {"depth": 2}}, "depth"),
        ({"first_stage": "", "text": {}, "start_from": "emoji"}, "start_from brings its own transformer"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_config(settings | more)


def test_sides_that_patches_do_not_fit_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["transformer"] = {"width": 16, "num_heads": 2, "patch_size": 3}
    with pytest.raises(UserError, match=r"expected a multiple of 6, such as 30"):
        build(read_config(settings), tmp_path / "run")

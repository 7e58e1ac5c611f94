"""Trainings by flow matching: `ldm train`, and both kinds of hypernetwork on a model that it made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.commands.evaluation import evaluate_folder
from hyperbrush.errors import UserError
from hyperbrush.files import read_json
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted, Trainer
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.objectives import grid_losses
from hyperbrush.training.ldm.run import build, train_ldm
from hyperbrush.training.loop.objectives import Objective, trained_tensors

Make = Callable[..., LatentDiffusion]
PROCESS = {
    "prediction": "flow_prediction",
    "shift": 2.0,
    "weighting": "cosmap",
    "timestep_sampling": "logit_normal",
    "timestep_options": {"mean": 0.3, "std": 0.8},
}


@pytest.fixture(scope="module")
def flow(make_tiny: Make) -> LatentDiffusion:
    return make_tiny(prediction="flow_prediction", shift=2.0)


@pytest.fixture
def settings(pictures: Path, make_tiny: Make, tmp_path: Path) -> dict[str, Any]:
    make_tiny().first_stage.save_pretrained(tmp_path / "stage")
    folders = [{"path": str(pictures)}]
    return {
        "kind": "diffusion",
        "data": {"size": 32, "folders": folders, "held_out": folders},
        "first_stage": str(tmp_path / "stage"),
        "text": {"width": 32, "layers": 1, "vocabulary": 600},
        "unet": {"channels": [16, 32], "attention_resolutions": [8], "layers_per_block": 1},
        "process": PROCESS,
        "prompts": ["a red square"],
        "training": {
            "steps": 4,
            "batch_size": 2,
            "checkpoint_every": 2,
            "validate_every": 4,
            "preview_every": 4,
            "log_every": 1,
        },
    }


def weights(objective: Objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


def status(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_a_model_is_trained_resumed_saved_sampled_and_evaluated(
    settings: dict[str, Any], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = read_config(settings), tmp_path / "run"
    assert read_config(config.model_dump(mode="json")) == config
    objective = build(config, tmp_path / "whole")
    assert objective.model.diffusion.schedule.told(torch.tensor([499])).item() == pytest.approx(2000 / 3)
    Trainer(objective, config.training, tmp_path / "whole").train()
    seen: list[int] = []
    with pytest.raises(Interrupted):
        train_ldm(config, run, on_progress=lambda p: seen.append(p.step), should_stop=lambda: 2 in seen)
    again = build(config, run, resume=True)
    Trainer(again, config.training, run).train(resume=True)
    assert torch.equal(weights(objective), weights(again))
    assert list((run / "previews").glob("*.png"))
    kept = read_json(run / "model/scheduler/scheduler_config.json")
    assert (kept["_class_name"], kept["shift"]) == ("FlowMatchEulerDiscreteScheduler", 2.0)

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = next(row["validation_loss"] for row in rows if "validation_loss" in row)
    model = str(run / "model")
    lines = list(evaluate_folder(pictures, model=model, limit=12))
    assert f"{valid:.4f}"[:4] in lines[1]
    grid = tmp_path / "grid.png"
    drawing = ["ldm", "sample", "a red square", "--model", model, "--steps", "2", "--out", str(grid)]
    assert status(drawing) == 0
    usual = grid.read_bytes()
    assert status([*drawing, "--sampler", "Flow Heun"]) == 0
    assert grid.read_bytes() != usual
    drawn = hb.generate("a red square", model=model, steps=2, seed=0)
    assert "Sampler: Flow Euler" in drawn[0].parameters
    assert status([*drawing, "--sampler", "Euler a"]) == 2
    assert "cannot use a model that predicts 'flow_prediction'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"zero_terminal_snr": True}, "zero_terminal_snr is of a variance-preserving process"),
        ({"schedule": "linear"}, "a noise schedule is of a variance-preserving process"),
        ({"weighting": "min_snr"}, "'min_snr' is not defined for a model trained by flow matching"),
        ({"timestep_options": {"shift": 2.0}}, "unknown option of timestep sampling 'logit_normal' 'shift'"),
        ({"prediction": "flow"}, "unknown prediction type 'flow'"),
        ({"prediction": "epsilon"}, "shift 2 is of prediction 'flow_prediction' alone"),
        ({"prediction": "epsilon", "shift": 1.0}, "'cosmap' is not defined .* variance-preserving process"),
    ],
    ids=str,
)
def test_settings_of_the_other_process_are_refused(
    settings: dict[str, Any], process: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_config(settings | {"process": PROCESS | process})


def test_a_model_to_go_on_from_brings_its_own_process(
    flow: LatentDiffusion, settings: dict[str, Any], tmp_path: Path
) -> None:
    flow.save_pretrained(tmp_path / "model")
    for own in ("first_stage", "text", "unet"):
        settings.pop(own)
    settings |= {"start_from": str(tmp_path / "model"), "process": {"weighting": "min_snr"}}
    with pytest.raises(UserError, match="'min_snr' is not defined for a model trained by flow matching"):
        build(read_config(settings), tmp_path / "run")
    assert not (tmp_path / "run/cache").exists(), "nothing is encoded before"
    settings["process"] = {"weighting": "sigma_sqrt", "offset_noise": 0.1, "perturbation": 0.1}
    objective = build(read_config(settings), tmp_path / "run")
    assert objective.model.diffusion.scheduler_config["shift"] == 2
    with pytest.raises(UserError, match=r"start_from brings its own process\.prediction, process\.shift"):
        read_config(settings | {"process": {"prediction": "flow_prediction", "shift": 3.0}})


SHORT = {
    "max_steps": 4,
    "batch_size": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
    "validation_share": 0.25,
}


def network(model: LatentDiffusion) -> hb.AttentionHypernetwork:
    torch.manual_seed(0)
    return hb.AttentionHypernetwork.for_unet(
        model.unet, name="t", layer_structure=(1, 1), activation="linear"
    )


def parameters(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_an_attention_hypernetwork_learns_and_resumes(
    flow: LatentDiffusion, pictures: Path, tmp_path: Path
) -> None:
    def train(run: Path, *, resume: bool = False, stop_at: int | None = None, **more: Any) -> torch.Tensor:
        hn, seen = network(flow), [0]
        trainer = hb.HypernetworkTrainer(
            hn,
            SHORT
            | {"log_every": 1, "prompts": ["a red square"], "preview_every": 4, "preview_steps": 2}
            | more,
            run=run,
            on_progress=lambda p: seen.append(p.step),
            should_stop=lambda: stop_at is not None and seen[-1] + 1 >= stop_at,
        )
        trainer.train(flow, pictures, resume=resume)
        return parameters(hn)

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", stop_at=3)
    assert torch.equal(train(tmp_path / "parts", resume=True), whole)
    assert list((tmp_path / "whole/previews").rglob("*.png"))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "validation_loss" in row][-1]
    assert last["validation_loss"] < last["validation_base"]
    for more in (
        {"weighting": "cosmap"},
        {"timestep_sampling": "shifted", "timestep_options": {"shift": 5.0}},
        {"offset_noise": 0.2},
    ):
        assert not torch.equal(train(tmp_path / str(more), **more), whole)


def test_the_validation_loss_is_the_velocitys(flow: LatentDiffusion) -> None:
    """At four shares of the shifted process, the noise keyed by picture and share."""
    from hyperbrush.ldm.util import keyed_generator

    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = flow.encode_text(["a red square", "a blue disc"]).detach()
    flow.eval()
    found = grid_losses(flow, x0, [0, 1], {"context": context})
    for i in range(2):
        for j, share in enumerate((0.125, 0.375, 0.625, 0.875)):
            u = (int(share * 1000) + 1) / 1000
            sigma = 2 * u / (1 + u)
            noise = torch.randn(4, 16, 16, generator=keyed_generator(0, "grid", i, j))
            x = (1 - sigma) * x0[i] + sigma * noise
            with torch.no_grad():
                output = flow.unet(
                    x[None], torch.tensor([1000 * sigma]), encoder_hidden_states=context[i : i + 1]
                ).sample[0]
            assert float(found[i, j]) == pytest.approx(
                float((output - noise + x0[i]).pow(2).mean()), rel=1e-4
            )


def test_a_generator_learns(flow: LatentDiffusion, pictures: Path, tmp_path: Path) -> None:
    styles = {name: pictures for name in ("one", "two")}
    torch.manual_seed(0)
    net = hb.Hypernetwork(
        ["attn2"], target=hb.TargetNetwork(flow), embedding_dim=16, hidden_dim=16, rank=2, depth=1, heads=2
    )
    before = parameters(net).clone()
    config = {"max_steps": 2, "batch_size": 4, "shared_steps": 0, "references": 2, "validation_share": 0.0}
    config |= {
        "weighting": "sigma_sqrt",
        "timestep_sampling": "logit_normal",
        "timestep_options": {"mean": 1.0},
    }
    hb.HypernetworkTrainer(net, config, run=tmp_path / "run").train(flow, styles, validation=styles)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in rows)
    assert not torch.equal(parameters(net), before)
    with pytest.raises(UserError, match="'debiased' is not defined for a model trained by flow matching"):
        hb.HypernetworkTrainer(net, config | {"weighting": "debiased"}, run=tmp_path / "b").train(
            flow, styles
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weighting": "min_snr"}, "'min_snr' is not defined for a model trained by flow matching"),
        (
            {"preview_sampler": "DPM++ 2M Karras"},
            "'DPM.. 2M Karras' cannot use a model that predicts 'flow_pred",
        ),
        ({"timestep_options": {"mean": 1.0}}, "unknown option of timestep sampling 'stratified' 'mean'"),
    ],
    ids=str,
)
def test_what_a_flow_does_not_have_is_refused_before_anything_is_encoded(
    flow: LatentDiffusion, pictures: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        hb.HypernetworkTrainer(network(flow), SHORT | more, run=tmp_path / "run").train(flow, pictures)
    assert not (tmp_path / "run/cache").exists()


def test_a_flows_settings_are_refused_by_other_models(
    make_tiny: Make, pictures: Path, tmp_path: Path
) -> None:
    model = make_tiny()
    for more, message in (
        ({"weighting": "cosmap"}, "'cosmap' is not defined .* variance-preserving process"),
        ({"preview_sampler": "Flow Euler"}, "'Flow Euler' cannot use a model that predicts 'v_prediction'"),
    ):
        with pytest.raises(UserError, match=message):
            hb.HypernetworkTrainer(network(model), SHORT | more, run=tmp_path / "run").train(model, pictures)

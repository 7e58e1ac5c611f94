"""The Trainer: exact resume, intact checkpoints, clear ends."""

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import Regression, train
from toys import weights as toy_weights

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.ldm.modules.losses import FirstStageLoss
from hyperbrush.ldm.util import load_config
from hyperbrush.training import Interrupted, Progress, Trainer, TrainerConfig
from hyperbrush.training.generator.run import configured_generator
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.first_stage import FirstStageObjective
from hyperbrush.training.ldm.objectives import DenoisingObjective
from hyperbrush.training.ldm.run import build
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import Metrics, read
from hyperbrush.training.loop.objectives import Objective, trained_tensors
from hyperbrush.training.loop.settings import write_settings

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "checkpoint_every": 2,
    "validate_every": 3,
    "preview_every": 6,
    "log_every": 1,
    "ema_decay": 0.9,
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
}


def stage_objective(folder: Path, **loss: Any) -> FirstStageObjective:
    torch.manual_seed(0)
    model = first_stage("kl", channels=(8, 16), sample_size=32)
    data = ImageFolder(folder, size=32, flip=0.5)
    return FirstStageObjective(model, FirstStageLoss(**loss), data, held_out=data)


def run(
    objective: Objective,
    folder: Path,
    *,
    stop_at: int = 0,
    resume: bool = False,
    at: int | None = None,
    **change: Any,
) -> Path:
    seen: list[int] = []
    trainer = Trainer(
        objective,
        load_config(TrainerConfig, SETTINGS | change),
        folder,
        on_progress=lambda p: seen.append(p.step),
        should_stop=lambda: bool(stop_at) and (seen[-1] if seen else 0) + 1 >= stop_at,
    )
    return trainer.train(resume=resume, at=at)


def weights(objective: Objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


@pytest.fixture(params=["first stage", "adversarial", "diffusion"])
def make(
    request: pytest.FixtureRequest,
    pictures: Path,
    make_tiny: Callable[..., LatentDiffusion],
) -> Callable[[], Objective]:
    def build_one() -> Objective:
        if request.param == "first stage":
            return stage_objective(pictures)
        if request.param == "adversarial":
            return stage_objective(pictures, adversarial_weight=0.1, adversarial_start=3)
        model = make_tiny(dropout=0.1)
        model.first_stage.requires_grad_(False)
        data = ImageFolder(pictures, size=32, flip=0.5)
        return DenoisingObjective(model, data, held_out=data, offset_noise=0.1, prompts=["red square"])

    return build_one


@pytest.mark.parametrize("change", [{}, {"keep_best": True}, {"ema_decay": None}], ids=str)
def test_resume_is_exact(make: Callable[[], Objective], tmp_path: Path, change: dict) -> None:
    whole = make()
    run(whole, tmp_path / "whole", **change)
    for stop in (1, 4):
        with pytest.raises(Interrupted):
            run(make(), tmp_path / f"parts-{stop}", stop_at=stop, **change)
        again = make()
        run(again, tmp_path / f"parts-{stop}", resume=True, **change)
        assert torch.equal(weights(whole), weights(again)), stop
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts-4")
    )
    assert ours == theirs
    last = checkpoints.path_of(tmp_path / "whole/checkpoints", 6)
    assert (
        checkpoints.load(last).tensors.keys()
        == checkpoints.load(checkpoints.path_of(tmp_path / "parts-4/checkpoints", 6)).tensors.keys()
    )


def test_going_back_to_a_step(pictures: Path, tmp_path: Path) -> None:
    first = stage_objective(pictures)
    run(first, tmp_path, keep_checkpoints=9)
    again = stage_objective(pictures)
    run(again, tmp_path, resume=True, at=2, keep_checkpoints=9)
    assert torch.equal(weights(first), weights(again))
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="no checkpoint at step 3 .*there are: 2, 4, 6"):
        run(stage_objective(pictures), tmp_path, resume=True, at=3)


def test_accumulation_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    one, two = stage_objective(pictures), stage_objective(pictures)
    calm = {
        "optimizer": SETTINGS["optimizer"] | {"eps": 1e-2}
    }  # Adam divides rounding errors by tiny numbers otherwise
    before = weights(one)
    run(one, tmp_path / "1", **calm)
    run(two, tmp_path / "2", gradient_accumulation=2, **calm)
    assert (weights(one) - before).abs().max() > 1e-4
    torch.testing.assert_close(weights(one), weights(two), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"mixed_precision": "bf16"},
        {"ema_decay": None},
        {"seed": 1},
        {"batch_size": 2},
        {"steps": 5},
        {"optimizer": {"schedule": "linear"}},
        {"optimizer": {"warmup_steps": 1}},
        {"optimizer": {"decay_from": 0.5}},
        {"optimizer": {"weight_decay": 5.0}},
        {"optimizer": {"betas": [0.5, 0.5]}},
        {"optimizer": {"eps": 1.0}},
        {"optimizer": {"max_grad_norm": 1e-3, "eps": 1e-3}},
        {"optimizer": {"learning_rate": 1e-4}},
        {"optimizer": {"schedule": "1e-3:2, 1e-4"}},
    ],
    ids=str,
)
def test_each_setting_makes_a_difference(pictures: Path, tmp_path: Path, change: dict) -> None:
    optimizer = SETTINGS["optimizer"] | change.get("optimizer", {})
    base, other = stage_objective(pictures), stage_objective(pictures)
    run(base, tmp_path / "base")
    if "seed" in change:
        other.seed = 1
    run(other, tmp_path / "other", **(change | {"optimizer": optimizer}))
    assert not torch.equal(weights(base), weights(other))


def test_a_full_precision_run_leaves_its_files(pictures: Path, tmp_path: Path) -> None:
    saved = run(stage_objective(pictures), tmp_path, trackers=["tensorboard"], channels_last=True)
    assert saved == tmp_path / "first_stage"
    assert (tmp_path / "previews/step-00000006.png").is_file()
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004.safetensors",
        "step-00000006.safetensors",
    ]
    row = read(tmp_path / "metrics.jsonl")[-1]
    assert row["validation_psnr"] > 3
    assert {"loss", "l1", "learning_rate", "seconds"} <= row.keys()


def test_keep_best_keeps_the_best(pictures: Path, tmp_path: Path) -> None:
    objective = stage_objective(pictures)
    figures = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    seen: dict[float, torch.Tensor] = {}

    def validate() -> dict[str, float]:
        value = next(figures)
        seen[value] = weights(objective)
        return {"loss": value}

    objective.validate = validate  # type: ignore[method-assign]
    run(objective, tmp_path, keep_best=True, validate_every=1)
    assert torch.equal(weights(objective), seen[1.0])


class Exploding(FirstStageObjective):
    """Turns bad at the third step."""

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        batch = super().batch(step, batch_size)
        return batch | {"images": batch["images"] * float("nan")} if step == 2 else batch


def test_a_nan_names_the_batch_and_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = Exploding(
        first_stage("kl", channels=(8, 16), sample_size=32), FirstStageLoss(), ImageFolder(pictures, size=32)
    )
    with pytest.raises(
        UserError, match=r"step 3: loss is nan.*no weight was changed.*\.png.*step 2 is intact"
    ):
        run(objective, tmp_path)
    assert weights(objective).isfinite().all()
    kept = checkpoints.latest(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.step == 2


def test_a_damaged_checkpoint_is_passed_over(pictures: Path, tmp_path: Path) -> None:
    run(stage_objective(pictures), tmp_path)
    newest = checkpoints.path_of(tmp_path / "checkpoints", 6)
    content = bytearray(newest.read_bytes())
    content[-5] ^= 0xFF
    newest.write_bytes(content)
    with pytest.raises(UserError, match="damaged: its content does not match"):
        checkpoints.load(newest)
    found = checkpoints.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 4
    newest.write_bytes(content[:1000])
    assert checkpoints.latest(tmp_path / "checkpoints").step == 4
    (tmp_path / "checkpoints/step-00000004.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-00000006.*cannot be read.*step-00000004"):
        checkpoints.latest(tmp_path / "checkpoints")


def test_a_full_disk_keeps_the_older_checkpoint(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hyperbrush.training.loop.checkpoint as module

    real, calls = module.save_file, []

    def save_file(tensors: Any, path: Path, **more: Any) -> None:
        calls.append(path)
        real(tensors, path, **more)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", save_file)
    with pytest.raises(UserError, match=r"cannot write .*step-00000004.*No space left on device"):
        run(stage_objective(pictures), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002.safetensors"]
    monkeypatch.undo()
    run(stage_objective(pictures), tmp_path, resume=True)


def test_a_checkpoint_of_another_network_is_refused(pictures: Path, tmp_path: Path) -> None:
    run(stage_objective(pictures), tmp_path)
    other = stage_objective(pictures, adversarial_weight=0.1)
    with pytest.raises(UserError, match="of another network than the config"):
        run(other, tmp_path, resume=True)
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        run(other, tmp_path / "nothing", resume=True)


def test_metrics_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert [row["step"] for row in read(path)] == [1, 2]
    metrics = Metrics(path, 1)
    metrics.write(2, {"loss": 0.25})
    metrics.close()
    assert [json.loads(x) for x in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.25},
    ]


def test_adversarial_sides_do_not_mix(pictures: Path) -> None:
    objective = stage_objective(pictures, adversarial_weight=0.5, adversarial_start=5)
    batch = objective.batch(0, 2)
    assert float(objective(batch)["discriminator"].detach()) == 0
    terms = objective(batch | {"step": 5})
    own = list(objective.model.parameters())
    other = list(objective.discriminator.parameters())
    assert all(
        g is None
        for g in torch.autograd.grad(terms["discriminator"], own, allow_unused=True, retain_graph=True)
    )
    assert all(
        g is None
        for g in torch.autograd.grad(terms["adversarial"], other, allow_unused=True, retain_graph=True)
    )
    assert any(g is not None for g in torch.autograd.grad(terms["adversarial"], own, allow_unused=True))


def test_wrong_settings_are_shown_together() -> None:
    with pytest.raises(UserError) as caught:
        load_config(TrainerConfig, {"stepz": 3, "batch_size": 0, "optimizer": {"learning_rat": 1}})
    text = str(caught.value)
    assert "unknown setting 'stepz', did you mean 'steps'?" in text
    assert "unknown setting 'optimizer.learning_rat', did you mean 'learning_rate'?" in text
    assert "batch_size: " in text
    with pytest.raises(UserError, match="batch_size 5 cannot be split"):
        load_config(TrainerConfig, {"batch_size": 5, "gradient_accumulation": 2})


def test_from_config_files(pictures: Path, tmp_path: Path) -> None:
    training = SETTINGS | {"optimizer": {}, "steps": 2, "validate_every": 1, "preview_every": 1}
    data = {
        "size": 32,
        "flip": 0.5,
        "folders": [{"path": str(pictures), "caption_suffix": ", flat style", "repeats": 2}],
        "held_out": [{"path": str(pictures)}],
    }
    (tmp_path / "stage.yaml").write_text(
        yaml.safe_dump(
            {"kind": "first_stage", "data": data, "model": {"channels": [8, 16]}, "training": training}
        )
    )
    config = read_config(tmp_path / "stage.yaml")
    stage = Trainer(build(config, tmp_path / "a"), config.training, tmp_path / "a").train()
    (tmp_path / "unet.yaml").write_text(
        yaml.safe_dump(
            {
                "kind": "diffusion",
                "data": data,
                "first_stage": str(stage),
                "text": {"width": 32, "layers": 1, "vocabulary": 600},
                "unet": {"channels": [32, 64], "attention_resolutions": [8], "layers_per_block": 1},
                "prompts": ["red square"],
                "training": training | {"gradient_checkpointing": True, "channels_last": True},
            }
        )
    )
    config = read_config(tmp_path / "unet.yaml")
    objective = build(config, tmp_path / "b")
    assert len(objective.data) == 24
    assert objective.data.example(0, 0)["caption"].endswith(", flat style")
    model = Trainer(objective, config.training, tmp_path / "b").train()
    write_settings(config, tmp_path / "b")
    assert read_config(tmp_path / "b/config.yaml") == config
    opened = LatentDiffusion.from_pretrained(model)
    assert {"red", "flat", "style"} <= opened.known_words
    assert float(opened.scale_factor) != 1.0
    (tmp_path / "on.yaml").write_text(
        yaml.safe_dump({"kind": "diffusion", "data": data, "start_from": str(model), "training": training})
    )
    config = read_config(tmp_path / "on.yaml")
    assert Trainer(build(config, tmp_path / "c"), config.training, tmp_path / "c").train().is_dir()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fist_stage"}, "unknown kind of training.*did you mean 'first_stage'"),
        ({"kind": "first_stage"}, "setting 'data' is missing"),
        ({"kind": "diffusion", "data": {"folders": []}}, "data.folders"),
        (
            {
                "kind": "diffusion",
                "training": {"optimizer": {"decay_from": 0.5, "schedule": "5e-5:100, 5e-6"}},
            },
            "decay_from is when a schedule begins to fall",
        ),
        (
            {"kind": "diffusion", "data": {"folders": [{"path": "a"}], "mask_folder": "masks"}},
            "mask_folder is of masks: files",
        ),
        (
            {"kind": "diffusion", "data": {"folders": [{"path": "a"}], "mask_floor": 0.5}},
            "mask_floor is of masks",
        ),
        ({"kind": "diffusion", "text": {"width": 130}}, "width 130 is not divisible by 4 heads"),
    ],
)
def test_wrong_configs(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(values)


def test_a_diffusion_run_needs_a_first_stage(pictures: Path, tmp_path: Path) -> None:
    values = {"kind": "diffusion", "data": {"folders": [{"path": str(pictures)}], "size": 32}}
    with pytest.raises(UserError, match="needs 'first_stage'"):
        build(read_config(values), tmp_path)
    with pytest.raises(UserError, match="holds no trained autoencoder"):
        build(read_config(values | {"first_stage": str(tmp_path)}), tmp_path)
    with pytest.raises(UserError, match="not valid YAML"):
        (tmp_path / "x.yaml").write_text("a: [")
        read_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml")), ids=lambda p: p.name
)
def test_recipes_are_valid(path: Path) -> None:
    if "work" in path.parts:
        return
    if "kind: generator" in path.read_text():
        assert configured_generator(path).training.max_steps
    else:
        assert read_config(path).training.steps > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixed_precision fp16 needs a GPU, and this is cpu"):
        train(Regression(), tmp_path / "run", mixed_precision="fp16")


def test_a_precision_that_accelerate_refuses_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    def refuse(**_: Any) -> None:
        raise ValueError("bf16 mixed precision requires a supported device.")

    monkeypatch.setattr(accelerate, "Accelerator", refuse)
    with pytest.raises(
        UserError, match="mixed_precision bf16 on .*: bf16 mixed precision requires .*; take another, or no"
    ):
        train(Regression(), tmp_path / "run", mixed_precision="bf16")


def test_a_first_stage_is_what_its_config_says(pictures: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny, ControlNetModel

    values = {"kind": "diffusion", "data": {"folders": [{"path": str(pictures)}], "size": 32}}
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path / "tiny")
    ControlNetModel(
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        conditioning_embedding_out_channels=(8, 8),
    ).save_pretrained(tmp_path / "other")
    objective = build(read_config(values | {"first_stage": str(tmp_path / "tiny")}), tmp_path / "run")
    assert torch.equal(next(objective.model.first_stage.parameters()), next(tiny.parameters()))
    with pytest.raises(UserError, match="holds a ControlNetModel; expected one of AutoencoderKL"):
        build(read_config(values | {"first_stage": str(tmp_path / "other")}), tmp_path / "b")
    (tmp_path / "tiny/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="first_stage: cannot open"):
        build(read_config(values | {"first_stage": str(tmp_path / "tiny")}), tmp_path / "c")


def test_a_used_run_folder_is_refused(pictures: Path, tmp_path: Path) -> None:
    run(stage_objective(pictures), tmp_path)
    with pytest.raises(UserError, match="holds checkpoints of another training"):
        run(stage_objective(pictures), tmp_path)


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def another(progress: Progress) -> None:
        if progress.step == 3:
            with pytest.raises(
                UserError, match=f"in use by another training .process {os.getpid()} on "
            ) as caught:
                train(Regression(), tmp_path, resume=True)
            refused.append(str(caught.value))

    first = train(Regression(), tmp_path, on_progress=another)
    assert refused
    assert torch.equal(toy_weights(first), toy_weights(train(Regression(), tmp_path / "alone")))
    train(Regression(), tmp_path, resume=True)


def test_a_config_of_another_version_names_file_and_setting(pictures: Path, tmp_path: Path) -> None:
    config = {"kind": "first_stage", "data": {"folders": [{"path": str(pictures)}]}, "training": {"ema": 0.9}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"config\.yaml: unknown setting 'training\.ema'"):
        read_config(tmp_path / "config.yaml")


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints/.step-00000002.part-abcd.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    train(Regression(), tmp_path)
    assert not left.exists()


def test_a_bad_gradient_changes_nothing_even_without_clipping(pictures: Path, tmp_path: Path) -> None:
    objective = stage_objective(pictures)
    parameter = next(iter(trained_tensors(objective).values()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(objective)
    with pytest.raises(UserError, match="step 1: gradient norm is"):
        run(objective, tmp_path, optimizer=SETTINGS["optimizer"] | {"max_grad_norm": None})
    assert torch.equal(before, weights(objective))


def test_warmup_may_outlast_the_plateau(pictures: Path, tmp_path: Path) -> None:
    settings = {"steps": 100, "optimizer": {"schedule": "linear", "warmup_steps": 40, "decay_from": 0.1}}
    trainer = Trainer(stage_objective(pictures), load_config(TrainerConfig, SETTINGS | settings), tmp_path)
    rates = [trainer.rate(step) for step in range(101)]
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 5e-5
    assert (rates[0], rates[100]) == (0, 0)

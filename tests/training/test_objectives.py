"""Parts of a batch, trained weights, and what the two objectives of a latent diffusion model give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.data.buckets import Buckets
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.ldm.modules.losses import FirstStageLoss
from hyperbrush.training.ldm.first_stage import FirstStageObjective
from hyperbrush.training.ldm.objectives import DenoisingObjective, validation_losses
from hyperbrush.training.loop.objectives import Objective, load_trained, rows, trained_tensors

Maker = Callable[..., LatentDiffusion]


def test_rows_cut_what_has_one_entry_a_picture() -> None:
    shared = torch.zeros(3)
    batch = {
        "images": torch.arange(4),
        "paths": list("abcd"),
        "step": 4,
        "scale": torch.tensor(4.0),
        "mean": shared,
    }
    part = rows(batch, 1, 3, 4)
    assert part["images"].tolist() == [1, 2]
    assert part["paths"] == ["b", "c"]
    assert (part["step"], part["scale"], part["mean"] is shared) == (4, torch.tensor(4.0), True)


def test_trained_weights_of_another_network_are_refused() -> None:
    layer = nn.Linear(2, 3)
    layer.bias.requires_grad_(False)
    assert list(trained_tensors(layer)) == ["weight"]
    load_trained(layer, {"weight": torch.ones(3, 2)})
    assert layer.weight.tolist() == [[1, 1]] * 3
    for wrong in ({"weight": torch.ones(2, 3)}, {}, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}):
        with pytest.raises(UserError, match="of another network than the config describes"):
            load_trained(layer, wrong)


def objective_of(
    kind: str, folder: Path, make_tiny: Maker, data: ImageFolder | None = None, **settings: Any
) -> Objective:
    data = data or ImageFolder(folder, size=32, flip=0.5)
    if kind == "diffusion":
        model = make_tiny()
        nn.init.normal_(model.unet.conv_out.weight, std=0.1)
        model.first_stage.requires_grad_(False)
        return DenoisingObjective(model, data, held_out=data, **settings)
    torch.manual_seed(0)
    stage = first_stage("vq" if kind == "vq" else "kl", channels=(8, 16), codebook=16, sample_size=32)
    return FirstStageObjective(stage, FirstStageLoss(**settings), data, held_out=data)


def gradients(objective: Objective, parts: int, size: int = 4) -> tuple[float, list[torch.Tensor]]:
    batch, loss = objective.batch(0, size), 0.0
    objective.zero_grad()
    for part in range(parts):
        count = size // parts
        term = objective(rows(batch, part * count, (part + 1) * count, size))["loss"] / parts
        term.backward()
        loss += float(term.detach())
    return loss, [p.grad.clone() for p in trained_tensors(objective).values() if p.grad is not None]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("kl", {}),
        ("kl", {"log_mse": 1.0}),
        ("kl", {"adversarial_weight": 0.1}),
        ("vq", {}),
        ("diffusion", {}),
    ],
    ids=str,
)
def test_parts_give_the_gradient_of_the_whole(
    kind: str, settings: dict, pictures: Path, make_tiny: Maker
) -> None:
    objective = objective_of(kind, pictures, make_tiny, **settings)
    whole, expected = gradients(objective, 1)
    parts, found = gradients(objective, 2)
    assert parts == pytest.approx(whole, rel=1e-5)
    largest = max(float(g.abs().max()) for g in expected)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * largest, rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "diffusion"])
def test_gradient_checkpointing_keeps_the_gradient(kind: str, pictures: Path, make_tiny: Maker) -> None:
    plain, spared = (objective_of(kind, pictures, make_tiny) for _ in range(2))
    network = spared.model if kind == "kl" else spared.model.unet
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    for a, b in zip(gradients(plain, 1)[1], gradients(spared.train(), 1)[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "diffusion"])
def test_a_batch_is_a_function_of_the_step(kind: str, pictures: Path, make_tiny: Maker) -> None:
    one, two = (objective_of(kind, pictures, make_tiny) for _ in range(2))
    one.batch(0, 4)
    torch.randn(7)  # the global generator plays no part
    a, b, other = one.batch(3, 4), two.batch(3, 4), two.batch(4, 4)
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
    assert not torch.equal(a["noise"], other["noise"])


@pytest.mark.parametrize("kind", ["kl", "diffusion"])
def test_shapes_never_meet_in_a_batch(kind: str, tmp_path: Path, make_tiny: Maker) -> None:
    for i in range(6):
        shape = (32, 64, 3) if i % 2 else (64, 32, 3)
        Image.fromarray(np.full(shape, 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = ImageFolder(tmp_path, buckets=Buckets(48, step=16))
    objective = objective_of(kind, tmp_path, make_tiny, data)
    assert len(set(objective.data.groups)) == 2
    shapes = {tuple(objective.batch(step, 2)["images"].shape[-2:]) for step in range(6)}
    assert shapes == set(objective.data.groups)
    assert objective(objective.batch(0, 2))["loss"].isfinite()


def test_the_text_encoder_may_have_a_rate_of_its_own(pictures: Path, make_tiny: Maker) -> None:
    objective = objective_of("diffusion", pictures, make_tiny, text_learning_rate_scale=0.1)
    first, second = objective.parameter_groups()
    assert second["scale"] == 0.1
    text = {id(p) for p in objective.model.text_encoder.parameters()}
    assert {id(p) for p in second["params"]} == text
    assert not text & {id(p) for p in first["params"]}
    assert len(first["params"]) == len(list(objective.model.unet.parameters()))


def test_validation_does_not_depend_on_batch_or_mode(pictures: Path, make_tiny: Maker) -> None:
    model, data = make_tiny(dropout=0.5), ImageFolder(pictures, size=32)
    nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    model.train()
    found = validation_losses(model, data, limit=6)
    assert model.training
    assert found.shape == (6, 4)
    torch.testing.assert_close(
        found, validation_losses(model, data, limit=6, batch_size=4), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found[:2], validation_losses(model, data, limit=2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, validation_losses(model, data, limit=6, seed=1))
    losses, counts = model.diffusion.losses, []

    def small(latents: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        counts.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError
        return losses(latents, *rest, **more)

    model.diffusion.losses = small  # type: ignore[method-assign]
    torch.testing.assert_close(found, validation_losses(model, data, limit=6), rtol=1e-4, atol=1e-5)
    assert set(counts) == {6, 3, 2, 1}


def test_a_full_disk_at_the_end_is_one_clear_error(
    pictures: Path, tmp_path: Path, make_tiny: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    objective = objective_of("kl", pictures, make_tiny)
    objective.save(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run/first_stage").iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*first_stage: No space left on device"):
        objective.save(tmp_path / "run")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run/first_stage").iterdir()}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["first_stage"]

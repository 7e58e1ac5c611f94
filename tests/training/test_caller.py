"""A training leaves the process and the model it was called from as it found them."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Regression, train, trainer

import hyperbrush as hb
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted
from hyperbrush.training.before.finders import find_batch_size


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """The caller's own, in another precision and with accumulation."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # what other tests of this process left
    GradientState._reset_state()
    yield Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_accelerate_and_the_global_generators_are_the_callers(accelerator: Any, tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def seed() -> None:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    seed()
    expected = drawn()
    seed()
    objective = Regression()
    seed()
    train(objective, tmp_path / "whole", mixed_precision="no")
    assert drawn() == expected
    seed()
    with pytest.raises(Interrupted):
        trainer(Regression(), tmp_path / "stopped", stop_at=2).train()
    seed()
    find_batch_size(objective, trainer(objective, tmp_path / "x").config, limit=16)
    assert drawn() == expected
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.gradient_state.num_steps == 4
    assert Accelerator().mixed_precision == "bf16"
    assert AcceleratorState().mixed_precision == "bf16"


def test_without_accelerate_before_there_is_none_after(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train(Regression(), tmp_path)
    assert not PartialState._shared_state
    assert not AcceleratorState._shared_state
    assert not GradientState._shared_state


def test_an_objective_keeps_its_modes_and_its_forward(tmp_path: Path) -> None:
    objective = Regression()
    objective.network[0].eval()
    train(objective, tmp_path / "bf16", mixed_precision="bf16")
    assert [module.training for module in objective.network] == [False, True, True, True]
    assert "forward" not in vars(objective)


def test_the_users_model_is_as_it_was(
    make_tiny: Callable[..., LatentDiffusion], pictures: Path, tmp_path: Path
) -> None:
    model = make_tiny()
    model.train()
    model.unet.mid_block.eval()
    model.first_stage.requires_grad_(False)
    told: dict[str, Any] = {}

    def state() -> dict[str, Any]:
        return {
            "modes": [module.training for module in model.modules()],
            "grad": [p.requires_grad for p in model.parameters()],
            "strides": [p.stride() for p in model.parameters()],
            "devices": [p.device for p in model.parameters()],
            "checkpointing": [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
            "hooks": [len(m._forward_pre_hooks) for m in model.modules()],
            "bits": [p.detach().double().sum().item() for p in model.parameters()],
        }

    def look(progress: Any) -> None:
        told.update(state())

    before = state()
    network = hb.AttentionHypernetwork.for_unet(model.unet, name="t", layer_structure=(1, 1))
    config = {"max_steps": 1, "batch_size": 2, "gradient_checkpointing": True, "channels_last": True}
    made = hb.HypernetworkTrainer(network, config, run=tmp_path / "run", on_progress=look)
    made.train(model, pictures)
    assert told["modes"] != before["modes"], "it trains otherwise"
    assert told["grad"] != before["grad"]
    assert told["strides"] != before["strides"]
    assert told["checkpointing"] != before["checkpointing"]
    assert state() == before
    with pytest.raises(hb.UserError):
        made.train(model, tmp_path / "nothing")
    assert state() == before
    batch = {"latents": torch.randn(2, *model.latent_shape), "captions": ["red square", "cat face"]}
    hb.train_hypernetwork(model, batch, network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert state() == before

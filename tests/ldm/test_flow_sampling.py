"""Samplers of models trained by flow matching: a Gaussian's exact velocity, and diffusers' own classes."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.flow import config_of
from hyperbrush.ldm.sampling.samplers import SAMPLERS, make_scheduler, sample

FLOW = [name for name, one in SAMPLERS.items() if "flow_prediction" in one.predictions]
MEAN, DEVIATION = 0.6, 0.5
SHAPE = (4, 8, 8)


def gaussian(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """E[eps - x0 | x_t] where every element of x0 is N(0.6, 0.5²): the optimal network."""
    sigma = float(timestep) / 1000
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    slope = (sigma - (1 - sigma) * DEVIATION**2) / variance
    return -MEAN + slope * (latents - (1 - sigma) * MEAN)


def wavy(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latents.roll(1, -1) * 0.7 + latents * 0.3 + float(timestep) / 1000)


def test_which_samplers_there_are() -> None:
    assert FLOW == ["DPM++ 2M", "DPM++ 2M SDE", "UniPC", "Flow Euler", "Flow Heun"]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW)
def test_reaches_a_gaussians_mean_and_variance(name: str, shift: float) -> None:
    steps = 250 if name == "Flow Euler" else 100
    made = sample(gaussian, make_scheduler(name, config_of(1000, shift)), (4, 48, 48), [0, 1, 2], steps)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert made.var().item() == pytest.approx(DEVIATION**2, rel=0.08 if name == "DPM++ 2M SDE" else 0.05)


@pytest.mark.parametrize(("name", "order"), [("Flow Euler", 1), ("Flow Heun", 2)])
def test_errors_fall_with_the_order(name: str, order: int) -> None:
    """The exact flow from noise z leads to mean + deviation · z."""
    start = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    scheduler, errors = make_scheduler(name, config_of(1000, 1.0)), []
    for steps in (17, 33, 65):  # the levels run from 1 to 0.001 in one step less
        made = sample(gaussian, scheduler, SHAPE, [0], steps, latents=start)
        errors.append(float((made - (MEAN + DEVIATION * start)).abs().max()))
    for one, half in pairwise(errors):
        assert math.log2(one / half) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_same_latents_as_diffusers(name: str, shift: float) -> None:
    import diffusers

    theirs: Any = getattr(diffusers, f"FlowMatch{name}DiscreteScheduler")(shift=shift)
    theirs.set_timesteps(7)
    start = torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(s)) for s in (4, 5)])
    x = start
    for t in theirs.timesteps:
        x = theirs.step(wavy(x, t), t, x, return_dict=False)[0]
    made = sample(wavy, make_scheduler(f"Flow {name}", config_of(1000, shift)), SHAPE, [4, 5], 7)
    assert (made - x).abs().max() < 1e-6
    assert (made - start).abs().max() > 0.1


@pytest.mark.parametrize("name", FLOW)
def test_seeds_steps_and_pictures_to_start_from(name: str) -> None:
    scheduler, told = make_scheduler(name, config_of(1000, 1.0)), []
    one, two = (sample(wavy, scheduler, SHAPE, [seed], 5) for seed in (5, 6))
    both = sample(wavy, scheduler, SHAPE, [5, 6], 5, on_step=lambda step, of, x: told.append((step, of)))
    assert told == [(n, 5) for n in range(1, 6)]
    assert (torch.cat([one, two]) - both).abs().max() < 1e-5
    assert (one - two).abs().max() > 0.1
    for steps in (1, 2, 50):
        assert torch.isfinite(sample(gaussian, scheduler, SHAPE, [0], steps)).all()
    picture = MEAN + DEVIATION * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    seen: list[float] = []

    def noise_seen(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = float(timestep) / 1000
        seen.append(float(((latents - (1 - sigma) * picture)[..., :4] / sigma).std()))
        return gaussian(latents, timestep)

    def draw(strength: float, of: Callable[..., torch.Tensor] = gaussian, **more: Any) -> torch.Tensor:
        return sample(of, scheduler, SHAPE, [1, 2], 20, image_latents=picture, strength=strength, **more)

    near, far = ((draw(strength) - picture).std() for strength in (0.15, 0.9))
    assert near < 0.25 < 0.4 < far
    kept = draw(0.5, noise_seen, mask=mask)
    assert torch.equal(kept[..., :4], picture[..., :4])
    assert (kept - picture)[..., 4:].std() > 0.1
    assert seen[:: SAMPLERS[name].order] == pytest.approx(
        [seen[0]] * 10, rel=0.02
    )  # Heun's second looks ahead
    assert seen[0] == pytest.approx(1, abs=0.1)


def test_a_sampler_of_the_wrong_kind_is_refused_by_name() -> None:
    for name in SAMPLERS:
        if name not in FLOW:
            with pytest.raises(
                UserError, match="cannot use a model that predicts 'flow_prediction'.*Flow Euler"
            ):
                make_scheduler(name, config_of(1000, 1.0))
    for name in ("Flow Euler", "flow_heun", "FlowMatchEuler"):
        with pytest.raises(
            UserError, match=r"sampler 'Flow \w+' cannot use a model that predicts 'epsilon'.*DDIM"
        ):
            make_scheduler(name, {"prediction_type": "epsilon"})
    with pytest.raises(UserError, match="has no noise schedule 'Karras'"):
        make_scheduler("Flow Euler Karras", config_of(1000, 1.0))
    with pytest.raises(UserError, match="discretisation 'webui'.*flow matching"):
        scheduler = make_scheduler("DPM++ 2M", config_of(1000, 1.0))
        sample(wavy, scheduler, SHAPE, [0], 2, discretisation="webui")

"""Flow matching as functions, against closed forms and diffusers."""

import math

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules import diffusion as d
from hyperbrush.ldm.modules import flow


def drawn(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_sigmas_and_what_the_network_is_told_are_those_of_diffusers(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = flow.FlowSchedule.of_shift(shift)
    every = torch.arange(1000)
    torch.testing.assert_close(ours.sigmas.float().flip(0), theirs.sigmas, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.told(every).flip(0), theirs.timesteps, atol=1e-3, rtol=1e-6)
    assert float(ours.sigmas[-1]) == 1
    assert float(ours.snr(torch.tensor([999]))) == 0
    x0, noise = drawn(3, 4, 2, 2)
    t = torch.tensor([5, 400, 999])
    noisy = d.add_noise(ours, x0, noise, t)
    scaled = theirs.scale_noise(x0, theirs.timesteps[999 - t], noise)
    torch.testing.assert_close(noisy, scaled, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(d.target(ours, "flow_prediction", x0, noise, t), noise - x0)


@pytest.mark.parametrize("source", d.PREDICTIONS)
@pytest.mark.parametrize("to", d.PREDICTIONS)
def test_conversions_are_exact(source: str, to: str) -> None:
    schedule = flow.FlowSchedule.of_shift(2.0)
    t = torch.tensor([0, 1, 250, 500, 998 if source == "epsilon" else 999])
    x0, noise = drawn(5, 4, 2, 2)
    xt = d.add_noise(schedule, x0, noise, t)
    output = d.target(schedule, source, x0, noise, t)
    found = d.convert(schedule, output, xt, t, source=source, to=to)
    torch.testing.assert_close(found, d.target(schedule, to, x0, noise, t), atol=1e-8, rtol=1e-6)


def test_v_is_that_of_the_variance_preserving_process_at_the_same_snr() -> None:
    ours, sd = flow.FlowSchedule.of_shift(), d.NoiseSchedule.named()
    x0, noise = drawn(1, 4, 2, 2)
    step = torch.tensor([600])
    signal, sigma = (float(r) for r in sd.rates(step, x0))
    share = sigma / (signal + sigma)  # the flow's sigma at the same signal-to-noise ratio
    at = flow.FlowSchedule(torch.tensor([share], dtype=torch.float64))
    torch.testing.assert_close(at.snr(torch.tensor([0])), sd.snr(step))
    velocity = d.target(ours, "flow_prediction", x0, noise, step)
    x_flow = d.add_noise(at, x0, noise, torch.tensor([0]))
    made = d.convert(at, velocity, x_flow, torch.tensor([0]), source="flow_prediction", to="v_prediction")
    torch.testing.assert_close(made, d.target(sd, "v_prediction", x0, noise, step))
    torch.testing.assert_close(x_flow / math.hypot(1 - share, share), d.add_noise(sd, x0, noise, step))


def test_weightings_are_those_of_diffusers() -> None:
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    schedule, t = flow.FlowSchedule.of_shift(3.0), torch.tensor([0, 10, 500, 999])
    for name in ("none", "sigma_sqrt", "cosmap"):
        theirs = compute_loss_weighting_for_sd3(name, schedule.sigmas[t]).float()
        torch.testing.assert_close(d.loss_weight(schedule, "flow_prediction", t, name), theirs)


def test_what_is_of_the_other_process_is_refused_by_name() -> None:
    ours, sd, t = flow.FlowSchedule.of_shift(), d.NoiseSchedule.named(), torch.tensor([3])
    for name in ("min_snr", "debiased"):
        with pytest.raises(UserError, match=f"{name}.*flow matching: take one of none, sigma_sqrt, cosmap"):
            d.loss_weight(ours, "flow_prediction", t, name)
    with pytest.raises(UserError, match="'cosmap'.*variance-preserving process: take one of none, min_snr"):
        d.loss_weight(sd, "epsilon", t, "cosmap")
    with pytest.raises(UserError, match="unknown loss weighting 'cosmop'; did you mean 'cosmap'"):
        d.loss_weight(ours, "flow_prediction", t, "cosmop")
    for name in ("epsilon", "v_prediction", "sample"):
        with pytest.raises(UserError, match=f"'{name}' is not of a rectified flow"):
            d.check_prediction(name, ours)
    with pytest.raises(UserError, match="'flow_prediction' is not of a variance-preserving process"):
        d.check_prediction("flow_prediction", sd)
    d.check_prediction("flow_prediction", ours)


def test_timesteps_are_drawn_as_their_options_say() -> None:
    def draw(**settings: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        found = d.sample_timesteps(20000, 1000, generator, **settings)  # type: ignore[arg-type]
        return (found + 0.5) / 1000

    logits = draw(method="logit_normal", options={"mean": 0.7, "std": 0.6}).logit()
    assert float(logits.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(logits.std()) == pytest.approx(0.6, abs=0.02)
    plain = draw(method="logit_normal")
    assert torch.equal(plain, draw(method="logit_normal", options={"mean": 0.0, "std": 1.0}))
    # Of uniform u the shifted 3u / (1 + 2u) lies below s with probability s / (3 - 2s).
    moved = draw(method="shifted", options={"shift": 3.0})
    for s in (0.25, 0.5, 0.9):
        assert float((moved < s).float().mean()) == pytest.approx(s / (3 - 2 * s), abs=0.012)
    assert torch.equal(moved, draw(method="shifted"))
    assert torch.equal(draw(), draw(method="shifted", options={"shift": 1.0}))
    for wrong, message in (
        (
            {"method": "uniform", "options": {"mean": 1.0}},
            "unknown option of timestep sampling 'uniform' 'mean'",
        ),
        (
            {"method": "logit_normal", "options": {"std": 0.0}},
            "std of timestep sampling 'logit_normal'.*above 0",
        ),
        ({"method": "shifted", "options": {"shfit": 2.0}}, "did you mean 'shift'"),
        ({"method": "shifted", "options": {"shift": math.nan}}, "shift of timestep sampling"),
    ):
        with pytest.raises(UserError, match=message):
            draw(**wrong)  # type: ignore[arg-type]


def test_settings_of_diffusers_classes_are_read() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    one = flow.config_of(1000, 3.0)
    assert flow.process_config(one) == one
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert flow.process_config(plain.config, type(plain).__name__) == one
    other = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert flow.process_config(other.config) == one
    assert flow.process_config({"beta_schedule": "linear"}) == {"beta_schedule": "linear"}
    for wrong in ({"use_dynamic_shifting": True}, {"invert_sigmas": True}, {"shift_terminal": 0.1}):
        odd = FlowMatchEulerDiscreteScheduler(**wrong)
        with pytest.raises(UserError, match=f"scheduler has {next(iter(wrong))}"):
            flow.process_config(odd.config, type(odd).__name__)
    with pytest.raises(UserError, match="shift must be a number above 0"):
        flow.config_of(1000, 0.0)

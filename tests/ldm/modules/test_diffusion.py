"""The diffusion process against closed forms and diffusers."""

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules import diffusion as d

NAMES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SCHEDULES = [(name, zero) for name in NAMES for zero in (False, True)]


@pytest.mark.parametrize(("name", "zero"), SCHEDULES)
def test_schedules_are_those_of_diffusers(name: str, zero: bool) -> None:
    from diffusers import DDIMScheduler

    ends = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012)}.get(name, (0.0001, 0.02))
    theirs = DDIMScheduler(
        beta_schedule=name, beta_start=ends[0], beta_end=ends[1], rescale_betas_zero_snr=zero
    )
    ours = d.NoiseSchedule.named(name, zero_terminal_snr=zero)
    assert len(ours) == 1000
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, atol=2e-6, rtol=2e-4)
    assert (ours.alphas_cumprod.diff() < 0).all()


def test_known_edges() -> None:
    sd = d.NoiseSchedule.named("scaled_linear")
    assert float(sd.alphas_cumprod[0]) == pytest.approx(1 - 0.00085, abs=1e-9)
    assert float(sd.snr(torch.tensor([999]))) == pytest.approx(0.0047, abs=2e-4)
    assert not sd.zero_terminal_snr
    zero = d.NoiseSchedule.named("scaled_linear", zero_terminal_snr=True)
    assert zero.zero_terminal_snr
    assert float(zero.alphas_cumprod[-1]) == 0
    assert float(zero.alphas_cumprod[0]) == pytest.approx(float(sd.alphas_cumprod[0]), abs=1e-12)


def test_moments_of_the_forward_step() -> None:
    schedule = d.NoiseSchedule.named()
    x0 = torch.full((20000, 1), 0.7)
    t = torch.full((20000,), 400)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    xt = d.add_noise(schedule, x0, noise, t)
    a = float(schedule.alphas_cumprod[400])
    assert float(xt.mean()) == pytest.approx(0.7 * a**0.5, abs=0.02)
    assert float(xt.var()) == pytest.approx(1 - a, rel=0.03)


@pytest.mark.parametrize(("name", "zero"), SCHEDULES)
@pytest.mark.parametrize("source", d.PREDICTIONS)
@pytest.mark.parametrize("to", d.PREDICTIONS)
def test_conversions_are_exact(name: str, zero: bool, source: str, to: str) -> None:
    schedule = d.NoiseSchedule.named(name, zero_terminal_snr=zero)
    last = 998 if zero and source == "epsilon" else 999
    t = torch.tensor([0, 1, 250, 500, last])
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(5, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    xt = d.add_noise(schedule, x0, noise, t)
    output = d.target(schedule, source, x0, noise, t)
    found = d.convert(schedule, output, xt, t, source=source, to=to)
    torch.testing.assert_close(found, d.target(schedule, to, x0, noise, t), atol=1e-8, rtol=1e-6)


def test_eps_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be used with zero terminal SNR.*v_prediction"):
        d.check_prediction("epsilon", d.NoiseSchedule.named(zero_terminal_snr=True))
    with pytest.raises(UserError, match="unknown prediction type 'v'"):
        d.check_prediction("v", d.NoiseSchedule.named())
    with pytest.raises(
        UserError, match="unknown noise schedule 'scaled_liner'; did you mean 'scaled_linear'"
    ):
        d.NoiseSchedule.named("scaled_liner")
    with pytest.raises(UserError, match="no beta_start"):
        d.NoiseSchedule.named("cosine", beta_start=0.1)


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
def test_weightings_agree_across_predictions(weighting: str) -> None:
    """The same mistake in x0 weighs the same however the network states it (none: by definition not)."""
    schedule = d.NoiseSchedule.named()
    t = torch.tensor([10, 300, 700, 990])
    generator = torch.Generator().manual_seed(2)
    x0, noise, wrong = (torch.randn(4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    xt = d.add_noise(schedule, x0, noise, t)
    found = []
    for prediction in d.PREDICTIONS:
        off = d.convert(schedule, wrong, xt, t, source="sample", to=prediction)
        error = (off - d.target(schedule, prediction, x0, noise, t)).pow(2).mean(1)
        found.append(error * d.loss_weight(schedule, prediction, t, weighting).double())
    if weighting == "none":
        assert not torch.allclose(found[0], found[1])
    else:
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-8)


def test_min_snr_is_the_formula_of_the_field() -> None:
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = torch.tensor([5, 100, 400, 999])
    snr = compute_snr(scheduler, t)
    schedule = d.NoiseSchedule.named()
    five = torch.full_like(snr, 5)
    torch.testing.assert_close(
        d.loss_weight(schedule, "epsilon", t, "min_snr"), torch.minimum(snr, five) / snr, rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        d.loss_weight(schedule, "v_prediction", t, "min_snr"),
        torch.minimum(snr, five) / (snr + 1),
        rtol=1e-3,
        atol=1e-6,
    )
    with pytest.raises(UserError, match="divides by the SNR"):
        d.loss_weight(d.NoiseSchedule.named(zero_terminal_snr=True), "v_prediction", t, "debiased")
    with pytest.raises(UserError, match="unknown loss weighting 'minsnr'; did you mean 'min_snr'"):
        d.loss_weight(schedule, "epsilon", t, "minsnr")


def test_noise_options() -> None:
    plain = d.sample_noise((2000, 4, 4, 4), torch.Generator().manual_seed(0))
    offset = d.sample_noise((2000, 4, 4, 4), torch.Generator().manual_seed(0), offset=0.5)
    assert float(plain.mean((2, 3)).var()) == pytest.approx(1 / 16, rel=0.1)
    assert float(offset.mean((2, 3)).var()) == pytest.approx(1 / 16 + 0.25, rel=0.1)
    perturbed = d.perturb(plain, torch.Generator().manual_seed(1), 0.3)
    assert float((perturbed - plain).std()) == pytest.approx(0.3, rel=0.02)
    assert d.perturb(plain, torch.Generator(), 0.0) is plain


def test_timesteps() -> None:
    def draw(**settings: object) -> torch.Tensor:
        return d.sample_timesteps(4000, 1000, torch.Generator().manual_seed(0), **settings)

    uniform = draw()
    assert (int(uniform.min()), int(uniform.max())) <= (5, 1000)
    assert float(uniform.float().mean()) == pytest.approx(499.5, abs=15)
    ranged = draw(low=200, high=300)
    assert set(ranged.tolist()) == set(range(200, 300))
    stratified = draw(method="stratified")
    assert torch.bincount(stratified, minlength=1000).unique().tolist() == [4]
    assert stratified.sort().values.tolist() != stratified.tolist()
    late = draw(method="stratified", options={"shift": 3.0}).double() / 1000
    assert (
        torch.histc(late / (3 - 2 * late), 10, 0, 1).sub(len(late) / 10).abs().max() <= 12
    )  # undone: even again
    middle = draw(method="logit_normal")
    assert float(middle.float().std()) < 0.8 * float(uniform.float().std())
    for wrong, message in (
        ({"low": 5, "high": 5}, "not within"),
        ({"high": 1001}, "not within"),
        ({"method": "unifrom"}, "did you mean 'uniform'"),
    ):
        with pytest.raises(UserError, match=message):
            draw(**wrong)

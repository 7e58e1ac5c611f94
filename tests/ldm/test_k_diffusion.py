"""Our samplers against k-diffusion's and CompVis's, written down here in float64 from their papers.

The network is the exact denoiser of a Gaussian mixture, so that only the samplers differ. `figures` makes
the table of docs/samplers.md: ``python tests/ldm/test_k_diffusion.py``, with the folder of an installed
k-diffusion as argument against the package itself.
"""

import importlib
import json
import math
import re
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.sampling.samplers import SAMPLERS, find_sampler, make_scheduler, sample, starting_noise
from hyperbrush.ldm.sampling.webui_schedule import (
    noise_levels,
    scheduled_levels,
    set_webui_levels,
    timesteps_at,
)

NAMES = [name for name, one in SAMPLERS.items() if "epsilon" in one.predictions]
SHAPE, SEEDS = (4, 8, 8), [3, 2**31]
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
# CompVis and k-diffusion keep these in float32; a Brownian path looked up to six digits shows it.
ALPHAS = np.cumprod(1 - BETAS).astype(np.float32)
TRAIN_SIGMAS = ((1 - ALPHAS) / ALPHAS) ** np.float32(0.5)
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
CONFIG |= {"set_alpha_to_one": False, "timestep_spacing": "leading"}

Denoiser = Callable[[Tensor, float], Tensor]
Noise = Callable[[float, float], Tensor]


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Mean of the clean values, N(-1, 0.3²) or N(0.8, 0.1²) equally often, of x with noise sigma."""
    x = x.double()
    means, spread = torch.tensor([-1.0, 0.8]).double(), torch.tensor([0.3, 0.1]).double()
    total = spread**2 + sigma**2
    away = x[..., None] - means
    share = torch.softmax(-(away**2) / (2 * total) - total.log() / 2, dim=-1)
    return (share * (means + spread**2 / total * away)).sum(-1)


def sigma_at(timestep: float) -> float:
    return math.exp(np.interp(timestep, np.arange(1000), np.log(TRAIN_SIGMAS)))


def network(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser as a network of Stable Diffusion: unit-variance latents, fractional timesteps."""

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        sigma = sigma_at(float(timestep))
        x = latents.double() * math.hypot(1, sigma)
        clean = denoise(x, sigma)
        noise = (x - clean) / sigma
        return noise if kind == "epsilon" else (noise - sigma * clean) / math.hypot(1, sigma)

    return predict


# The schedules.


def normal_levels(steps: int) -> np.ndarray:
    """k-diffusion's `get_sigmas`: evenly spaced timesteps from the last to the first, then 0."""
    return np.array([*(sigma_at(t) for t in np.linspace(999, 0, steps)), 0.0])


def karras_levels(steps: int) -> np.ndarray:
    """Karras et al. (2022), equation 5, over the model's whole range."""
    low, high = TRAIN_SIGMAS[0] ** (1 / 7), TRAIN_SIGMAS[-1] ** (1 / 7)
    return np.array([*(high + np.arange(steps) / max(steps - 1, 1) * (low - high)) ** 7, 0.0])


# The samplers, in k-diffusion's variables: x is signal + sigma · noise.


def euler(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    for now, then in pairwise(levels):
        x = x + (x - d(x, now)) / now * (then - now)
    return x


def split_level(now: float, then: float) -> tuple[float, float]:
    """The level to step down to, and the deviation of the noise that brings it back up to `then`."""
    up = min(then, math.sqrt(then**2 * (now**2 - then**2)) / now)
    return math.sqrt(then**2 - up**2), up


def euler_ancestral(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    for now, then in pairwise(levels):
        down, up = split_level(now, then)
        x = x + (x - d(x, now)) / now * (down - now)
        if then > 0:
            x = x + up * noise(now, then)
    return x


def heun(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    for now, then in pairwise(levels):
        slope = (x - d(x, now)) / now
        ahead = x + slope * (then - now)
        if then > 0:
            slope = (slope + (ahead - d(ahead, then)) / then) / 2
        x = x + slope * (then - now)
    return x


def dpmpp_2m(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """Lu et al. (2022, 2211.01095), Algorithm 2; the last step, to 0, is of first order."""
    before, stride_before = None, 0.0
    for now, then in pairwise(levels):
        clean = d(x, now)
        if then == 0:
            return clean
        stride = math.log(now / then)
        goal = clean
        if before is not None:
            goal = clean + (clean - before) * stride / (2 * stride_before)
        x = then / now * x + (1 - then / now) * goal
        before, stride_before = clean, stride
    return x


def dpmpp_2m_sde(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """The same for the SDE, its midpoint form."""
    before, stride_before = None, 0.0
    for now, then in pairwise(levels):
        clean = d(x, now)
        if then == 0:
            return clean
        stride = math.log(now / then)
        gain = -math.expm1(-2 * stride)
        goal = clean
        if before is not None:
            goal = clean + (clean - before) * stride / (2 * stride_before)
        x = (then / now) ** 2 * x + gain * goal + then * math.sqrt(gain) * noise(now, then)
        before, stride_before = clean, stride
    return x


def dpmpp_sde(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """DPM-Solver++ with one evaluation half-way in log sigma, ancestral noise at both places."""
    for now, then in pairwise(levels):
        clean = d(x, now)
        if then == 0:
            return clean
        middle = math.sqrt(now * then)
        down, up = split_level(now, middle)
        half = down / now * x + (1 - down / now) * clean + up * noise(now, middle)
        down, up = split_level(now, then)
        x = down / now * x + (1 - down / now) * d(half, middle) + up * noise(now, then)
    return x


def lms(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """Adams-Bashforth of fourth order on uneven levels: the slopes' polynomial, integrated exactly."""
    slopes: list[Tensor] = []
    for i, (now, then) in enumerate(pairwise(levels)):
        slopes = [(x - d(x, now)) / now, *slopes][:4]
        places = levels[i - len(slopes) + 1 : i + 1][::-1]
        for j, slope in enumerate(slopes):
            others = np.delete(places, j)
            basis = np.poly1d(others, r=True) / np.prod(places[j] - others)
            integral = np.polyint(basis)
            x = x + (integral(then) - integral(now)) * slope
    return x


def ddim(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """Song et al. (2021), equation 12 without noise, from unit-variance x; CompVis ends at timestep 0."""
    for now, then in pairwise(levels):
        clean = d(x * math.hypot(1, now), now)
        residue = (x * math.hypot(1, now) - clean) / now
        x = (clean + then * residue) / math.hypot(1, then)
    return x


def plms(d: Denoiser, x: Tensor, levels: np.ndarray, noise: Noise) -> Tensor:
    """Liu et al. (2022, 2202.09778): linear multistep up to fourth order, an improved Euler step first."""

    def residue(x: Tensor, now: float) -> Tensor:
        return (x * math.hypot(1, now) - d(x * math.hypot(1, now), now)) / now

    def moved(x: Tensor, slope: Tensor, now: float, then: float) -> Tensor:
        clean = x * math.hypot(1, now) - now * slope
        return (clean + then * slope) / math.hypot(1, then)

    weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    slopes: list[Tensor] = []
    for now, then in pairwise(levels):
        slopes = [residue(x, now), *slopes][:4]
        goal = sum(w * s for w, s in zip(weights[len(slopes) - 1], slopes, strict=True))
        if len(slopes) == 1:
            goal = (slopes[0] + residue(moved(x, slopes[0], now, then), then)) / 2
        x = moved(x, goal, now, then)
    return x


def compvis_levels(steps: int) -> np.ndarray:
    """Whole strides of timesteps from 1 on, and the level of timestep 0 last."""
    return TRAIN_SIGMAS[[*(np.arange(steps) * (1000 // steps) + 1)[::-1], 0]]


REFERENCES = {
    "Euler": (euler, normal_levels, "none"),
    "Euler a": (euler_ancestral, normal_levels, "generator"),
    "Heun": (heun, normal_levels, "none"),
    "DPM++ 2M Karras": (dpmpp_2m, karras_levels, "none"),
    "DPM++ 2M SDE Karras": (dpmpp_2m_sde, karras_levels, "brownian"),
    "DPM++ SDE Karras": (dpmpp_sde, karras_levels, "brownian"),
    "DPM++ 2M": (dpmpp_2m, normal_levels, "none"),
    "DPM++ 2M SDE": (dpmpp_2m_sde, normal_levels, "brownian"),
    "DPM++ SDE": (dpmpp_sde, normal_levels, "brownian"),
    "LMS": (lms, normal_levels, "none"),
    "LMS Karras": (lms, karras_levels, "none"),
    "DDIM": (ddim, compvis_levels, "none"),
    "PLMS": (plms, compvis_levels, "none"),
}
# Relative errors. A Brownian path is looked up to six digits, where one digit moves it by a thousandth;
# with k-diffusion's own float32 levels the error is below 1e-6 there too (see `figures`).
BOUNDS = dict.fromkeys(["DPM++ SDE", "DPM++ SDE Karras", "DPM++ 2M SDE", "DPM++ 2M SDE Karras"], 4e-3)
BOUND = 1e-5


def webui_noise(kind: str, levels: np.ndarray) -> tuple[Tensor, Noise]:
    """Starting noise and the noise on the way, in the webui's order with its CPU noise source."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    start = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    if kind == "brownian":
        low, high = float(levels[levels > 0].min()), float(levels.max())
        trees = [torchsde.BrownianTree(low, torch.zeros(SHAPE), high, entropy=seed) for seed in SEEDS]

        def between(now: float, then: float) -> Tensor:
            # k-diffusion's trees run up, its samplers down: the sign turns.
            then, now = max(then, low), min(now, high)
            return torch.stack([-tree(then, now) for tree in trees]).double() / math.sqrt(now - then)

        return start.double(), between
    return start.double(), lambda now, then: torch.stack(
        [torch.randn(SHAPE, generator=g) for g in generators]
    ).double()


def reference(name: str, steps: int) -> Tensor:
    solve, place, kind = REFERENCES[name]
    levels = place(steps).astype(np.float32).astype(np.float64)
    start, noise = webui_noise(kind, levels)
    compvis = name in ("DDIM", "PLMS")
    return solve(denoise, start if compvis else start * levels[0], levels, noise)


def ours(name: str, steps: int, discretisation: str, prediction: str = "epsilon") -> Tensor:
    scheduler = make_scheduler(name, {**CONFIG, "prediction_type": prediction})
    return sample(network(prediction), scheduler, SHAPE, SEEDS, steps, discretisation=discretisation)


def error(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


@pytest.mark.filterwarnings("ignore:Should have t[ab]")  # torchsde, of a level rounded past the end
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("name", REFERENCES)
def test_matches_the_webui(name: str, steps: int, prediction: str) -> None:
    if (name, prediction) == ("PLMS", "v_prediction"):
        pytest.skip("diffusers averages velocities, CompVis noise: docs/samplers.md")
    expected = reference(name, steps)
    assert 0.5 < expected.std() < 1.5
    assert error(ours(name, steps, "webui", prediction), expected) < BOUNDS.get(name, BOUND)


def test_starting_noise_is_the_webuis_cpu_noise() -> None:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    drawn = starting_noise(SHAPE, generators)
    for i, (seed, generator) in enumerate(zip(SEEDS, generators, strict=True)):
        torch.manual_seed(seed)
        assert torch.equal(drawn[i : i + 1], torch.randn(1, *SHAPE))
        # What a sampler adds on its way goes on from there.
        assert torch.equal(torch.randn(SHAPE, generator=generator), torch.randn(SHAPE))


def test_levels_are_those_of_the_definitions() -> None:
    train = torch.tensor(TRAIN_SIGMAS)
    for karras, place in ((False, normal_levels), (True, karras_levels)):
        for steps in (1, 2, 20, 333):
            levels = noise_levels(train, steps, karras=karras)
            assert levels.dtype == torch.float32
            np.testing.assert_allclose(levels.numpy(), place(steps)[:-1], rtol=2e-6)
            times = timesteps_at(train, levels)
            assert [sigma_at(t) for t in times.tolist()] == pytest.approx(levels.tolist(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_without_such_levels_stays_as_it_is(name: str) -> None:
    same = torch.equal(ours(name, 6, "webui"), ours(name, 6, "diffusers"))
    assert same == (name in ("DDIM", "PLMS", "UniPC", "LCM", "DDPM") or SAMPLERS[name].own_levels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite_and_told(name: str, steps: int) -> None:
    told: list[tuple[int, int]] = []
    out = sample(
        network("epsilon"),
        make_scheduler(name, CONFIG),
        SHAPE,
        [0],
        steps,
        discretisation="webui",
        on_step=lambda done, of, _: told.append((done, of)),
    )
    assert out.isfinite().all()
    assert told[-1] == (steps, steps)
    if name not in ("DPM fast", "DPM adaptive"):  # whose steps are not those that were asked for
        assert told == [(done, steps) for done in range(1, steps + 1)]


@pytest.mark.parametrize("name", ["Euler a", "Heun", "DPM++ 2M SDE Karras", "DPM++ SDE Karras"])
def test_a_picture_ignores_its_batch_and_starts_anywhere(name: str) -> None:
    both = ours(name, 6, "webui")
    picture, scheduler = torch.full((1, *SHAPE), 0.8), make_scheduler(name, CONFIG)

    def draw(**start: Any) -> Tensor:
        return sample(network("epsilon"), scheduler, SHAPE, SEEDS[1:], 6, discretisation="webui", **start)

    assert error(draw(), both[1:]) < 1e-5
    near, far = (draw(image_latents=picture, strength=s) for s in (0.34, 1.0))
    assert (near - picture).norm() < 0.7 * (far - picture).norm()


@pytest.mark.parametrize(
    "change",
    [
        {"trained_betas": BETAS.tolist()},
        {"beta_schedule": "squaredcos_cap_v2", "beta_start": None, "beta_end": None},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "trained_betas": BETAS.tolist()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_process_has_levels(change: dict[str, Any]) -> None:
    scheduler = make_scheduler("Euler", {**CONFIG, **change})
    scheduler.set_timesteps(10)
    first = set_webui_levels(scheduler, 10, "cpu")
    signal = scheduler.alphas_cumprod.double()
    sigmas = ((1 - signal) / signal).sqrt()
    assert first == pytest.approx(float(sigmas[-1]), rel=2e-3)
    assert scheduler.sigmas[-2] == pytest.approx(float(sigmas[0]), rel=2e-3)
    assert scheduler.timesteps.tolist() == pytest.approx(np.linspace(999, 0, 10).tolist(), abs=0.2)


VALUES = json.loads((Path(__file__).parent / "k_diffusion_values.json").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:Should have t[ab]")
@pytest.mark.parametrize("discretisation", ["webui", "diffusers"])
@pytest.mark.parametrize("name", VALUES)
def test_has_the_packages_own_values(name: str, discretisation: str) -> None:
    """Norm and twelve numbers of what k-diffusion 0.1.1.post1 made at 20 steps, on float32 latents, with the webui's options
    (ancestral noise of share 1 in DPM fast and adaptive, one level more and the last but one left out in DPM2 and 3M).
    """
    if discretisation == "diffusers" and not SAMPLERS.get(name, find_sampler(name)).own_levels:
        pytest.skip("its levels are diffusers' own there")
    if discretisation == "diffusers" and name == "DPM++ 2M SDE Exponential":
        pytest.skip("diffusers draws plain noise there")
    out, value = ours(name, 20, discretisation), VALUES[name]
    # The error that sets the adaptive steps is a difference of nearly equal float32 numbers.
    bound = {"DPM adaptive": 5e-3}.get(name, 4e-3 if "SDE" in name else 2e-5)
    assert out.norm().item() == pytest.approx(value["norm"], rel=bound)
    assert out.flatten()[::37][:12].tolist() == pytest.approx(value["some"], rel=bound, abs=bound)


def reference_schedule(schedule: str, steps: int) -> np.ndarray:
    """Levels (steps,) by each schedule's definition, in float64."""
    last, low, high = len(TRAIN_SIGMAS) - 1, float(TRAIN_SIGMAS[0]), float(TRAIN_SIGMAS[-1])
    if schedule == "Exponential":
        return high * (low / high) ** (np.arange(steps) / max(steps - 1, 1))
    if schedule == "SGM Uniform":
        return np.array([sigma_at(last * (1 - i / steps)) for i in range(steps)])
    if schedule == "Simple":
        return np.array([TRAIN_SIGMAS[last - i * len(TRAIN_SIGMAS) // steps] for i in range(steps)])
    # The quantiles of Beta(0.6, 0.6), by numerical integration of its density; x = y^(1/0.6) takes its ends away.
    grid = np.linspace(0, 0.5**0.6, 200_001)
    density = (1 - grid ** (1 / 0.6)) ** -0.4
    half = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    shares = np.linspace(1, 0, steps) if steps > 1 else np.ones(1)
    below = np.interp(np.minimum(shares, 1 - shares) * 2, half / half[-1], grid ** (1 / 0.6))
    return low + np.where(shares > 0.5, 1 - below, below) * (high - low)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 64])
@pytest.mark.parametrize("schedule", ["Exponential", "SGM Uniform", "Simple", "Beta"])
def test_schedules_are_those_of_their_definitions(schedule: str, steps: int) -> None:
    levels = scheduled_levels(torch.tensor(TRAIN_SIGMAS), steps, schedule)
    assert levels.dtype == torch.float32
    np.testing.assert_allclose(levels.numpy(), reference_schedule(schedule, steps), rtol=2e-5)


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_restart_against_its_algorithm(steps: int) -> None:
    """Xu et al. (2023), Algorithm 1: Heun down all levels, and from 0.1 back up to 2 for 9 steps more (10 twice at 40)."""
    each, times = {8: (0, 0), 20: (9, 1), 40: (10, 2)}[steps]
    train = karras_levels(steps - each * times)
    start, noise = webui_noise("generator", train)
    x, levels = start * train[0], train.tolist()
    low, high = (min(range(len(levels)), key=lambda i: abs(levels[i] - s)) for s in (0.1, 2.0))
    x = heun(denoise, x, np.array(levels[: low + 1]), noise)
    for _ in range(times):
        x = x + math.sqrt(levels[high] ** 2 - levels[low] ** 2) * noise(levels[low], levels[high])
        up, down = levels[high] ** (1 / 7), levels[low] ** (1 / 7)
        climb = (up + np.arange(each + 1) / each * (down - up)) ** 7
        x = heun(denoise, x, climb, noise)
    expected = heun(denoise, x, np.array(levels[low:]), noise)
    assert error(ours("Restart", steps, "webui"), expected) < 1e-5


@pytest.mark.parametrize("name", ["Euler SGM Uniform", "DPM++ 2M Simple", "Heun Beta", "DPM2 a Exponential"])
def test_a_schedule_behind_a_sampler_draws_with_its_levels(name: str) -> None:
    plain = ours(find_sampler(name).name.rsplit(" ", 1 + name.endswith("SGM Uniform"))[0], 8, "webui")
    scheduled = ours(name, 8, "webui")
    assert torch.equal(scheduled, ours(name, 8, "diffusers"))
    assert 1e-3 < error(scheduled, plain) < 2


def test_unknown_discretisation() -> None:
    with pytest.raises(UserError, match="unknown discretisation 'webgui'; did you mean 'webui'"):
        ours("Euler", 4, "webgui")


@pytest.mark.filterwarnings("ignore:Should have t[ab]")
@pytest.mark.parametrize("name", REFERENCES)
def test_the_docs_have_these_figures(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs/samplers.md").read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    expected = reference(name, 20)
    webui, diffusers = (float(x) for x in re.findall(r"\d\.?\d*e[-+]\d+", row)[:2])
    assert error(ours(name, 20, "webui"), expected) < max(5 * webui, BOUNDS.get(name, 0))
    assert error(ours(name, 20, "diffusers"), expected) == pytest.approx(diffusers, rel=0.2, abs=2e-6)


def figures(package: Any = None) -> None:
    """Print relative errors at 20 steps, against the references or the k-diffusion package."""
    for name in REFERENCES:
        expected, own = reference(name, 20), ""
        if package is not None and name in PACKAGE_NAMES:
            theirs = from_package(package, name, 20)
            own = f"; package against reference {error(theirs, expected):.1e}"
            expected = theirs
        errors = {d: error(ours(name, 20, d), expected) for d in ("webui", "diffusers")}
        print(f"{name:20} webui {errors['webui']:.1e}  diffusers {errors['diffusers']:.1e}{own}")


PACKAGE_NAMES = {
    "Euler": "sample_euler",
    "Euler a": "sample_euler_ancestral",
    "Heun": "sample_heun",
    "DPM++ 2M Karras": "sample_dpmpp_2m",
    "DPM++ 2M SDE Karras": "sample_dpmpp_2m_sde",
    "DPM++ SDE Karras": "sample_dpmpp_sde",
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ SDE": "sample_dpmpp_sde",
    "LMS": "sample_lms",
    "LMS Karras": "sample_lms",
}


def from_package(package: Any, name: str, steps: int) -> Tensor:
    """What k-diffusion itself computes, levels and Brownian trees included."""
    kind = REFERENCES[name][2]
    train = torch.tensor(TRAIN_SIGMAS)
    if name.endswith("Karras"):
        sigmas = package.sampling.get_sigmas_karras(steps, train[0].item(), train[-1].item())
    else:
        sigmas = package.external.DiscreteSchedule(train, False).get_sigmas(steps)
    start, noise = webui_noise(kind, sigmas.double().numpy())
    options: dict[str, Any] = {}
    if kind == "brownian":
        above = sigmas[sigmas > 0]
        options["noise_sampler"] = package.sampling.BrownianTreeNoiseSampler(
            torch.zeros(2, *SHAPE), above.min(), above.max(), seed=SEEDS
        )
    elif kind == "generator":
        options["noise_sampler"] = lambda now, then: noise(now, then).float()
    solve = getattr(package.sampling, PACKAGE_NAMES[name])
    model = lambda x, sigma: denoise(x, float(sigma[0])).float()  # noqa: E731
    return solve(model, start.float() * sigmas[0], sigmas, disable=True, **options).double()


def installed(folder: str) -> Any:
    """k-diffusion from a folder, without what else it imports (clip, kornia, torchdiffeq, …)."""
    for name in ("torchdiffeq", "k_diffusion", "k_diffusion.utils"):
        sys.modules[name] = types.ModuleType(name)
    package, utils = sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"]
    package.__path__ = [f"{folder}/k_diffusion"]
    sys.modules["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    importlib.import_module("k_diffusion.external")
    return package


if __name__ == "__main__":
    figures(installed(sys.argv[1]) if len(sys.argv) > 1 else None)

"""Samplers of k-diffusion that diffusers does not have, written from their papers.

All work on latents that are signal + sigma · noise, and share one signature: the denoiser (x, sigma → clean x), x, the
noise levels from the noisiest to 0, unit noise between two levels, and what is called after each step (x, its level, the
share of the whole that is done → x).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.ldm.sampling.names import Sampler
from hyperbrush.ldm.sampling.noise import drawn_noise
from hyperbrush.ldm.sampling.webui_schedule import (
    brownian_noise,
    karras_levels,
    sampler_levels,
    timesteps_at,
    train_sigmas_of,
)

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[float, float], Tensor]
After = Callable[[Tensor, float, float], Tensor]
Loop = Callable[[Denoise, Tensor, Sequence[float], Noise, After], Tensor]


def split_level(now: float, then: float) -> tuple[float, float]:
    """The level an ancestral step goes down to, and the deviation of the noise that brings it up to `then`."""
    up = min(then, math.sqrt(max(then**2 * (now**2 - then**2), 0.0)) / now)
    return math.sqrt(max(then**2 - up**2, 0.0)), up


def dpm_2(denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After) -> Tensor:
    """Algorithm 2 of Karras et al. (2022, 2206.00364) with the slope in the middle of log sigma (DPM-Solver-2)."""
    for i, (now, then) in enumerate(pairwise(levels)):
        x = _midpoint(denoise, x, now, then)
        x = after(x, then, (i + 1) / (len(levels) - 1))
    return x


def dpm_2_ancestral(
    denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After
) -> Tensor:
    """`dpm_2` down to a lower level, and noise back up."""
    for i, (now, then) in enumerate(pairwise(levels)):
        down, up = split_level(now, then)
        x = _midpoint(denoise, x, now, down)
        if down > 0:
            x = x + up * noise(now, then)
        x = after(x, then, (i + 1) / (len(levels) - 1))
    return x


def _midpoint(denoise: Denoise, x: Tensor, now: float, then: float) -> Tensor:
    slope = (x - denoise(x, now)) / now
    if then == 0:
        return x + slope * (then - now)
    middle = math.sqrt(now * then)
    half = x + slope * (middle - now)
    return x + (half - denoise(half, middle)) / middle * (then - now)


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After
) -> Tensor:
    """DPM-Solver++(2S) of Lu et al. (2022, 2211.01095, Algorithm 1, r = 1/2) down to a lower level, and noise back up."""
    for i, (now, then) in enumerate(pairwise(levels)):
        down, up = split_level(now, then)
        clean = denoise(x, now)
        if down == 0:
            x = clean
        else:
            middle = math.sqrt(now * down)
            half = middle / now * x + (1 - middle / now) * clean
            x = down / now * x + (1 - down / now) * denoise(half, middle)
        if then > 0:
            x = x + up * noise(now, then)
        x = after(x, then, (i + 1) / (len(levels) - 1))
    return x


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After) -> Tensor:
    """The multistep DPM-Solver++ for the SDE (2211.01095, section 5 and appendix) of third order, as in k-diffusion."""
    cleans: list[Tensor] = []
    strides: list[float] = []
    for i, (now, then) in enumerate(pairwise(levels)):
        clean = denoise(x, now)
        if then == 0:
            x = clean
        else:
            stride = math.log(now / then)
            twice = 2 * stride  # the SDE's own noise takes away as much as the flow
            x = math.exp(-twice) * x - math.expm1(-twice) * clean
            second = math.expm1(-twice) / twice + 1
            if len(strides) == 1:
                x = x + second * (clean - cleans[0]) * stride / strides[0]
            elif len(strides) > 1:
                before, earlier = strides[0] / stride, strides[1] / stride
                slope, slope_before = (clean - cleans[0]) / before, (cleans[0] - cleans[1]) / earlier
                curve = (slope - slope_before) / (before + earlier)
                x = x + second * (slope + curve * before) - (second / twice - 0.5) * curve
            x = x + then * math.sqrt(-math.expm1(-twice)) * noise(now, then)
            strides = [stride, *strides][:2]
            cleans = [clean, *cleans][:2]
        x = after(x, then, (i + 1) / (len(levels) - 1))
    return x


def dpm_fast(denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After) -> Tensor:
    """DPM-Solver-fast of Lu et al. (2022, 2206.00927, Algorithm 3.4 and appendix D.4), ancestral as the webui runs it.

    Of the levels the ends and the number count: so many evaluations, in steps of third order and a last one of lower; it
    ends at the lowest level, not at 0.
    """
    low, high, evaluations = levels[-2], levels[0], len(levels) - 1
    stretches = evaluations // 3 + 1
    rest = evaluations % 3
    orders = [3] * (stretches - 1) + [rest] if rest else [3] * (stretches - 2) + [2, 1]
    places = torch.linspace(-math.log(high), -math.log(low), stretches + 1, dtype=torch.float64).tolist()
    for i, (order, (now, then)) in enumerate(zip(orders, pairwise(places), strict=True)):
        goal, up = _ancestral_goal(now, then, places[-1])
        x = _solver_step(denoise, x, now, goal, order)
        if up > 0:
            x = x + up * noise(math.exp(-now), math.exp(-then))
        x = after(x, math.exp(-then), (i + 1) / stretches)
    return x


def dpm_adaptive(denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After) -> Tensor:
    """DPM-Solver-12/23 with steps as large as the error allows (2206.00927, appendix C), ancestral as the webui runs it.

    Of the levels the ends alone count; it ends at the lowest one, not at 0. Third order, relative error 0.05, absolute
    0.0078, k-diffusion's controller.
    """
    begin, end = -math.log(levels[0]), -math.log(levels[-2])
    place, stride, before = begin, 0.05, x
    while place < end - 1e-5:
        then = min(end, place + stride)
        goal, up = _ancestral_goal(place, then, end)
        low, high = _solver_pair(denoise, x, place, goal)
        allowed = torch.maximum(torch.full_like(low, 0.0078), 0.05 * torch.maximum(low.abs(), before.abs()))
        error = float(((low - high) / allowed).flatten(1).square().mean(1).max().sqrt())
        # An ancestral step counts as of order 1.5.
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 1.5) - 1)
        stride *= factor
        if factor >= 0.81:
            before = low
            x = high + up * noise(math.exp(-place), math.exp(-then)) if up > 0 else high
            place = then
            whole = place >= end - 1e-5
            x = after(x, math.exp(-place), 1.0 if whole else (place - begin) / (end - begin))
    return x


def _ancestral_goal(now: float, then: float, end: float) -> tuple[float, float]:
    """Where a step goes to (as -log sigma) that noise of a deviation then brings back to `then`."""
    down, _ = split_level(math.exp(-now), math.exp(-then))
    goal = end if down == 0 else min(end, -math.log(down))
    return goal, math.sqrt(max(math.exp(-2 * then) - math.exp(-2 * goal), 0.0))


def _solver_step(denoise: Denoise, x: Tensor, now: float, then: float, order: int) -> Tensor:
    """DPM-Solver-1, 2 (r = 1/2) or 3 (r = 1/3, 2/3) of 2206.00927, equations 3.7 and Algorithms 1 and 2; places are
    -log sigma.
    """
    first = _residue(denoise, x, now)
    stride, low = then - now, math.exp(-then)
    straight = x - low * math.expm1(stride) * first
    if order == 1:
        return straight
    if order == 2:
        middle = _residue(denoise, *_along(x, now, stride / 2, first))
        return straight - low * math.expm1(stride) * (middle - first)
    return _third(denoise, x, now, stride, first, _residue(denoise, *_along(x, now, stride / 3, first)))


def _solver_pair(denoise: Denoise, x: Tensor, now: float, then: float) -> tuple[Tensor, Tensor]:
    """Steps of second and of third order that share their evaluations."""
    first = _residue(denoise, x, now)
    stride, low = then - now, math.exp(-then)
    third = _residue(denoise, *_along(x, now, stride / 3, first))
    second = x - low * math.expm1(stride) * (first + 1.5 * (third - first))
    return second, _third(denoise, x, now, stride, first, third)


def _third(denoise: Denoise, x: Tensor, now: float, stride: float, first: Tensor, third: Tensor) -> Tensor:
    part = 2 / 3 * stride
    there, place = _along(x, now, part, first)
    there = there - math.exp(-place) * 2 * (math.expm1(part) / part - 1) * (third - first)
    last = _residue(denoise, there, place)
    low = math.exp(-now - stride)
    return (
        x - low * math.expm1(stride) * first - low * 1.5 * (math.expm1(stride) / stride - 1) * (last - first)
    )


def _residue(denoise: Denoise, x: Tensor, place: float) -> Tensor:
    """The noise in x, by the network."""
    sigma = math.exp(-place)
    return (x - denoise(x, sigma)) / sigma


def _along(x: Tensor, now: float, stride: float, residue: Tensor) -> tuple[Tensor, float]:
    """Where a step of first order leads, and its place."""
    return x - math.exp(-now - stride) * math.expm1(stride) * residue, now + stride


def restart(denoise: Denoise, x: Tensor, levels: Sequence[float], noise: Noise, after: After) -> Tensor:
    """Restart sampling of Xu et al. (2023, 2306.14878, Algorithm 1) with Heun's steps and the webui's choice of restarts.

    From 20 steps on a quarter or so of them goes into climbing back from sigma 0.1 to 2 once, from 36 on twice.
    """
    path = _restart_path(levels)
    last = path[0][0]
    for i, (now, then) in enumerate(path):
        if now > last:
            x = x + math.sqrt(now**2 - last**2) * noise(last, now)
        slope = (x - denoise(x, now)) / now
        ahead = x + slope * (then - now)
        if then > 0:
            slope = (slope + (ahead - denoise(ahead, then)) / then) / 2
            ahead = x + slope * (then - now)
        x, last = after(ahead, then, (i + 1) / len(path)), then
    return x


def _restart_path(levels: Sequence[float]) -> list[tuple[float, float]]:
    """The steps (from, to), those of the restarts among them."""
    steps = len(levels) - 1
    if steps < 20:
        return list(pairwise(levels))
    each, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = [*karras_levels(levels[0], levels[-2], steps - each * times), 0.0]

    def nearest(sigma: float) -> int:
        return min(range(len(main)), key=lambda i: abs(main[i] - sigma))

    low, high = nearest(0.1), nearest(2.0)
    path = list(pairwise(main))
    if low == 0 or high >= low:
        return path
    climb = list(pairwise(karras_levels(main[high], main[low], each + 1)))
    return [*path[:low], *climb * times, *path[low:]]


LOOPS: dict[str, Loop] = {
    one.__name__: one
    for one in (dpm_2, dpm_2_ancestral, dpmpp_2s_ancestral, dpmpp_3m_sde, dpm_fast, dpm_adaptive, restart)
}


def run_levelled(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: "SchedulerMixin",
    sampler: Sampler,
    noise: Tensor,
    steps: int,
    first: int,
    seeds: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    image_latents: Tensor | None = None,
    mask: Tensor | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Run a sampler's own loop; the arguments are those of `samplers.sample`.

    noise: (batch, c, h, w) of unit variance. first: the step to begin at, with ``image_latents``.
    """
    train_sigmas = train_sigmas_of(scheduler)
    every = sampler_levels(train_sigmas, steps, sampler)
    levels = [*every.tolist(), 0.0][first:]
    if sampler.loop in ("dpm_fast", "dpm_adaptive") and len(levels) == 2:
        levels.insert(1, float(train_sigmas[0]))  # they go from one level to another
    loop = LOOPS[sampler.loop]
    _show_timesteps(scheduler, train_sigmas, levels, loop, noise.device)
    kind = scheduler.config.prediction_type

    def denoise(x: Tensor, sigma: float) -> Tensor:
        at = timesteps_at(train_sigmas, torch.tensor(sigma, dtype=torch.float64)).float().to(x.device)
        length = math.hypot(1, sigma)
        output = predict(x / length, at).to(x)
        return x - sigma * output if kind == "epsilon" else x / length**2 - sigma / length * output

    def fresh(now: float, then: float) -> Tensor:
        drawn = [drawn_noise((1, *noise.shape[1:]), g, noise.dtype) for g in generators]
        return torch.cat(drawn).to(noise.device)

    x: Tensor = noise * levels[0] if image_latents is None else image_latents + noise * levels[0]
    report_step = _StepReports(steps - first, on_step)

    def masked(x: Tensor, sigma: float, share: float, rows: slice) -> Tensor:
        if mask is None or image_latents is None:
            return x
        kept = image_latents[rows] if share >= 1 else image_latents[rows] + sigma * noise[rows]
        return torch.lerp(kept, x, (mask if len(mask) == 1 else mask[rows]).to(x))

    if sampler.loop == "dpm_adaptive":  # each picture goes at its own pace, whoever is beside it
        for i in range(len(x)):
            one = slice(i, i + 1)

            def alone(row: Tensor, sigma: float, one: slice = one) -> Tensor:
                return denoise(row.expand_as(x), sigma)[one]

            def drawn(now: float, then: float, i: int = i) -> Tensor:
                return drawn_noise((1, *x.shape[1:]), generators[i], x.dtype).to(x.device)

            def then(row: Tensor, sigma: float, share: float, one: slice = one, i: int = i) -> Tensor:
                row = masked(row, sigma, share, one)
                x[one] = row
                report_step(x, (i + share) / len(x))
                return row

            loop(alone, x[one].clone(), levels, drawn, then)
        return x
    between = brownian_noise(torch.tensor(levels), x, seeds) if sampler.brownian else fresh

    def after(x: Tensor, sigma: float, share: float) -> Tensor:
        x = masked(x, sigma, share, slice(None))
        report_step(x, share)
        return x

    return loop(denoise, x, levels, between, after)


class _StepReports:
    """Tells of shares of the whole as steps, each once and the last one at the end."""

    def __init__(self, steps: int, on_step: Callable[[int, int, Tensor], None] | None) -> None:
        self.steps, self.on_step, self.done = steps, on_step, 0

    def __call__(self, x: Tensor, share: float) -> None:
        """After a step; share: of the whole that is done."""
        now = int(share * self.steps + 1e-6) if share < 1 else self.steps
        if self.on_step is not None and now > self.done:
            self.done = now
            self.on_step(now, self.steps, x)


def _show_timesteps(
    scheduler: Any, train_sigmas: Tensor, levels: Sequence[float], loop: Loop, device: torch.device
) -> None:
    """Give a scheduler the timesteps that a loop will ask the network at: what follows the sampling reads them there."""
    asked = list(levels[:-1])
    if loop is not dpm_adaptive:
        asked = []

        def note(x: Tensor, sigma: float) -> Tensor:
            asked.append(sigma)
            return x

        nothing = torch.zeros(1, 1)
        loop(note, nothing, levels, lambda now, then: nothing, lambda x, sigma, share: x)
    times = timesteps_at(train_sigmas, torch.tensor(asked, dtype=torch.float64))
    scheduler.timesteps = times.float().to(device)
    scheduler.sigmas = torch.tensor([*levels])
    scheduler.set_begin_index(0)

"""The noise levels the webui samples at, k-diffusion's, put into diffusers' schedulers.

Diffusers places the levels at a model's whole timesteps (`timestep_spacing`); k-diffusion spreads them
over the whole range and asks the network at fractional timesteps.  The steps between two levels are
the same, so that the levels are all that has to change for the same picture (docs/samplers.md).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.ldm.modules.diffusion import NoiseSchedule
from hyperbrush.ldm.sampling.names import Sampler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

RHO = 7.0  # Karras et al. (2022, 2206.00364), equation 5
# Those whose latents are signal + sigma · noise, and those whose latents keep unit variance.
EXPLODING = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
PRESERVING = ("DPMSolverMultistepScheduler",)


def noise_levels(train_sigmas: Tensor, steps: int, *, karras: bool) -> Tensor:
    """Sigmas (steps,) float32 from the noisiest down, without the final 0.

    Without ``karras`` evenly spaced timesteps, between which log sigma is linear; with it equation 5 of
    Karras et al. over the whole range.  Computed in float32 and in k-diffusion's order, to the bit: a
    Brownian path differs by a thousandth between two places a millionth apart.

    train_sigmas: (timesteps,) float32, noise over signal at each timestep of the model.
    """
    if not karras:
        return _sigmas_at(train_sigmas, torch.linspace(len(train_sigmas) - 1, 0, steps))
    high, low = (float(train_sigmas[end]) ** (1 / RHO) for end in (-1, 0))
    spread: Tensor = (high + torch.linspace(0, 1, steps) * (low - high)) ** RHO
    return spread


def karras_levels(high: float, low: float, steps: int) -> list[float]:
    """Equation 5 of Karras et al. from one level to another, in float64."""
    first, last = high ** (1 / RHO), low ** (1 / RHO)
    return [(first + i / max(steps - 1, 1) * (last - first)) ** RHO for i in range(steps)]


def scheduled_levels(train_sigmas: Tensor, steps: int, schedule: str) -> Tensor:
    """Sigmas (steps,) float32 of a schedule of `names.SCHEDULES`, or of even timesteps for "", from the noisiest down,
    without the final 0.

    Exponential: log sigma is even. SGM Uniform: even timesteps of which the last, at the lowest sigma, is left out.
    Simple: whole timesteps, even strides. Beta: Lee et al. (2024, 2407.12173), quantiles of Beta(0.6, 0.6) over sigma.
    """
    count = len(train_sigmas)
    high, low = float(train_sigmas[-1]), float(train_sigmas[0])
    if schedule in ("", "Karras"):
        return noise_levels(train_sigmas, steps, karras=schedule == "Karras")
    if schedule == "Exponential":
        return torch.linspace(math.log(high), math.log(low), steps).exp()
    if schedule == "SGM Uniform":
        return _sigmas_at(train_sigmas, torch.linspace(count - 1, 0, steps + 1)[:-1])
    if schedule == "Simple":
        return train_sigmas[[count - 1 - int(i * count / steps) for i in range(steps)]]
    from scipy.stats import beta

    shares = torch.tensor(beta.ppf(torch.linspace(1, 0, steps, dtype=torch.float64).numpy(), 0.6, 0.6))
    return (low + shares * (high - low)).float()


def sampler_levels(train_sigmas: Tensor, steps: int, sampler: Sampler) -> Tensor:
    """Sigmas (steps,) of a sampler, without the final 0: of its schedule, or of one step more without the lowest."""
    levels = scheduled_levels(train_sigmas, steps + sampler.one_more, sampler.schedule)
    return levels[:steps]


def _sigmas_at(train_sigmas: Tensor, timesteps: Tensor) -> Tensor:
    below, above, share = timesteps.floor().long(), timesteps.ceil().long(), timesteps.frac()
    logs = train_sigmas.log()
    return ((1 - share) * logs[below] + share * logs[above]).exp()


def timesteps_at(train_sigmas: Tensor, sigmas: Tensor) -> Tensor:
    """Fractional timesteps of noise levels, log sigma being linear between two timesteps."""
    logs, sought = train_sigmas.double().log(), sigmas.double().log()
    below = (torch.searchsorted(logs, sought) - 1).clamp(0, len(logs) - 2)
    share = (sought - logs[below]) / (logs[below + 1] - logs[below])
    return below + share.clamp(0, 1)


def set_webui_levels(scheduler: "SchedulerMixin", steps: int, device: str | torch.device) -> float | None:
    """Give a scheduler, after its ``set_timesteps``, k-diffusion's levels; its latents' first standard
    deviation, or None for a scheduler that the webui has no such levels for (DDIM, PLMS, UniPC, LCM),
    which stays as it is.
    """
    kind = type(scheduler).__name__
    if kind not in EXPLODING + PRESERVING:
        return None
    train_sigmas = train_sigmas_of(scheduler)
    sampler: Sampler | None = getattr(scheduler, "sampler", None)
    if sampler is None:
        levels = noise_levels(train_sigmas, steps, karras=bool(scheduler.config.get("use_karras_sigmas")))
    else:
        levels = sampler_levels(train_sigmas, steps, sampler)
    sigmas, times = levels, timesteps_at(train_sigmas, levels)
    if getattr(scheduler, "order", 1) == 2:  # two evaluations a step, one for the last
        between = kind == "DPMSolverSDEScheduler"
        second = (levels[:-1].double() * levels[1:]).sqrt() if between else levels[1:]
        pairs = torch.stack([times[:-1], timesteps_at(train_sigmas, second)], dim=1)
        times = torch.cat([pairs.flatten(), times[-1:]])
        sigmas = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
    scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    scheduler.timesteps = times.float().to(device)
    first = float(levels[0])
    return first if kind in EXPLODING else first / (1 + first**2) ** 0.5


def train_sigmas_of(scheduler: "SchedulerMixin") -> Tensor:
    """Noise over signal (timesteps,) float32 of a model, from betas in float64 as CompVis has them."""
    config = scheduler.config
    if config.get("rescale_betas_zero_snr"):
        signal: Tensor = scheduler.alphas_cumprod
    elif config.get("trained_betas") is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
        signal = torch.cumprod(1 - betas, 0)
    else:
        ends = {k: config[k] for k in ("beta_start", "beta_end") if config.beta_schedule.endswith("linear")}
        named = NoiseSchedule.named(config.beta_schedule, config.num_train_timesteps, **ends)
        signal = named.alphas_cumprod
    signal = signal.float()
    return ((1 - signal) / signal) ** 0.5


def brownian_noise(sigmas: Tensor, x: Tensor, seeds: Sequence[int]) -> Callable[[Any, Any], Tensor]:
    """Unit noise between two noise levels from a Brownian tree for each picture, drawn on the CPU.

    sigmas: all levels of the schedule; x: (batch, c, h, w), what the noise is to be like.
    """
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    above = sigmas[sigmas > 0]
    low, high = round(float(above.min()), 6), round(float(above.max()), 6)  # torchsde's precision
    if low == high:  # one step, and no noise
        return lambda sigma, sigma_next: torch.zeros_like(x)
    tree = BrownianTreeNoiseSampler(
        torch.zeros(x.shape, dtype=torch.float32), low, high, [seed % 2**64 for seed in seeds]
    )

    def inside(sigma: Any) -> Tensor:
        return torch.tensor(min(max(float(sigma), low), high), dtype=torch.float64)

    def between(sigma: Any, sigma_next: Any) -> Tensor:
        if float(sigma_next) == 0:  # the last step adds none
            return torch.zeros_like(x)
        return tree(inside(sigma), inside(sigma_next)).to(x)  # type: ignore[no-any-return]

    return between

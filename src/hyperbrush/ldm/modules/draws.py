"""Noise and timesteps of a training step: always drawn from a generator the caller keys by (seed, step)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.modules.flow import shifted


def sample_noise(shape: tuple[int, ...], generator: torch.Generator, *, offset: float = 0.0) -> Tensor:
    """Standard normal noise (batch, channels, height, width), float32 on the generator's device.

    ``offset`` adds one normal number per picture and channel (offset noise, Guttenberg 2023), so that
    overall brightness is learned.
    """
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if offset:
        noise = noise + offset * torch.randn(
            shape[:2] + (1,) * (len(shape) - 2), generator=generator, device=generator.device
        )
    return noise


def perturb(noise: Tensor, generator: torch.Generator, gamma: float) -> Tensor:
    """Input perturbation (Ning et al. 2023, 2301.11706): x_t is made with noise + γ ξ, while the
    target keeps the clean noise.
    """
    if not gamma:
        return noise
    return noise + gamma * torch.randn(noise.shape, generator=generator, device=generator.device).to(noise)


# Ways to draw timesteps, and what each can be told.
TIMESTEP_SAMPLINGS: dict[str, dict[str, float]] = {
    "uniform": {},
    "stratified": {"shift": 1.0},
    "logit_normal": {"mean": 0.0, "std": 1.0},
    "shifted": {"shift": 3.0},
}


def timestep_options(method: str, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """What a way to draw timesteps is told, with its defaults.

    Raises:
        UserError: an unknown way, an option that it does not have, or one out of its range.
    """
    if method not in TIMESTEP_SAMPLINGS:
        raise unknown_name("timestep sampling", method, TIMESTEP_SAMPLINGS)
    known, given = TIMESTEP_SAMPLINGS[method], given or {}
    if stray := sorted(given.keys() - known.keys()):
        raise unknown_name(f"option of timestep sampling {method!r}", stray[0], known)
    found = {**known, **given}
    for name, value in found.items():
        if not math.isfinite(value) or (name != "mean" and value <= 0):
            least = "" if name == "mean" else " above 0"
            raise UserError(f"{name} of timestep sampling {method!r} must be a number{least}, got {value!r}")
    return found


def sample_timesteps(
    batch: int,
    steps: int,
    generator: torch.Generator,
    *,
    low: int = 0,
    high: int | None = None,
    method: str = "uniform",
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """Timesteps (batch,) int64 in [low, high).

    ``uniform`` draws each alone; ``stratified`` spreads the batch evenly over the range in a random
    order, which lowers the variance of the loss, then moves it towards noise by option "shift" (1: not at all); ``logit_normal`` favours the middle (Esser et al.
    2024, section 3.1), or what options "mean" and "std" say; ``shifted`` moves uniform ones towards noise by option
    "shift" (`flow.shifted`).

    Raises:
        UserError: an empty or impossible range; see `timestep_options`.
    """
    told = timestep_options(method, options)
    high = steps if high is None else high
    if not 0 <= low < high <= steps:
        raise UserError(f"timesteps {low} to {high} are not within 0 to {steps}")
    if method == "uniform":
        share = torch.rand(batch, generator=generator, device=generator.device)
    elif method == "stratified":
        cell = torch.randperm(batch, generator=generator, device=generator.device)
        share = (cell + torch.rand(batch, generator=generator, device=generator.device)) / batch
        share = shifted(share.double(), told["shift"])
    elif method == "logit_normal":
        drawn = torch.randn(batch, generator=generator, device=generator.device)
        share = (told["mean"] + told["std"] * drawn).sigmoid()
    else:
        share = torch.rand(batch, generator=generator, device=generator.device)
        share = shifted(share.double(), told["shift"])
    return (low + share.double() * (high - low)).long().clamp(max=high - 1)

"""A diffusion process as diffusers' scheduler settings, and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.diffusion import NoiseSchedule, rescale_to_zero_terminal_snr


def scheduler_config(
    schedule: str | Sequence[float] | Callable[[float], float],
    steps: int,
    prediction: str,
    zero_terminal_snr: bool,
) -> dict[str, Any]:
    """The diffusers settings of a process.

    schedule: a name; the betas of all steps, which then number them; or a function of the share of the process, 0 to 1,
        to the signal's share of the variance.

    Raises:
        UserError: an unknown name; betas that are no shares between 0 and 1; a function that does not fall.
    """
    if not isinstance(schedule, str):
        betas = checked_betas(_betas_of(schedule, steps) if callable(schedule) else schedule)
        process = scheduler_config("linear", len(betas), prediction, zero_terminal_snr)
        return process | {"trained_betas": betas}
    name = "squaredcos_cap_v2" if schedule == "cosine" else schedule
    NoiseSchedule.named(name, steps)  # refuses unknown names
    config: dict[str, Any] = {
        "num_train_timesteps": steps,
        "beta_schedule": name,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_terminal_snr,
        "timestep_spacing": "trailing" if zero_terminal_snr else "leading",
        "steps_offset": 0 if zero_terminal_snr else 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    if name == "linear":
        config |= {"beta_start": 0.0001, "beta_end": 0.02}
    if name == "scaled_linear":
        config |= {"beta_start": 0.00085, "beta_end": 0.012}
    return config


def checked_betas(betas: Sequence[float]) -> list[float]:
    """The betas of a process as numbers.

    Raises:
        UserError: fewer than two, or one that is no share above 0 and below 1.
    """
    found = [float(beta) for beta in betas]
    wrong = next((i for i, beta in enumerate(found) if not 0 < beta < 1), None)
    if wrong is not None:
        raise UserError(
            f"beta {wrong} of the noise schedule is {found[wrong]}: expected a number above 0 and below 1"
        )
    if len(found) < 2:
        raise UserError(
            f"a noise schedule of {len(found)} betas; expected one for each of its steps, such as 1000"
        )
    return found


def _betas_of(signal: Callable[[float], float], steps: int) -> list[float]:
    """Betas of a function's signal shares, as Nichol & Dhariwal (2021, equation 17) make them of a cosine."""
    shares = [float(signal(step / steps)) for step in range(steps + 1)]
    if not all(math.isfinite(share) and share >= 0 for share in shares) or any(
        after >= before for before, after in pairwise(shares)
    ):
        raise UserError("the noise schedule's function must fall from step to step and stay at 0 or above")
    return [min(1 - after / before, 0.999) for before, after in pairwise(shares)]


def schedule_of(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that diffusers settings describe."""
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        alphas = torch.cumprod(1 - betas, 0)
        zero = config.get("rescale_betas_zero_snr", False)
        return NoiseSchedule(rescale_to_zero_terminal_snr(alphas) if zero else alphas)
    name = config.get("beta_schedule", "linear")
    ends = {} if name == "squaredcos_cap_v2" else {k: config.get(k) for k in ("beta_start", "beta_end")}
    return NoiseSchedule.named(
        name,
        config.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        **ends,
    )

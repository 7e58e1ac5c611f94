"""A diffusion process as diffusers' scheduler settings, and back."""

from collections.abc import Mapping
from typing import Any

import torch

from hyperbrush.ldm.modules.diffusion import NoiseSchedule, rescale_to_zero_terminal_snr


def scheduler_config(schedule: str, steps: int, prediction: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """The diffusers settings of a process."""
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

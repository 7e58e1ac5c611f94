"""Rectified flow (Liu et al. 2022, 2209.03003), also called flow matching, as small pure functions.

Notation: x0 data, eps noise, x_t = (1 - sigma) x0 + sigma eps; the network predicts the velocity eps - x0
("flow_prediction" in diffusers).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError


def shifted(share: Tensor, shift: float) -> Tensor:
    """Equation 23 of Esser et al. (2024, 2403.03206): shift · s / (1 + (shift - 1) s); above 1 it moves towards noise.

    share: sigmas, or shares of a process, in [0, 1]; any shape.

    Raises:
        UserError: a shift that is not above 0.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise UserError(
            f"shift must be a number above 0 (1 moves nothing, 3 is Stable Diffusion 3's), got {shift!r}"
        )
    return shift * share / (1 + (shift - 1) * share)


@dataclass(frozen=True)
class FlowSchedule:
    """Shares of noise of a rectified flow in whole timesteps.

    sigmas: (steps,) float64, rising, in (0, 1]; the last one is 1, noise alone.
    """

    sigmas: Tensor

    @classmethod
    def of_shift(cls, shift: float = 1.0, steps: int = 1000) -> "FlowSchedule":
        """The sigmas that diffusers' `FlowMatchEulerDiscreteScheduler` trains at, from the cleanest on.

        Raises:
            UserError: a shift that is not above 0.
        """
        return cls(shifted(torch.arange(1, steps + 1, dtype=torch.float64) / steps, shift))

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def zero_terminal_snr(self) -> bool:
        """True: the last step of a flow holds no signal at all."""
        return True

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ((1 - sigma) / sigma)²; timesteps: (batch,) int; returns (batch,) float64."""
        sigma = self.sigmas[timesteps.cpu()]
        return ((1 - sigma) / sigma) ** 2

    def rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 - sigma and sigma, shaped (batch, 1, …) to multiply ``like`` (batch, …)."""
        sigma = self.sigmas[timesteps.cpu()]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return (1 - sigma).to(like).view(shape), sigma.to(like).view(shape)

    def told(self, timesteps: Tensor) -> Tensor:
        """What the network is told of timesteps, (batch,) float32: sigma times their number, as diffusers has it."""
        return (self.sigmas[timesteps.cpu()] * len(self)).float().to(timesteps.device)


SCHEDULER = "FlowMatchEulerDiscreteScheduler"  # of diffusers


def config_of(steps: int, shift: float) -> dict[str, Any]:
    """The diffusers settings of a flow, with what other classes of diffusers have to be told to sample it.

    Raises:
        UserError: a shift that is not above 0.
    """
    FlowSchedule.of_shift(shift, steps)
    return {
        "num_train_timesteps": steps,
        "shift": float(shift),
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": float(shift),
        "init_noise_sigma": 1.0,  # StableDiffusionPipeline asks for it, and diffusers' class has none
    }


def process_config(config: Mapping[str, Any], class_name: str = "") -> dict[str, Any]:
    """The diffusers settings of a process: of a flow what belongs to the model, whichever class held it, else all.

    class_name: of the scheduler, where the settings do not say.

    Raises:
        UserError: a flow whose sigmas go by the picture's size, are inverted, or do not end at 0; an EDM process, whose
            noise levels are no schedule of betas.
    """
    name = class_name or str(config.get("_class_name", ""))
    if name.startswith("EDM"):
        raise UserError(
            f"the model's scheduler is {name}: EDM models can be drawn in their own diffusers pipeline alone"
        )
    of_flow = name.startswith("FlowMatch")
    if not of_flow and config.get("prediction_type") != "flow_prediction":
        return dict(config)
    for key in ("use_dynamic_shifting", "invert_sigmas", "shift_terminal"):
        if config.get(key):
            raise UserError(
                f"the model's scheduler has {key} {config[key]!r}: flows with one shift for all pictures can be trained "
                "and sampled here, others in their own diffusers pipeline alone"
            )
    shift = config.get("shift" if of_flow or "flow_shift" not in config else "flow_shift")
    return config_of(config.get("num_train_timesteps") or 1000, 1.0 if shift is None else shift)


def trained_process(config: Mapping[str, Any], class_name: str = "") -> dict[str, Any]:
    """As `process_config`, of a pipeline that draws with a scheduler of its own: the sigmas that it holds before it draws,
    which are those diffusers' training scripts take.

    A shift by the picture's size, and where the last step ends, are of drawing alone.

    Raises:
        UserError: a flow whose sigmas are inverted.
    """
    plain = {**config, "shift_terminal": None}
    if config.get("use_dynamic_shifting"):
        plain |= {"use_dynamic_shifting": False, "shift": 1.0}
    return process_config(plain, class_name)


# Loss weightings: (batch,) sigma -> (batch,) weight of the squared error of the velocity.


def uniform_weight(sigma: Tensor) -> Tensor:
    """One for every timestep."""
    return torch.ones_like(sigma)


def sigma_sqrt_weight(sigma: Tensor) -> Tensor:
    """sigma^-2, which favours little noise: "sigma_sqrt" of diffusers' training of Stable Diffusion 3."""
    return sigma**-2


def cosmap_weight(sigma: Tensor) -> Tensor:
    """2 / (π (1 - 2 sigma + 2 sigma²)): CosMap of Esser et al. (2024), section 3.1: its density of sigma as a weight."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": uniform_weight,
    "sigma_sqrt": sigma_sqrt_weight,
    "cosmap": cosmap_weight,
}

"""Samplers of models trained by flow matching, on diffusers' schedulers."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hyperbrush.ldm.sampling.names import FLOW, Sampler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


def flow_scheduler(sampler: Sampler, config: Mapping[str, Any]) -> "SchedulerMixin":
    """Diffusers' scheduler for a sampler on a rectified flow, with what `samplers.sample` asks of all.

    config: of `flow.process_config`.
    """
    import diffusers

    scheduler = getattr(diffusers, sampler.scheduler)
    accepted = inspect.signature(scheduler.__init__).parameters
    made: SchedulerMixin = scheduler(**{k: v for k, v in config.items() if k in accepted}, **sampler.options)
    made.sampler = sampler
    if sampler.predictions != FLOW:  # a class of other processes too, which has it all
        return made

    def add_noise(x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps / config["num_train_timesteps"]).view(-1, *[1] * (x0.ndim - 1)).to(x0)
        noised: Tensor = (1 - sigma) * x0 + sigma * noise
        return noised

    made.init_noise_sigma, made.add_noise = 1.0, add_noise
    made.scale_model_input = lambda latents, timestep: latents
    return made

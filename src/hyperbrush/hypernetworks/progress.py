"""How far a sampling has come, read off the pipeline's scheduler or the timestep."""

from typing import Any

import torch


def progress_of(pipe_or_unet: Any, timestep: Any) -> float:
    """0 at the first sampling step, 1 at the last.

    The step is the timestep's place among those of the pipeline's scheduler, from where an
    image-to-image run begins. Without a scheduler, or for a timestep that is not one of its own: 0 at
    the noisiest timestep, 1 at 0.
    """
    number = float(timestep.reshape(-1)[0]) if isinstance(timestep, torch.Tensor) else float(timestep or 0)
    scheduler = getattr(pipe_or_unet, "scheduler", None)
    every = getattr(scheduler, "timesteps", None)
    if isinstance(every, torch.Tensor) and every.ndim == 1:
        begin = getattr(scheduler, "begin_index", None) or 0
        # Samplers of second order list a timestep once for each evaluation: these are one step.
        steps = list(dict.fromkeys(every[begin:].tolist()))
        if number in steps:
            return steps.index(number) / max(len(steps) - 1, 1)
    noisiest = getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000) - 1
    return min(max(1 - number / noisiest, 0.0), 1.0)

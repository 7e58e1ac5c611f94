"""How far a sampling has come, read off the pipeline's scheduler or the timestep."""

from typing import Any

import torch


class Progress:
    """0 at the first sampling step of a pipeline, 1 at its last.

    A step is a place among the scheduler's timesteps, from where an image-to-image run begins to where
    ``denoising_end`` ends it. Without a scheduler, or for a timestep that is not one of its own: 0 at the
    noisiest timestep, 1 at 0.
    rounded: timesteps come through other scales and precisions: the scheduler's own that is nearest is meant.
    """

    def __init__(self, pipe_or_unet: Any, rounded: bool = False) -> None:
        self._pipe = pipe_or_unet
        self._rounded = rounded
        self._timesteps: torch.Tensor | None = None
        self._first: Any = None
        self._fresh = False  # whether the sampling began while it was looked at

    def begin(self) -> None:
        """From now on it is looked at: timesteps that are there already may be half done."""
        if (now := _timesteps(self._pipe)) is not self._timesteps:
            self._timesteps, self._first, self._fresh = now, None, False

    def see(self, timestep: Any) -> None:
        """A forward pass begins. Schedulers make new timesteps for each sampling: this tells its first."""
        timesteps = _timesteps(self._pipe)
        if timesteps is not self._timesteps:
            self._timesteps, self._first, self._fresh = timesteps, timestep, True
        elif self._first is None:
            self._first = timestep

    def at(self, timestep: Any) -> float:
        """Progress at a timestep: a number or a tensor of equal ones."""
        now = _number(timestep)
        scheduler = getattr(self._pipe, "scheduler", None)
        timesteps = _timesteps(self._pipe)
        if timesteps is not None:
            every: list[float] = timesteps.tolist()
            begin = self._begin(every, scheduler)
            end = _end(every, self._pipe, scheduler)
            place = getattr(scheduler, "step_index", None)
            if self._rounded:
                now = _nearest(now, every, begin if place is None else place)
            if getattr(scheduler, "order", 1) == 1 and place is not None and every[place:][:1] == [now]:
                # Karras' steps can round to equal timesteps: these are several steps.
                return _share(place - begin, end - begin)
            # Samplers of second order list a timestep once for each evaluation: these are one step.
            steps = list(dict.fromkeys(every[begin:end]))
            if now in steps:
                return _share(steps.index(now), len(steps))
        noisiest = getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000) - 1
        return min(max(1 - now / noisiest, 0.0), 1.0)

    def _begin(self, every: list[float], scheduler: Any) -> int:
        """Place of the sampling's first timestep."""
        known = getattr(scheduler, "begin_index", None)
        if known is not None:
            return int(known)
        # DDIM, DDPM and PNDM do not know. The first pass seen does, where the sampling began with it; a pipeline does from
        # its last call, which another one that shares its parts may have followed.
        seen = self._timesteps is _timesteps(self._pipe) and self._first is not None
        place = every.index(_number(self._first)) if seen and _number(self._first) in every else None
        if self._fresh and place is not None:
            return place
        begins = [] if place is None else [place]
        count = getattr(self._pipe, "num_timesteps", None)
        if isinstance(count, int):
            begins.append(_end(every, self._pipe, scheduler) - count)
        return min((begin for begin in begins if begin >= 0), default=0)


def _timesteps(pipe_or_unet: Any) -> torch.Tensor | None:
    timesteps = getattr(getattr(pipe_or_unet, "scheduler", None), "timesteps", None)
    return timesteps if isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1 else None


def _end(every: list[float], pipe: Any, scheduler: Any) -> int:
    """How many timesteps there are until ``denoising_end`` of SDXL's pipelines."""
    end = getattr(pipe, "denoising_end", None)
    if not isinstance(end, float) or not 0 < end < 1:
        return len(every)
    noisiest = scheduler.config.num_train_timesteps
    return sum(t >= round(noisiest - end * noisiest) for t in every)


def _nearest(now: float, every: list[float], place: int) -> float:
    """The timestep at a place that ``now`` stands for; else the nearest; else ``now`` itself."""
    close = 8.0  # of 1000: bfloat16 is off by 2, and by 4 after a change of scale
    here = [t for t in every[place : place + 1] if abs(t - now) <= close]
    near = min(here or every, key=lambda t: abs(t - now), default=now)
    return near if abs(near - now) <= close else now


def _share(place: int, steps: int) -> float:
    return min(max(place, 0) / max(steps - 1, 1), 1.0)


def _number(timestep: Any) -> float:
    return float(timestep.reshape(-1)[0]) if isinstance(timestep, torch.Tensor) else float(timestep or 0)

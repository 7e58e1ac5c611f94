"""Learning rates as pure functions of the optimizer step, and a torch scheduler that applies them.

Steps count from 0: the n-th optimizer step runs with ``schedule(n)``.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.piecewise import OPEN_END as OPEN_END  # the door to both
from hyperbrush.ldm.piecewise import (
    RATES,
    is_piecewise,
    parse_piecewise,
    piecewise_oddities,
    piecewise_rate,
)

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Callable[[int], float]

log = logging.getLogger(__name__)
EXAMPLE = RATES.example


def constant_decay(done: int, total: int) -> float:
    """1 throughout."""
    return 1.0


def linear_decay(done: int, total: int) -> float:
    """A straight line from 1 to 0."""
    return 1 - done / total


def cosine_decay(done: int, total: int) -> float:
    """Half a cosine from 1 to 0: Loshchilov & Hutter (2017, 1608.03983), equation 5, one cycle."""
    return 0.5 * (1 + math.cos(math.pi * done / total))


def restarting_cosine_decay(done: int, total: int, cycles: int = 1) -> float:
    """Equal cosine cycles, each from 1 towards 0: SGDR, Loshchilov & Hutter (2017), equation 5."""
    if done >= total:
        return 0.0
    return cosine_decay(done * cycles % total, total)  # whole numbers: exact restarts


def polynomial_decay(done: int, total: int, power: float = 1.0) -> float:
    """(1 - progress) to a power, from 1 to 0."""
    return float((1 - done / total) ** power)


DECAYS: dict[str, Callable[..., float]] = {
    "constant": constant_decay,
    "constant_with_warmup": constant_decay,  # diffusers' name; the warm-up is a setting of its own
    "linear": linear_decay,
    "cosine": cosine_decay,
    "cosine_with_restarts": restarting_cosine_decay,
    "polynomial": polynomial_decay,
}


def warmup(step: int, num_warmup_steps: int) -> float:
    """A straight line from 0 at step 0 to exactly 1 at ``num_warmup_steps``, 1 from there on."""
    return min(1.0, step / num_warmup_steps) if num_warmup_steps else 1.0


def make_schedule(
    name: str | Schedule = "cosine",
    *,
    base_rate: float = 1.0,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    num_cycles: int = 1,
    power: float = 1.0,
    final_factor: float = 0.0,
) -> Schedule:
    """The learning rate as a pure function of the step: warm-up times a decay.

    ``schedule(num_warmup_steps)`` is exactly ``base_rate``; from ``num_training_steps`` on it is
    exactly ``base_rate * final_factor`` (constant: ``base_rate``).

    Args:
        name: constant, linear, cosine, cosine_with_restarts, polynomial; a piecewise string such as
            "5e-5:100, 5e-6:1000, 1e-7", whose rates are absolute; or a function of the step that
            returns a factor of the base rate, as in torch's ``LambdaLR``.  The last two count steps
            from 0, warm-up included, and are multiplied by the warm-up.
        base_rate: rate after the warm-up; with 1.0 the schedule returns factors.  A piecewise
            string does not use it.
        num_warmup_steps: the rate grows linearly from 0 at step 0.
        num_training_steps: where the decay ends; needed by every decay but constant.
        num_cycles: of cosine_with_restarts.
        power: of polynomial.
        final_factor: the share of the base rate that every decay but constant ends at.

    Raises:
        UserError: unknown name, malformed string, or step numbers that leave no room.  The returned
            function raises it for a negative step, or if ``name`` returns no rate (below 0, nan,
            inf).
    """
    if num_warmup_steps < 0:
        raise UserError(f"num_warmup_steps must not be negative; got {num_warmup_steps}")
    if callable(name):
        shape = _checked(name)
    elif is_piecewise(name):
        text = str(name)
        segments = parse_piecewise(text, num_training_steps)
        for said in piecewise_oddities(text):
            log.warning("learning-rate schedule %r: %s", text, said)
        return _schedule(lambda step: piecewise_rate(segments, step), 1.0, num_warmup_steps)
    else:
        shape = _decay(name.strip(), num_warmup_steps, num_training_steps, num_cycles, power, final_factor)
    return _schedule(shape, base_rate, num_warmup_steps)


def _schedule(shape: Schedule, scale: float, num_warmup_steps: int) -> Schedule:
    """Scale times warm-up times shape, refusing negative steps."""

    def schedule(step: int) -> float:
        if step < 0:
            raise UserError(f"a learning rate has no step {step}; steps count from 0")
        return scale * (warmup(step, num_warmup_steps) * shape(step))

    return schedule


def _checked(function: Schedule) -> Schedule:
    """The same function, refusing values that are no rate."""

    def checked(step: int) -> float:
        value = float(function(step))
        if not math.isfinite(value) or value < 0:
            raise UserError(f"the rate function returned {value} at step {step}; expected a factor >= 0")
        return value

    return checked


def _decay(name: str, begin: int, end: int | None, cycles: int, power: float, final: float) -> Schedule:
    """A named decay between the steps ``begin`` and ``end``, resting at its ends."""
    if name not in DECAYS:
        raise unknown_name("learning-rate schedule", name, DECAYS, f", a string like {EXAMPLE!r}")
    if name in ("constant", "constant_with_warmup"):
        return lambda step: 1.0
    if end is None:
        raise UserError(f"the {name!r} schedule needs num_training_steps, the step it ends at")
    if end <= begin:
        raise UserError(
            f"the {name!r} schedule has no step left to decay: num_training_steps={end} must be "
            f"larger than num_warmup_steps={begin}; shorten the warm-up or take 'constant'"
        )
    if cycles < 1 or power <= 0 or not 0 <= final <= 1:
        raise UserError(
            "a schedule needs num_cycles >= 1, power > 0 and final_factor from 0 to 1; "
            f"got num_cycles={cycles}, power={power}, final_factor={final}"
        )
    total, decay = end - begin, DECAYS[name]
    if decay is restarting_cosine_decay:
        decay = partial(restarting_cosine_decay, cycles=cycles)
    elif decay is polynomial_decay:
        decay = partial(polynomial_decay, power=power)

    def shape(step: int) -> float:
        share = decay(min(max(step - begin, 0), total), total)
        return share + (1 - share) * final  # exact at both ends

    return shape


class StepScheduler(LRScheduler):
    """A torch scheduler whose rates are a function of the number of optimizer steps.

    It listens to the optimizer and counts its steps, so that `step` sets the rates that are due,
    however often it is called: accelerate's prepared scheduler calls it ``num_processes`` times per
    step, loops with gradient accumulation call it between steps, and loss scaling skips steps.  All
    get the right rate, prepared by accelerate or not.  Before the optimizer has made a step, each
    call goes one step further, as in torch, so that a schedule can be walked or wound forward.

    Args:
        optimizer: its groups' ``lr`` are set from now on.
        schedule: step → rate or factor.
        scales: what the schedule is multiplied by, one per parameter group.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, scales: Sequence[float]) -> None:
        self.schedule, self.scales = schedule, list(scales)
        self._origin, self._performed = -1, 0  # steps wound forward by hand, steps seen
        super().__init__(optimizer)
        optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._performed += 1

    def get_lr(self) -> "list[float | Tensor]":
        """Rates of the current step, one per parameter group."""
        value = self.schedule(self.last_epoch)
        return [scale * value for scale in self.scales]

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the next optimizer step.

        epoch: the step to go to (torch's name for it); by default the optimizer steps made.

        Raises:
            UserError: a negative step.
        """
        if epoch is not None:
            self._origin, self._performed = epoch, 0
        elif not self._performed:
            self._origin += 1
        self._step_count += 1
        self.last_epoch = self._origin + self._performed
        self._set_rates()

    def _set_rates(self) -> None:
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """The step; everything else follows from it."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a saved step and set its rates.

        Raises:
            UserError: the state is not one of `state_dict`'s.
        """
        if not isinstance(state_dict.get("last_epoch"), int):
            raise UserError(
                f"not a learning-rate scheduler's state: expected 'last_epoch', got {sorted(state_dict)}"
            )
        self.step(state_dict["last_epoch"])


def get_scheduler(
    optimizer: Optimizer,
    name: str | Schedule = "cosine",
    *,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    num_cycles: int = 1,
    power: float = 1.0,
    final_factor: float = 0.0,
) -> StepScheduler:
    """A scheduler to `step` after each optimizer step; arguments as in `make_schedule`.

    Each parameter group's own ``lr`` is its base rate.  A piecewise string's rates are those of the
    first group; the other groups keep their proportion to it.  It may be passed to
    ``accelerator.prepare`` or not, see `StepScheduler`.

    Raises:
        UserError: what `make_schedule` refuses; no optimizer first; a first group of rate 0
            beside others under a piecewise string.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = get_scheduler(optimizer, num_warmup_steps=1000, num_training_steps=100000)
    >>> scheduler.get_last_lr()
    [0.0]
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if not isinstance(inner, Optimizer):
        raise UserError(f"get_scheduler takes the optimizer first; got {optimizer!r}")
    schedule = make_schedule(
        name,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        power=power,
        final_factor=final_factor,
    )
    scales = [float(group.get("initial_lr", group["lr"])) for group in inner.param_groups]
    if is_piecewise(name):
        first = scales[0]
        if not first and any(scales):
            raise UserError(
                "under a piecewise schedule the parameter groups keep their proportion to the "
                "first, whose lr is 0; give it a positive one"
            )
        scales = [scale / first if first else 1.0 for scale in scales]
    return StepScheduler(inner, schedule, scales)

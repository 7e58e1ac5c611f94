"""Clipping of true gradients, by norm or by value, to a limit that may change with the step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.piecewise import Wording, check_piecewise, parse_piecewise, piecewise_rate

Limit = Callable[[int], float | None]
How = Literal["norm", "value"]

WORDS = Wording("clip schedule", "limit", "1.0:100, 0.5", "is empty")


def clip_schedule(limit: str | float | None) -> Limit:
    """The clip limit as a pure function of the step (from 0); None: never clip.

    limit: one number, None, or a string like "1.0:100, 0.5": 1.0 for the first hundred steps, then 0.5. It
        is read as a learning-rate string is (`parse_piecewise`); the last limit holds past its end.

    Raises:
        UserError: a malformed string; steps that do not grow; a limit that is not above 0.

    >>> limit = clip_schedule("1.0:100, 0.5")
    >>> limit(99), limit(100)
    (1.0, 0.5)
    """
    if limit is None:
        return lambda step: None
    text = str(limit)
    segments = parse_piecewise(text, None, WORDS)
    if any(value <= 0 for value, _ in segments):
        raise UserError(
            f"clip limit {text!r} holds a 0, which would stop all learning; expected numbers above 0, "
            f"like {WORDS.example!r}, or none at all for gradients as they are"
        )
    check_piecewise(text, WORDS)
    return lambda step: piecewise_rate(segments, step)


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped; call it between backward and the optimizer's step.

    how: "norm": all gradients together are scaled down to a total L2 norm (Pascanu et al. 2013,
        1211.5063, algorithm 1). "value": each number is cut to [-limit, limit].
    limit: see `clip_schedule`.

    Raises:
        UserError: another ``how``; a malformed limit.
    """

    how: How = "norm"
    limit: str | float | None = 1.0

    def __post_init__(self) -> None:
        if self.how not in ("norm", "value"):
            raise unknown_name("way to clip", self.how, ("norm", "value"))
        clip_schedule(self.limit)

    def __call__(self, parameters: Iterable[Tensor], step: int) -> Tensor:
        """Clip in place and return the total norm from before, a scalar: NaN or inf where a gradient is.

        The gradients must be true ones: with fp16, call `accelerator.unscale_gradients()` first. Gradients
        that are not finite are left as they are.
        """
        given = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in given if p.grad is not None])
        limit = clip_schedule(self.limit)(step)
        if limit is None or not math.isfinite(float(norm)):
            return norm
        if self.how == "norm":
            torch.nn.utils.clip_grads_with_norm_(given, limit, norm)
        else:
            torch.nn.utils.clip_grad_value_(given, limit)
        return norm

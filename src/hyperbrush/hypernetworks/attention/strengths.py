"""How strongly a network acts: a number, a schedule over the sampling steps, one for each picture.

A schedule is any callable from the progress of sampling, 0 at the first step and 1 at the last, to a number.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError

Term = float | Callable[[float], float]


@dataclass(frozen=True)
class Window:
    """Act from ``start`` to ``end`` of the sampling steps (0 is the first step, 1 the last), not outside.

    Raises:
        UserError: not 0 ≤ start ≤ end ≤ 1.
    """

    strength: Term = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise UserError(
                f"a window from {self.start} to {self.end} is impossible: expected 0 ≤ start ≤ end ≤ 1"
            )

    def __call__(self, progress: float) -> float:
        """The strength at a progress from 0 to 1."""
        # Rounding in i/(n-1) must not cost the step that start or end names.
        inside = self.start - 1e-9 <= progress <= self.end + 1e-9
        return _at(self.strength, progress) if inside else 0.0


@dataclass(frozen=True)
class Ramp:
    """Go linearly from strength ``first`` at ``start`` to ``last`` at ``end`` of the sampling steps."""

    first: float
    last: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        finite(self.first)
        finite(self.last)
        if not 0 <= self.start < self.end <= 1:
            raise UserError(
                f"a ramp from {self.start} to {self.end} is impossible: expected 0 ≤ start < end ≤ 1"
            )

    def __call__(self, progress: float) -> float:
        """The strength at a progress from 0 to 1."""
        share = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        return self.first + (self.last - self.first) * share


class PerPicture(tuple[Term, ...]):
    """One strength (number or schedule) for each picture of a batch.

    Picture i of n is at rows i, n + i, … of a batch, as pipelines lay out both sides of guidance.

    Raises:
        UserError: none was given, or one is neither a finite number nor a callable.
    """

    __slots__ = ()

    def __new__(cls, strengths: Iterable[Term]) -> "PerPicture":
        """Strengths: a number or a schedule each, in the pictures' order."""
        terms = tuple(term if callable(term) else finite(term) for term in strengths)
        if not terms:
            raise UserError("PerPicture needs one strength for each picture of the batch, but got none")
        return super().__new__(cls, terms)


StrengthLike = Term | PerPicture | tuple[Term | PerPicture, Term | PerPicture]


class Strength:
    """A strength as it is at this sampling step.

    Compiled graphs read it as a tensor, so that changing it recompiles nothing.
    """

    def __init__(self, spec: Term | PerPicture, device: torch.device) -> None:
        self._progress = 0.0
        self._behind: tuple[int, int] | None = None
        self.value = self._now(spec)
        self._take(spec)
        self.tensor = self._tensor(device)

    def _take(self, spec: Term | PerPicture) -> None:
        # Compiled graphs may read whether, never which: they would be compiled again for each strength.
        self.spec = spec
        self.per_picture = isinstance(self.value, tuple)  # whether each picture of a batch has its own
        terms = spec if isinstance(spec, PerPicture) else (spec,)
        self.scheduled = any(callable(term) for term in terms)  # whether it depends on the sampling step

    @property
    def constant(self) -> float | None:
        """The number it is for all steps and pictures, if it is one."""
        return self.value if isinstance(self.value, float) and not self.scheduled else None

    @property
    def acts_everywhere(self) -> bool:
        """Whether it is zero for no picture at this step."""
        return all(self.value) if isinstance(self.value, tuple) else self.value != 0

    @property
    def acts(self) -> bool:
        """Whether it is not zero for some picture at this step."""
        return any(self.value) if isinstance(self.value, tuple) else self.value != 0

    def on(self, device: torch.device) -> Tensor:
        """As a tensor, 0-dim or (pictures,), on a device; it stays there."""
        if self.tensor.device != device:
            self.tensor = self._tensor(device)
        return self.tensor

    def of_rows(self, x: Tensor) -> Tensor:
        """Each picture's own as (rows, 1, 1), for a batch x of that many rows, on its device.

        Raises:
            UserError: the batch is no multiple of the pictures.
        """
        strengths = self.on(x.device)
        pictures = len(strengths)
        if len(x) % pictures:
            raise UserError(
                f"there are strengths for {pictures} pictures, but the batch has {len(x)} rows: expected a "
                f"multiple of {pictures}, one strength for each picture of the batch"
            )
        return strengths.repeat(len(x) // pictures)[:, None, None]

    def set(self, spec: Term | PerPicture) -> None:
        """Take a new strength.

        Raises:
            UserError: it is not finite; nothing was changed then.
        """
        value = self._now(spec)
        self.value = value
        self._take(spec)
        shape = (len(value),) if isinstance(value, tuple) else ()
        if shape == self.tensor.shape:
            self._fill()
        else:
            self.tensor = self._tensor(self.tensor.device)

    @contextmanager
    def held(self, value: float | tuple[float, ...]) -> Iterator[None]:
        """Be this value meanwhile, whatever was set since."""
        now = vars(self).copy()
        self.tensor = self.tensor.clone()  # a graph that is made meanwhile keeps it for its backward
        self.set(PerPicture(value) if isinstance(value, tuple) else value)
        try:
            yield
        finally:
            vars(self).update(now)

    def at(self, progress: float) -> None:
        """Go to a place of the sampling, from 0 to 1."""
        self._progress = progress
        value = self._now(self.spec)
        if value != self.value:
            self.value = value
            self._fill()

    def act_behind(self, first: int, rows: int) -> None:
        """Leave the first rows of a batch of this many alone; first 0: act on all."""
        behind = (first, rows) if first else None
        if behind != self._behind:
            self._behind = behind
            self.set(self.spec)

    def _now(self, spec: Term | PerPicture) -> float | tuple[float, ...]:
        every = tuple(
            _at(term, self._progress) for term in (spec if isinstance(spec, PerPicture) else (spec,))
        )
        if self._behind is not None:
            first, rows = self._behind
            if rows % len(every) == 0:  # else an error where it is used
                every *= rows // len(every)
                return (0.0,) * first + every[first:]
        return every if isinstance(spec, PerPicture) else every[0]

    def _fill(self) -> None:
        if isinstance(self.value, tuple):
            self.tensor.copy_(torch.tensor(self.value, dtype=self.tensor.dtype))
        else:
            self.tensor.fill_(self.value)

    def _tensor(self, device: torch.device) -> Tensor:
        # A 0-dim tensor never raises the precision of what it multiplies.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            return torch.tensor(self.value, dtype=dtype, device=device)


def pair_of(strength: Any) -> tuple[Term | PerPicture, Term | PerPicture]:
    """A strength as two, for keys and for values.

    Raises:
        UserError: it is none of what `StrengthLike` lists.
    """
    if isinstance(strength, tuple | list) and not isinstance(strength, PerPicture):
        if len(strength) != 2:
            raise UserError(
                f"strength {strength!r}: expected a number, a schedule, PerPicture([…]), "
                "or two of these (for keys, for values)"
            )
        return _checked(strength[0]), _checked(strength[1])
    return _checked(strength), _checked(strength)


def finite(strength: Any) -> float:
    """A strength as a float.

    Raises:
        UserError: it is not a finite number.
    """
    try:
        number = float(strength)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"strength {strength!r} is not a finite number: expected one such as 0.7, 0 or -0.3")
    return number


def _checked(term: Any) -> Term | PerPicture:
    if isinstance(term, PerPicture):
        return term
    _at(term, 0.0)
    return term if callable(term) else finite(term)


def _at(term: Term, progress: float) -> float:
    return finite(term(progress) if callable(term) else term)

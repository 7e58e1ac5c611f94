"""The learning rate as a function of the step."""

import math
from collections.abc import Callable

from hyperbrush.errors import UserError
from hyperbrush.ldm.lr_scheduler import make_schedule
from hyperbrush.training.loop.config import OptimizerConfig
from hyperbrush.training.loop.optimizers import peak_rate


class RateSchedule:
    """Learning rate of the step after so many steps: warm-up, plateau until `decay_from`, schedule.

    Raises:
        UserError: an unknown or broken schedule.
    """

    def __init__(self, settings: OptimizerConfig, steps: int) -> None:
        self.settings, self.peak = settings, peak_rate(settings)
        self.fall = int(settings.decay_from * steps)  # the step at which the plateau ends
        self.schedule = make_schedule(
            settings.schedule,
            base_rate=self.peak,
            num_warmup_steps=0 if self.fall else settings.warmup_steps,
            num_training_steps=steps - self.fall,
            num_cycles=settings.num_cycles,
        )

    def __call__(self, step: int) -> float:
        """Rate after ``step`` steps."""
        settings = self.settings
        if not self.fall:
            return self.schedule(step)
        warm = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
        return warm * (self.peak if step < self.fall else self.schedule(step - self.fall))


class OwnRate:
    """A function of one's own, from the steps made to the learning rate of the next, checked at each call.

    It must depend on the step alone, so that a resumed training goes on with the same rates.

    Raises:
        UserError: when called: what it gives is no finite number from 0 up.
    """

    def __init__(self, of: Callable[[int], float]) -> None:
        self.of = of

    def __call__(self, step: int) -> float:
        """Rate after ``step`` steps."""
        rate = self.of(step)
        if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
            raise UserError(f"learning_rate({step}) gave {rate!r:.60}; expected a number from 0 up")
        return float(rate)

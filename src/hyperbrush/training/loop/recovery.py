"""Back to the last good checkpoint of a training that diverges."""

import math
from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.judge import Judge


def good_steps(folder: Path, judge: Judge) -> list[int]:
    """Steps of the planned checkpoints from before the loss began to rise."""
    since = judge.diverging_since or math.inf
    calm = [step for step in checkpoints.planned_steps(folder) if step < since]
    states = {s: checkpoints.extra_of(checkpoints.path_of(folder, s)).get("judge", {}) for s in calm}
    return [step for step in calm if states[step].get("diverging_since") is None]


def last_good(folder: Path, judge: Judge, now: int, before: int | None, why: str) -> checkpoints.Checkpoint:
    """Load the newest of these and delete those after it, which a resume would take.

    now: step reached; later checkpoints are of a training that was left by going back.
    before: step that an earlier return went to; if nothing good came since, the one before it is taken.

    Raises:
        UserError: none is left (begins with ``why``), or it is damaged.
    """
    good = [step for step in good_steps(folder, judge) if step <= now]
    if len(good) > 1 and good[-1] == before:
        good.pop()
    if not good:
        raise UserError(f"{why}. No checkpoint from before is left to go back to")
    found = checkpoints.load(checkpoints.path_of(folder, good[-1]))
    checkpoints.drop(folder, [s for s in reversed(checkpoints.steps(folder)) if s > found.step])
    return found

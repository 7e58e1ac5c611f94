"""What a run that goes on can be told: its settings are obeyed where they may change, else refused by name."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import read_yaml
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.settings import merge_settings, read_settings

Run = TypeVar("Run", bound=BaseModel)
log = logging.getLogger(__name__)

# How long, how fast, how often: what makes the same training longer, slower or more talkative, not another one.
LOOP = (
    "max_steps max_epochs steps learning_rate schedule warmup_steps decay_from num_cycles clip max_grad_norm "
    "validate_every preview_every save_every checkpoint_every keep_checkpoints log_every patience on_divergence "
    "back_off_factor back_off_times divergence_factor overfitting_after trackers prompts preview_seed preview_steps "
    "preview_sampler preview_guidance preview_negative gradient_accumulation gradient_checkpointing compile "
    "validation_pictures"
)
OPTIMIZER = "learning_rate schedule warmup_steps decay_from num_cycles clip max_grad_norm"
MAY_CHANGE = frozenset(
    [
        *(f"training.{name}" for name in LOOP.split()),
        *(f"training.optimizer.{name}" for name in OPTIMIZER.split()),
        *("data", "validation", "hypernetworks", "generators", "save_optimizer"),
        *("prompts", "guidance_scale", "data.folders", "data.held_out", "data.cache"),
    ]
)
PLACES = ("data", "validation", "data.folders", "data.held_out")  # folders that may have moved
FLAGS = {
    "name": "--name",
    "model": "--model",
    "start_from": "--from",
    "training.batch_size": "--batch-size",
    "training.seed": "--seed",
}


def resumed(
    model: type[Run],
    run: Path,
    /,
    *,
    at: int | None = None,
    refused: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **given: Any,
) -> tuple[Run, bool]:
    """The settings a run goes on with, and whether they differ from those it has.

    Args:
        model, run: of `read_settings`.
        at: step it goes on from; its newest checkpoint by default.
        refused: flag → value of what a run that goes on cannot take; those with a value are named.
        settings, training, given: as for `merge_settings`.  ``data`` and ``validation`` are places of the folders
            the run has, moved: as many.

    Raises:
        UserError: no such run; what it is told cannot be used, or would make it another training; fewer steps
            than it has made.
    """
    before = read_settings(model, run)
    if named := [flag for flag, value in (refused or {}).items() if value not in (None, "", [], (), False)]:
        raise UserError(
            f"{', '.join(named)} cannot be used with --resume, which goes on with the settings in "
            f"{run / 'config.yaml'}: leave that out, or train anew without --resume"
        )
    own = read_yaml(run / "config.yaml")
    for key in ("data", "validation"):
        if places := given.pop(key, None):
            given[key] = _moved(key, getattr(before, key), places)
    after = merge_settings(model, None, own, settings=settings, training=training, **given)
    was, now = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    different = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if wrong := [name for name in different if not _may_change(name, was.get(name), now.get(name))]:
        said = "; ".join(
            f"{FLAGS.get(name, '-s ' + name)} (it has {was.get(name)!r}, given {now.get(name)!r})"
            for name in wrong
        )
        raise UserError(
            f"{run} cannot go on with another {said}: that would be another training. Leave it out, or train anew: "
            f"the run's settings are in {run / 'config.yaml'}"
        )
    _check_steps(run, at, now)
    return after, bool(different)


def _check_steps(run: Path, at: int | None, now: Mapping[str, Any]) -> None:
    steps = now.get("training.max_steps", now.get("training.steps"))
    there = checkpoints.steps(run / "checkpoints")
    if at is not None and at not in there:
        return  # which is told when the run is opened
    done = at if at is not None else max(there, default=0)
    if steps is not None and steps < done:
        raise UserError(
            f"{run} has made {done} steps already, and steps {steps} are counted from the begin: expected {done} "
            "(end here) or more, or --at an earlier checkpoint"
        )


def _may_change(name: str, was: Any, now: Any) -> bool:
    if name in PLACES and isinstance(was, list) and isinstance(now, list):
        return [one | {"path": ""} for one in was] == [one | {"path": ""} for one in now]
    return name in MAY_CHANGE


def _moved(key: str, before: Any, places: Any) -> Any:
    """The folders of a run at other places, with what the run says of each."""
    if isinstance(before, str | None):
        return str(places)
    if len(before) != len(places):
        raise UserError(
            f"the run has {len(before)} folders of {key}, given {len(places)}: expected the new place of each, in order"
        )
    if len(before) > 1 and [one.path for one in before] != [str(place) for place in places]:
        log.warning(
            "flips and captions of several folders are drawn by the folders' paths, which are others now: not to the "
            "bit as if in one go"
        )
    return [
        {**one.model_dump(mode="json"), "path": str(place)} for one, place in zip(before, places, strict=True)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found

"""A run's settings: merged from presets, a file, flags, KEY=VALUE texts; and those a run that goes on may change."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import write_text
from hyperbrush.ldm.piecewise import is_piecewise
from hyperbrush.ldm.util import load_config, parse_yaml, read_yaml
from hyperbrush.training.loop import checkpoint as checkpoints

Run = TypeVar("Run", bound=BaseModel)
log = logging.getLogger(__name__)
BY_STEPS = re.compile(r"[-+\d.eE]+\s*:[-+\d.eE:;,\s]*")  # "5e-5: 100, 1e-6", in which YAML sees a mapping

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
MOVED = ("mask_folder", "condition_folder")  # such too, of one place each
FLAGS = {
    "name": "--name",
    "model": "--model",
    "start_from": "--from",
    "training.batch_size": "--batch-size",
    "training.seed": "--seed",
}


def merge_settings(
    model: type[Run],
    source: str | Path | None,
    values: Mapping[str, Any],
    /,
    *,
    first: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **given: Any,
) -> Run:
    """Validated settings; what comes later wins.

    Args:
        model: with inner models such as "training".
        source, values: a file and what it holds; its stem is the name where it has none.
        first: what all of these lie over; its ``max_steps`` say nothing beside their ``max_epochs``.
        settings: "KEY=VALUE" texts; a key is written whole ("network.activation") or, where that is clear, as its
            last part; values are YAML.
        training, given: settings by name; None, "" and empty lists say nothing.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    named = {} if source is None else {"name": Path(source).stem}
    own = {key: value for key, value in (training or {}).items() if value is not None}
    said = {key: value for key, value in given.items() if value not in (None, "", [], ())}
    merged = _merged({**named, **values}, said | {"training": own})
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"setting {text!r}: expected KEY=VALUE, such as loss=huber")
        try:
            parsed: Any = value if BY_STEPS.fullmatch(value) else parse_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"setting {text!r}: {value!r} is not valid YAML") from error
        for part in reversed(_full_name(model, key.strip())):
            parsed = {part: parsed}
        merged = _merged(merged, parsed)
    found = load_config(model, _merged(_without_length(first or {}, merged), merged))
    _check_rates(merged, found)
    return found


def save_run(config: BaseModel, run: Path) -> None:
    """Begin a run folder with its config.yaml.

    Raises:
        UserError: a run stands there already, so that nothing is lost by a name used twice.
    """
    if (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir()):
        raise UserError(f"{run} holds a run already; go on with --resume {run}, or take another --run")
    write_settings(config, run)


def write_settings(config: BaseModel, run: Path) -> None:
    """Write a run's config.yaml, which `read_settings` reads; only for whoever holds the run (`opened_run`)."""
    write_text(
        run / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def read_settings(model: type[Run], run: Path) -> Run:
    """The config of an existing run.

    Raises:
        UserError: no such run, or its config is broken.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    return load_config(model, run / "config.yaml")


def names_of(model: type[BaseModel]) -> list[str]:
    """Every setting by its whole name, those of inner models last."""
    fields = {name: field.annotation for name, field in model.model_fields.items() if name != "kind"}
    inner = {n: a for n, a in fields.items() if isinstance(a, type) and issubclass(a, BaseModel)}
    top = [name for name in fields if name not in inner]
    return top + [f"{room}.{name}" for room, own in inner.items() for name in names_of(own)]


def _full_name(model: type[BaseModel], key: str) -> list[str]:
    names = names_of(model)
    found = [name for name in names if name == key or name.rpartition(".")[2] == key]
    if key in found:
        return key.split(".")
    if len(found) != 1:
        raise unknown_name("setting", key, [*names, *(n.rpartition(".")[2] for n in names)])
    return found[0].split(".")


def _without_length(first: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings below others that say how long by epochs, which steps would win over."""
    below, training = first.get("training"), above.get("training")
    if not isinstance(below, Mapping) or not isinstance(training, Mapping) or not training.get("max_epochs"):
        return first
    return {**first, "training": {key: value for key, value in below.items() if key != "max_steps"}}


def _check_rates(said: Mapping[str, Any], found: BaseModel) -> None:
    """Refuse a learning rate that was said beside a schedule that says the rates itself, as in "5e-5:100, 5e-6"."""
    values = _flat(found.model_dump())
    for name, rate in _flat(said).items():
        room, _, last = name.rpartition(".")
        schedule = values.get(f"{room}.schedule", "")
        if last == "learning_rate" and rate is not None and is_piecewise(schedule):
            raise UserError(
                f"learning_rate {values[name]:g} would change nothing: the schedule {schedule!r} says the rates; "
                "leave it out, or give another schedule"
            )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        inside = found.get(key)
        found[key] = _merged(inside, value) if isinstance(inside, dict) and isinstance(value, dict) else value
    return found


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
    after = merge_settings(model, None, {}, first=own, settings=settings, training=training, **given)
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
    return name in MAY_CHANGE or (name.rpartition(".")[2] in MOVED and bool(was and now))


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

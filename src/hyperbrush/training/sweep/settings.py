"""What a sweep tries: its file, its trials, all of them checked before the first begins."""

import copy
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, model_validator

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import write_text
from hyperbrush.ldm.data.archives import is_source
from hyperbrush.ldm.util import keyed_seed, load_config, read_yaml
from hyperbrush.training.attention.config import preset
from hyperbrush.training.attention.run import HypernetworkRun, setting_names
from hyperbrush.training.loop.config import Strict
from hyperbrush.training.loop.optimizers import configured
from hyperbrush.training.loop.rates import RateSchedule
from hyperbrush.training.loop.run_folder import SWEEP
from hyperbrush.training.loop.settings import merge_settings

FILE = SWEEP
FIXED = ("name", "hypernetworks")  # the same for all trials
MOST = 1000  # trials
SHOWN = 5  # errors


class SweepConfig(Strict):
    """The part of a sweep's file under ``sweep``; all else in the file is an ordinary training."""

    grid: dict[str, list[Any]] = Field({}, description="values of each setting; every combination is tried")
    entries: list[dict[str, Any]] = Field([], alias="list", description="or just these combinations")
    seeds: list[int] = Field([], description="try each combination with each of these seeds")
    random: int | None = Field(None, ge=1, description="so many combinations, drawn from the grid")
    heartbeat: int = Field(
        15, ge=1, description="seconds; another machine's worker silent for four times as long counts as dead"
    )
    cluster: dict[str, Any] = Field(
        {},
        description="what each job of --executor gets, as submitit names it: timeout_min, gpus_per_node, slurm_partition, …",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "SweepConfig":
        if bool(self.grid) == bool(self.entries):
            raise ValueError("expected a grid (setting: [values]) or a list ([{setting: value}, …])")
        if empty := [name for name, values in self.grid.items() if not values]:
            raise ValueError(f"grid: no values for {', '.join(empty)}")
        if self.entries and self.random is not None:
            raise ValueError("random draws from a grid; leave it out beside a list")
        return self

    def combinations(self) -> list[dict[str, Any]]:
        """Settings of each trial, names as they are written; ``random`` draws the same each time.

        Raises:
            UserError: more than `MOST`.
        """
        count = math.prod(len(values) for values in self.grid.values()) if self.grid else len(self.entries)
        drawn: Sequence[int] = range(count)
        if self.random is not None and self.random < count:
            drawn = random.Random(keyed_seed("sweep")).sample(drawn, self.random)
        many = len(drawn) * max(1, len(self.seeds))
        if many > MOST:
            raise UserError(
                f"{many:,} trainings are too many; expected {MOST:,} or fewer: random: N draws some"
            )
        found = [self._nth(index) if self.grid else self.entries[index] for index in drawn]
        if not self.seeds:
            return found
        return [{**one, "training.seed": seed} for one, seed in itertools.product(found, self.seeds)]

    def _nth(self, index: int) -> dict[str, Any]:
        """One combination of the grid; the last setting changes fastest."""
        found = {}
        for name, values in reversed(self.grid.items()):
            index, at = divmod(index, len(values))
            found[name] = values[at]
        return {name: found[name] for name in self.grid}


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    settings: whole name → value, what it does not share with all others; run: its folder.
    """

    number: int
    settings: Mapping[str, Any]
    config: HypernetworkRun
    run: Path

    @property
    def label(self) -> str:
        """What differs, in words."""
        return described(self.settings)


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder: `FILE`, and trials/0000-…, each an ordinary run folder."""

    folder: Path
    config: SweepConfig
    name: str
    library: Path
    trials: tuple[Trial, ...]


def begin_sweep(
    path: Path, folder: Path | None = None, check: Callable[[Sweep], None] = lambda sweep: None
) -> Sweep:
    """Read a person's file, check every trial, and begin the folder (runs/NAME by default).

    check: what else is to be looked at before anything is written.

    Raises:
        UserError: whatever is wrong, all together; a sweep or a training stands in the folder already.
    """
    values = read_yaml(path)
    if not isinstance(values.get("sweep"), Mapping):
        raise UserError(
            f"{path} has no 'sweep' to try; expected 'sweep:' with 'grid:' or 'list:' beside the settings of "
            "a training, or use hyperbrush train"
        )
    values = {"name": path.stem, **values}
    folder = folder or Path("runs") / str(values["name"])
    if (folder / FILE).exists():
        raise UserError(
            f"{folder} holds a sweep already; go on with --resume {folder}, or take another --run"
        )
    if (folder / "config.yaml").exists() or (folder / "checkpoints").exists():
        raise UserError(f"{folder} holds a training, which a sweep would write over: take another --run")
    sweep = _opened(values, folder, str(path), check=True)
    check(sweep)
    # As it was written; from then on, workers can join.
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(folder / FILE, text)
    return sweep


def read_sweep(folder: Path) -> Sweep:
    """A sweep that has begun.

    Raises:
        UserError: there is none, or its file is broken.
    """
    if not (folder / FILE).is_file():
        raise UserError(
            f"{folder} is no sweep's folder: it has no {FILE}; begin one with hyperbrush sweep FILE"
        )
    return _opened(read_yaml(folder / FILE), folder, str(folder / FILE))


def _opened(values: dict[str, Any], folder: Path, where: str, *, check: bool = False) -> Sweep:
    """A sweep of a file's values; check: see that its trainings can begin.

    Raises:
        UserError: all that is wrong, each error once, with the first trial that has it, unless all have.
    """
    base = {key: value for key, value in values.items() if key != "sweep"}
    try:
        config = load_config(SweepConfig, dict(values["sweep"]))
        combinations = config.combinations()
    except UserError as error:
        raise UserError(f"{where}: sweep: {_bare(error)}") from error
    found: list[Trial] = []
    wrong: dict[str, list[str]] = {}
    for number, combination in enumerate(combinations):
        settings = {_whole(name, where): value for name, value in combination.items()}
        if len(settings) < len(combination):
            raise UserError(f"{where}: sweep: a setting is given twice among {', '.join(combination)}")
        name, run = (
            f"trial {number} ({described(settings)})",
            folder / "trials" / _folder_name(number, settings),
        )
        try:
            own = _configured(base, settings)
        except UserError as error:
            wrong.setdefault(_bare(error), []).append(name)
            continue
        for problem in _problems(own) if check else ():
            wrong.setdefault(problem, []).append(name)
        found.append(Trial(number, settings, own.model_copy(update={"hypernetworks": str(run)}), run))
    if wrong:
        lines = [e if len(who) == len(combinations) else f"{who[0]}: {e}" for e, who in wrong.items()]
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(f"{where}: " + "; ".join(lines[:SHOWN]) + more)
    library = Path(_configured(base, found[0].settings).hypernetworks)
    return Sweep(folder, config, found[0].config.name, library, tuple(found))


def _configured(base: Mapping[str, Any], settings: Mapping[str, Any]) -> HypernetworkRun:
    """A training's config: presets, then the file, then a trial's own settings."""
    values: dict[str, Any] = copy.deepcopy(dict(base))
    for name, value in settings.items():
        room, _, last = name.rpartition(".")
        if room and not isinstance(values.get(room), dict):
            values[room] = {}
        (values[room] if room else values)[last] = value
    first = preset(str(values.pop("preset", "") or ""))
    values["training"] = values.get("training") or {}
    return merge_settings(HypernetworkRun, None, values, first={"training": first})


def _whole(name: str, where: str) -> str:
    """A setting's whole name, from that or from its last part."""
    names = [n for n in [*setting_names(), "preset"] if n not in FIXED]
    if name in FIXED:
        raise UserError(f"{where}: sweep: {name!r} is the same for all trials; write it beside 'sweep'")
    found = [known for known in names if name in (known, short(known))]
    if name in found:
        return name
    if len(found) != 1:
        error = unknown_name("setting", name, [*names, *map(short, names)])
        raise UserError(f"{where}: sweep: {error}")
    return found[0]


def _bare(error: UserError) -> str:
    return str(error).removeprefix("the configuration: ")


def _problems(config: HypernetworkRun) -> Iterator[str]:
    """What is wrong with a training, as far as it shows without opening the model or the pictures."""
    t = config.training
    for folder in (*config.data, *config.validation):
        if not is_source(folder.path):
            yield f"there is no folder {folder.path}: expected one with pictures"
    if config.start_from and not Path(config.start_from).is_file():
        yield f"there is no file {config.start_from} to start from"
    if not config.validation and t.validation_share == 0:
        yield "no pictures are held out to compare by: give 'validation', or a validation_share above 0"
    named = t if t.trigger else t.model_copy(update={"trigger": config.name})
    steps, weight = t.steps(MOST), torch.zeros(1, requires_grad=True)
    tried = (
        lambda: configured(t.trainer(MOST).optimizer, [{"params": [weight]}]),
        lambda: RateSchedule(t.trainer(MOST).optimizer, steps),
        t.check_draws,
        named.captioning,
        config.network.check,
    )
    for one in tried:
        try:
            one()
        except UserError as error:
            yield str(error)


def short(name: str) -> str:
    """The last part of a setting's name."""
    return name.rpartition(".")[2]


def shown(value: Any) -> str:
    """A setting's value in few words."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str, ensure_ascii=False)


def described(settings: Mapping[str, Any]) -> str:
    """Settings in one line, "learning_rate=0.001, activation=relu"."""
    return ", ".join(f"{short(name)}={shown(value)}" for name, value in settings.items())


def _folder_name(number: int, settings: Mapping[str, Any]) -> str:
    """0003-learning_rate=0.001,activation=relu, as every system can write it."""
    said = described(settings).replace(", ", ",")
    return f"{number:04d}-{re.sub(r'[^A-Za-z0-9_.,=+-]+', '_', said)[:80]}".rstrip("._-,=")

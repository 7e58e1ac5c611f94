"""Trainings asked for from outside: settings checked, a run folder begun, a job put into the queue."""

import contextlib
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.names import plain_name
from hyperbrush.app.requests import TrainRequest
from hyperbrush.app.runs.run import JOB_KINDS
from hyperbrush.app.train import other_kinds, places
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import PART, clear_parts
from hyperbrush.setting_errors import wrong_settings

if TYPE_CHECKING:
    from hyperbrush.app.jobs.jobs import Job
    from hyperbrush.app.site import Site
    from hyperbrush.training.attention.run import HypernetworkRun


HYPERNETWORK = "hypernetwork"  # what is trained where no kind is named
TRIED_STEPS = 1000  # that settings are tried with where the number is not known yet
_beginning = threading.Lock()  # held between a run's folder and its settings


def run_config(workspace: Workspace, settings: Mapping[str, Any], presets: str = "") -> "HypernetworkRun":
    """A run's settings with the workspace's folders and model where none are given.

    A folder of pictures is a dataset's name or a place in the workspace; from outside, no other is read.

    Raises:
        UserError: whatever is wrong with them.
    """
    from hyperbrush.training.attention.config import preset
    from hyperbrush.training.attention.run import HypernetworkRun
    from hyperbrush.training.loop.settings import merge_settings

    _plain(settings)
    _rooms(settings)
    values = {"model": workspace.preferences.model, **settings}
    values["hypernetworks"] = str(workspace.folder("hypernetworks"))
    config = merge_settings(HypernetworkRun, None, values, first={"training": preset(presets)})
    plain_name(config.name, "hypernetwork")
    for folder in (*config.data, *config.validation):
        folder.path = str(places.pictures(workspace, folder.path))
    if config.start_from:
        config.start_from = str(_network(workspace, config.start_from))
    config.model = places.model(workspace, config.model)
    _paths_of_training(workspace, config)
    return config


def problems(workspace: Workspace, settings: Mapping[str, Any], presets: str = "") -> list[str]:
    """Everything that is wrong with a training's settings, as far as it shows without opening the model."""
    from pydantic import ValidationError

    from hyperbrush.training.attention.run import HypernetworkRun

    if kind_of(settings) != HYPERNETWORK:
        return _other_problems(workspace, settings)
    try:
        config = run_config(workspace, settings, presets)
    except UserError as error:
        if isinstance(error.__cause__, ValidationError):
            return list(dict.fromkeys(wrong_settings(HypernetworkRun, error.__cause__)))
        return [str(error)]
    return [*tried(config), *_taken(workspace, config.name, "hypernetworks"), *_missing(config)]


def begin(workspace: Workspace, settings: Mapping[str, Any], presets: str = "") -> str:
    """Begin a run's folder and return its name; training it is a job of its own.

    Raises:
        UserError: whatever is wrong with the settings, or a run or hypernetwork of that name stands there.
    """
    from hyperbrush.training.loop.settings import save_run

    if wrong := problems(workspace, settings, presets):
        raise UserError("; ".join(wrong))
    name, config = _name_and_config(workspace, settings, presets)
    run = workspace.folder("runs") / name
    with _beginning:
        try:
            if _is_half_made(run):
                clear_parts(run)
                run.rmdir()
            run.mkdir()
        except FileExistsError:
            raise UserError(f"there is a run {name!r} already: choose another name") from None
        except OSError as error:
            raise UserError(f"cannot make the run's folder {run}: {error.strerror or error}") from error
        try:
            save_run(config, run)
        except BaseException:
            shutil.rmtree(run, ignore_errors=True)
            raise
    return name


def kind_of(settings: Mapping[str, Any]) -> str:
    """What a training makes: hypernetwork where nothing is said, else a key of `JOB_KINDS`.

    Raises:
        UserError: another kind.
    """
    kind = str(settings.get("kind", HYPERNETWORK))
    if kind not in JOB_KINDS:
        raise unknown_name("kind of training", kind, JOB_KINDS)
    return kind


def start(site: "Site", request: TrainRequest) -> "Job":
    """Begin a run and put its training into the queue.

    Raises:
        UserError: as `begin`; the queue cannot be written.
    """
    name = begin(site.workspace, request.settings, request.presets)
    try:
        job = site.submit(JOB_KINDS[kind_of(request.settings)], {"run": name})
    except BaseException:
        shutil.rmtree(site.workspace.folder("runs") / name, ignore_errors=True)
        raise
    site.news("runs")
    return job


def look(site: "Site", kind: str, request: TrainRequest) -> "Job":
    """Put a look at a training into the queue; kind: plan or preflight.

    Raises:
        UserError: the settings cannot be used.
    """
    run_config(site.workspace, request.settings, request.presets)
    return site.submit(kind, request.model_dump())


def cloned(workspace: Workspace, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of another run for a new one: what differs from the defaults, places as the workspace names them.

    The trigger word is said even where the run took its name for it; all is carried but the name and the library's folder.

    Raises:
        UserError: it is no hypernetwork's training, or its settings are broken.
    """
    from hyperbrush.ldm.util import load_config
    from hyperbrush.training.attention.run import HypernetworkRun, trigger_of

    if config.get("kind", "hypernetwork") != "hypernetwork":
        raise UserError(
            f"this is the run of a {config.get('kind')!s:.40}; only settings of hypernetworks are cloned"
        )
    run = load_config(HypernetworkRun, dict(config))
    for folder in (*run.data, *run.validation):
        folder.path = _named(workspace, folder.path)
    found = run.model_dump(mode="json", exclude_defaults=True)
    found.pop("hypernetworks", None)
    with contextlib.suppress(UserError):  # its templates are gone: the page says so where they are named
        if word := trigger_of(run):
            found["training"] = {**found.get("training", {}), "trigger": word}
    found["model"] = _named(workspace, run.model)  # another may be preferred by now
    if "start_from" in found:
        found["start_from"] = _named(workspace, found["start_from"])
    root = workspace.folder("runs")
    number = 2
    while (root / f"{run.name}-{number}").exists():
        number += 1
    return {**found, "name": f"{run.name}-{number}"}


def _network(workspace: Workspace, name: str) -> Path:
    """A hypernetwork to go on from: its name in the library, or a file of the workspace."""
    from hyperbrush.hypernetworks.library.library import UnknownHypernetwork

    try:
        return workspace.library.find(name)
    except UnknownHypernetwork as error:
        path = places.inside(workspace, name)
        if not path.is_file():
            raise UserError(f"start_from: {error}") from error
        return path


def _paths_of_training(workspace: Workspace, config: "HypernetworkRun") -> None:
    t = config.training
    t.templates = places.templates(workspace, t.templates)
    if t.mask_folder:
        t.mask_folder = str(places.inside(workspace, t.mask_folder))
    if t.condition_folder:
        t.condition_folder = str(places.pictures(workspace, t.condition_folder))


def _name_and_config(workspace: Workspace, settings: Mapping[str, Any], presets: str) -> tuple[str, Any]:
    if kind_of(settings) != HYPERNETWORK:
        return _other(workspace, settings)
    config = run_config(workspace, settings, presets)
    return config.name, config


def _other(workspace: Workspace, settings: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, settings) of a run that trains no hypernetwork."""
    _plain(settings)
    _rooms(settings)
    name = plain_name(str(settings.get("name", "")), "run")
    rest = {key: value for key, value in settings.items() if key not in ("name", "kind")}
    return name, other_kinds.other_config(workspace, kind_of(settings), name, rest)


def _other_problems(workspace: Workspace, settings: Mapping[str, Any]) -> list[str]:
    try:
        name, config = _other(workspace, settings)
    except UserError as error:
        return [str(error)]
    folder = "generators" if config.kind == "generator" else ""
    return [*_taken(workspace, name, folder), *other_kinds.missing(config)]


def _taken(workspace: Workspace, name: str, folder: str) -> list[str]:
    """folder: where the finished file goes to; "" where it stays in the run."""
    run = workspace.folder("runs") / name
    if run.exists() and not _is_half_made(run):
        return [f"there is a run {name!r} already: choose another name"]
    if folder and (workspace.folder(folder) / f"{name}.safetensors").exists():
        what = "hypernetwork" if folder == "hypernetworks" else "generator"
        return [f"there is a {what} {name!r} already: choose another name"]
    return []


def _is_half_made(run: Path) -> bool:
    """Whether a folder is all that a server killed while it began a run has left: nothing, or a part of its settings."""
    return run.is_dir() and all(path.is_file() and PART in path.name for path in run.iterdir())


def _missing(config: "HypernetworkRun") -> list[str]:
    from hyperbrush.ldm.data.archives import TABLES, files_in, is_source
    from hyperbrush.ldm.data.pictures import suffixes

    found, shown = [], (*suffixes(), *TABLES)
    for path in (Path(folder.path).expanduser() for folder in (*config.data, *config.validation)):
        if not is_source(path):
            found.append(f"there is no folder {path} with pictures to train on")
        elif not any(file.suffix.lower() in shown for file in files_in(path)):
            found.append(f"there are no pictures in {path}: expected some to train on")
    return found


def _named(workspace: Workspace, path: str) -> str:
    """A path as the workspace names it: a dataset's name, or relative to the root."""
    for name, folder in Datasets(workspace).folders().items():
        if path == str(folder):
            return name
    place = Path(path)
    return place.relative_to(workspace.root).as_posix() if place.is_relative_to(workspace.root) else path


def _rooms(settings: Mapping[str, Any]) -> None:
    """What holds settings must not be a value, which would be taken for none."""
    for room in ("training", "network"):
        if not isinstance(settings.get(room, {}), Mapping):
            raise UserError(f"{room}: expected settings by name (got {settings[room]!r:.60})")


def _plain(settings: Mapping[str, Any]) -> None:
    """Settings must be what JSON and YAML files can hold."""
    try:
        json.dumps(settings, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise UserError("the settings hold half a character (a lone surrogate)") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the settings cannot be written down: {error}") from error


def tried(config: "HypernetworkRun") -> list[str]:
    """What is wrong with names and combinations that the models of settings let through."""
    found = []
    for check in (_captions, _background, _optimizer, _draws, _sampler, _new_network):
        try:
            check(config)
        except UserError as error:
            found.append(str(error))
    return found


def _captions(config: "HypernetworkRun") -> None:
    t = config.training
    (t if t.trigger else t.model_copy(update={"trigger": config.name})).captioning()


def _background(config: "HypernetworkRun") -> None:
    from hyperbrush.ldm.data.pictures import background_colour

    background_colour(config.training.background)


def _optimizer(config: "HypernetworkRun") -> None:
    import torch

    from hyperbrush.training.loop.optimizers import configured
    from hyperbrush.training.loop.rates import RateSchedule

    settings = config.training.trainer(TRIED_STEPS).optimizer
    configured(settings, [{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    RateSchedule(settings, config.training.max_steps or TRIED_STEPS)


def _draws(config: "HypernetworkRun") -> None:
    config.training.check_draws()


def _sampler(config: "HypernetworkRun") -> None:
    from hyperbrush.ldm.sampling.samplers import find_sampler

    if config.training.preview_sampler:
        find_sampler(config.training.preview_sampler)


def _new_network(config: "HypernetworkRun") -> None:
    from hyperbrush.training.attention.run import NetworkConfig

    if config.start_from:
        if config.network != NetworkConfig():
            raise UserError("start_from brings its own network; leave the settings of 'network' out")
        return
    config.network.check()

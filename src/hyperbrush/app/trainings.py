"""Trainings asked for from outside: settings checked, a run folder begun, a job put into the queue."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.hypernetwork_run import HypernetworkRun


def run_config(workspace: Workspace, settings: Mapping[str, Any], presets: str = "") -> "HypernetworkRun":
    """A run's settings with the workspace's folders and model where none are given.

    Folders are relative to the workspace, and must lie in it: from outside, no other is read.

    Raises:
        UserError: whatever is wrong with them.
    """
    from hyperbrush.training.hypernetwork_run import configured

    values = {key: value for key, value in settings.items() if key != "training"}
    values.setdefault("model", workspace.preferences.model)
    values["hypernetworks"] = str(workspace.folder("hypernetworks"))
    config = configured(presets=presets, training=dict(settings.get("training") or {}), **values)
    for folder in (*config.data, *config.validation):
        folder.path = str(inside(workspace, folder.path))
    if config.start_from:
        config.start_from = str(inside(workspace, config.start_from))
    if (workspace.root / config.model).exists():
        config.model = str(workspace.root / config.model)
    return config


def inside(workspace: Workspace, path: str) -> Path:
    """A path of the workspace.

    Raises:
        UserError: it leads out of it.
    """
    found = (workspace.root / path).resolve()
    if not found.is_relative_to(workspace.root):
        raise UserError(f"{path!r:.200} lies outside of the workspace {workspace.root}")
    return found


def begin(workspace: Workspace, settings: Mapping[str, Any], presets: str = "") -> str:
    """Begin a run's folder and return its name; training it is a job of its own.

    Raises:
        UserError: whatever is wrong with the settings, or a run of that name stands there.
    """
    from hyperbrush.training.settings import save_run

    config = run_config(workspace, settings, presets)
    run = workspace.folder("runs") / config.name
    if (run / "config.yaml").exists():
        raise UserError(f"there is a run {config.name!r} already: choose another name")
    for folder in config.data:
        if not Path(folder.path).is_dir():
            raise UserError(f"there is no folder {folder.path} with pictures to train on")
    save_run(config, run)
    return config.name

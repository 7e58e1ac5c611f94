"""Trainings of generators, first stages and diffusion models: settings as their config.yaml has them, and a name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.app.train import places
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.generator.run import GeneratorRun
    from hyperbrush.training.ldm.config import Run

# What a config looks like, with the least that one wants to choose.
EXAMPLES: Mapping[str, str] = {
    "generator": (
        "kind: generator\ndata: {data}  # a folder with one folder of pictures for each style\n"
        "training:\n  max_steps: 2000\n  batch_size: 32\n"
    ),
    "diffusion": (
        "kind: diffusion\nstart_from: {model}  # or first_stage: runs/NAME/first_stage, to begin anew\n"
        "data:\n  size: 64\n  validation_share: 0.1\n  folders: [{data}]\n"
        "prompts: [cat face, red apple]\n"
        "training:\n  steps: 2000\n  batch_size: 32\n  ema_decay: 0.999\n  optimizer: {{learning_rate: 0.0004}}\n"
    ),
    "first_stage": (
        "kind: first_stage\ndata:\n  size: 64\n  validation_share: 0.1\n  folders: [{data}]\n"
        "training:\n  steps: 2600\n  batch_size: 24\n  ema_decay: 0.998\n  optimizer: {{learning_rate: 0.002}}\n"
    ),
}


def other_config(
    workspace: Workspace, kind: str, name: str, settings: Mapping[str, Any]
) -> "GeneratorRun | Run":
    """A run's settings with the workspace's places.

    Raises:
        UserError: an unknown kind, or whatever is wrong with the settings.
    """
    return _generator(workspace, name, settings) if kind == "generator" else _ldm(workspace, kind, settings)


def missing(config: Any) -> list[str]:
    """What the settings name and is not there."""
    if config.kind == "generator":
        folders = list(filter(None, (config.data, config.validation)))
    else:
        folders = [folder.path for folder in (*config.data.folders, *config.data.held_out)]
    found = [
        f"there is no folder {path} with pictures to train on" for path in folders if not Path(path).exists()
    ]
    stage = getattr(config, "first_stage", "")
    if stage and not (Path(stage) / "config.json").is_file():
        found.append(f"first_stage: {stage} holds no trained autoencoder (no config.json); train it first")
    return found


def _generator(workspace: Workspace, name: str, settings: Mapping[str, Any]) -> "GeneratorRun":
    from hyperbrush.training.generator.run import GeneratorRun
    from hyperbrush.training.loop.settings import merge_settings

    values = {"model": workspace.preferences.model, **settings, "kind": "generator", "name": name}
    values["generators"] = str(workspace.folder("generators"))
    config = merge_settings(GeneratorRun, None, values)
    config.data = str(places.pictures(workspace, config.data))
    if config.validation:
        config.validation = str(places.pictures(workspace, config.validation))
    if config.start_from:
        config.start_from = str(places.inside(workspace, config.start_from))
    config.model = places.model(workspace, config.model)
    return config


def _ldm(workspace: Workspace, kind: str, settings: Mapping[str, Any]) -> "Run":
    from hyperbrush.training.ldm.config import DiffusionRun, kind_of
    from hyperbrush.training.loop.settings import merge_settings

    config: Run = merge_settings(kind_of({"kind": kind}), None, {**settings, "kind": kind})
    data = config.data
    for folder in (*data.folders, *data.held_out):
        folder.path = str(places.pictures(workspace, folder.path))
    data.templates = places.templates(workspace, data.templates)
    if data.mask_folder:
        data.mask_folder = str(places.inside(workspace, data.mask_folder))
    if data.condition_folder:
        data.condition_folder = str(places.pictures(workspace, data.condition_folder))
    if getattr(getattr(config, "loss", None), "perceptual", 0):
        raise UserError(
            "loss.perceptual: its network's weights are fetched, which the app does not; leave it out"
        )
    if data.cache:
        raise UserError("data.cache: trainings of the app keep their latents in their run; leave it out")
    if isinstance(config, DiffusionRun):
        if config.first_stage:
            config.first_stage = str(places.inside(workspace, config.first_stage))
        if config.start_from:
            config.start_from = places.model(workspace, config.start_from)
        elif not config.first_stage:
            raise UserError(
                "a diffusion run needs 'first_stage' (a trained autoencoder's folder) or 'start_from'"
            )
    return config

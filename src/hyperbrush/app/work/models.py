"""Base models that stay open between jobs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperbrush.app.worker import Desk
    from hyperbrush.generation import OpenedModel


def opened(desk: "Desk", source: str = "") -> "OpenedModel":
    """The model a job asks for, else the preferred one; the last one stays open.

    Raises:
        UserError: it cannot be opened.
    """
    from hyperbrush.generation import open_model

    preferences = desk.workspace.preferences
    key = (source or preferences.model, desk.worker.device, preferences.precision)
    if desk.worker.kept.get("model_key") != key:
        desk.worker.kept.clear()  # before the next is opened: two may not fit
        desk.tell(now=True, stage="opening", model=key[0])
        model = open_model(place_of(desk, key[0]), device=key[1], precision=key[2])
        desk.worker.kept.update(model=model, model_key=key)
    model: OpenedModel = desk.worker.kept["model"]
    return model


def place_of(desk: "Desk", source: str) -> str:
    """A model's name as `open_model` takes it: paths are relative to the workspace."""
    path = desk.workspace.root / source
    return str(path) if path.exists() else source

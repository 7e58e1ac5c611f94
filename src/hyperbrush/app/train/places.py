"""What a request may name: folders, files and models of the workspace; from outside, nothing else is read."""

from pathlib import Path

from hyperbrush.app.model import service as base_models
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.workspace import FOLDERS, Workspace
from hyperbrush.assets import MODELS
from hyperbrush.errors import UserError


def inside(workspace: Workspace, path: str) -> Path:
    """A path of the workspace or of its folders.

    Raises:
        UserError: it leads out of them.
    """
    try:
        found = (workspace.root / path).resolve()
        found.exists()  # a name that is too long for the system is told here
        roots = [workspace.root, *(workspace.folder(name).resolve() for name in FOLDERS)]
    except (OSError, ValueError) as error:
        raise UserError(f"{path!a:.200} is no path: {error!s:.200}") from error
    if not any(found.is_relative_to(root) for root in roots) or found.is_relative_to(workspace.state):
        raise UserError(f"{path!r:.200} lies outside of the workspace {workspace.root}")
    return found


def pictures(workspace: Workspace, path: str) -> Path:
    """A folder of pictures: a dataset's name, or a place in the workspace.

    Raises:
        UserError: as `inside`.
    """
    return Datasets(workspace).folders().get(path) or inside(workspace, path)


def model(workspace: Workspace, source: str) -> str:
    """A base model as a run's config has it: an embedded one by its name, which holds wherever the package lies.

    Raises:
        UserError: a request may not open it, or it is nowhere.
    """
    base_models.refuse_elsewhere(workspace, source)
    return source if source in MODELS else base_models.place(workspace, source)


def templates(workspace: Workspace, source: str) -> str:
    """Bundled templates by their name, or a file of the workspace.

    Raises:
        UserError: as `inside`.
    """
    from hyperbrush.ldm.data.templates import BUNDLED

    if not source or source in BUNDLED:
        return source
    path = inside(workspace, source)
    # Never what lies beside the server by that name.
    return str(path) if path.is_file() or Path(source).is_file() else source

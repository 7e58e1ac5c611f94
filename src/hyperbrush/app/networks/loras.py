"""LoRA files of other programs, which stand in prompts beside hypernetworks: `<lora:NAME:0.8>`."""

from dataclasses import dataclass
from pathlib import Path

from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere
from hyperbrush.hypernetworks.library.notes import Notes

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Lora:
    """One of them, with what people wrote beside it, and its picture."""

    name: str
    notes: Notes
    preview: Path | None


def files(workspace: Workspace) -> dict[str, Path]:
    """Their files by name, sorted; none where there is no such folder."""
    library = workspace.loras
    found = library.files() if library.folder.is_dir() else {}
    return {name: path for name, path in found.items() if path.suffix.lower() == SUFFIX}


def listed(workspace: Workspace) -> list[Lora]:
    """All of them; damaged side files are passed over, since a LoRA draws without them."""
    library = workspace.loras
    found = library.entries(read=False) if library.folder.is_dir() else []
    return [Lora(one.name, one.notes, one.preview) for one in found if one.path.suffix.lower() == SUFFIX]


def preview(workspace: Workspace, name: str) -> Path:
    """The picture beside one.

    Raises:
        UserError: there is no such LoRA, several of that name, or no picture.
    """
    path = workspace.loras.preview(name) if files(workspace) else None
    if path is None:
        raise NotThere(f"the LoRA {name!r:.120} has no picture")
    return path

"""Generators of weights: the one that ships for a model, and those in the workspace's folder."""

import json
import struct
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hyperbrush.app.model.service import context_width
from hyperbrush.app.workspace import Workspace
from hyperbrush.assets import generator_file
from hyperbrush.errors import UserError, unknown_name

MOST_HEADER = 64 << 20  # bytes


@dataclass(frozen=True)
class Generator:
    """A generator's file by its header.

    Args:
        name: the file's stem; of the one that ships, the model's name.
        path: the file.
        ships: whether it came with the program.
        layers, step: how many layers of the model it makes weights for, and how long it was trained.
        words: whether it may know what words mean; one that learned from pictures alone does not.
        context: width of the text states of the model it is for, where its layers tell.
        fits: whether it is for the model in question, as far as that can be seen.
        error: why it cannot be used.
    """

    name: str
    path: Path
    ships: bool
    layers: int = 0
    step: int = 0
    words: bool = True
    context: int | None = None
    fits: bool = False
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": self.path.name}


def generators(workspace: Workspace, model: str = "") -> list[Generator]:
    """Every generator, the one that ships for the model first; model: the preferred one by default."""
    model = model or workspace.preferences.model
    width = context_width(workspace, model)
    own = generator_file(model)
    files = [
        (path.stem, path, False) for path in sorted(workspace.folder("generators").glob("*.safetensors"))
    ]
    if own is not None:
        files.insert(0, (model, own, True))
    listed = []
    for name, path, ships in files:
        try:
            state = path.stat()
            about = _header(path, state.st_size, state.st_mtime_ns)
        except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
            reason = str(error) or type(error).__name__
            listed.append(Generator(name, path, ships, error=f"it is no generator of weights: {reason:.200}"))
            continue
        fits = width is None or about["context"] is None or about["context"] == width
        listed.append(Generator(name, path, ships, fits=fits, **about))
    return listed


def fitting(workspace: Workspace, model: str = "") -> list[Generator]:
    """Those for the model, the first of which is taken by default."""
    return [generator for generator in generators(workspace, model) if generator.fits]


def find(workspace: Workspace, name: str, model: str = "") -> Generator:
    """The generator of a name; "" takes the first one that fits.

    Raises:
        UserError: there is none of that name for this model.
    """
    model = model or workspace.preferences.model
    listed = fitting(workspace, model)
    chosen = next((one for one in listed if name in ("", one.name)), None)
    if chosen is not None:
        return chosen
    if not listed:
        raise UserError(
            f"there is no generator of weights for the model {model}: put one into "
            f"{workspace.preferences.generators}; hyperbrush hyper train makes one"
        )
    raise unknown_name("generator", name[:100], [one.name for one in listed])


@lru_cache(maxsize=64)
def _header(path: Path, size: int, changed: int) -> dict[str, Any]:
    """What the file says of itself; size, changed: its state, so that another file is read again. Without torch."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size, MOST_HEADER):
            raise ValueError("its header is damaged")
        header = json.loads(file.read(length)).get("__metadata__", {})
    kind = str(header.get("hyperbrush.format", "another file"))
    if not kind.startswith("hypernetwork/"):
        raise ValueError(f"it says it is {kind!r:.60}")
    config = json.loads(header["hyperbrush.config"])
    targets = config["targets"]
    widths = {int(row[5]) for row in targets if str(row[0]).endswith("attn2.to_k")}
    context = widths.pop() if len(widths) == 1 else None
    words = "text" in (config.get("learned") or ["text"])
    return {"layers": len(targets), "step": int(config["step"]), "words": words, "context": context}

"""Where figures and previews go beside the run folder: TensorBoard, trackio and wandb, through Accelerate."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError, unknown_name

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "hyperbrush"  # trackio shows the runs of a project beside each other


def make_trackers(names: Sequence[str], run: str | Path, name: str = "") -> list[Any]:
    """Trackers for ``Accelerator(log_with=…)``; ``init_trackers`` starts them, whatever project it names.

    TensorBoard writes into the run folder (tensorboard/). trackio keeps a database of its own in the user's
    cache (or TRACKIO_DIR) and goes on with a run of the same name; ``trackio show --project hyperbrush``
    shows it. Nothing leaves the machine, unless TRACKIO_SPACE_ID says so. wandb sends figures and previews to its
    server (WANDB_MODE=offline keeps them in the run folder) and goes on with the run of the same folder.

    Args:
        names: of `TRACKERS`.
        run: the run folder.
        name: of the run in trackio; the folder's by default.

    Raises:
        UserError: an unknown tracker; its package is missing, which Accelerate would pass over in silence.
    """
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    found: list[Any] = []
    for kind in dict.fromkeys(names):
        if kind not in TRACKERS:
            raise unknown_name("tracker", kind, TRACKERS)
        if importlib.util.find_spec(kind) is None:
            extra = " (or 'hyperbrush[trackio]'; it may want an older Pillow)" if kind == "trackio" else ""
            raise UserError(f"tracker {kind!r} needs the package {kind}; pip install {kind}{extra}")
        if kind == "tensorboard":
            found.append(TensorBoardTracker("tensorboard", str(run)))
            continue
        place = Path(run).resolve()
        about: dict[str, Any] = {"name": name or place.name, "resume": "allow"}
        if kind == "wandb":
            about |= {"id": hashlib.sha256(str(place).encode()).hexdigest()[:16], "dir": str(run)}
        found.append((WandBTracker if kind == "wandb" else TrackioTracker)(PROJECT, **about))
    return found


def begin_trackers(accelerator: "Accelerator", step: int) -> None:
    """Start an accelerator's trackers at a step; what TensorBoard shows of later ones, of before a resume, is dropped."""
    from accelerate.tracking import TensorBoardTracker

    for tracker in accelerator.log_with:
        if isinstance(tracker, TensorBoardTracker) and step:
            tracker.init_kwargs["purge_step"] = step + 1
    accelerator.init_trackers("tensorboard")  # the folder TensorBoard's files lie in


def show_previews(accelerator: "Accelerator", preview: Path, step: int) -> None:
    """Give the previews of a step to the trackers that show pictures.

    preview: of `find_previews`, a folder of pictures or one with all in a grid.
    """
    import numpy as np
    from PIL import Image

    files = sorted(preview.glob("*.png")) if preview.is_dir() else [preview]
    for tracker in accelerator.trackers:
        if tracker.name not in ("tensorboard", "wandb"):
            continue
        for file in files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            name = f"previews/{file.stem}" if preview.is_dir() else "previews"
            if tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=step)
            else:
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")

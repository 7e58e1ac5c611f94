"""Where figures go beside metrics.jsonl: TensorBoard and trackio, through Accelerate."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError, unknown_name

TRACKERS = ("tensorboard", "trackio")
PROJECT = "hyperbrush"  # trackio shows the runs of a project beside each other


def make_trackers(names: Sequence[str], run: str | Path, name: str = "") -> list[Any]:
    """Trackers for ``Accelerator(log_with=…)``; ``init_trackers`` starts them, whatever project it names.

    TensorBoard writes into the run folder (tensorboard/). trackio keeps a database of its own in the user's
    cache (or TRACKIO_DIR) and goes on with a run of the same name; ``trackio show --project hyperbrush``
    shows it. Nothing leaves the machine, unless TRACKIO_SPACE_ID says so.

    Args:
        names: of `TRACKERS`.
        run: the run folder.
        name: of the run in trackio; the folder's by default.

    Raises:
        UserError: an unknown tracker; its package is missing, which Accelerate would pass over in silence.
    """
    from accelerate.tracking import TensorBoardTracker, TrackioTracker

    found: list[Any] = []
    for kind in dict.fromkeys(names):
        if kind not in TRACKERS:
            raise unknown_name("tracker", kind, TRACKERS)
        if importlib.util.find_spec(kind) is None:
            extra = " (or 'hyperbrush[trackio]'; it may want an older Pillow)" if kind == "trackio" else ""
            raise UserError(f"tracker {kind!r} needs the package {kind}; pip install {kind}{extra}")
        if kind == "tensorboard":
            found.append(TensorBoardTracker("tensorboard", str(run)))
        else:
            found.append(TrackioTracker(PROJECT, name=name or Path(run).resolve().name, resume="allow"))
    return found

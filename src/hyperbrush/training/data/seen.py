"""Which pictures a run is trained and judged on, kept in its folder, so that a resume can say what has changed."""

import os
from collections.abc import Iterable
from pathlib import Path

from hyperbrush.files import read_json, write_json
from hyperbrush.training.loop.objectives import Objective

FILE = "pictures.json"  # in a run folder
SHOWN = 3  # names
TRAINED, HELD_OUT = "trained on", "held out"


def changed_pictures(run: Path, objective: Objective) -> str:
    """Keep the names of an objective's pictures in a run folder; what differs from those kept before, in words.

    Names are those below the folder that holds all of them, so that a data set may move.  Nothing is kept or said
    where an objective knows no paths.

    Raises:
        UserError: they cannot be written.
    """
    now = _names(objective)
    if now is None:
        return ""
    before = read_json(run / FILE)
    if before == now:
        return ""
    write_json(run / FILE, now)
    if not before:
        return ""
    had, has = ({name for names in found.values() for name in names} for found in (before, now))
    said = _of("were added", has - had) + _of("are gone", had - has)
    for kind in (TRAINED, HELD_OUT):
        said += _of(f"are {kind} that were not before", (set(now[kind]) - set(before.get(kind, []))) & had)
    return (
        f"other pictures than before: {'; '.join(said)}. Batches and validation losses are others from here on, not to "
        "the bit as if in one go"
        if said
        else ""
    )


def _names(objective: Objective) -> dict[str, list[str]] | None:
    paths = objective.picture_paths()
    if paths is None:
        return None
    found = dict(zip((TRAINED, HELD_OUT), paths, strict=True))
    every = [*found[TRAINED], *found[HELD_OUT]]
    try:
        root = os.path.commonpath([str(Path(path).parent) for path in every])
    except ValueError:  # of several drives, or none
        root = ""
    return {
        kind: sorted({Path(os.path.relpath(path, root)).as_posix() if root else path for path in paths})
        for kind, paths in found.items()
    }


def _of(what: str, names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    if not listed:
        return []
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return [f"{len(listed)} {what} ({', '.join(listed[:SHOWN])}{more})"]

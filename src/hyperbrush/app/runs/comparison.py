"""Several runs beside each other: curves, figures, and what differs between their settings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperbrush.app.runs.view import View

KEEP = 0.8  # smoothing that is begun with
MOST = 6  # runs: as many colours are told apart


def compared(views: Sequence[View], keep: float = KEEP) -> dict[str, Any]:
    """For JSON: of each run its figures, its loss smoothed and its validation loss over the steps; then the differences."""
    runs = [
        figures_of(view, keep)
        | {"loss": view.curves.smoothed(keep), "validation": view.curves.validation, "base": view.curves.base}
        for view in views
    ]
    differing = differences([view.run.config for view in views])
    return {"runs": runs, "differences": [{"setting": key, "values": values} for key, values in differing]}


def figures_of(view: View, keep: float = KEEP) -> dict[str, Any]:
    """How far a run is and how well it does; None for what it has not told (yet).

    smoothed: its loss at the end; best_validation: the lowest, at best_step; below_base: by which share of the bare
    model's.
    """
    live, best, base = view.run.live, view.curves.best, view.curves.base
    smooth = view.curves.smoothed(keep)
    return {
        "name": view.run.name,
        "state": view.run.state,
        "step": live.get("step"),
        "seconds": live.get("seconds"),
        "smoothed": smooth[-1][1] if smooth else None,
        "best_validation": best[1] if best else None,
        "best_step": int(best[0]) if best else None,
        "below_base": 1 - best[1] / base if best and base else None,
    }


def named(asked: str, known: Sequence[str]) -> list[str]:
    """Names joined by commas, of which some may hold commas themselves."""
    parts, found = asked.split(","), []
    while parts:
        whole = [n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in known]
        count = whole[0] if whole else 1
        found.append(",".join(parts[:count]))
        del parts[:count]
    return list(dict.fromkeys(filter(None, found)))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each) of all that is not the same everywhere; names aside."""
    flat = [dict(_flat(config)) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key != "name"))
    found = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", "–" if value is None else str(value)[:200]

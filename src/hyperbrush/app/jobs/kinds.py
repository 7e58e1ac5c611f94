"""The kinds of jobs: the lane each waits in, and the function that does it and returns the job's result."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hyperbrush.app.jobs.context import JobContext

# What the user waits for is drawn between the steps of a training ("short"); the others follow each other.
_KINDS: "Mapping[str, tuple[Literal['short', 'long'], str]]" = {
    "draw": ("short", "create.work"),
    "style": ("short", "styles.work"),
    "plan": ("short", "train.work"),
    "preflight": ("short", "train.work"),
    "try-model": ("short", "model.work"),
    "doctor": ("short", "model.work"),
    "export": ("short", "networks.work"),
    "compare": ("long", "compare.work"),
    "train": ("long", "train.work"),
    "hyper-train": ("long", "train.work"),
    "ldm-train": ("long", "train.work"),
}
STEPWISE = (
    "train",
    "hyper-train",
    "ldm-train",
)  # stopped between two steps, with a checkpoint; all others between two layers
LANES = {kind: lane for kind, (lane, _) in _KINDS.items()}


def _function(kind: str, module: str) -> "Callable[[JobContext], dict[str, Any] | None]":
    """The function of a kind, imported when it is first called: none of them is light."""

    def call(context: "JobContext") -> dict[str, Any] | None:
        function: Callable[[JobContext], dict[str, Any] | None] = getattr(
            import_module(f"hyperbrush.app.{module}"), kind.replace("-", "_")
        )
        return function(context)

    return call


KINDS: "Mapping[str, Callable[[JobContext], dict[str, Any] | None]]" = {
    kind: _function(kind, module) for kind, (_, module) in _KINDS.items()
}

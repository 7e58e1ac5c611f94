"""What the worker does: a function for each kind of job, which returns the job's result."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperbrush.app.jobs.worker import JobContext

_ROOMS = {
    "draw": "create.work",
    "compare": "compare.work",
    "plan": "train.work_plan",
    "preflight": "train.work_plan",
    "train": "train.work",
    "hyper-train": "train.work",
    "style": "styles.work",
    "try-model": "model.work",
    "doctor": "model.work",
    "export": "networks.work",
}


def _kind(kind: str, room: str) -> "Callable[[JobContext], dict[str, Any] | None]":
    """The function of a kind, imported when it is first called: none of them is light."""

    def call(context: "JobContext") -> dict[str, Any] | None:
        module = import_module(f"hyperbrush.app.{room}")
        function: Callable[[JobContext], dict[str, Any] | None] = getattr(module, kind.replace("-", "_"))
        return function(context)

    return call


KINDS: "Mapping[str, Callable[[JobContext], dict[str, Any] | None]]" = {
    kind: _kind(kind, room) for kind, room in _ROOMS.items()
}

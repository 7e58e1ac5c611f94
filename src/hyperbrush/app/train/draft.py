"""The training the user is preparing: kept on the disk, so that no reload loses it."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from hyperbrush.app.workspace import Workspace
from hyperbrush.files import read_json, write_json

EMPTY: Mapping[str, Any] = {"settings": {}, "presets": "quick", "plan": "", "preflight": ""}
LENGTHS = ("quick", "balanced", "quality")
KINDS = ("style", "subject")

_lock = threading.Lock()


class Draft:
    """The draft of a workspace, one for all tabs; each change touches its own key alone.

    on_change: called after each, in the page that has made it.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._file = workspace.state / "train-draft.json"
        self.on_change: list[Callable[[], None]] = []

    @property
    def values(self) -> dict[str, Any]:
        """As it stands on the disk."""
        found = {**EMPTY, **read_json(self._file)}
        return found if isinstance(found["settings"], dict) else dict(EMPTY)

    @property
    def request(self) -> dict[str, Any]:
        """As `TrainRequest` has it."""
        values = self.values
        return {"settings": values["settings"], "presets": str(values["presets"])}

    def keep(self, **changes: Any) -> None:
        """Change some of it.

        Raises:
            UserError: it cannot be written.
        """
        with _lock:
            write_json(self._file, {**self.values, **changes}, sync=False)
        self._tell()

    def get(self, key: str, default: Any = None) -> Any:
        """A setting by its whole name."""
        found: Any = self.values["settings"]
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found

    def put(self, key: str, value: Any) -> None:
        """Change a setting.

        Raises:
            UserError: it cannot be written.
        """
        self._put(key, lambda inner, last: inner.update({last: value}))

    def clear(self, key: str) -> None:
        """Leave a setting at its default.

        Raises:
            UserError: it cannot be written.
        """
        self._put(key, lambda inner, last: inner.pop(last, None))

    def _put(self, key: str, change: Callable[[dict[str, Any], str], object]) -> None:
        *rooms, last = key.split(".")
        with _lock:
            values = self.values
            settings = inner = dict(values["settings"])
            for room in rooms:
                inner[room] = dict(inner.get(room) or {})
                inner = inner[room]
            change(inner, last)
            for room in rooms:
                if not settings[room]:
                    del settings[room]
            write_json(self._file, {**values, "settings": settings}, sync=False)
        self._tell()

    def _tell(self) -> None:
        for call in self.on_change:
            call()

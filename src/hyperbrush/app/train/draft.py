"""The training the user is preparing: kept on the disk for each browser, so that no reload loses it."""

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from hyperbrush.app.ui.browser import drop_oldest
from hyperbrush.app.workspace import Workspace
from hyperbrush.files import read_json, write_json

EMPTY: Mapping[str, Any] = {
    "settings": {},
    "presets": "quick",
    "plan": "",
    "preflight": "",
    "cloned": "",
    "before": {},
}
LENGTHS = ("quick", "balanced", "quality")
KINDS = ("style", "subject")

_lock = threading.Lock()


class Draft:
    """The draft of a browser, one for all its tabs; each change touches its own key alone.

    settings and presets are what this tab has read and changed since; the rest is as it stands on the disk.
    cloned: the run it was cloned from; before: the draft that stood here until then.
    on_change: called after each, in the page that has made it.
    """

    def __init__(self, workspace: Workspace, browser: str) -> None:
        folder = workspace.state / "drafts"
        self._file = folder / f"{browser}.json"
        self.on_change: list[Callable[[], None]] = []
        self.fields: dict[str, Any] = {}  # of the page, by the settings' names
        shared = workspace.state / "train-draft.json"  # of all browsers together, until 2026
        if not self._file.exists():
            with contextlib.suppress(OSError):
                drop_oldest(folder)
                if shared.exists():  # of the first browser that comes
                    folder.mkdir(parents=True, exist_ok=True)
                    shared.replace(self._file)
        self._own = _request(self._read())

    @property
    def values(self) -> dict[str, Any]:
        """All of it, by the keys of `EMPTY`."""
        return {**self._read(), **self._own}

    @property
    def request(self) -> dict[str, Any]:
        """As `TrainRequest` has it."""
        return dict(self._own)

    @property
    def is_overtaken(self) -> bool:
        """Whether another tab has changed what would be trained, and this one shows something else."""
        there, here = (json.dumps(one, sort_keys=True) for one in (_request(self._read()), self._own))
        return there != here  # as texts: nan is nan

    def _read(self) -> dict[str, Any]:
        """As it stands on the disk."""
        found = {**EMPTY, **read_json(self._file)}
        return found if isinstance(found["settings"], dict) else dict(EMPTY)

    def keep(self, **changes: Any) -> None:
        """Change some of it.

        Raises:
            UserError: it cannot be written.
        """
        with _lock:
            write_json(self._file, {**self._read(), **changes}, sync=False)
            self._own = _request({**self._own, **changes})
        self._tell()

    def clone(self, run: str, settings: Mapping[str, Any], presets: str) -> None:
        """Take a run's settings; what stood here can be put back, see `put_back`.

        Raises:
            UserError: it cannot be written.
        """
        before = self.values["before"] if self.values["cloned"] else self.request
        self.keep(**{**EMPTY, "settings": settings, "presets": presets, "cloned": run, "before": before})

    def put_back(self) -> None:
        """The draft as it stood before the clone.

        Raises:
            UserError: it cannot be written.
        """
        self.keep(**{**EMPTY, **self.values["before"]})

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
        self._put(key, _leave_out)

    def without(self, key: str) -> dict[str, Any]:
        """The settings but for one."""
        return _changed(self.values["settings"], key, _leave_out)

    def _put(self, key: str, change: "Change") -> None:
        with _lock:
            values = self._read()
            settings = _changed(values["settings"], key, change)
            write_json(self._file, {**values, "settings": settings}, sync=False)
            self._own = _request({**self._own, "settings": _changed(self._own["settings"], key, change)})
        self._tell()

    def _tell(self) -> None:
        for call in self.on_change:
            call()


def _request(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and presets, as a file gives them back."""
    found: dict[str, Any] = json.loads(
        json.dumps({"settings": values["settings"], "presets": str(values["presets"])})
    )
    return found


Change = Callable[[dict[str, Any], str], object]


def _leave_out(inner: dict[str, Any], last: str) -> None:
    inner.pop(last, None)


def _changed(settings: Mapping[str, Any], key: str, change: Change) -> dict[str, Any]:
    """Settings with one changed; change: gets the room it is in and the last part of its name."""
    *rooms, last = key.split(".")
    found = inner = dict(settings)
    for room in rooms:
        inner[room] = dict(inner.get(room) or {})
        inner = inner[room]
    change(inner, last)
    for room in rooms:
        if not found[room]:
            del found[room]
    return found


def with_presets(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(settings, presets) that mean the same as the settings alone: what a preset says is left to it."""
    from hyperbrush.training.attention.config import PRESETS, HypernetworkConfig

    said = dict(settings.get("training") or {})
    usual = HypernetworkConfig().model_dump(mode="json")
    fitting = {
        name
        for name, values in PRESETS.items()
        if all(said.get(key, usual[key]) == value for key, value in values.items())
    }
    chosen = [next((name for name in group if name in fitting), "") for group in (LENGTHS, KINDS)]
    rest = {key: value for key, value in said.items() if not any(key in PRESETS.get(n, ()) for n in chosen)}
    others = {key: value for key, value in settings.items() if key != "training"}
    return {**others, **({"training": rest} if rest else {})}, ",".join(filter(None, chosen))

"""What else a draft says: every setting that the open part of the form does not show, so that nothing is trained unseen."""

from collections.abc import Callable, Iterator
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.train.draft import Draft
from hyperbrush.app.train.page_inputs import shown
from hyperbrush.app.train.schema import groups, settings
from hyperbrush.app.ui.frame import refusals


def apart(draft: Draft) -> Iterator[tuple[str, str]]:
    """(setting, value in words) of all that the draft says and the first fields do not show.

    A folder of pictures is "data 2", what it counts "data 2 repeats"; the first one's place is shown above.
    """
    first = groups()["first"]
    for key, value in _leaves(draft.values["settings"]):
        if key == "data":
            yield from _folders(value)
        elif key not in first:
            yield key, _words(key, value)


def _leaves(said: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in said.items():
        if key in ("training", "network") and isinstance(value, dict):
            yield from ((f"{key}.{inner}", found) for inner, found in value.items())
        else:
            yield key, value


def _folders(data: Any) -> Iterator[tuple[str, str]]:
    for number, folder in enumerate(data if isinstance(data, list) else [data], 1):
        about = folder if isinstance(folder, dict) else {"path": folder}
        if number > 1:
            yield f"data {number}", str(about.get("path", ""))
        yield from ((f"data {number} {key}", str(value)) for key, value in about.items() if key != "path")


def _words(key: str, value: Any) -> str:
    if key == "validation" and isinstance(value, list):
        return ", ".join(str(one.get("path", one)) if isinstance(one, dict) else str(one) for one in value)
    setting = settings().get(key)
    said = str(value) if setting is None or value is None else shown(setting, value)
    return said.replace("\n", " · ") or "''"


def show(t: Messages, draft: Draft, on_clear: Callable[[], Any]) -> None:
    """The list of them, each with a button that leaves it at its default; on_clear: called after that."""

    def clear(key: str) -> None:
        with refusals():
            draft.clear(key)
        on_clear()

    @ui.refreshable
    def listed() -> None:
        found = list(apart(draft))
        if not found:
            return
        with ui.element("div").classes("train-apart").props("role=group") as box:
            box.props["aria-label"] = t("train.also_set")
            ui.label(t("train.also_set")).classes("soft small")
            with ui.element("ul"):
                for key, value in found:
                    with ui.element("li").classes("bar tight"):
                        ui.label(key).classes("strong")
                        ui.label(value).classes("grow")
                        if not key.startswith("data "):
                            button = ui.button(icon="close", on_click=lambda key=key: clear(key))
                            button.props("flat round dense size=sm")
                            button.props["aria-label"] = t("train.leave_default", setting=key)

    listed()
    seen = [list(apart(draft))]

    def changed() -> None:
        now = list(apart(draft))
        if now != seen[0]:
            seen[0] = now
            listed.refresh()

    draft.on_change.append(changed)

"""Pieces that the pages of runs share."""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.run import Run
from hyperbrush.app.ui.frame import duration

ICONS = {
    "queued": "schedule",
    "running": "play_arrow",
    "paused": "pause",
    "stopped": "stop",
    "done": "check",
    "failed": "error_outline",
}


def words(tag: str, text: str, classes: str = "") -> TextElement:
    """An element that holds plain text."""
    element = TextElement(tag=tag, text=text)
    if classes:
        element.classes(classes)
    return element


def address(name: str) -> str:
    """Of a run's page."""
    return f"/runs/{quote(name, safe='')}"


def api(name: str, path: str = "") -> str:
    """Address of a run in the API."""
    return f"/api/v1{address(name)}{path}"


class StateBadge:
    """A run's state as icon and word."""

    def __init__(self, t: Messages, state: str) -> None:
        self.t, self.state = t, ""
        with ui.element("span").classes("run-state") as self.place:
            self.icon = ui.icon("").props('aria-hidden="true"')
            self.word = words("span", "")
        self.show(state)

    def show(self, state: str) -> None:
        """Show another state."""
        if state == self.state:
            return
        self.place.classes(remove=self.state or None, add=state)
        self.state = state
        self.icon.set_name(ICONS.get(state, "help_outline"))
        self.word.set_text(self.t(f"runs.state_{state}") if state in ICONS else state)


class Bar:
    """How far a run is, as a bar."""

    def __init__(self, label: str) -> None:
        self.bar = ui.linear_progress(0.0, show_value=False).classes("run-bar")
        self.bar.props("instant-feedback size=6px")
        self.bar.props["aria-label"] = label

    def show(self, run: Run) -> None:
        """Show a run's step, or the work before the first."""
        step, steps = done_of(run)
        self.bar.set_value(round(step / steps, 4) if steps else 0.0)


def done_of(run: Run) -> tuple[int, int]:
    """(done, of): steps of the training, or of the work before the first."""
    if prepares(run):
        return run.stage_step, run.stage_steps
    return int(run.live.get("step") or 0), int(run.live.get("steps") or 0)


def prepares(run: Run) -> bool:
    """Whether a run is at work before its first (or next) step."""
    return run.state == "running" and run.stage not in ("", "training")


def standing(t: Messages, run: Run) -> str:
    """In one line how far a run is."""
    if run.state == "queued":
        return t("runs.waits")
    done, of = done_of(run)
    if prepares(run):
        stage = t.get(f"runs.stage_{run.stage.replace(' ', '_')}", run.stage)
        return f"{stage} {done}/{of}" if of else stage
    if not of:
        return t("runs.begins") if run.state == "running" else t("runs.no_step")
    said = t("runs.step_of", step=done, steps=of)
    if run.state == "running" and done < of and run.live.get("seconds_left") is not None:
        said += " · " + t("runs.left", time=duration(run.live["seconds_left"]))
    return said


def clock(seconds: float) -> str:
    """A moment as the server's clock says it."""
    form = "%H:%M" if time.time() - seconds < 64800 else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(seconds))


def figure(value: Any, form: str = ".4f") -> str:
    """A number for a person."""
    return f"{value:{form}}" if isinstance(value, int | float) else "–"


def size_of(size: Any) -> str:
    """Bytes for a person."""
    if not isinstance(size, int | float) or size <= 0:
        return "–"
    return f"{size / 1024**3:.1f} GB" if size >= 1024**3 else f"{size / 1024**2:.0f} MB"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", *, links: Sequence[str] = ()
) -> ui.element:
    """A table of plain text; what is too wide scrolls inside of it, by keyboard too.

    links: an address for the first cell of each row.
    """
    with ui.element("div").classes("run-table").props('tabindex=0 role="group"') as place:
        place.props["aria-label"] = caption or heads[0]
        with ui.element("table"):
            with ui.element("thead"), ui.element("tr"):
                for head in heads:
                    words("th", head).props('scope="col"')
            with ui.element("tbody"):
                for number, row in enumerate(rows):
                    with ui.element("tr"):
                        with ui.element("th").props('scope="row"'):
                            if links:
                                ui.link(row[0], links[number])
                            else:
                                words("span", row[0])
                        for cell in row[1:]:
                            words("td", cell)
    return place

"""Previews of several runs beside each other: a row for each prompt, a column for each run, at one step."""

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.page_parts import api, words
from hyperbrush.app.runs.run import Preview
from hyperbrush.app.runs.view import View
from hyperbrush.app.ui.frame import title_of


class Beside:
    """The card; a run that has no picture of a step shows its last one before."""

    def __init__(self, t: Messages, views: Sequence[View]) -> None:
        self.t, self.views = t, views
        self.steps: list[int] = []
        self._shown: Any = None
        with ui.element("section").classes("card").props('aria-labelledby="beside"') as self.card:
            title_of(2, t("runs.beside")).props('id="beside"')
            with ui.element("div").classes("bar"):
                self.at = words("span", "", "run-at").props('role="status"')
                self.slider = ui.slider(min=0, max=1, step=1, value=0, on_change=lambda _: self._draw())
                self.slider.classes("grow").props("markers snap")
                self.slider.props["aria-label"] = t("runs.preview_step")
            self.table = ui.element("div").classes("run-beside").props('tabindex=0 role="region"')
            self.table.props["aria-label"] = t("runs.beside")
        self.show(views)

    def show(self, views: Sequence[View]) -> None:
        """Show newer previews, if there are any; at the last step it follows the trainings."""
        steps = sorted({preview.step for view in views for preview in view.previews})
        followed = not self.steps or self.slider.value >= len(self.steps) - 1
        self.views, self.steps = views, steps
        self.card.set_visibility(bool(steps))
        if not steps:
            return
        self.slider.props["max"] = len(steps) - 1
        self.slider.set_visibility(len(steps) > 1)
        self.slider.set_value(len(steps) - 1 if followed else min(self.slider.value, len(steps) - 1))
        self.slider.update()
        self._draw()

    def _draw(self) -> None:
        step = self.steps[min(int(self.slider.value), len(self.steps) - 1)]
        self.at.set_text(self.t("runs.at", step=step))
        self.slider.props["aria-valuetext"] = self.t("runs.at", step=step)
        rows = {text: [_last(view, text, step) for view in self.views] for text in _prompts(self.views)}
        wanted = [
            (text, [found and (found[0], found[1].stamp) for found in row]) for text, row in rows.items()
        ]
        if wanted == self._shown:
            return
        self._shown = wanted
        self.table.clear()
        self.table.style(f"--runs: {len(self.views)}")
        with self.table:
            for view in self.views:
                words("div", view.run.name, "strong run-beside-name")
            for text, row in rows.items():
                seeds = {_seed(view, found[1]) for view, found in zip(self.views, row, strict=True) if found}
                note = "" if len(seeds) < 2 else " · " + self.t("runs.other_seeds")
                words("div", (text or self.t("runs.all_prompts")) + note, "run-beside-prompt soft small")
                for view, found in zip(self.views, row, strict=True):
                    self._cell(view, text, found, step)

    def _cell(self, view: View, text: str, found: tuple[int, Preview] | None, step: int) -> None:
        with ui.element("figure"):
            if found is None:
                words("figcaption", self.t("runs.no_preview"), "soft small")
                return
            index, preview = found
            picture = ui.element("img").classes("drawn").props('loading="lazy"')
            picture.props["src"] = api(view.run.name, f"/previews/{index}?v={preview.stamp}")
            said = self.t("runs.preview_of", prompt=text, step=preview.step)
            picture.props["alt"] = f"{view.run.name}: {said}"
            if preview.step != step:
                words("figcaption", self.t("runs.at", step=preview.step), "soft small")


def _prompts(views: Sequence[View]) -> list[str]:
    """What the runs draw, in the first one's order; "" for a picture of all prompts together."""
    found = [_text(view, preview) for view in views for preview in view.previews]
    return list(dict.fromkeys(found))


def _text(view: View, preview: Preview) -> str:
    number = preview.prompt
    if number is None:
        return ""
    return view.prompts[number] if number < len(view.prompts) else str(number + 1)


def _last(view: View, text: str, step: int) -> tuple[int, Preview] | None:
    """(its place, the newest preview of a prompt up to a step)."""
    found = [
        (preview.step, place)
        for place, preview in enumerate(view.previews)
        if preview.step <= step and _text(view, preview) == text
    ]
    return (max(found)[1], view.previews[max(found)[1]]) if found else None


def _seed(view: View, preview: Preview) -> int:
    """What it was drawn from: each prompt has the next one."""
    training = view.run.config.get("training") or {}
    return int(training.get("preview_seed") or 0) + (preview.prompt or 0)

"""Previews over time: a slider over the steps, all prompts or one, and the contact sheet."""

from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.page_parts import api, words
from hyperbrush.app.runs.view import View
from hyperbrush.app.ui.frame import title_of

ALL = -1


class Previews:
    """A card that shows one step's pictures; at the last step it follows the training."""

    def __init__(self, t: Messages, view: View) -> None:
        self.t, self.view = t, view
        self.shown: Any = None
        self.steps: list[int] = []
        with ui.element("section").classes("card").props('aria-labelledby="previews"') as self.card:
            with ui.element("div").classes("bar"):
                title_of(2, t("runs.previews")).classes("grow").props('id="previews"')
                self.prompt = ui.select({ALL: t("runs.all_prompts")}, value=ALL, label=t("runs.prompt"))
                self.prompt.props("outlined dense options-dense").classes("run-prompt")
                self.prompt.on_value_change(lambda _: self._draw())
            with ui.element("div").classes("bar"):
                self.at = words("span", "", "run-at").props('role="status"')
                self.slider = ui.slider(min=0, max=1, step=1, value=0, on_change=lambda _: self._draw())
                self.slider.classes("grow").props("markers snap")
                self.slider.props["aria-label"] = t("runs.preview_step")
            self.pictures = ui.element("div").classes("pictures run-previews")
            with ui.expansion(
                t("runs.contact_sheet"), on_value_change=lambda _: self._sheet()
            ) as self.sheet_box:
                self.sheet = ui.element("img").classes("run-sheet").props('loading="lazy"')
                self.sheet.props["alt"] = t("runs.contact_sheet_of", name=view.run.name)
        self.show(view)

    def show(self, view: View) -> None:
        """Show newer previews, if there are any."""
        steps = sorted({preview.step for preview in view.previews})
        prompts = {preview.prompt for preview in view.previews if preview.prompt is not None}
        self.card.set_visibility(bool(steps))
        followed = not self.steps or self.slider.value >= len(self.steps) - 1
        is_new = steps != self.steps or len(view.previews) != len(self.view.previews)
        self.view, before, self.steps = view, self.steps, steps
        if not steps or (not is_new and before):
            return
        options = {ALL: self.t("runs.all_prompts")} | {n: self._text(n) for n in sorted(prompts)}
        if options != self.prompt.options:
            self.prompt.set_options(options, value=self.prompt.value if self.prompt.value in options else ALL)
        self.prompt.set_visibility(len(prompts) > 1)
        self.slider.props["max"] = len(steps) - 1
        self.slider.set_visibility(len(steps) > 1)
        self.slider.set_value(len(steps) - 1 if followed else min(self.slider.value, len(steps) - 1))
        self.slider.update()
        self._draw()
        self._sheet()

    def _text(self, number: int | None) -> str:
        prompts = self.view.prompts
        if number is None:
            return " / ".join(prompts)
        return prompts[number] if number < len(prompts) else f"{self.t('runs.prompt')} {number + 1}"

    def _draw(self) -> None:
        if not self.steps:
            return
        step = self.steps[min(int(self.slider.value), len(self.steps) - 1)]
        found = [(i, p) for i, p in enumerate(self.view.previews) if p.step == step]
        if self.prompt.value != ALL:
            found = [(i, p) for i, p in found if p.prompt == self.prompt.value]
        wanted = [(step, i, p.prompt) for i, p in found]
        self.at.set_text(self.t("runs.at", step=step))
        self.slider.props["aria-valuetext"] = self.t("runs.at", step=step)
        if wanted == self.shown:
            return
        self.shown = wanted
        self.pictures.clear()
        with self.pictures:
            for index, preview in found:
                text = self._text(preview.prompt)
                with ui.element("figure"):
                    picture = ui.element("img").classes("drawn")
                    picture.props["src"] = api(self.view.run.name, f"/previews/{index}?v={preview.stamp}")
                    picture.props["alt"] = self.t("runs.preview_of", prompt=text, step=step)
                    words("figcaption", text, "soft small")

    def _sheet(self) -> None:
        if self.sheet_box.value and self.view.previews:
            newest = max(preview.stamp for preview in self.view.previews)
            self.sheet.props["src"] = api(self.view.run.name, f"/contact-sheet?v={newest}")

"""Trainings of other kinds than a hypernetwork's: their settings as YAML, checked while they are written."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import yaml
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import TrainRequest
from hyperbrush.app.site import Site
from hyperbrush.app.train import service as trainings
from hyperbrush.app.train.other_kinds import EXAMPLES
from hyperbrush.app.ui.frame import in_thread, refusals
from hyperbrush.errors import UserError


class OtherKinds:
    """The section, closed at first; dataset: the folder of pictures that is shown above."""

    def __init__(self, site: Site, t: Messages, dataset: Callable[[], str]) -> None:
        self.site, self.t, self.dataset = site, t, dataset
        kinds = {kind: t(f"runs.kind_{kind}") for kind in EXAMPLES}
        with (
            ui.element("section").classes("card"),
            ui.expansion(t("train.other_kinds"), icon="schema", on_value_change=self._example).classes(
                "more"
            ),
        ):
            ui.label(t("train.other_help")).classes("soft small")
            with ui.element("div").classes("bar"):
                self.kind = ui.select(
                    kinds, value="diffusion", label=t("train.other_kind"), on_change=self._example
                )
                self.name = ui.input(t("train.run_name"), on_change=self._check)
                for field in (self.kind, self.name):
                    field.props("outlined dense").classes("grow")
            self.text = ui.textarea(t("train.other_settings"), on_change=self._check)
            self.text.props("outlined autogrow debounce=500 spellcheck=false").classes("yaml")
            self.told = ui.label().classes("bad small").props("role=status")
            self.begin = ui.button(t("train.start"), icon="play_arrow", on_click=self._start).props("no-caps")
        self.shown = ""  # the example, as long as nobody has changed it

    def _settings(self) -> dict[str, Any]:
        from hyperbrush.ldm.util import parse_yaml

        try:
            found = parse_yaml(self.text.value or "")
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(f"the settings are no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise UserError("the settings are no YAML: expected settings by name, one a line")
        if found.get("kind") != self.kind.value:
            raise UserError(f"the settings are of kind {found.get('kind')!r}, chosen is {self.kind.value!r}")
        return {**found, "name": str(self.name.value or "")}

    async def _example(self) -> None:
        """The example of a kind, in place of one that nobody has changed."""
        if (self.text.value or "") == self.shown:
            names = {"data": self.dataset() or "FOLDER", "model": self.site.workspace.preferences.model}
            quoted = {key: json.dumps(name, ensure_ascii=False) for key, name in names.items()}
            self.shown = EXAMPLES[str(self.kind.value)].format(**quoted)
            self.text.set_value(self.shown)
        await self._check()

    async def _check(self) -> None:
        self.begin.set_enabled(False)
        if not self.name.value:
            self.told.set_text("")
            return
        try:
            found = await in_thread(trainings.problems, self.site.workspace, self._settings())
        except UserError as error:
            found = [str(error)]
        self.told.set_text("; ".join(map(self.t.said, found)))
        self.begin.set_enabled(not found)

    async def _start(self) -> None:
        with refusals():
            job = await in_thread(trainings.start, self.site, TrainRequest(settings=self._settings()))
            ui.navigate.to(f"/runs/{quote(str(job.arguments['run']), safe='')}")

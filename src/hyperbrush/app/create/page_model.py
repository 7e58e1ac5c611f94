"""The model that draws, chosen where one draws: it is in use once it has opened, and the page is built anew for it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.model.service import BaseModel
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import on_news, refuse
from hyperbrush.errors import UserError

OTHERS = "/model"  # in place of a model: leads to all of them


class ModelChoice:
    """A field that has another model opened.

    own: the one in use; listed: those there are. on_change: called before the page is built for another.
    """

    def __init__(
        self,
        site: Site,
        t: Messages,
        own: BaseModel,
        listed: Sequence[BaseModel],
        on_change: Callable[[], Any],
    ) -> None:
        self.site, self.t, self.own, self._on_change = site, t, own, on_change
        self._job = ""
        self._names = {
            one.source: one.name for one in (own, *listed) if not one.error or one.source == own.source
        }
        self.select = ui.select(
            {**self._names, OTHERS: t("create.other_models")},
            value=own.source,
            label=t("create.model"),
            on_change=self._choose,
        )
        self.select.props("outlined dense options-dense")
        self._told = ui.label().props("role=status").classes("small")
        self._told.set_visibility(False)
        on_news(site, lambda: [f"job:{self._job}"] if self._job else [], self._look)

    async def _choose(self) -> None:
        source = str(self.select.value)
        if source == OTHERS:
            ui.navigate.to(OTHERS)
            return
        self._leave()
        if source == self.own.source:
            return
        try:
            job = (await asyncio.to_thread(choices.use_model, self.site, source)).id
            if self.select.value != source:  # another was chosen meanwhile
                self._stop(job)
                return
            self._job = job
            self._look()
        except UserError as error:
            refuse(str(error))
            self.select.set_value(self.own.source)

    def _leave(self) -> None:
        """Stop opening the model that was chosen before."""
        job, self._job = self._job, ""
        if job:
            self._told.set_visibility(False)
            self._stop(job)

    def _stop(self, job: str) -> None:
        with contextlib.suppress(UserError):  # it has ended meanwhile
            self.site.ask(job, "stop")

    def _look(self) -> None:
        job = self.site.jobs.find(self._job)
        if job is None:
            return
        t, name = self.t, self._names.get(str(job.arguments.get("model")), "")
        if job.state == "done":
            self._on_change()
            ui.navigate.to("/")  # samplers, sizes and networks are others
            return
        if job.is_open:
            self._tell(t("model.opening", name=name), "")
            return
        self._job = ""
        self.select.set_value(self.own.source)
        if job.state == "failed":
            self._tell(t("model.failed", name=name, why=t.said(job.error)), "bad")
        else:
            self._tell(t("model.stopped", name=name), "")

    def _tell(self, text: str, how: str) -> None:
        self._told.set_text(text)
        self._told.classes(replace=f"small {how}")
        self._told.set_visibility(True)

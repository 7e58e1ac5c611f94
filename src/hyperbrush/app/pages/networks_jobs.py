"""Exports as they come, and what is in the bin."""

import time
from collections.abc import Callable
from typing import Any

from nicegui import ui

from hyperbrush.app import networks
from hyperbrush.app.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.pages.frame import on_news, refusals, title_of
from hyperbrush.app.pages.networks_card import size_text
from hyperbrush.app.pages.networks_threads import in_thread
from hyperbrush.app.site import Site
from hyperbrush.hypernetworks.moving import Binned

SHOWN = 3600.0  # seconds that an export that has ended stays on the page


class Exports:
    """The last exports, from the jobs' folders: a reload and other tabs show them too."""

    def __init__(self, site: Site, t: Messages) -> None:
        self.site, self.t = site, t
        self.place = ui.element("section").classes("network-exports").props('aria-live="polite"')
        self.place.props["aria-label"] = t("networks.exports")
        self._awaited: set[str] = set()
        self._shown: list[Job] = []
        on_news(site, "jobs", self._show)

    def begin(self, job: Job) -> None:
        """Download what this page asked for once it is there."""
        self._awaited.add(job.id)

    async def _show(self) -> None:
        every = await in_thread(self.site.jobs.all, last=60)
        recent = time.time() - SHOWN
        jobs = [j for j in every if j.kind == "export" and (j.is_open or (j.ended or j.created) > recent)]
        for job in jobs:
            if job.id in self._awaited and not job.is_open:
                self._awaited.discard(job.id)
                if job.state == "done":
                    ui.download.from_url(f"/api/v1/exports/{job.id}")
        if jobs[:5] == self._shown:
            return
        self._shown = jobs[:5]
        self.place.clear()
        with self.place:
            for job in self._shown:
                self._row(job)

    def _row(self, job: Job) -> None:
        t = self.t
        told = job.progress
        with ui.element("div").classes("notice" + (" bad" if job.state == "failed" else "")):
            ui.label(f"{job.arguments.get('network')} → {t('networks.to_' + str(job.arguments.get('to')))}")
            with ui.element("div").classes("grow"):
                stands = t(f"networks.export_{job.state}")
                if job.state == "running" and told.get("steps"):
                    stands += f" {told.get('step')}/{told['steps']}"
                ui.label(stands).classes("soft")
                if job.error:
                    ui.label(job.error).classes("bad")
                if job.result.get("report"):
                    ui.label(str(job.result["report"])).classes("soft")
                for lost in job.result.get("lost", []):
                    ui.label(t("networks.lost", what=lost)).classes("warn")
            if job.state == "done":
                ui.link(t("networks.download"), f"/api/v1/exports/{job.id}").props("download")
            elif job.is_open:
                ui.button(t("networks.stop"), on_click=lambda: self._stop(job)).props("flat dense no-caps")

    def _stop(self, job: Job) -> None:
        with refusals():
            self.site.jobs.ask(job.id, "stop")
            self.site.news("jobs", f"job:{job.id}")


class BinSection:
    """What was deleted: restored, or removed for good; and the last deletion undone."""

    def __init__(self, site: Site, t: Messages, undo_place: ui.element) -> None:
        self.site, self.t, self.undo_place = site, t, undo_place
        with ui.expansion(icon="delete").classes("card network-bin") as self.section:
            self.list = ui.element("ul").classes("network-plain")
        self._shown: list[Binned] | None = None
        on_news(site, "networks", self._show)

    def deleted(self, item: Binned) -> None:
        """Offer to undo it."""
        self.undo_place.clear()
        with self.undo_place, ui.element("div").classes("notice"):
            ui.label(self.t("networks.deleted", name=item.name)).classes("grow")
            ui.button(self.t("networks.undo"), on_click=lambda: self._restore(item)).props("flat no-caps")

    async def _restore(self, item: Binned) -> None:
        with refusals():
            card = await in_thread(networks.restore, self.site, item.id)
            self.undo_place.clear()
            ui.notify(self.t("networks.restored", name=card.entry.name), type="positive")

    async def _show(self) -> None:
        items = await in_thread(networks.bin_of(self.site.workspace).items)
        if items == self._shown:
            return
        self._shown = items
        self.section.set_text(self.t("networks.bin", count=len(items)))
        self.section.set_visibility(bool(items))
        self.list.clear()
        with self.list:
            for item in items:
                self._row(item)

    def _row(self, item: Binned) -> None:
        t = self.t
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.deleted))
        with ui.element("li").classes("bar"):
            ui.label(item.name).classes("grow")
            ui.label(f"{when} · {size_text(item.size)}").classes("soft")
            for key, do in (("restore", self._restore), ("remove", self._ask)):
                button = ui.button(t(f"networks.{key}"), on_click=self._doing(do, item)).props(
                    "flat dense no-caps"
                )
                button.props["aria-label"] = f"{t(f'networks.{key}')}: {item.name}"

    @staticmethod
    def _doing(do: Callable[[Binned], Any], item: Binned) -> Callable[[], Any]:
        return lambda: do(item)

    async def _ask(self, item: Binned) -> None:
        t = self.t
        question = t("networks.remove_sure", name=item.name)
        with ui.dialog() as dialog, ui.element("div").classes("card network-dialog"):
            dialog.props["aria-label"] = question
            title_of(2, question)
            with ui.element("div").classes("bar"):
                ui.button(t("networks.remove"), on_click=lambda: dialog.submit(True)).props("no-caps")
                ui.button(t("networks.cancel"), on_click=lambda: dialog.submit(False)).props("flat no-caps")
        sure = await dialog
        dialog.delete()
        if sure:
            with refusals():
                await in_thread(networks.remove, self.site, item.id)

"""Exports as they come."""

import time

from nicegui import ui

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import on_news, refusals
from hyperbrush.app.ui.threads import in_thread

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

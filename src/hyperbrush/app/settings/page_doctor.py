"""The doctor's report on the Settings page: does everything hold on this machine?"""

from urllib.parse import urlencode

from nicegui import ui

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import on_news, refusals, title_of
from hyperbrush.errors import UserError


class Doctor:
    """A button, and what the newest look found; job: another one to show."""

    def __init__(self, site: Site, t: Messages, job: str) -> None:
        self.site, self.t = site, t
        newest = site.jobs.all(kinds=("doctor",), last=1)
        self.job = job or (newest[0].id if newest else "")
        with ui.element("section").classes("card"):
            title_of(2, t("settings.doctor"))
            ui.label(t("settings.doctor_help")).classes("soft")
            with ui.element("div").classes("bar"):
                ui.button(t("settings.doctor_run"), icon="troubleshoot", on_click=self._run).props(
                    "outline no-caps color=primary"
                )
                self.told = ui.label().props('role="status" aria-live="polite"')
            self.place = ui.element("div").classes("stack")
        on_news(site, lambda: [f"job:{self.job}"] if self.job else [], self._show)

    def _run(self) -> None:
        with refusals():
            self.job = self.site.submit("doctor", {}).id
            ui.navigate.history.replace("/settings?" + urlencode({"doctor": self.job}))
            self._show()

    def _show(self) -> None:
        t = self.t
        try:
            job = self.site.jobs.get(self.job)
        except UserError:
            return
        self.told.classes(remove="good bad")
        if job.is_open:
            self.told.set_text(t("settings.doctor_looks"))
        elif job.state == "done" and job.kind == "doctor":
            wrong = int(job.result["wrong"])
            self.told.set_text(
                t("settings.doctor_wrong", count=wrong) if wrong else t("settings.doctor_well")
            )
            self.told.classes("bad" if wrong else "good")
        else:
            self.told.set_text(job.error or t("settings.doctor_stopped"))
            self.told.classes("bad")
        self.place.clear()
        if job.state == "done" and job.kind == "doctor":
            with self.place:
                self._report(job)

    def _report(self, job: Job) -> None:
        t = self.t
        address = f"/api/v1/jobs/{job.id}/doctor"
        about = None
        for row in job.result["rows"]:
            if row["about"] != about:
                about = row["about"]
                title_of(3, about or t("settings.doctor_machine"))
                facts = ui.element("dl").classes("model-facts")
            with facts:
                with ui.element("dt"):
                    ui.label(row["what"])
                with ui.element("dd"):
                    if not row["sound"]:
                        ui.label(t("settings.doctor_bad")).classes("bad")
                    ui.label(row["found"]).classes("" if row["sound"] else "bad")
        if job.result.get("picture"):
            picture = ui.element("img").classes("drawn doctor-picture")
            picture.props["src"], picture.props["alt"] = f"{address}/picture", t("settings.doctor_alt")
        link = ui.link(t("settings.doctor_page"), f"{address}/page")
        link.props["download"] = "doctor.md"

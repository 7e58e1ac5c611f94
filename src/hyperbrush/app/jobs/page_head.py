"""The top of a card that follows a job: what it does, how far it is, and a button that ends it."""

from nicegui import ui

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import refusals, title_of


class JobHead:
    """Title and words; a bar and the button as long as something is to come."""

    def __init__(self, site: Site, title: str, nothing_yet: str, progress: str, stop: str) -> None:
        self.site, self._job = site, ""
        title_of(2, title)
        self._told = ui.label(nothing_yet).props('role="status" aria-live="polite"').classes("soft")
        with ui.element("div").classes("bar") as self._waiting:
            self._bar = ui.linear_progress(value=0, show_value=False).classes("grow")
            self._bar.props["aria-label"] = progress
            ui.button(stop, icon="stop", on_click=self._stop).props("flat dense no-caps color=primary")
        self._waiting.set_visibility(False)

    def tell(self, text: str) -> None:
        """Other words."""
        self._told.set_text(text)

    def show(self, job: Job, text: str, share: float) -> None:
        """How a job stands: in words, and how much of it is done."""
        self._job = job.id
        self.tell(text)
        self._told.classes(replace="bad" if job.state == "failed" else "")
        self._waiting.set_visibility(job.is_open)
        self._bar.set_value(share)

    def _stop(self) -> None:
        with refusals():
            self.site.jobs.ask(self._job, "stop")
            self.site.news("jobs", f"job:{self._job}")

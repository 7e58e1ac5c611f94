"""The buttons of a run's page; what cannot be undone is asked about first."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import run as threads
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs import control as run_control
from hyperbrush.app.runs.page_parts import api, words
from hyperbrush.app.runs.view import View
from hyperbrush.app.site import Site
from hyperbrush.app.ui.dialogs import asking, sure
from hyperbrush.app.ui.frame import in_thread, refusals

BUTTONS = (  # (what, icon)
    ("resume", "play_arrow"),
    ("pause", "pause"),
    ("finish", "save"),
    ("stop", "stop"),
    ("rollback", "history"),
    ("delete", "delete"),
)


class Actions:
    """Those buttons that a run's state allows."""

    def __init__(self, site: Site, t: Messages, view: View) -> None:
        self.site, self.t, self.view = site, t, view
        self.name = view.run.name
        own = str(view.run.config.get("name", self.name))
        doing: dict[str, Callable[[], Any]] = {
            "resume": self._resume,
            "pause": lambda: self._ask("pause"),
            "finish": lambda: self._ask("finish"),
            "stop": lambda: self._ask("stop"),
            "rollback": self._roll_back,
            "delete": self._delete,
        }
        with ui.element("div").classes("bar run-actions"):
            self.use = _link(t("runs.use"), "brush", f"/?add={quote(own, safe='')}").props("unelevated")
            self.buttons = {}
            for what, icon in BUTTONS:
                button = ui.button(t(f"runs.{what}"), icon=icon, on_click=doing[what]).props(
                    "outline no-caps"
                )
                button.tooltip(t(f"runs.{what}_help"))
                self.buttons[what] = button
            self.clone = _link(
                t("runs.clone"), "content_copy", f"/train?clone={quote(self.name, safe='')}"
            ).props("flat")
            self.report = ui.link(t("runs.report"), api(self.name, "/report"), new_tab=True)
        self.show(view)

    def show(self, view: View) -> None:
        """Show what can be asked now."""
        self.view = view
        run = view.run
        for what, button in self.buttons.items():
            button.set_visibility(what in run.can)
            button.set_enabled(not run.asked)
        is_network = run.kind == "hypernetwork"
        self.use.set_visibility(run.state == "done" and is_network)
        self.clone.set_visibility(is_network)
        self.report.set_visibility(run.report)

    async def _ask(self, how: Any) -> None:
        with refusals():
            await threads.io_bound(run_control.ask, self.site, self.name, how)

    async def _resume(self) -> None:
        with refusals():
            await threads.io_bound(run_control.resume, self.site, self.name)

    async def _roll_back(self) -> None:
        t, run = self.t, self.view.run
        steps = sorted(run.checkpoints, reverse=True)

        def said(step: int) -> str:
            lost = run_control.dropped(run, step)
            after = int(run.live.get("step") or 0) - step
            if not lost and after <= 0:
                return t("runs.rollback_nothing")
            return t(
                "runs.rollback_drops",
                step=step,
                count=max(0, after),
                checkpoints=", ".join(map(str, sorted(lost))) or "–",
            )

        with asking(t("runs.rollback_title"), t("runs.keep_as_is")) as (dialog, buttons):
            first = steps[min(1, len(steps) - 1)]
            choice = ui.select(
                {step: t("runs.at", step=step) for step in steps}, value=first, label=t("runs.checkpoint")
            ).props("outlined")
            text = words("p", said(first)).props('role="status"')
            choice.on_value_change(lambda event: text.set_text(said(event.value)))
            with buttons:
                ui.button(
                    t("runs.rollback"), icon="history", on_click=lambda: dialog.submit(choice.value)
                ).props("no-caps unelevated")
        step = await dialog
        if step is not None:
            with refusals():
                await threads.io_bound(run_control.roll_back, self.site, self.name, int(step))

    async def _delete(self) -> None:
        t = self.t
        title = t("runs.delete_title", name=self.name)
        if await sure(title, t("runs.delete_text"), t("runs.delete"), t("runs.keep_as_is")):
            with refusals():
                item = await in_thread(run_control.remove, self.site, self.name)
                ui.navigate.to("/runs?" + urlencode({"removed": item.id}))


def _link(text: str, icon: str, address: str) -> ui.button:
    """A link that looks like a button."""
    made = ui.button(text, icon=icon).props("no-caps")
    made.props["href"] = address
    return made

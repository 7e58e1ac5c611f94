"""The first steps of a new user on the page one starts at: see one, train one, make one from three pictures."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from nicegui import ui

from hyperbrush.app.examples import SIX, THREE, prompts
from hyperbrush.app.messages import Messages
from hyperbrush.app.train.datasets import EXAMPLE
from hyperbrush.app.ui.empty import lead, strip
from hyperbrush.app.ui.frame import CHOICE_AGE, title_of

COOKIE = "steps"  # "no" where somebody has closed them
DRAWN = (
    (4, 7),
    (2, 2),
    (7, 1),
    (5, 1),
    (7, 4),
    (1, 4),
)  # (column, row) in the model's grid of eight by eight
STYLE = {"see": (), "train": SIX, "make": THREE}
ICONS = {"see": "brush", "train": "model_training", "make": "auto_awesome"}


class FirstSteps:
    """They stay until all are taken, or somebody closes them; the next one has the button.

    see: draws the first pictures. on_show: told whether they are to be seen.
    """

    def __init__(
        self,
        t: Messages,
        request: Request,
        model: str,
        see: Callable[[], Any],
        on_show: Callable[[bool], Any],
    ) -> None:
        self.t, self._model, self._see, self._on_show = t, model, see, on_show
        self._closed = request.cookies.get(COOKIE) == "no"
        self._shown: Mapping[str, bool] | None = None
        self.place = ui.element("section").classes("card").props('aria-labelledby="first-steps"')
        self.place.set_visibility(False)

    def show(self, taken: Mapping[str, bool]) -> None:
        """Which steps were taken, in order."""
        if taken == self._shown:
            return
        self._shown = dict(taken)
        t, follows = self.t, not self._closed and not all(taken.values())
        self.place.clear()
        self.place.set_visibility(follows)
        self._on_show(follows)
        if not follows:
            return
        with self.place:
            with ui.element("div").classes("bar"):
                title_of(2, t("create.first")).classes("grow").props("id=first-steps")
                close = ui.button(icon="close", on_click=self._close, color=None)
                close.props("flat round dense type=button").classes("quiet")
                close.props["aria-label"] = close.props["title"] = t("create.first_close")
            with ui.element("ol").classes("steps"):
                upcoming = next(step for step, done in taken.items() if not done)
                for step, done in taken.items():
                    self._step(step, done, step == upcoming)

    def _step(self, step: str, done: bool, upcoming: bool) -> None:
        t = self.t
        ways: dict[str, str | Callable[[], Any]] = {
            "see": self._see,
            "train": f"/train?dataset={EXAMPLE}",
            "make": "/styles?example=3",
        }
        with ui.element("li").classes("step") as place:
            with strip(STYLE[step]):
                for column, row in DRAWN if step == "see" else ():
                    ui.element("div").style(f"background-position: {column / 7:.4%} {row / 7:.4%}")
            with ui.element("div").classes("bar tight"):
                title_of(3, t(f"create.first_{step}"))
                if done:
                    place.classes("done")
                    with ui.element("span").classes("good").props("role=img") as mark:
                        mark.props["aria-label"] = t("create.first_done")
                        ui.icon("check_circle")
            ui.label(
                t(f"create.first_{step}_about", prompt=prompts(self._model)[0], model=self._model)
            ).classes("soft small")
            if upcoming:
                lead(t(f"create.first_{step}_do"), ICONS[step], ways[step])

    def _close(self) -> None:
        ui.run_javascript(f"document.cookie = '{COOKIE}=no; path=/; max-age={CHOICE_AGE}; samesite=strict'")
        shown, self._closed, self._shown = self._shown or {}, True, None
        self.show(shown)

"""The picture to start from, and the mask painted over it: white is drawn anew."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages

UPLOADS = "/api/v1/uploads/"
SIDES = (("left", 25), ("top", 25), ("mask_width", 50), ("mask_height", 50))  # of the rectangle, in per cent


class StartPicture:
    """What of a `DrawRequest` begins with a picture: image, mask, image_strength; all by ids of uploads."""

    def __init__(self, t: Messages, on_change: Callable[[int | None, int | None], Any]) -> None:
        self.t, self.on_change = t, on_change
        self.image, self.mask = "", ""
        self.painting = False  # a stroke is on its way here
        self._brush, self._erase = 0.12, False
        with ui.expansion(t("create.start"), icon="image").classes("more") as self.box:
            drop(t("create.start_drop"), "start")
            self._place = ui.element("div").classes("stack")
            with ui.element("div").classes("stack") as self._strength_row:
                label = ui.label().props("id=start-strength")
                self.strength = ui.slider(min=0.05, max=1, step=0.05, value=0.75)
                self.strength.props["aria-label"] = t("create.image_strength")
                label.bind_text_from(
                    self.strength, "value", lambda v: f"{t('create.image_strength')}: {v or 0:.2f}"
                )
        self._strength_row.set_visibility(False)
        ui.on("create_start", lambda event: self._given(event.args))
        ui.on("create_painting", lambda _: setattr(self, "painting", True))
        ui.on("create_mask", lambda event: self._painted(event.args))

    def values(self) -> dict[str, Any]:
        """Of the request."""
        return {"image": self.image, "mask": self.mask, "image_strength": self.strength.value}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Take another picture, mask or strength."""
        strength = values.get("image_strength")
        if isinstance(strength, int | float):
            self.strength.value = strength
        if "image" in values or "mask" in values:
            self.image = str(values.get("image", self.image) or "")
            self.mask = str(values.get("mask") or "") if self.image else ""
            self._show()

    def _given(self, said: Any) -> None:
        if isinstance(said, dict) and isinstance(said.get("id"), str):
            self.fill({"image": said["id"]})
            self.on_change(None, None)

    def _painted(self, said: Any) -> None:
        self.painting = False
        self.mask = said if isinstance(said, str) else ""
        self._told.set_text(self.t("create.mask_some" if self.mask else "create.mask_none"))

    def _remove(self) -> None:
        self.fill({"image": ""})
        self.on_change(None, None)

    def _show(self) -> None:
        self._place.clear()
        self._strength_row.set_visibility(bool(self.image))
        if not self.image:
            return
        self.box.open()
        t = self.t
        with self._place:
            with ui.element("div").classes("stage"):
                picture = ui.element("img")
                picture.props["src"], picture.props["alt"] = UPLOADS + self.image, t("create.start_alt")
                canvas = ui.element("canvas").props("role=img")
                canvas.props["aria-label"] = t("create.mask_alt")
            self._told = ui.label(t("create.mask_some" if self.mask else "create.mask_none"))
            self._told.classes("soft small").props("aria-live=polite")
            self._tools()
        mask = UPLOADS + self.mask if self.mask else ""
        ui.run_javascript(f"hyperbrushCreate.open({json.dumps(canvas.html_id)}, {json.dumps(mask)})")
        self._use()

    def _tools(self) -> None:
        t = self.t

        def brush(event: Any) -> None:
            self._brush = float(event.value or 0.12)
            self._use()

        def erase(event: Any) -> None:
            self._erase = event.value == "erase"
            self._use()

        def rectangle() -> None:
            told = ", ".join(str(float(side.value or 0)) for side in sides)
            ui.run_javascript(f"hyperbrushCreate.rectangle({told})")

        with ui.element("div").classes("bar"):
            ways = {"paint": t("create.paint"), "erase": t("create.erase")}
            toggle = ui.toggle(ways, value="erase" if self._erase else "paint", on_change=erase)
            toggle.props("dense unelevated no-caps toggle-color=primary")
            button(t("create.clear"), "layers_clear", lambda: ui.run_javascript("hyperbrushCreate.clear()"))
            button(
                t("create.invert"), "invert_colors", lambda: ui.run_javascript("hyperbrushCreate.invert()")
            )
            button(t("create.remove_start"), "delete", self._remove)
        with ui.element("div").classes("bar"):
            ui.label(t("create.brush"))
            size = ui.slider(min=0.02, max=0.5, step=0.01, value=self._brush, on_change=brush).classes("grow")
            size.props["aria-label"] = t("create.brush")
        with ui.element("fieldset").classes("rectangle"):
            with ui.element("legend"):
                ui.label(t("create.rectangle"))
            with ui.element("div").classes("fields"):
                sides = [
                    ui.number(t(f"create.{name}"), value=value, min=0, max=100, step=5, suffix="%").props(
                        "outlined dense"
                    )
                    for name, value in SIDES
                ]
            button(t("create.rectangle_add"), "crop_din", rectangle)

    def _use(self) -> None:
        ui.run_javascript(f"hyperbrushCreate.use({self._brush}, {json.dumps(self._erase)})")


def button(label: str, icon: str, do: Callable[[], Any]) -> ui.button:
    """A quiet button with its name on it."""
    return (
        ui.button(label, icon=icon, on_click=do, color=None)
        .props("flat dense no-caps type=button")
        .classes("quiet")
    )


def drop(label: str, use: str) -> None:
    """A place to drop a picture on, or to choose one with; create.js sends it and tells "create_USE"."""
    with ui.element("label").classes("drop") as place:
        place.props["data-use"] = use
        ui.icon("add_photo_alternate").props("aria-hidden=true")
        ui.label(label)
        ui.element("input").props('type=file accept="image/png,image/jpeg,image/webp,image/bmp,image/gif"')

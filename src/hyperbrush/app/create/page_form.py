"""The form of the Create page: everything a drawing is asked with, the start picture and its mask among it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from hyperbrush.app.create.page_networks import NetworkChips
from hyperbrush.app.messages import Messages
from hyperbrush.app.model.service import BaseModel, far_size, fitting_samplers
from hyperbrush.app.requests import MOST_SEED, DrawRequest, limits
from hyperbrush.app.ui.parts import icon_button
from hyperbrush.ldm.sampling.names import UPSCALERS, usual_sampler

UPLOADS = "/api/v1/uploads/"
REGION_PADDING = 32  # pixels around a masked region that is drawn alone, the webui's default
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
                self.region = ui.checkbox(t("create.mask_region"))
                self.region.props["aria-label"] = t("create.mask_region")
        self._strength_row.set_visibility(False)
        ui.on("create_start", lambda event: self._given(event.args))
        ui.on("create_painting", lambda _: setattr(self, "painting", True))
        ui.on("create_mask", lambda event: self._painted(event.args))

    def values(self) -> dict[str, Any]:
        """Of the request."""
        return {
            "image": self.image,
            "mask": self.mask,
            "image_strength": self.strength.value,
            "mask_padding": REGION_PADDING if self.mask and self.region.value else None,
        }

    def fill(self, values: Mapping[str, Any]) -> None:
        """Take another picture, mask or strength."""
        strength = values.get("image_strength")
        if isinstance(strength, int | float):
            self.strength.value = strength
        if "mask_padding" in values:
            self.region.value = values["mask_padding"] is not None
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
            button(t("create.undo"), "undo", lambda: ui.run_javascript("hyperbrushCreate.undo()"))
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


SIZE = ("width", "height")
HIRES = ("hires_scale", "hires_strength", "hires_steps")


class Form:
    """The fields; `values` are those of a `DrawRequest`.

    first: what they begin with; what makes no sense there is passed over. own: the model.
    """

    def __init__(
        self,
        t: Messages,
        on_draw: Callable[[], Any],
        on_reuse: Callable[[], int | None],
        first: Mapping[str, Any],
        own: BaseModel,
    ) -> None:
        self.t, self._first, self._own = t, first, own
        self.fields: dict[str, Any] = {}
        with (
            ui.element("form")
            .classes("card")
            .props("novalidate")
            .on("keydown.ctrl.enter.prevent", on_draw) as self.card
        ):
            self.card.on("keydown.meta.enter.prevent", on_draw).on("submit.prevent", on_draw)
            self._prompts()
            self._numbers(on_reuse)
            self.start = StartPicture(t, self._start_changed)
            self._variation()
            self._second_pass()
            self._more()
            self._button()
        self.start.fill(first)
        self._show_passes()

    def values(self) -> dict[str, Any]:
        """What is in the form; what is left empty is left out."""
        found = {name: field.value for name, field in self.fields.items()}
        if not found["subseed_strength"]:
            found["subseed"] = None
        if self.start.image or not found["hires_scale"]:
            found |= dict.fromkeys((*HIRES, "hires_upscaler"))
        found |= self.start.values()
        found = {name: int(v) if isinstance(v, float) and v == int(v) else v for name, v in found.items()}
        return {name: value for name, value in found.items() if value is not None}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put values in; None empties a field, and what the form has no field for is left out."""
        for name, value in values.items():
            field = self.fields.get(name)
            if isinstance(field, ui.textarea):
                field.value = _text(value, field.value)
            elif isinstance(field, ui.select):
                if name == "sampler" and value not in field.options:  # the list has none of its schedule
                    also = fitting_samplers(self._own, also=value)
                    field.set_options(list(dict.fromkeys([*field.options, *also])))
                field.value = value if isinstance(value, str) and value in field.options else field.value
            elif field is not None:
                field.value = _number(value, field.value)
        self.start.fill(values)
        for fold, name in ((self._varied, "subseed_strength"), (self._larger, "hires_scale")):
            if values.get(name):
                fold.open()
        self._show_passes()

    def _prompts(self) -> None:
        t = self.t
        with ui.element("div").style("position: relative"):
            prompt = ui.textarea(
                t("create.prompt"),
                placeholder=t("create.prompt_hint"),
                value=_text(self._first.get("prompt"), ""),
            )
            prompt.props("outlined autogrow stack-label for=prompt-text spellcheck=false").classes("prompt")
            names = ui.element("div").classes("names").props("id=prompt-names role=listbox hidden")
            names.props["aria-label"] = t("create.known_networks")
        self.fields["prompt"] = prompt
        self.tools = ui.element("div").classes("bar")
        self.networks = NetworkChips(t, prompt)
        negative = ui.textarea(t("create.negative"), value=_text(self._first.get("negative"), ""))
        self.fields["negative"] = negative.props("outlined autogrow for=negative-text spellcheck=false")

    def _numbers(self, on_reuse: Callable[[], int | None]) -> None:
        t = self.t
        with ui.element("div").classes("fields"):
            samplers = fitting_samplers(self._own, also=self._first.get("sampler"))
            usual = usual_sampler(self._own.prediction)
            self.fields["sampler"] = self._select("sampler", samplers, usual).classes("wide")
            self._whole("steps")
            self._share("guidance_scale", 0.5)
            for name in SIZE:
                side = self._whole(name).props("stack-label")
                side.props["placeholder"] = t("create.own_size")
                side.on_value_change(self._look_at_size)
            self._whole("count")
            with ui.element("div").classes("wide seed"):
                value = _number(self._first.get("seed"), None)
                seed = ui.number(t("create.seed"), value=value, min=0, max=MOST_SEED, step=1, precision=0)
                seed.props("outlined dense stack-label").classes("grow").props["placeholder"] = t(
                    "create.random"
                )
                icon_button("casino", t("create.random_seed"), lambda: seed.set_value(None))
                icon_button("replay", t("create.reuse_seed"), lambda: seed.set_value(on_reuse()))
            self.fields["seed"] = seed
        self._far = ui.label().classes("warn small").props("role=status")
        self._look_at_size()

    def _variation(self) -> None:
        t = self.t
        with ui.expansion(t("create.variation"), icon="blur_on").classes("more") as self._varied:
            ui.label(t("create.variation_help")).classes("soft small")
            with ui.element("div").classes("fields"):
                self._share("subseed_strength", 0.05)
                seed = self._whole("subseed").props("stack-label")
                seed.props["placeholder"] = t("create.random")
        self._varied.set_value(bool(self.fields["subseed_strength"].value))

    def _second_pass(self) -> None:
        t = self.t
        with ui.expansion(t("create.second_pass"), icon="zoom_out_map").classes("more") as self._larger:
            ui.label(t("create.second_pass_help")).classes("soft small")
            with ui.element("div").classes("fields"):
                scale = self._share("hires_scale", 0.25).props("stack-label")
                scale.props["placeholder"] = t("create.hires_off")
                self._share("hires_strength", 0.05)
                self._whole("hires_steps")
                upscalers = self._select("hires_upscaler", list(UPSCALERS), "Latent").classes("wide")
                self.fields["hires_upscaler"] = upscalers
        self._larger.set_value(bool(scale.value))

    def _more(self) -> None:
        t = self.t
        with ui.expansion(t("create.more"), icon="tune").classes("more"), ui.element("div").classes("fields"):
            self._whole("clip_skip")
            levels = {name: t(f"create.levels_{name}") for name in ("diffusers", "webui")}
            self.fields["discretisation"] = self._select("discretisation", levels, "diffusers").classes(
                "wide"
            )
            missing = {name: t(f"create.missing_{name}") for name in ("error", "warn")}
            self.fields["missing"] = self._select("missing", missing, "error").classes("wide")

    def _button(self) -> None:
        t = self.t
        with ui.element("div").classes("bar"):
            draw = ui.button(t("create.draw"), icon="brush", color=None).props(
                "unelevated no-caps type=submit"
            )
            draw.classes("grow go").props["title"] = "Ctrl+Enter"
        ui.label(t("create.ctrl_enter")).classes("soft small")

    def _whole(self, name: str) -> ui.number:
        value, least, most = limits(DrawRequest, name)
        step = 8 if name in SIZE else 1
        value = _number(self._first.get(name, value), value)
        field = ui.number(self.t(f"create.{name}"), value=value, min=least, max=most, step=step, precision=0)
        self.fields[name] = field.props("outlined dense")
        return field

    def _share(self, name: str, step: float) -> ui.number:
        """A number with a point."""
        usual, least, most = limits(DrawRequest, name)
        value = _number(self._first.get(name, usual), usual)
        field = ui.number(self.t(f"create.{name}"), value=value, min=least, max=most, step=step)
        self.fields[name] = field.props("outlined dense")
        return field

    def _select(self, name: str, options: Any, value: str) -> ui.select:
        first = self._first.get(name)
        value = first if isinstance(first, str) and first in options else value
        return ui.select(options, value=value, label=self.t(f"create.{name}")).props(
            "outlined dense options-dense"
        )

    def _look_at_size(self) -> None:
        """Warn of a size far from what the model learned, before it is drawn."""
        own = self._own.image_size
        sides = [self.fields[name].value or own or 0 for name in SIZE]
        far = far_size(own, int(sides[0] * sides[1]))
        self._far.set_text(self.t(f"model.{far}", own=own) if far else "")
        self._far.set_visibility(bool(far))

    def _start_changed(self, width: int | None, height: int | None) -> None:
        """Another picture to start from: drawn in its own form, as large as the model's pictures, unless told."""
        self.fields["width"].value, self.fields["height"].value = width, height
        self._show_passes()

    def _show_passes(self) -> None:
        """The second pass is of pictures from noise alone."""
        self._larger.set_visibility(not self.start.image)


def _text(value: Any, otherwise: str) -> str:
    return str(value or "") if value is None or isinstance(value, str | int | float) else otherwise


def _number(value: Any, otherwise: float | None) -> float | None:
    return value if value is None or isinstance(value, int | float) else otherwise

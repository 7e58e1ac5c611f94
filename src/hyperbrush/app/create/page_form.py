"""The form of the Create page: everything a drawing is asked with."""

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from hyperbrush.app.create.page_networks import NetworkChips
from hyperbrush.app.create.page_start import StartPicture
from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import DrawRequest, limits
from hyperbrush.generation.settings import MAX_SEED, Settings
from hyperbrush.ldm.sampling.names import sampler_names

SIZE = ("width", "height")


class Form:
    """The fields; `values` are those of a `DrawRequest`.

    first: what they begin with; what makes no sense there is passed over.
    """

    def __init__(
        self,
        t: Messages,
        on_draw: Callable[[], Any],
        on_reuse: Callable[[], int | None],
        first: Mapping[str, Any],
    ) -> None:
        self.t, self._first = t, first
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
            self._more()
            self._button()
        self.start.fill(first)

    def values(self) -> dict[str, Any]:
        """What is in the form; what is left empty is left out."""
        found = {name: field.value for name, field in self.fields.items()}
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
                field.value = value if isinstance(value, str) and value in field.options else field.value
            elif field is not None:
                field.value = _number(value, field.value)
        self.start.fill(values)

    def _prompts(self) -> None:
        t = self.t
        with ui.element("div").style("position: relative"):
            prompt = ui.textarea(
                t("create.prompt"),
                placeholder=t("create.prompt_hint"),
                value=_text(self._first.get("prompt"), ""),
            )
            prompt.props("outlined autogrow for=prompt-text spellcheck=false").classes("prompt")
            names = ui.element("div").classes("names").props("id=prompt-names role=listbox hidden")
            names.props["aria-label"] = t("create.known_networks")
        self.fields["prompt"] = prompt
        self.networks = NetworkChips(t, prompt)
        negative = ui.textarea(t("create.negative"), value=_text(self._first.get("negative"), ""))
        self.fields["negative"] = negative.props("outlined autogrow for=negative-text spellcheck=false")

    def _numbers(self, on_reuse: Callable[[], int | None]) -> None:
        t = self.t
        with ui.element("div").classes("fields"):
            self.fields["sampler"] = self._select("sampler", list(sampler_names()), Settings.sampler).classes(
                "wide"
            )
            self._whole("steps")
            usual, least, most = limits(DrawRequest, "guidance_scale")
            value = _number(self._first.get("guidance_scale", usual), usual)
            cfg = ui.number(t("create.guidance_scale"), value=value, min=least, max=most, step=0.5)
            self.fields["guidance_scale"] = cfg.props("outlined dense")
            for name in SIZE:
                self._whole(name).props("stack-label").props["placeholder"] = t("create.own_size")
            self._whole("count")
            with ui.element("div").classes("wide seed"):
                value = _number(self._first.get("seed"), None)
                seed = ui.number(t("create.seed"), value=value, min=0, max=MAX_SEED, step=1, precision=0)
                seed.props("outlined dense stack-label").classes("grow").props["placeholder"] = t(
                    "create.random"
                )
                _icon("casino", t("create.random_seed"), lambda: seed.set_value(None))
                _icon("replay", t("create.reuse_seed"), lambda: seed.set_value(on_reuse()))
            self.fields["seed"] = seed

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

    def _select(self, name: str, options: Any, value: str) -> ui.select:
        first = self._first.get(name)
        value = first if isinstance(first, str) and first in options else value
        return ui.select(options, value=value, label=self.t(f"create.{name}")).props(
            "outlined dense options-dense"
        )

    def _start_changed(self, width: int | None, height: int | None) -> None:
        """Another picture to start from: drawn in its own form, as large as the model's pictures, unless told."""
        self.fields["width"].value, self.fields["height"].value = width, height


def _text(value: Any, otherwise: str) -> str:
    return str(value or "") if value is None or isinstance(value, str | int | float) else otherwise


def _number(value: Any, otherwise: float | None) -> float | None:
    return value if value is None or isinstance(value, int | float) else otherwise


def _icon(icon: str, label: str, do: Callable[[], Any]) -> ui.button:
    button = (
        ui.button(icon=icon, on_click=do, color=None).props("flat round dense type=button").classes("quiet")
    )
    button.props["aria-label"] = button.props["title"] = label
    return button

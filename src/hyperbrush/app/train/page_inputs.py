"""A setting's input on the page, and its value as text."""

from typing import Any

import yaml
from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement

from hyperbrush.app.messages import Messages
from hyperbrush.app.train.draft import Draft
from hyperbrush.app.train.schema import Setting, suggestions
from hyperbrush.app.ui.frame import refusals

UNSET = object()


class Input:
    """A setting's input with its sentence of help; box: all of it; words: what it is found by."""

    def __init__(
        self, t: Messages, draft: Draft, setting: Setting, *, presets: str = "", label: str = ""
    ) -> None:
        from hyperbrush.training.attention.config import preset

        self.t, self.draft, self.setting = t, draft, setting
        named = preset(presets) if setting.key.startswith("training.") else {}
        self.default = named.get(setting.name, setting.default)
        help_ = helped(t, setting)
        self.words = f"{setting.key} {label} {help_} {setting.webui}".casefold()
        value = draft.get(setting.key, UNSET)
        with ui.element("div").classes("train-field") as self.box:
            made = make(setting, value, self.default, label or setting.name, self._keep)
            made.props["aria-describedby"] = f"help-{made.id}"
            if isinstance(made, ValidationElement):
                draft.fields[setting.key] = made
            with ui.element("div").classes("soft small").props(f"id=help-{made.id}"):
                ui.label(help_).style("display: inline")
                said = "" if setting.kind == "switch" else shown(setting, self.default)
                if said:
                    ui.label(f" {t('train.default', value=said)}").style("display: inline")
                if setting.webui:
                    where = "train.extension_name" if setting.extension else "train.webui_name"
                    ui.label(f" {t(where, name=setting.webui)}").style("display: inline")

    def _keep(self, value: Any) -> None:
        with refusals():
            if value is UNSET or (value == self.default and type(value) is type(self.default)):
                self.draft.clear(self.setting.key)
            else:
                self.draft.put(self.setting.key, value)


def helped(t: Messages, setting: Setting, prefix: str = "") -> str:
    """A setting's sentence of help, in the user's language."""
    return t(f"train_help.{prefix}{setting.key}")


def make(setting: Setting, value: Any, default: Any, label: str, keep: Any) -> Any:
    """The input element; keep: called with a value or `UNSET`."""
    here = default if value is UNSET else value
    if setting.kind == "switch":
        return ui.switch(label, value=bool(here), on_change=lambda event: keep(bool(event.value)))
    if setting.kind == "choice":
        known = list(setting.choices)
        value = here if here in known else default
        return ui.select(known, value=value, label=label, on_change=lambda e: keep(e.value)).props(
            "outlined dense"
        )
    if setting.kind == "choices":
        known = list(setting.choices)
        value = [name for name in (here if isinstance(here, list) else []) if name in known]
        chosen = ui.select(
            known, value=value, label=label, multiple=True, on_change=lambda e: keep(list(e.value))
        )
        return chosen.props("outlined dense use-chips")
    text = "" if value is UNSET else shown(setting, value)
    if setting.kind == "lines":
        area = ui.textarea(label, value=text, on_change=lambda e: keep(parsed(setting, e.value)))
        return area.props("outlined dense autogrow debounce=200 stack-label")
    plain = ui.input(
        label,
        value=text,
        placeholder=shown(setting, default),
        autocomplete=suggestions(setting.key) or None,
        on_change=lambda e: keep(parsed(setting, e.value)),
    ).props("outlined dense debounce=200 stack-label")
    if setting.kind in ("integer", "number") and not (setting.nullable and default is not None):
        plain.props("inputmode=decimal")
    return plain


def parsed(setting: Setting, text: Any) -> Any:
    """What a text means as a value; what cannot be read stays a text, which the check then names."""
    text = str(text or "")
    if setting.kind == "lines":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines or UNSET
    if not text.strip():
        return text if setting.kind == "text" and text else UNSET
    if setting.nullable and text.strip().casefold() == "null":
        return None
    if setting.kind == "text":
        return "" if text.strip() in ("''", '""') else text
    try:
        if setting.kind == "integer":
            return int(text)
        if setting.kind == "number":
            return float(text)
        listed = isinstance(setting.default, list) or ("," in text and text.strip()[0] not in "[{'\"")
        return yaml.safe_load(f"[{text}]" if listed and text.strip()[0] not in "[{" else text)
    except (ValueError, yaml.YAMLError):
        return text


def shown(setting: Setting, value: Any) -> str:
    """A value as one writes it into the input."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ("\n" if setting.kind == "lines" else ", ").join(map(str, value))
    if isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip() if value else ""
    if isinstance(value, str) and value and not value.strip():
        return f"'{value}'"
    return f"{value:g}" if isinstance(value, float) else str(value)

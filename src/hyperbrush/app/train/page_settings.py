"""Settings of a training: presets and the few that matter first, all others behind "more"."""

from typing import Any

import yaml
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import KINDS, LENGTHS, Draft
from hyperbrush.app.train.schema import Setting, folder_settings, groups, settings, suggestions
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.app.workspace import Workspace

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


def held_out(t: Messages, draft: Draft, datasets: Datasets) -> None:
    """Datasets held out."""
    said = [f["path"] if isinstance(f, dict) else str(f) for f in draft.get("validation") or []]
    names = list(dict.fromkeys([*datasets.folders(), *said]))
    with ui.element("div").classes("train-field"):
        chosen = ui.select(
            names,
            value=said,
            label="validation",
            multiple=True,
            on_change=lambda e: (
                draft.put("validation", [{"path": n} for n in e.value])
                if e.value
                else draft.clear("validation")
            ),
        )
        chosen.props("outlined dense use-chips")
        ui.label(helped(t, settings()["validation"])).classes("soft small")


def folders(t: Messages, draft: Draft, datasets: Datasets) -> None:
    """What each folder counts, and more folders beside the first."""

    def data() -> list[dict[str, Any]]:
        found = draft.get("data") or []
        listed = found if isinstance(found, list) else [found]
        return [dict(f) if isinstance(f, dict) else {"path": str(f)} for f in listed]

    def keep(number: int, name: str, value: Any) -> None:
        now = data()
        if number < len(now):
            if value is UNSET:
                now[number].pop(name, None)
            else:
                now[number][name] = value
            with refusals():
                draft.put("data", now)

    def drop(number: int) -> None:
        with refusals():
            draft.put("data", [f for at, f in enumerate(data()) if at != number])
        rows.refresh()

    def more() -> None:
        used = {f["path"] for f in data()}
        free = [name for name in datasets.folders() if name not in used]
        if not free:
            ui.notify(t("train.no_other_dataset"))
            return
        with refusals():
            draft.put("data", [*data(), {"path": free[0]}])
        rows.refresh()

    @ui.refreshable
    def rows() -> None:
        names = list(datasets.folders())
        for number, folder in enumerate(data()):
            with ui.element("div").classes("train-fields folder"):
                for setting in folder_settings():
                    with ui.element("div").classes("train-field"):
                        if setting.name == "path":
                            path = str(folder.get("path", ""))
                            chosen = ui.select(
                                list(dict.fromkeys([*names, path])),
                                value=path,
                                label=t("train.folder", number=number + 1),
                                on_change=lambda e, n=number: keep(n, "path", e.value),
                            ).props("outlined dense")
                            chosen.set_enabled(number > 0)  # the first is chosen above
                            continue
                        make(
                            setting,
                            folder.get(setting.name, UNSET),
                            setting.default,
                            setting.name,
                            lambda v, n=number, s=setting: keep(n, s.name, UNSET if v == s.default else v),
                        )
                        ui.label(helped(t, setting, "data.")).classes("soft small")
                if number:
                    ui.button(t("train.drop_folder"), icon="close", on_click=lambda n=number: drop(n)).props(
                        "flat no-caps"
                    )
        ui.button(t("train.add_folder"), icon="add", on_click=more).props("flat no-caps")

    rows()


SAYS_FIRST = ("name", "training.trigger", "training.max_steps", "training.learning_rate", "training.prompts")


def build(t: Messages, draft: Draft, datasets: Datasets, workspace: Workspace) -> None:
    """The section of the page."""
    with ui.element("section").classes("card").props("aria-labelledby=train-settings"):
        with ui.element("div").classes("bar"):
            title_of(2, t("train.settings")).classes("grow").props("id=train-settings")
            ui.button(t("train.start_over"), icon="restart_alt", on_click=lambda: _over(draft)).props(
                "flat no-caps"
            )
        _presets(t, draft, lambda: fields.refresh())

        @ui.refreshable
        def fields() -> None:
            with ui.element("div").classes("train-fields"):
                for key in SAYS_FIRST:
                    Input(
                        t,
                        draft,
                        settings()[key],
                        presets=_names(draft),
                        label=t(f"train.{key.rpartition('.')[2]}"),
                    )
            _more(t, draft, datasets, workspace)

        fields()


def _presets(t: Messages, draft: Draft, changed: Any) -> None:
    chosen = _names(draft)
    length = next((name for name in LENGTHS if name in chosen), "")
    kind = next((name for name in KINDS if name in chosen), "")

    def choose() -> None:
        with refusals():
            draft.keep(presets=",".join(filter(None, (lengths.value, kinds.value))))
            changed()

    with ui.element("div").classes("bar wide"):
        with _group(t("train.length")):
            names = {name: t(f"train.preset_{name}") for name in LENGTHS} | {"": t("train.preset_own")}
            lengths = ui.toggle(names, value=length, on_change=choose).props("no-caps unelevated")
        with _group(t("train.kind")):
            names = {"": t("train.preset_any")} | {name: t(f"train.preset_{name}") for name in KINDS}
            kinds = ui.toggle(names, value=kind, on_change=choose).props("no-caps unelevated")
    ui.label(t("train.presets_help")).classes("soft small")


def _group(label: str) -> ui.element:
    with ui.element("div").props("role=group") as group:
        ui.label(label).classes("soft small")
    group.props["aria-label"] = label
    return group


def _more(t: Messages, draft: Draft, datasets: Datasets, workspace: Workspace) -> None:
    """Everything else, built when it is first opened."""
    built: list[Input] = []

    def find(event: Any) -> None:
        wanted = str(event.value or "").casefold().split()
        for shown in built:
            shown.box.set_visibility(all(word in shown.words for word in wanted))
        for box, inputs in boxes:
            box.set_visibility(not wanted or any(shown.box.visible for shown in inputs))

    def opened() -> None:
        if built or not more.value:
            return
        with more:
            with ui.element("div").classes("bar"):
                ui.input(t("train.find_setting"), on_change=find).props("outlined dense clearable").classes(
                    "grow"
                )
            for group, keys in groups().items():
                if group == "first":
                    continue
                with ui.element("div").classes("train-group") as box:
                    title_of(3, t(f"train.group_{group}"))
                    with ui.element("div").classes("train-fields"):
                        inputs = []
                        for key in keys:
                            if key == "validation":
                                held_out(t, draft, datasets)
                            else:
                                inputs.append(Input(t, draft, settings()[key], presets=_names(draft)))
                boxes.append((box, inputs))
                built.extend(inputs)
            with ui.element("div").classes("train-group") as box:
                title_of(3, t("train.group_folders"))
                folders(t, draft, datasets)
            boxes.append((box, []))

    boxes: list[tuple[ui.element, list[Input]]] = []
    more = ui.expansion(t("train.more"), icon="tune", on_value_change=opened).classes("more")


def _names(draft: Draft) -> str:
    return str(draft.values["presets"])


def _over(draft: Draft) -> None:
    with refusals():
        draft.keep(settings={}, presets="quick", plan="", preflight="")
        ui.navigate.to("/train")

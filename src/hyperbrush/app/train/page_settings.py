"""Settings of a training: presets and the few that matter first, all others behind "more"."""

from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import KINDS, LENGTHS, Draft
from hyperbrush.app.train.page_inputs import Input, folders, held_out
from hyperbrush.app.train.schema import groups, settings
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.app.workspace import Workspace

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

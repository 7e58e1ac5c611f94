"""Settings of a training: presets and the few that matter first, all others behind "more"."""

from typing import Any
from urllib.parse import quote

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.train import page_apart, page_words
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import EMPTY, KINDS, LENGTHS, Draft
from hyperbrush.app.train.page_inputs import UNSET, Input, helped, make
from hyperbrush.app.train.schema import folder_settings, groups, settings
from hyperbrush.app.ui.dialogs import sure
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.app.workspace import Workspace

OWN, TEMPLATES = "own", "training.templates"


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

    def first() -> str:
        return str(data()[0].get("path", "")) if data() else ""

    shown = first()

    def follow() -> None:
        """The first is chosen above, while this is open too."""
        nonlocal shown
        if shown != (now := first()):
            shown = now
            rows.refresh()

    rows()
    draft.on_change.append(follow)


SAYS_FIRST = ("name", "training.trigger", "training.max_steps", "training.learning_rate", "training.prompts")


def build(t: Messages, draft: Draft, datasets: Datasets, workspace: Workspace) -> None:
    """The section of the page."""
    with ui.element("section").classes("card").props("aria-labelledby=train-settings"):
        with ui.element("div").classes("bar"):
            title_of(2, t("train.settings")).classes("grow").props("id=train-settings")
            ui.button(t("train.start_over"), icon="restart_alt", on_click=lambda: _over(t, draft)).props(
                "flat no-caps"
            )
        if cloned := str(draft.values["cloned"]):
            _cloned_from(t, draft, cloned)

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

        @ui.refreshable
        def more() -> None:
            _more(t, draft, datasets, workspace)

        def again() -> None:
            fields.refresh()
            more.refresh()

        _presets(t, draft, again)
        fields()
        page_words.show(t, draft, workspace)
        page_apart.show(t, draft, again)
        more()


def _cloned_from(t: Messages, draft: Draft, run: str) -> None:
    """Say whose settings these are, and offer what stood here before."""

    def back() -> None:
        with refusals():
            draft.put_back()
            ui.navigate.to("/train")

    with ui.element("div").classes("notice").props("role=status"):
        ui.label(t("train.cloned_from", run=run)).classes("grow")
        ui.link(t("train.cloned_run"), f"/runs/{quote(run, safe='')}")
        if draft.values["before"].get("settings"):
            ui.button(t("train.put_back"), icon="undo", on_click=back).props("flat no-caps")


def _presets(t: Messages, draft: Draft, changed: Any) -> None:
    length = next((name for name in LENGTHS if name in _names(draft)), "")

    def kind() -> str:
        """What is chosen; templates of one's own are no "captions as they are"."""
        chosen = next((name for name in KINDS if name in _names(draft)), "")
        return OWN if not chosen and draft.get(TEMPLATES) else chosen

    def keep(**more: Any) -> None:
        chosen = (lengths.value, kinds.value)
        with refusals():
            draft.keep(presets=",".join(name for name in chosen if name not in ("", OWN)), **more)
            changed()

    def choose_kind() -> None:
        if kinds.value != kind():  # else it follows the draft
            keep(**({} if kinds.value == OWN else {"settings": draft.without(TEMPLATES)}))

    def follow() -> None:
        if kinds.value != (now := kind()):
            kinds.set_options(names(), value=now)

    def names() -> dict[str, str]:
        own = {OWN: t("train.preset_own")} if kind() == OWN else {}
        return {"": t("train.preset_any")} | {name: t(f"train.preset_{name}") for name in KINDS} | own

    with ui.element("div").classes("bar wide"):
        with _group(t("train.length")):
            of = {name: t(f"train.preset_{name}") for name in LENGTHS} | {"": t("train.preset_own")}
            lengths = ui.toggle(of, value=length, on_change=lambda: keep()).props("no-caps unelevated")
        with _group(t("train.kind")):
            kinds = ui.toggle(names(), value=kind(), on_change=choose_kind).props("no-caps unelevated")
    ui.label(t("train.presets_help")).classes("soft small")
    draft.on_change.append(follow)


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


async def _over(t: Messages, draft: Draft) -> None:
    if draft.values["settings"]:
        text = t("train.over_title"), t("train.over_text"), t("train.start_over"), t("train.over_keep")
        if not await sure(*text):
            return
    with refusals():
        draft.keep(**EMPTY)
        ui.navigate.to("/train")

"""Everything that `hyperbrush inspect` says of a file, and its description."""

from collections.abc import Iterable, Mapping
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.page_card import Field
from hyperbrush.app.networks.page_dialogs import asking
from hyperbrush.app.networks.service import Card
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.app.ui.threads import in_thread

# Shown by themselves, below the facts.
APART = ("networks", "readers", "odd", "metadata", "norms", "site_paths")


async def show_inspection(site: Site, t: Messages, card: Card) -> None:
    """A dialog with all of it."""
    with refusals():
        said = await in_thread(networks.inspection, site.workspace, card.id)
        with asking(card.entry.name, t):
            about = ui.textarea(t("networks.description"), value=card.entry.notes.description)

            async def save(value: Any) -> None:
                with refusals():
                    await in_thread(networks.annotate, site, card.id, {"description": value or ""})

            Field(about.props("outlined dense autogrow"), save)
            _facts((_label(t, key), _text(t, value)) for key, value in said.items() if key not in APART)
            if said.get("metadata"):
                title_of(3, t("networks.metadata"))
                _facts(
                    (key, _shortened(key, value))
                    for key, value in said["metadata"].items()
                    if value is not None
                )
            title_of(3, t("networks.readers"))
            readers = said.get("readers", {})
            _facts(readers.items() if isinstance(readers, Mapping) else [("", str(readers))])
            if said.get("networks"):
                title_of(3, t("networks.parts"))
                ui.label(t("networks.effect_help")).classes("soft")
                _parts(t, said["networks"])
            if said.get("norms"):
                title_of(3, t("networks.layer_norms"))
                _facts((layer, f"{norm:.4g}") for layer, norm in said["norms"].items())
            if "odd" in said:
                title_of(3, t("networks.odd" if said["odd"] else "networks.nothing_odd"))
                for odd in said["odd"]:
                    ui.label(odd).classes("warn")


def _facts(rows: Iterable[tuple[str, str]]) -> None:
    with ui.element("dl").classes("network-facts"):
        for name, value in rows:
            with ui.element("dt"):
                ui.label(name)
            with ui.element("dd"):
                ui.label(str(value))


def _parts(t: Messages, parts: list[dict[str, Any]]) -> None:
    """A row for each network."""
    with ui.element("div").classes("network-wide").props("tabindex=0 role=region") as around:
        around.props["aria-label"] = t("networks.parts")
        with ui.element("table").classes("network-facts"):
            with ui.element("thead"), ui.element("tr"):
                for key in ("part", "layers", "weight_norms", "effect", "dead"):
                    with ui.element("th").props("scope=col"):
                        ui.label(t(f"networks.{key}"))
            with ui.element("tbody"):
                for part in parts:
                    widths = [str(part["layers"][0][0]), *(str(out) for _, out in part["layers"])]
                    cells = (
                        f"{part['where']} · {t('networks.' + part['use'])}",
                        " → ".join(widths),
                        ", ".join(f"{norm:.3g}" for norm in part["norms"]),
                        f"{part['effect']:.3g}",
                        ", ".join(f"{share:.0%}" for share in part["dead"]),
                    )
                    with ui.element("tr"):
                        for text in cells:
                            with ui.element("td"):
                                ui.label(text)


def _label(t: Messages, key: str) -> str:
    return t.get(f"networks.fact_{key}", key.replace("_", " "))


def _text(t: Messages, value: Any) -> str:
    if isinstance(value, bool):
        return t("networks.yes" if value else "networks.no")
    if value is None or value in ("", [], ()):
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shortened(key: str, value: Any) -> str:
    """A thumbnail inside a file's header is no text."""
    text = str(value)
    return text if len(text) <= 2000 and not text.startswith("data:") else f"{text[:40]}… ({len(text):,})"

"""What is asked before a network is renamed, exported, merged or given a picture."""

import base64
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import pictures
from hyperbrush.app.networks import service as networks
from hyperbrush.app.networks.page_card import Field
from hyperbrush.app.networks.service import Card
from hyperbrush.app.requests import STRONGEST, ExportRequest, MergePart, MergeRequest, checked
from hyperbrush.app.site import Site
from hyperbrush.app.ui.dialogs import asking
from hyperbrush.app.ui.frame import in_thread, on_news, refusals, refuse, title_of
from hyperbrush.app.ui.parts import drop_zone, once
from hyperbrush.app.uploads import MOST_BYTES, open_picture
from hyperbrush.app.workspace import Workspace
from hyperbrush.files import write_text
from hyperbrush.hypernetworks.library.summary import GENERATED

READ = "read"  # a file in a job's folder
SHOWN = 3600.0  # seconds that an export that has ended stays on the page


class Exports:
    """The last exports, from the jobs' folders: a reload and other tabs show them too."""

    def __init__(self, site: Site, t: Messages) -> None:
        self.site, self.t = site, t
        self.place = ui.element("section").classes("network-exports").props('aria-live="polite"')
        self.place.props["aria-label"] = t("networks.exports")
        self._awaited: set[str] = set()
        self._shown: list[Job] = []
        on_news(site, "jobs", self._show)

    def begin(self, job: Job) -> None:
        """Download what this page asked for once it is there."""
        self._awaited.add(job.id)

    async def _show(self) -> None:
        every = await in_thread(self.site.jobs.all, last=60)
        recent = time.time() - SHOWN
        jobs = [j for j in every if j.kind == "export" and (j.is_open or (j.ended or j.created) > recent)]
        jobs = [j for j in jobs if not (self.site.jobs.folder / j.id / READ).exists()]
        for job in jobs:
            if job.id in self._awaited and not job.is_open:
                self._awaited.discard(job.id)
                if job.state == "done":
                    ui.download.from_url(f"/api/v1/exports/{job.id}")
        if jobs[:5] == self._shown:
            return
        self._shown = jobs[:5]
        self.place.clear()
        with self.place:
            for job in self._shown:
                self._row(job)

    def _row(self, job: Job) -> None:
        t = self.t
        told = job.progress
        with ui.element("div").classes("notice" + (" bad" if job.state == "failed" else "")):
            ui.label(f"{job.arguments.get('network')} → {t('networks.to_' + str(job.arguments.get('to')))}")
            with ui.element("div").classes("grow"):
                stands = t("frame.stopping") if job.stopping else t(f"networks.export_{job.state}")
                if job.state == "running" and told.get("steps"):
                    stands += f" {told.get('step')}/{told['steps']}"
                ui.label(stands).classes("soft")
                if job.error:
                    ui.label(t.said(job.error)).classes("bad")
                if report := str(job.result.get("report", "")):
                    ui.label(t.said(report.partition("\nlost: ")[0])).classes("soft")
                for lost in job.result.get("lost", []):
                    ui.label(t("networks.lost", what=t.said(lost))).classes("soft")
            if job.state == "done":
                ui.link(t("networks.download"), f"/api/v1/exports/{job.id}").props("download")
            elif job.is_open and not job.stopping:
                ui.button(t("networks.stop"), on_click=lambda: self._stop(job)).props("flat dense no-caps")
            if not job.is_open:
                close = ui.button(icon="close", on_click=lambda: self._close(job)).props("flat round dense")
                close.props["aria-label"] = close.props["title"] = t("networks.close_export")

    async def _close(self, job: Job) -> None:
        """It was read: no page shows it any more."""
        with refusals():
            await in_thread(write_text, self.site.jobs.folder / job.id / READ, "")
            await self._show()

    def _stop(self, job: Job) -> None:
        with refusals():
            self.site.ask(job.id, "stop")


DRAWN = 24  # pictures to choose a preview from


def ask_name(site: Site, t: Messages, card: Card) -> None:
    """Another name."""

    async def rename() -> None:
        with refusals():
            await in_thread(networks.rename, site, card.id, name.value or "")
            dialog.close()

    with asking(t("networks.rename_title", name=card.entry.name), t("networks.cancel")) as (dialog, buttons):
        name = ui.input(t("networks.new_name"), value=card.entry.name.rpartition("/")[2]).props(
            "outlined autofocus"
        )
        name.on("keydown.enter", rename)
        ui.label(t("networks.rename_help")).classes("soft")
        with buttons:
            ui.button(t("networks.rename"), on_click=rename).props("no-caps")


def ask_export(site: Site, t: Messages, cards: Sequence[Card], exports: Exports) -> None:
    """Which format, and how; of several networks a file each."""
    kinds = {card.entry.summary.kind for card in cards if card.entry.summary is not None}
    generated = GENERATED in kinds
    from hyperbrush.hypernetworks.convert.convert import TARGETS

    targets = [name for name in TARGETS if not (generated and name in ("webui", "comfyui"))]

    async def begin() -> None:
        values: dict[str, Any] = {"to": to.value, "precision": precision.value}
        if to.value == "webui":
            values["legacy_zip"] = bool(legacy.value)
        if to.value.startswith("lora-"):
            rank_text = (rank.value or "").strip()
            values["rank"] = int(rank_text) if rank_text.isdecimal() else rank_text or None
            values["strength"] = 1.0 if strength.value is None else strength.value
        with refusals():
            request = checked(ExportRequest, values)
            for card in cards:
                exports.begin(await in_thread(networks.export, site, card.id, request))
            dialog.close()

    def fit() -> None:
        about.set_text(t(f"networks.about_{to.value}"))
        lora.set_visibility(to.value.startswith("lora-"))
        legacy.set_visibility(to.value == "webui")

    names_of = ", ".join(card.entry.name for card in cards[:4]) + (" …" if len(cards) > 4 else "")
    with asking(t("networks.export_title", name=names_of), t("networks.cancel")) as (dialog, buttons):
        names = {name: t(f"networks.to_{name}") for name in targets}
        to = ui.select(names, value=targets[0], label=t("networks.format"), on_change=fit).props("outlined")
        about = ui.label().classes("soft")
        with ui.element("div").classes("card network-inner") as lora:
            if not generated:
                model = site.workspace.preferences.model
                ui.label(t("networks.lora_model", model=model)).classes("soft")
            with ui.element("div").classes("bar"):
                rank = ui.input(t("networks.rank"), placeholder="" if generated else "16").props(
                    "outlined dense"
                )
                strength = ui.number(
                    t("networks.lora_strength"), value=1.0, min=-STRONGEST, max=STRONGEST, step=0.05
                )
                strength.props("outlined dense")
            ui.label(t("networks.rank_help")).classes("soft")
        legacy = ui.checkbox(t("networks.legacy_zip"))
        precisions = {"": t("networks.as_is"), "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
        precision = ui.select(precisions, value="", label=t("networks.precision")).props("outlined")
        with buttons:
            once(ui.button(t("networks.export")).props("no-caps"), begin)
    fit()


def ask_merge(site: Site, t: Messages, chosen: Sequence[Card], done: Any) -> None:
    """Weights, way and name; done: called once it is there."""

    async def merge() -> None:
        parts = [
            MergePart(name=card.id, weight=1.0 if field.value is None else field.value)
            for card, field in zip(chosen, weights, strict=True)
        ]
        with refusals():
            request = checked(
                MergeRequest, {"parts": parts, "how": how.value, "name": name.value or "merged"}
            )
            card = await in_thread(networks.merge, site, request)
            ui.notify(t("networks.merged", name=card.entry.name), type="positive")
            dialog.close()
            done()

    with asking(t("networks.merge_title"), t("networks.cancel")) as (dialog, buttons):
        weights = []
        for card in chosen:
            label = t("networks.weight_of", name=card.entry.name)
            weights.append(
                ui.number(
                    label, value=round(1 / len(chosen), 3), min=-STRONGEST, max=STRONGEST, step=0.05
                ).props("outlined dense")
            )
        from hyperbrush.hypernetworks.convert.merging import WAYS

        ways = {way: t(f"networks.how_{way}") for way in WAYS}
        how = ui.select(ways, value="auto", label=t("networks.how")).props("outlined")
        ui.label(t("networks.how_help")).classes("soft")
        name = ui.input(t("networks.new_name"), value="merged").props("outlined")
        with buttons:
            once(ui.button(t("networks.merge")).props("no-caps"), merge)


async def ask_preview(site: Site, t: Messages, card: Card) -> None:
    """A drawn picture, or one from a file."""
    drawn = await in_thread(_thumbnails, site.workspace)

    async def choose(place: str) -> None:
        with refusals():
            await in_thread(_set_drawn, site, card.id, place)
            dialog.close()

    def heard(told: dict[str, Any]) -> None:
        if told.get("ok"):
            dialog.close()
        elif not told.get("begins"):
            refuse(str(told.get("detail", "")))

    with asking(t("networks.preview_title", name=card.entry.name), t("networks.cancel")) as (dialog, _):
        drop_zone(
            t("networks.drop_picture"),
            f"/api/v1/hypernetworks/{card.id}/preview",
            heard,
            key="image",
            accept="image/png,image/jpeg,image/webp,image/bmp,image/gif",
            most=MOST_BYTES,
            too_large=t("networks.too_large", most=MOST_BYTES >> 20),
            method="PUT",
        )
        title_of(3, t("networks.drawn" if drawn else "networks.none_drawn"))
        with ui.element("div").classes("pictures"):
            for place, data in drawn.items():
                with ui.element("button").classes("network-plain") as button:
                    button.on("click", lambda place=place: choose(place))
                    picture = ui.element("img")
                    picture.props["src"] = data
                    picture.props["alt"] = t("networks.picture", name=place)


def _set_drawn(site: Site, which: str, place: str) -> None:
    networks.set_preview(site, which, pictures.open_drawn(site.workspace, place))


def _thumbnails(workspace: Workspace) -> dict[str, str]:
    """The newest drawn pictures as data: addresses; broken ones are left out."""
    from hyperbrush.ldm.data.pictures import opened

    found = {}
    for place, path in pictures.drawn(workspace, DRAWN).items():
        try:
            picture = opened(open_picture(path.read_bytes(), place), place)
        except (OSError, ValueError):
            continue
        picture.thumbnail((160, 160))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=80)
        found[place] = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
    return found


# Shown by themselves, below the facts.
APART = ("networks", "readers", "odd", "metadata", "norms", "site_paths")


async def show_inspection(site: Site, t: Messages, card: Card) -> None:
    """A dialog with all of it."""
    with refusals():
        said = await in_thread(networks.inspection, site.workspace, card.id)
        with asking(card.entry.name, t("networks.cancel")):
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
            rows = readers.items() if isinstance(readers, Mapping) else [("", readers)]
            _facts((name, t.said(text)) for name, text in rows)
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
                    ui.label(t.said(odd)).classes("warn")


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
    return f"{value:,}" if isinstance(value, int) else t.said(value)


def _shortened(key: str, value: Any) -> str:
    """A thumbnail inside a file's header is no text."""
    text = str(value)
    return text if len(text) <= 2000 and not text.startswith("data:") else f"{text[:40]}… ({len(text):,})"

"""One run as it goes: figures, curves, previews, events, log, and what can be done to it."""

from typing import Any

import yaml
from fastapi import Request
from nicegui import run as threads
from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.runs.page_actions import Actions
from hyperbrush.app.runs.page_parts import (
    Bar,
    StateBadge,
    api,
    chart,
    figure,
    loss_options,
    put_loss,
    rate_options,
    size_of,
    standing,
    table,
    words,
)
from hyperbrush.app.runs.view import KEEP, View, kept_view, view_of
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import duration, frame, on_news, title_of
from hyperbrush.errors import NotThere

ALL = -1


class Previews:
    """A card that shows one step's pictures; at the last step it follows the training."""

    def __init__(self, t: Messages, view: View) -> None:
        self.t, self.view = t, view
        self.shown: Any = None
        self.steps: list[int] = []
        with ui.element("section").classes("card").props('aria-labelledby="previews"') as self.card:
            with ui.element("div").classes("bar"):
                title_of(2, t("runs.previews")).classes("grow").props('id="previews"')
                self.prompt = ui.select({ALL: t("runs.all_prompts")}, value=ALL, label=t("runs.prompt"))
                self.prompt.props("outlined dense options-dense").classes("run-prompt")
                self.prompt.on_value_change(lambda _: self._draw())
            with ui.element("div").classes("bar"):
                self.at = words("span", "", "run-at").props('role="status"')
                self.slider = ui.slider(min=0, max=1, step=1, value=0, on_change=lambda _: self._draw())
                self.slider.classes("grow").props("markers snap")
                self.slider.props["aria-label"] = t("runs.preview_step")
            self.pictures = ui.element("div").classes("pictures run-previews")
            with ui.expansion(
                t("runs.contact_sheet"), on_value_change=lambda _: self._sheet()
            ) as self.sheet_box:
                self.sheet = ui.element("img").classes("run-sheet").props('loading="lazy"')
                self.sheet.props["alt"] = t("runs.contact_sheet_of", name=view.run.name)
        self.show(view)

    def show(self, view: View) -> None:
        """Show newer previews, if there are any."""
        steps = sorted({preview.step for preview in view.previews})
        prompts = {preview.prompt for preview in view.previews if preview.prompt is not None}
        self.card.set_visibility(bool(steps))
        followed = not self.steps or self.slider.value >= len(self.steps) - 1
        is_new = steps != self.steps or len(view.previews) != len(self.view.previews)
        self.view, before, self.steps = view, self.steps, steps
        if not steps or (not is_new and before):
            return
        options = {ALL: self.t("runs.all_prompts")} | {n: self._text(n) for n in sorted(prompts)}
        if options != self.prompt.options:
            self.prompt.set_options(options, value=self.prompt.value if self.prompt.value in options else ALL)
        self.prompt.set_visibility(len(prompts) > 1)
        self.slider.props["max"] = len(steps) - 1
        self.slider.set_visibility(len(steps) > 1)
        self.slider.set_value(len(steps) - 1 if followed else min(self.slider.value, len(steps) - 1))
        self.slider.update()
        self._draw()
        self._sheet()

    def _text(self, number: int | None) -> str:
        prompts = self.view.prompts
        if number is None:
            return " / ".join(prompts)
        return prompts[number] if number < len(prompts) else f"{self.t('runs.prompt')} {number + 1}"

    def _draw(self) -> None:
        if not self.steps:
            return
        step = self.steps[min(int(self.slider.value), len(self.steps) - 1)]
        found = [(i, p) for i, p in enumerate(self.view.previews) if p.step == step]
        if self.prompt.value != ALL:
            found = [(i, p) for i, p in found if p.prompt == self.prompt.value]
        wanted = [(step, i, p.prompt) for i, p in found]
        self.at.set_text(self.t("runs.at", step=step))
        self.slider.props["aria-valuetext"] = self.t("runs.at", step=step)
        if wanted == self.shown:
            return
        self.shown = wanted
        self.pictures.clear()
        with self.pictures:
            for index, preview in found:
                text = self._text(preview.prompt)
                with ui.element("figure"):
                    picture = ui.element("img").classes("drawn")
                    picture.props["src"] = api(self.view.run.name, f"/previews/{index}?v={preview.stamp}")
                    picture.props["alt"] = self.t("runs.preview_of", prompt=text, step=step)
                    words("figcaption", text, "soft small")

    def _sheet(self) -> None:
        if self.sheet_box.value and self.view.previews:
            newest = max(preview.stamp for preview in self.view.previews)
            self.sheet.props["src"] = api(self.view.run.name, f"/contact-sheet?v={newest}")


FAST, SLOW = 0.15, 0.7  # seconds between two looks: at the figures; at curves, previews and log
LINES = 80  # of the log
EVENTS = 20
TILES = ("loss", "best_validation", "below_base", "rate", "pictures_per_second", "memory", "time")


async def page(site: Site, request: Request, name: str) -> None:
    """The page /runs/NAME."""
    try:
        view = await threads.io_bound(view_of, site, name)
    except NotThere:
        with frame(site, request, "runs") as t:
            with ui.element("div").classes("notice").props('role="status"'):
                ui.label(t("runs.not_there", name=name))
            ui.link(t("runs.all"), "/runs")
        return
    if view is not None:  # None: the server ends
        with frame(site, request, "runs", title=name) as t:
            Live(site, t, view).build()


class Live:
    """What the page of one run holds; all of it comes from the run's folder."""

    def __init__(self, site: Site, t: Messages, view: View) -> None:
        self.site, self.t, self.view = site, t, view
        self.name = view.run.name
        self.keep = KEEP
        self.drawn: Any = None  # the curves that the chart shows
        self.events_shown = -1

    def build(self) -> None:
        """Put it into the page."""
        t, run = self.t, self.view.run
        ui.link(t("runs.all"), "/runs")
        with ui.element("div").classes("card"):
            with ui.element("div").classes("bar"):
                self.state = StateBadge(t, run.state)
                self.standing = words("span", standing(t, run), "grow run-standing")
                words("span", t.get(f"runs.kind_{run.kind}", run.kind), "soft")
            self.bar = Bar(t("runs.progress_of", name=self.name))
            self.note = words("div", "", "soft")
            self.error = words("div", "", "notice bad").props('role="alert"')
            self.actions = Actions(self.site, t, self.view)
        self.previews = Previews(t, self.view)
        with ui.element("dl").classes("run-tiles"):
            self.tiles = {tile: self._tile(tile) for tile in TILES}
        self._charts()
        self._what_happened()
        self._log()
        with ui.expansion(t("runs.settings")).classes("card"):
            text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
            words("pre", text, "mono").props("tabindex=0")
        self._show_figures()
        self._show_events()
        on_news(self.site, "runs", self.fast, every=FAST)
        on_news(self.site, "runs", self.slow, every=SLOW)

    async def fast(self) -> None:
        """Show step, state and figures as they stand."""
        view = kept_view(self.site, self.name)
        if view is None:
            try:
                view = await threads.io_bound(view_of, self.site, self.name)
            except NotThere:
                self.error.set_text(self.t("runs.not_there", name=self.name))
                self.error.set_visibility(True)
                return
        if view is None:  # the server ends
            return
        changed = view.run is not self.view.run
        self.view = view
        if changed:
            self._show_figures()

    async def slow(self) -> None:
        """Show curves, events, previews and log as they stand."""
        view = self.view
        if view.curves is not self.drawn:
            self.drawn = view.curves
            self._draw()
            self._show_events()
            self._show_table()
            self._show_tiles()  # of those that come from the curves
        self.previews.show(view)
        await self._show_log()

    def _tile(self, tile: str) -> Any:
        with ui.element("div"):
            words("dt", self.t(f"runs.{tile}"), "soft small")
            return words("dd", "–")

    def _charts(self) -> None:
        t = self.t
        with ui.element("section").classes("card").props('aria-labelledby="loss"'):
            with ui.element("div").classes("bar"):
                title_of(2, t("runs.loss")).classes("grow").props('id="loss"')
                ui.label(t("runs.smoothing"))
                slider = ui.slider(min=0, max=0.98, step=0.02, value=KEEP, on_change=self._smooth)
                slider.classes("run-slider").props["aria-label"] = t("runs.smoothing")
            self.chart = chart(loss_options(t, self.view.curves, self.keep), t("runs.loss_chart"))
            with ui.expansion(
                t("runs.last_figures"), on_value_change=lambda _: self._show_table()
            ) as self.figures:
                self.table = ui.element("div")
            with ui.expansion(
                t("runs.rate_chart"), on_value_change=lambda _: self._draw_rate()
            ) as self.rate_box:
                self.rate = chart(rate_options(t, self.view.curves), t("runs.rate_chart")).classes("low")

    def _smooth(self, event: Any) -> None:
        self.keep = float(event.value)
        self._draw()
        self._show_tiles()

    def _draw(self) -> None:
        put_loss(self.chart.options, self.view.curves, self.keep)
        self.chart.update()
        self._draw_rate()

    def _draw_rate(self) -> None:
        if self.rate_box.value:
            self.rate.options["series"][0]["data"] = self.view.curves.rate
            self.rate.update()

    def _what_happened(self) -> None:
        with ui.element("section").classes("card").props('aria-labelledby="events"') as self.events_card:
            title_of(2, self.t("runs.events")).props('id="events"')
            self.events = ui.element("ul").classes("run-events")

    def _log(self) -> None:
        with ui.expansion(self.t("runs.log"), on_value_change=self._show_log).classes("card") as self.log_box:
            self.log = words("pre", "", "mono run-log").props("tabindex=0")
            self.log.props["aria-label"] = self.t("runs.log")

    def _show_figures(self) -> None:
        t, run = self.t, self.view.run
        self.state.show(run.state)
        self.standing.set_text(standing(t, run))
        self.bar.show(run)
        notes = []
        if run.asked:
            notes.append(t(f"runs.asked_{run.asked}"))
        if run.elsewhere:
            notes.append(t("runs.elsewhere_long"))
        self.note.set_text(" ".join(notes))
        self.note.set_visibility(bool(notes))
        self.error.set_text(t.said(run.error))
        self.error.set_visibility(bool(run.error))
        self._show_tiles()
        self.actions.show(self.view)

    def _show_tiles(self) -> None:
        live, curves = self.view.run.live, self.view.curves
        best, base = curves.best, curves.base
        smoothed = curves.smoothed(self.keep)  # the end of the chart's line
        found = {
            "loss": figure(smoothed[-1][1] if smoothed else live.get("smoothed")),
            "best_validation": figure(best[1] if best else None)
            + (f" ({self.t('runs.at', step=int(best[0]))})" if best else ""),
            "below_base": figure(1 - best[1] / base, ".1%") if best and base else "–",
            "rate": figure(live.get("learning_rate"), ".2e"),
            "pictures_per_second": figure(live.get("pictures_per_second"), ".1f"),
            "memory": size_of(live.get("memory")),
            "time": duration(live.get("seconds")),
        }
        for tile, text in found.items():
            self.tiles[tile].set_text(text)

    def _show_table(self) -> None:
        if not self.figures.value:
            return
        rows = [row for row in self.view.curves.rows if "loss" in row][-12:]
        heads = [self.t(f"runs.{name}") for name in ("step", "loss", "validation", "base", "rate")]
        names = ("loss", "validation_loss", "validation_base")
        cells = [
            [str(r["step"]), *(figure(r.get(name)) for name in names), figure(r.get("learning_rate"), ".2e")]
            for r in reversed(rows)
        ]
        self.table.clear()
        with self.table:
            table(heads, cells, self.t("runs.last_figures"))

    def _show_events(self) -> None:
        found = self.view.curves.events
        self.events_card.set_visibility(bool(found))
        if len(found) == self.events_shown:
            return
        self.events_shown = len(found)
        self.events.clear()
        with self.events:
            for row in reversed(found[-EVENTS:]):
                kind = self.t.get(f"runs.event_{row['event']}", str(row["event"]))
                with ui.element("li"):
                    words("strong", f"{kind} · {self.t('runs.at', step=row['step'])}")
                    words("div", self.t.said(row.get("message", "")), "soft small")

    async def _show_log(self) -> None:
        if not self.log_box.value:
            return
        try:
            text = await threads.io_bound(self.site.runs.log, self.name)
        except NotThere:
            return
        lines = (text or "").splitlines()[-LINES:]
        self.log.set_text("\n".join(lines) or self.t("runs.no_log"))

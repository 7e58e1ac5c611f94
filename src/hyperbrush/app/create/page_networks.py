"""The networks of a prompt that is being written: a chip with a strength slider for each, and names to complete with."""

import asyncio
import json
from typing import Any

from nicegui import ui

from hyperbrush.app.create.page_tags import changed, one_sided, written
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import on_news
from hyperbrush.errors import UserError


class NetworkChips:
    """Follows a prompt's tags, and changes them where they stand."""

    def __init__(self, t: Messages, prompt: ui.textarea) -> None:
        self.t, self.prompt = t, prompt
        self._names: list[str] = []
        self._sliders: list[ui.slider] = []
        self._sides: list[ui.button] = []
        self._place = ui.element("div").classes("chips")
        self._place.props("role=group").props["aria-label"] = t("create.networks")
        self._place.set_visibility(False)
        prompt.on_value_change(self._show)
        self._show()

    def _show(self) -> None:
        tags = written(str(self.prompt.value or ""))
        names = [tag.name for tag in tags]
        if names != self._names:
            self._names = names
            self._sliders, self._sides = [], []
            self._place.clear()
            self._place.set_visibility(bool(names))
            with self._place:
                for number, name in enumerate(names):
                    self._chip(number, name)
        for slider, side, tag in zip(self._sliders, self._sides, tags, strict=True):
            side.props["aria-pressed"] = str(tag.conditional).lower()
            ends = {"min": min(-1.0, tag.strength), "max": max(2.0, tag.strength)}
            if any(slider.props[name] != end for name, end in ends.items()):
                slider.props.update(ends)  # sends its value too, which may be older than what is dragged
            slider.value = tag.strength

    def _chip(self, number: int, name: str) -> None:
        def drag(event: Any) -> None:
            tags = written(str(self.prompt.value or ""))
            if event.value is not None and number < len(tags) and tags[number].strength != event.value:
                self.prompt.value = changed(self.prompt.value, number, round(float(event.value), 4))

        def turn() -> None:
            tags = written(str(self.prompt.value or ""))
            if number < len(tags):
                self.prompt.value = one_sided(self.prompt.value, number, not tags[number].conditional)

        def remove() -> None:
            self.prompt.value = changed(self.prompt.value, number, None)

        with ui.element("div").classes("chip"):
            ui.label(name).classes("name")
            slider = ui.slider(min=-1, max=2, step=0.05, value=1, on_change=drag)
            slider.props["aria-label"] = self.t("create.strength_of", name=name)
            ui.label().classes("number").bind_text_from(slider, "value", lambda value: f"{value or 0:.4g}")
            side = ui.button(icon="contrast", on_click=turn, color=None).classes("quiet side")
            side.props("flat round dense size=sm type=button aria-pressed=false")
            side.props["aria-label"] = self.t("create.conditional_alone", name=name)
            side.props["title"] = self.t("create.conditional_hint")
            button = ui.button(icon="close", on_click=remove, color=None).classes("quiet")
            button.props("flat round dense size=sm type=button")
            button.props["aria-label"] = button.props["title"] = self.t("create.remove_network", name=name)
        self._sliders.append(slider)
        self._sides.append(side)


def known(site: Site) -> list[dict[str, Any]]:
    """Networks to complete with: {"name", "strength", "words"}."""
    from hyperbrush.hypernetworks import HypernetworkLibrary

    library = HypernetworkLibrary(site.workspace.folder("hypernetworks"))
    found = []
    for name in library.names():
        strength, words = 1.0, ""
        try:
            notes = library.notes(name)
        except UserError:  # told of on the Hypernetworks page
            pass
        else:
            strength = 1.0 if notes.preferred_weight is None else notes.preferred_weight
            words = notes.activation_text.strip()
        found.append({"name": name, "strength": strength, "words": words})
    return found


def complete(site: Site) -> None:
    """Tell the page's prompt which networks there are, and again whenever the folder changes."""

    async def tell() -> None:
        found = await asyncio.to_thread(known, site)
        ui.run_javascript(f"hyperbrushCreate.know({json.dumps(found)})")

    on_news(site, "networks", tell, every=0.5)

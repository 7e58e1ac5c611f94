"""The networks of a prompt being written: its tags changed where they stand, a chip with a slider for each, names to complete."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.networks import loras
from hyperbrush.app.networks import service as networks
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import on_news
from hyperbrush.generation.tags import TAG
from hyperbrush.hypernetworks.library.notes import Notes

CONDITIONAL = "guidance=conditional"
HYPERNET, LORA = "hypernet", "lora"  # kinds of tags


@dataclass(frozen=True)
class Written:
    """A tag as it stands in a prompt, whether its numbers make sense or not."""

    start: int
    end: int
    items: tuple[str, ...]
    kind: str = HYPERNET

    @property
    def name(self) -> str:
        """Of the network."""
        return self.items[0]

    @property
    def strength(self) -> float:
        """1 where it says none, or none that is a number."""
        at = self._place()
        try:
            return float(self.items[at].removeprefix("strength=")) if at else 1.0
        except ValueError:
            return 1.0

    @property
    def conditional(self) -> bool:
        """Whether it acts on the conditional side of guidance alone."""
        return CONDITIONAL in self.items

    def with_guidance(self, conditional: bool) -> str:
        """The tag's text for one side of guidance or both, and everything else as it was."""
        items = [item for item in self.items if not item.startswith("guidance=")]
        return self._tag(items + [CONDITIONAL] * conditional)

    def with_strength(self, strength: float) -> str:
        """The tag's text with another strength, and everything else as it was."""
        items, at, text = list(self.items), self._place(), f"{strength:g}"
        if self.kind == LORA:  # one number for text encoder and UNet
            return self._tag([self.name, text])
        if at:
            items[at] = f"strength={text}" if items[at].startswith("strength=") else text
        else:
            items.insert(1, text)
        return self._tag(items)

    def _tag(self, items: list[str]) -> str:
        return f"<{self.kind}:{':'.join(items)}>"

    def _place(self) -> int:
        """Which of the items is the strength; 0 for none."""
        for at, item in enumerate(self.items[1:], start=1):
            if "=" not in item or item.startswith("strength="):
                return at
        return 0


def written(prompt: str) -> list[Written]:
    """The tags of a prompt that name hypernetworks or LoRAs, in order."""
    return [
        Written(match.start(), match.end(), tuple(match[2].split(":")), match[1])
        for match in TAG.finditer(prompt)
        if match[1] in (HYPERNET, LORA)
    ]


def changed(prompt: str, number: int, strength: float | None) -> str:
    """A prompt with one of its tags at another strength, or (None) without it; unchanged where there is no such tag.

    >>> changed("a cat <hypernet:ink:1>, blue", 0, 0.5)
    'a cat <hypernet:ink:0.5>, blue'
    >>> changed("a cat <hypernet:ink:1>, blue", 0, None)
    'a cat, blue'
    """
    found = written(prompt)
    if number >= len(found):
        return prompt
    tag = found[number]
    if strength is not None:
        return prompt[: tag.start] + tag.with_strength(strength) + prompt[tag.end :]
    before, after = prompt[: tag.start], prompt[tag.end :]
    if not after or re.match(r"[\s,.;]", after):
        before = before.rstrip(" ")
    return before + after


def one_sided(prompt: str, number: int, conditional: bool) -> str:
    """A prompt with one of its networks on the conditional side of guidance alone, or on both.

    >>> one_sided("a cat <hypernet:ink:1>", 0, True)
    'a cat <hypernet:ink:1:guidance=conditional>'
    """
    found = written(prompt)
    if number >= len(found):
        return prompt
    tag = found[number]
    return prompt[: tag.start] + tag.with_guidance(conditional) + prompt[tag.end :]


def added(prompt: str, name: str, words: str = "", strength: float = 1.0, kind: str = HYPERNET) -> str:
    """A prompt with a network's tag and trigger words at its end, unless they are in it.

    >>> added("a cat", "ink", "inked")
    'a cat, inked <hypernet:ink:1>'
    >>> added("a pink cat <hypernet:ink:1>", "ink", "ink")
    'a pink cat <hypernet:ink:1>, ink'
    """
    if words and not _says(prompt, words):
        prompt = ", ".join(filter(None, (prompt.rstrip(" ,"), words)))
    if any((tag.kind, tag.name) == (kind, name) for tag in written(prompt)):
        return prompt
    return f"{prompt} <{kind}:{name}:{strength:g}>".lstrip()


def _says(prompt: str, words: str) -> bool:
    """Whether words stand in a prompt, outside of its tags and not within longer ones."""
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", TAG.sub(" ", prompt), re.IGNORECASE))


class NetworkChips:
    """Follows a prompt's tags, and changes them where they stand."""

    def __init__(self, t: Messages, prompt: ui.textarea) -> None:
        self.t, self.prompt = t, prompt
        self._names: list[tuple[str, str]] = []
        self._sliders: list[ui.slider] = []
        self._sides: list[ui.button] = []
        self._place = ui.element("div").classes("chips")
        self._place.props("role=group").props["aria-label"] = t("create.networks")
        self._place.set_visibility(False)
        prompt.on_value_change(self._show)
        self._show()

    def _show(self) -> None:
        tags = written(str(self.prompt.value or ""))
        names = [(tag.kind, tag.name) for tag in tags]
        if names != self._names:
            self._names = names
            self._sliders, self._sides = [], []
            self._place.clear()
            self._place.set_visibility(bool(names))
            with self._place:
                for number, (kind, name) in enumerate(names):
                    self._chip(number, name, kind)
        for slider, side, tag in zip(self._sliders, self._sides, tags, strict=True):
            side.props["aria-pressed"] = str(tag.conditional).lower()
            ends = {"min": min(-1.0, tag.strength), "max": max(2.0, tag.strength)}
            if any(slider.props[name] != end for name, end in ends.items()):
                slider.props.update(ends)  # sends its value too, which may be older than what is dragged
            slider.value = tag.strength

    def _chip(self, number: int, name: str, kind: str) -> None:
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
            ui.label(name if kind == HYPERNET else f"{name} · LoRA").classes("name")
            slider = ui.slider(min=-1, max=2, step=0.05, value=1, on_change=drag)
            slider.props["aria-label"] = self.t("create.strength_of", name=name)
            ui.label().classes("number").bind_text_from(slider, "value", lambda value: f"{value or 0:.4g}")
            side = ui.button(icon="contrast", on_click=turn, color=None).classes("quiet side")
            side.props("flat round dense size=sm type=button aria-pressed=false")
            side.props["aria-label"] = self.t("create.conditional_alone", name=name)
            side.props["title"] = self.t("create.conditional_hint")
            side.set_visibility(kind == HYPERNET)
            button = ui.button(icon="close", on_click=remove, color=None).classes("quiet")
            button.props("flat round dense size=sm type=button")
            button.props["aria-label"] = button.props["title"] = self.t("create.remove_network", name=name)
        self._sliders.append(slider)
        self._sides.append(side)


def known(site: Site) -> list[dict[str, Any]]:
    """Networks to complete with, those that fit the model, and LoRAs: {"kind", "name", "strength", "words"}."""
    return [
        {"kind": kind, "name": name, "strength": weight_of(notes), "words": notes.activation_text.strip()}
        for kind, name, notes in [
            *((HYPERNET, entry.name, entry.notes) for entry in networks.fitting(site.workspace)),
            *((LORA, one.name, one.notes) for one in loras.listed(site.workspace)),
        ]
    ]


def weight_of(notes: Notes) -> float:
    """The strength that a tag begins with."""
    return 1.0 if notes.preferred_weight is None else notes.preferred_weight


def complete(site: Site) -> None:
    """Tell the page's prompt which networks there are, and again whenever the folder changes."""

    async def tell() -> None:
        found = await asyncio.to_thread(known, site)
        ui.run_javascript(f"hyperbrushCreate.know({json.dumps(found)})")

    on_news(site, "networks", tell, every=0.5)

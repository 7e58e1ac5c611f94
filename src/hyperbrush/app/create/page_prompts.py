"""The dialog over a prompt: prompts of before and saved ones, wildcards."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from nicegui import ui

from hyperbrush.app.create import prompts
from hyperbrush.app.create.prompts import Prompt, PromptRequest
from hyperbrush.app.messages import Messages
from hyperbrush.app.requests import checked
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.app.ui.parts import icon_button


class PromptDialog:
    """Prompts to take, save and forget.

    fields: prompt and negative; use: puts others into the form.
    """

    def __init__(
        self, site: Site, t: Messages, fields: dict[str, Any], use: Callable[[dict[str, str]], Any]
    ) -> None:
        self.site, self.t, self.fields, self.use = site, t, fields, use
        self.dialog = picking(t("create.prompts"))
        with self.dialog, ui.element("div").classes("card network-dialog"):
            head_of(t("create.prompts"), t("create.close"), self.dialog)
            with ui.element("div").classes("bar"):
                self.name = (
                    ui.input(t("create.save_as")).props("outlined dense maxlength=100").classes("grow")
                )
                self.name.on("keydown.enter", self._save)
                ui.button(t("create.save"), icon="bookmark_add", on_click=self._save).props("outline no-caps")
            self.search = ui.input(t("create.search_prompts"), on_change=self._show)
            self.search.props("outlined dense clearable debounce=150 type=search")
            self.place = ui.element("div").classes("stack")

    async def open(self) -> None:
        """Show what there is now."""
        self.search.value = ""
        await self._show()
        self.dialog.open()

    async def _show(self) -> None:
        t, site = self.t, self.site
        saved, drawn, names = await asyncio.to_thread(
            lambda: (prompts.saved(site), prompts.drawn(site), prompts.known_wildcards(site))
        )
        words = (self.search.value or "").casefold().split()

        def fits(one: Prompt) -> bool:
            text = f"{one.name} {one.prompt} {one.negative}".casefold()
            return all(word in text for word in words)

        self.place.clear()
        with self.place:
            self._list(t("create.saved_prompts"), [one for one in saved if fits(one)], t("create.none_saved"))
            self._list(t("create.drawn_prompts"), [one for one in drawn if fits(one)], t("create.none_drawn"))
            title_of(3, t("create.wildcards"))
            ui.label(t("create.wildcards_help")).classes("soft small")
            with ui.element("div").classes("bar"):
                for name in names:
                    button = ui.button(f"__{name}__", on_click=lambda name=name: self._add(name), color=None)
                    button.props("outline dense no-caps").classes("quiet").props["padding"] = "xs sm"

    def _list(self, title: str, found: list[Prompt], otherwise: str) -> None:
        t = self.t
        title_of(3, title)
        if not found:
            ui.label(otherwise).classes("soft")
            return
        with ui.element("ul").classes("prompt-list"):
            for one in found:
                with ui.element("li"):
                    with ui.element("button").props("type=button").classes("prompt-take") as take:
                        if one.name:
                            ui.label(one.name).classes("strong")
                        ui.label(one.prompt).classes("prompt-text")
                        if one.negative:
                            ui.label(f"{t('create.negative')}: {one.negative}").classes(
                                "soft small prompt-text"
                            )
                    take.on("click", lambda one=one: self._take(one))
                    if one.name:
                        icon_button("delete", t("create.forget", name=one.name), partial(self._forget, one))
                    else:
                        said = t("create.save_prompt", prompt=one.prompt[:60])
                        icon_button("bookmark_add", said, partial(self._keep, one.prompt[:60], one))

    def _take(self, one: Prompt) -> None:
        self.use({"prompt": one.prompt, "negative": one.negative})
        self.dialog.close()

    def _add(self, name: str) -> None:
        before = str(self.fields["prompt"].value or "").rstrip()
        self.use({"prompt": f"{before} __{name}__".lstrip()})
        self.dialog.close()

    async def _save(self) -> None:
        said = {key: str(field.value or "") for key, field in self.fields.items()}
        with refusals():
            one = Prompt(**said)
            await self._keep(self.name.value or one.prompt[:60], one)
            self.name.value = ""

    async def _keep(self, name: str, one: Prompt) -> None:
        with refusals():
            request = checked(PromptRequest, {"prompt": one.prompt, "negative": one.negative})
            await asyncio.to_thread(prompts.save, self.site, name, request)
            await self._show()

    async def _forget(self, one: Prompt) -> None:
        with refusals():
            await asyncio.to_thread(prompts.remove, self.site, one.name)
            await self._show()


def picking(label: str) -> ui.dialog:
    """A dialog of that name."""
    dialog = ui.dialog()
    dialog.props["aria-label"] = label
    return dialog


def head_of(title: str, close: str, dialog: ui.dialog) -> None:
    """Its title, and what closes it."""
    with ui.element("div").classes("bar"):
        title_of(2, title)
        ui.space()
        icon_button("close", close, dialog.close)

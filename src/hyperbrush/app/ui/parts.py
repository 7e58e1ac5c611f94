"""Pieces that several pages share: small buttons, a place to drop files on, the top of a card that follows a job."""

import json
import re
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.messages import Messages
from hyperbrush.app.site import Site
from hyperbrush.app.ui.frame import refusals, title_of
from hyperbrush.generation.known_words import never_seen
from hyperbrush.generation.tags import TAG

MOST_WORDS = 12  # that are named

SEND = """async (event) => {
  event.preventDefault();
  const field = event.target;
  const files = [...(event.dataTransfer ? event.dataTransfer.files : field.files)];
  for (const [at, file] of files.entries()) {
    const said = { name: file.name, ok: false, detail: "", begins: false, at, of: files.length };
    if (file.size > MOST) { emit({ ...said, detail: file.name + TOO_LARGE }); continue; }
    emit({ ...said, begins: true });
    const form = new FormData();
    form.append(KEY, file);
    try {
      const answer = await fetch(URL, { method: METHOD, body: form });
      const text = await answer.text();
      try { const told = JSON.parse(text); emit({ ...said, ok: answer.ok, detail: told.name || told.detail || text }); }
      catch { emit({ ...said, ok: answer.ok, detail: text }); }
    } catch (error) { emit({ ...said, detail: String(error) }); }
  }
  if (field.files) field.value = "";
}"""

COPY = """(event) => {
  const text = TEXT;
  const aside = () => {  // without HTTPS there is no clipboard
    const field = document.createElement("textarea"), before = document.activeElement;
    field.value = text;
    field.style.cssText = "position: fixed; top: 0; opacity: 0";
    // A dialog takes back the focus that leaves it.
    (event.target.closest(".q-dialog__inner") ?? document.body).append(field);
    field.select();
    let well = false;
    try { well = document.execCommand("copy"); } catch {}
    field.remove();
    before?.focus();
    return well;
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => emit(true), () => emit(aside()));
  else emit(aside());
}"""


def icon_button(icon: str, label: str, do: Callable[[], Any]) -> ui.button:
    """A round button that says its name to readers, and to who points at it."""
    button = ui.button(icon=icon, on_click=do, color=None).props("flat round dense type=button")
    button.props["aria-label"] = button.props["title"] = label
    return button.classes("quiet")


def once(button: ui.button, do: Callable[[], Awaitable[Any]]) -> ui.button:
    """Have a button do what neither a double click nor one while it is done may begin a second time."""

    async def clicked() -> None:
        if "loading" in button.props:
            return
        button.props("loading")
        try:
            await do()
        finally:
            button.props(remove="loading")

    return button.on("click", clicked, js_handler="(event) => event.detail > 1 || emit()")


def copy_button(t: Messages, text: str) -> ui.button:
    """A button that puts a text into the clipboard, and says whether that went well."""

    def told(event: GenericEventArguments) -> None:
        if event.args is True:
            ui.notify(t("frame.copied"))
        else:
            ui.notify(t("frame.not_copied"), type="warning")

    button = ui.button(t("frame.copy"), icon="content_copy", color=None)
    button.on("click", told, js_handler=COPY.replace("TEXT", json.dumps(text), 1))
    return button.props("flat dense no-caps type=button").classes("quiet")


def drop_zone(
    text: str,
    url: str,
    heard: Callable[[dict[str, Any]], None],
    *,
    key: str,
    accept: str,
    most: int,
    too_large: str,
    method: str = "POST",
    multiple: bool = False,
) -> ui.element:
    """A labelled field for files that takes drops too.

    heard: is told {"name", "begins", "ok", "detail", "at", "of"} twice for each file: as it is sent, and what came of it
        (the name it has now, or why it was refused); it is number "at" of so many. key: of the form's field. most:
        bytes of a file.
    """
    values = {"MOST": most, "TOO_LARGE": too_large, "KEY": key, "URL": url, "METHOD": method}
    script = re.sub("|".join(values), lambda found: json.dumps(values[found[0]]), SEND)

    def told(event: GenericEventArguments) -> None:
        if isinstance(event.args, dict):
            heard(event.args)

    with ui.element("label").classes("network-drop") as zone:
        ui.icon("file_upload").props('aria-hidden="true"')
        ui.label(text)
        field = ui.element("input").props("type=file")
        field.props["accept"] = accept
        field.props.set_bool("multiple", multiple)
    field.on("change", told, js_handler=script)
    zone.on("dragover", js_handler="(event) => event.preventDefault()")
    zone.on("drop", told, js_handler=script)
    return zone


class FileLines:
    """What came of each file that was sent, a line a file; those that failed come first."""

    def __init__(self) -> None:
        self._box = ui.element("ul").classes("file-lines").props("tabindex=0")
        self.clear()

    def clear(self) -> None:
        """Forget the files of before."""
        self.failed = self.kept = 0
        self._box.clear()
        self._box.set_visibility(False)
        self._busy: ui.element | None = None

    def hear(self, told: Mapping[str, Any]) -> None:
        """What `drop_zone` tells: the first file of a drop makes those before forgotten."""
        if not told.get("at") and (told.get("begins") or self._busy is None):
            self.clear()

    def begin(self, text: str) -> None:
        """A file is being sent."""
        self._busy = self._line(text, "soft")

    def end(self, text: str, *, failed: bool) -> None:
        """What came of it."""
        if self._busy is not None:
            self._busy.delete()
            self._busy = None
        line = self._line(text, "bad" if failed else "good")
        if failed:
            line.move(target_index=self.failed)
        self.failed += failed
        self.kept += not failed

    def _line(self, text: str, classes: str) -> ui.element:
        self._box.set_visibility(True)
        with self._box, ui.element("li") as line:
            ui.label(text).classes(classes)
        return line


class Unseen:
    """Warns of words that the model was never shown, before anything is drawn or trained with them."""

    def __init__(self, t: Messages) -> None:
        self._t = t
        self._told = ui.label().classes("warn small").props("role=status")

    def show(self, known: Container[str] | None, texts: Sequence[str]) -> None:
        """known: the model's words; None where it lists none."""
        found = [] if known is None else never_seen(known, [TAG.sub(" ", text) for text in texts])
        words = [word for word in found if not word.isdecimal()]  # strengths and steps
        said = ", ".join(words[:MOST_WORDS]) + (" …" if len(words) > MOST_WORDS else "")
        self._told.set_text(self._t("frame.unseen", words=said) if words else "")
        self._told.set_visibility(bool(words))


class JobHead:
    """Title and words; a bar and the button as long as something is to come."""

    def __init__(
        self, site: Site, title: str, nothing_yet: str, progress: str, stop: str, stopping: str
    ) -> None:
        self.site, self._job, self._stopping = site, "", stopping
        title_of(2, title)
        self._told = ui.label(nothing_yet).props('role="status" aria-live="polite"').classes("soft")
        with ui.element("div").classes("bar") as self._waiting:
            self._bar = ui.linear_progress(value=0, show_value=False).classes("grow")
            self._bar.props["aria-label"] = progress
            self._end = ui.button(stop, icon="stop", on_click=self._stop)
            self._end.props("flat dense no-caps color=primary")
        self._waiting.set_visibility(False)

    def tell(self, text: str) -> None:
        """Other words."""
        self._told.set_text(text)

    def show(self, job: Job, text: str, share: float) -> None:
        """How a job stands: in words, and how much of it is done."""
        self._job = job.id
        self.tell(self._stopping if job.stopping else text)
        self._end.set_enabled(not job.stopping)
        self._told.classes(replace="bad" if job.state == "failed" else "")
        self._waiting.set_visibility(job.is_open)
        self._bar.set_value(share)

    def _stop(self) -> None:
        with refusals():
            self.site.ask(self._job, "stop")

"""A place to drop files on or to choose them, which sends each to a route of the API."""

import json
import re
from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

SEND = """async (event) => {
  event.preventDefault();
  const field = event.target;
  for (const file of [...(event.dataTransfer ? event.dataTransfer.files : field.files)]) {
    const said = { name: file.name, ok: false, detail: "", begins: false };
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

    heard: is told {"name", "begins", "ok", "detail"} twice for each file: as it is sent, and what came of it (the
        name it has now, or why it was refused). key: of the form's field. most: bytes of a file.
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

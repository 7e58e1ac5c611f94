"""An axis of a grid: what is varied, and a field that fits its values."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.generation.axes import NONE
from hyperbrush.ldm.sampling.names import sampler_names

KINDS = ("hypernetwork", "strength", "seed", "steps", "cfg", "sampler", "clip_skip", "size", "prompt")
FIRST = {  # values that a new axis begins with
    "strength": "0-1:0.5",
    "seed": "1-4",
    "steps": "10, 20, 30",
    "cfg": "2, 4, 8",
    "clip_skip": "1-2",
    "sampler": ["DPM++ 2M Karras", "Euler a"],
}


class AxisField:
    """The fields of one axis; letter: X, Y or Z."""

    def __init__(
        self, t: Messages, letter: str, networks: Sequence[str], side: int, on_change: Callable[[], Any]
    ) -> None:
        self.t, self.letter, self.on_change = t, letter, on_change
        self.choices = {"hypernetwork": [NONE, *networks], "sampler": list(sampler_names())}
        self.side = side
        with ui.element("fieldset").classes("axis"):
            with ui.element("legend"):
                ui.label(t(f"compare.{letter.lower()}"))
            kinds = {"": t("compare.nothing")} | {kind: t(f"compare.kind_{kind}") for kind in KINDS}
            self.kind = ui.select(kinds, value="", label=t("compare.vary", axis=letter))
            self.kind.props("outlined dense options-dense").on_value_change(self._build)
            self.kind.on_value_change(on_change)
            self._place = ui.element("div")
        self.values: Any = None

    def written(self) -> str:
        """As a `CompareRequest` takes it, "strength=0,0.5,1"; "" for none."""
        if not self.kind.value:
            return ""
        value = self.values.value
        if self.kind.value in FIRST and not isinstance(value, list):
            return f"{self.kind.value}={value or ''}"
        items = value if isinstance(value, list) else [line for line in (value or "").splitlines() if line]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(items)
        return f"{self.kind.value}={line.getvalue()}"

    def fill(self, written: str) -> None:
        """Take what `written` gave."""
        kind, _, rest = written.partition("=")
        if kind not in KINDS:
            return
        self.kind.set_value(kind)
        try:
            items = next(csv.reader([rest], skipinitialspace=True), [])
        except csv.Error:
            return
        if kind in self.choices:
            self.values.set_value([item for item in items if item in self.choices[kind]])
        else:
            self.values.set_value("\n".join(items) if kind in ("prompt", "size") else rest)

    def _build(self) -> None:
        """The field for the chosen kind's values."""
        kind = str(self.kind.value or "")
        self._place.clear()
        self.values = None
        if kind:
            with self._place:
                self.values = self._field(kind)

    def _field(self, kind: str) -> Any:
        t = self.t
        label = t("compare.values", axis=self.letter)
        if kind in self.choices:
            options = self.choices[kind]
            first = list(FIRST.get(kind, options[:3]))
            field: Any = ui.select(options, value=first, label=label, multiple=True, on_change=self.on_change)
            field.props("outlined dense options-dense use-chips")
        elif kind in ("prompt", "size"):
            sizes = f"{self.side}x{self.side}\n{self.side}x{self.side * 3 // 2 // 8 * 8}"
            field = ui.textarea(label, value=sizes if kind == "size" else "", on_change=self.on_change)
            field.props("outlined dense autogrow")
        else:
            field = ui.input(label, value=str(FIRST[kind]), on_change=self.on_change)
            field.props("outlined dense")
        field.props["hint"] = t(
            f"compare.hint_{kind if kind in (*self.choices, 'prompt', 'size') else 'numbers'}"
        )
        return field

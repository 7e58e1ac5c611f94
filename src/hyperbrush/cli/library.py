"""`hyperbrush list`: the folder of hypernetworks."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hyperbrush.cli.language import told
from hyperbrush.cli.options import DEFAULT_NETWORKS, Networks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hyperbrush.hypernetworks.library.library import Entry

app = typer.Typer()

NARROW = 110  # columns of a terminal below which a table would be cut to pieces


@app.command("list", rich_help_panel="Files")
def list_networks(
    hypernetworks: Networks = DEFAULT_NETWORKS,
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects; keys as in Entry.as_dict.")
    ] = False,
) -> None:
    """Hypernetworks of the library: what each is, what it was trained for, and its hash."""
    import json

    from hyperbrush.cli import console
    from hyperbrush.hypernetworks import HypernetworkLibrary

    entries = HypernetworkLibrary(hypernetworks).entries()
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=2))
        return
    if not entries:
        console.note(f"no hypernetworks in {hypernetworks}")
        console.suggest("hyperbrush demo")
        return
    show(entries, console.out, hypernetworks)
    for entry in entries:
        if entry.warning:
            console.note(f"{_clean(entry.name)}: {_clean(entry.warning)}")
    console.suggest(
        f"hyperbrush inspect {shlex.quote(_clean(entries[0].name))} --hypernetworks {shlex.quote(str(hypernetworks))}"
    )


def show(entries: "Sequence[Entry]", out: "Console", folder: Path) -> None:
    """Print entries: a table on a wide terminal, blocks on a narrow one, a line each into a pipe."""
    from rich.console import Console
    from rich.text import Text

    if not out.is_terminal:
        Console(file=out.file, width=10_000).print(_table(entries, plain=True))
    elif out.width >= NARROW:
        out.print(_table(entries, plain=False), soft_wrap=False)
        for entry in entries:
            if entry.error:
                out.print(
                    Text(f"{_clean(entry.name)}: {_clean(told(entry.error))}", style="red"), soft_wrap=False
                )
    else:
        for entry in entries:
            out.print(Text(_clean(entry.name), style="bold"))
            for label, value in zip(_LABELS[1:], _cells(entry)[1:], strict=True):
                if value:
                    style = "red" if label == "problem" else ""
                    out.print(Text(f"  {label}: {value}", style=style), soft_wrap=False)


_LABELS = (
    "name",
    "kind",
    "widths",
    "structure",
    "size",
    "trained for",
    "step",
    "hash",
    "trigger words",
    "problem",
)


def _table(entries: "Sequence[Entry]", *, plain: bool) -> "Table":
    """plain: nothing drawn, each entry on one line, with the problem in it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [_cells(entry) for entry in entries]
    optional = {"trained for", "trigger words", "problem"}
    shown = [
        i
        for i, label in enumerate(_LABELS)
        if label not in optional or (any(row[i] for row in rows) and (plain or label != "problem"))
    ]
    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i in shown:
        justify: Literal["left", "right"] = "right" if _LABELS[i] in ("size", "step") else "left"
        table.add_column(_LABELS[i], justify=justify, no_wrap=plain, overflow="fold")
    for entry, row in zip(entries, rows, strict=True):
        table.add_row(*(Text(row[i], style="red" if entry.error else "") for i in shown))
    return table


def _cells(entry: "Entry") -> list[str]:
    """An entry's texts, as `_LABELS`."""
    size, words = _bytes(entry.size), _clean(entry.notes.activation_text)
    s = entry.summary
    if s is None:
        problem = _clean(told(entry.error or ""))
        return [_clean(entry.name), "broken", "", "", size, "", "", entry.short_hash, words, problem]
    widths = f"{s.sites} sites" if s.sites else ", ".join(map(str, s.widths))
    structure = (
        f"{','.join(f'{x:g}' for x in s.structure)} {s.activation}{', LayerNorm' if s.layer_norm else ''}"
    )
    return [
        _clean(entry.name),
        s.kind,
        widths,
        structure,
        size,
        _clean(s.trained_for),
        str(s.step),
        entry.short_hash,
        words,
        "",
    ]


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _clean(text: str) -> str:
    """A text from a file or its name without what could rewrite a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)

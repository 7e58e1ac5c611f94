"""Tables on stdout that are never cut: pipes and files have no width, and a terminal wraps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 120


def show(table: "Table") -> None:
    """Print a table, at least 120 characters wide."""
    from rich.console import Console

    from hyperbrush.cli import console

    out = console.out
    Console(file=out.file, highlight=False, markup=False, emoji=False, width=max(out.width, _WIDTH)).print(
        table
    )

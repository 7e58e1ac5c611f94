"""`hyperbrush inspect`: everything there is to know of a hypernetwork file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Networks, complete_network
from hyperbrush.shell import quoted

if TYPE_CHECKING:
    from rich.table import Table

    from hyperbrush.hypernetworks.library.inspection import Inspection

app = typer.Typer()


@app.command(rich_help_panel="Files")
def inspect(
    file: Annotated[
        str, typer.Argument(help="A file, or a name in --hypernetworks.", autocompletion=complete_network)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    hypernetworks: Networks = DEFAULT_NETWORKS,
) -> None:
    """Tell everything about a hypernetwork file."""
    import json

    from hyperbrush.cli import console, tables
    from hyperbrush.cli.sources import find
    from hyperbrush.hypernetworks.files.adapters import is_generated_file
    from hyperbrush.hypernetworks.library.inspection import inspect as look

    path = find(file, hypernetworks)
    if is_generated_file(path):
        _show_generated(path, as_json)
        return
    found = look(path)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    console.done(f"{found.path}")
    tables.show(_facts(found))
    console.done("\nRead by")
    tables.show(_pairs(found.readers.items()))
    console.done("\nNetworks (effect: size of what strength 1 adds to random contexts, relative to them)")
    tables.show(_networks(found))
    for odd in found.odd:
        console.done(f"look at: {odd}")
    if not found.odd:
        console.done("nothing odd")
    _suggest(path)


def _show_generated(path: Path, as_json: bool) -> None:
    """Generated weights: what they change, and by how much."""
    import json

    from hyperbrush.cli import console, tables
    from hyperbrush.hypernetworks.library.inspection import generated_facts

    facts = generated_facts(path)
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False))
        return
    console.done(f"{path}")
    norms, metadata = facts.pop("norms"), facts.pop("metadata")
    assert isinstance(norms, dict)
    assert isinstance(metadata, dict)
    tables.show(_pairs((facts | metadata).items()))
    console.done("\nNorm of each layer's change")
    tables.show(_pairs(norms.items()))
    _suggest(path)


def _suggest(path: Path) -> None:
    """To see what the file does."""
    from hyperbrush.cli import console
    from hyperbrush.hypernetworks.files.packed import file_of, place_of

    folder = file_of(path).parent
    name = place_of(path.relative_to(folder))
    console.suggest(
        f'hyperbrush compare "cat face" --x strength=0,0.5,1 --y {quoted(f"hypernet={name}")} --model MODEL '
        f"--hypernetworks {quoted(folder)}"
    )


def _facts(found: "Inspection") -> "Table":
    network, settings = found.hypernetwork, found.hypernetwork.settings
    yes_no = {True: "yes", False: "no"}
    output = yes_no[settings.activate_output] + ("" if found.activate_output_given else " (by default)")
    dropout = ", ".join(f"{p:g}" for p in settings.rates) if any(settings.rates) else "none"
    zipped = " (torch's form before 2020)" if found.written.legacy_zip else ""
    structure = ",".join(f"{s:g}" for s in settings.layer_structure)
    rows: dict[str, object] = {
        "kind": found.summary.kind,
        "name": f"{network.name}, step {network.step}",
        "format": f"{found.summary.format}{zipped}, written by {found.written.writer}",
        "made for": found.summary.trained_for or "unknown",
        "networks": network.describe_keys(),
        "structure": f"{structure} {settings.activation}, output activated: {output}",
        "LayerNorm": yes_no[settings.layer_norm],
        "dropout": dropout,
        "residual": yes_no[settings.skip_connection] + (", projected" if settings.upsample_linear else ""),
        "first weights": network.weight_init,
        "numbers": f"{found.summary.parameters:,} {', '.join(found.dtypes)}, {found.size:,} bytes",
        "sha256": found.sha256,
        "hash": found.short_hash,
        "affine": "yes: it fuses exactly" if found.affine else "no",
        "optimizer": found.optimizer or "none beside it",
    }
    rows |= {key: value for key, value in network.metadata.items() if value is not None}
    if "modelspec.thumbnail" in rows:
        rows["modelspec.thumbnail"] = "a picture"
    return _pairs(rows.items())


def _pairs(items: Any) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in items:
        table.add_row(Text(str(name), style="bold"), Text(str(value)))
    return table


def _networks(found: "Inspection") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2))
    table.add_column("network", overflow="fold")
    for title in ("layers", "norms of the weights", "effect", "dead units"):
        table.add_column(title, no_wrap=True)
    for facts in found.networks:
        widths = [str(facts.layers[0][0]), *(str(out) for _, out in facts.layers)]
        table.add_row(
            Text(facts.name),
            " → ".join(widths),
            ", ".join(f"{norm:.3g}" for norm in facts.norms),
            f"{facts.effect:.3g}",
            ", ".join(f"{share:.0%}" for share in facts.dead) or "",
        )
    return table

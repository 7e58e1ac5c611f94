"""`hyperbrush doctor`: exactness, speed and pictures on the user's own model and files."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Device, Model, Networks, Precision

app = typer.Typer()


@app.command(rich_help_panel="Maintenance")
def doctor(
    model: Model = "emoji",
    hypernetworks: Networks = DEFAULT_NETWORKS,
    file: Annotated[
        list[Path] | None, typer.Option(help="Look at these files instead of the folder's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Page to write; the pictures go beside it.")] = Path("doctor.md"),
    prompt: Annotated[list[str] | None, typer.Option(help="Draw this; repeat for several.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps of the pictures.")] = 20,
    limit: Annotated[int, typer.Option(min=1, help="Files of the folder at most.")] = 5,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Check exactness, speed and pictures on your own model and files: one page to paste into an issue."""
    from hyperbrush.cli import console
    from hyperbrush.commands.doctor import PROMPTS, examine
    from hyperbrush.errors import UserError
    from hyperbrush.generation.opened import open_model
    from hyperbrush.hypernetworks import HypernetworkLibrary

    if file:
        files = list(file)
    elif hypernetworks.is_dir():
        library = HypernetworkLibrary(hypernetworks)
        files = list(library.files().values())[:limit]
    elif hypernetworks != DEFAULT_NETWORKS:
        raise UserError(f"no hypernetwork folder at {hypernetworks}: give one, or --file FILE")
    else:
        files = []
    opened = open_model(model, device=device, precision=precision).model
    with console.waiting("looking") as tell:
        found = examine(
            opened,
            files,
            name=model,
            prompts=prompt or PROMPTS,
            steps=steps,
            on_progress=tell,
        )
    console.done(found.page())
    console.note(f"written to {found.save(out)} and {out.with_suffix('.png')}")
    if not files:
        console.note("no hypernetwork files were looked at: give --hypernetworks DIR or --file FILE")
    if found.wrong or (file and found.of_other_models):
        raise typer.Exit(2 if found.files_alone else 1)
    _suggest(bool(files))


def _suggest(looked_at: bool) -> None:
    from hyperbrush.cli import console

    console.suggest("hyperbrush list" if looked_at else "hyperbrush demo")

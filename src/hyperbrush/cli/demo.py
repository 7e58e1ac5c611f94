"""`hyperbrush demo`: from nothing to a first network and its pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperbrush.cli.training import watch
from hyperbrush.errors import UserError

app = typer.Typer()


@app.command(rich_help_panel="Start here")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the grid, the report and the hypernetwork.")] = Path(
        "demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="40 steps and three prompts: is all in place?")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps; 150, 40 with --quick, or 50 of tuning with --hyper."),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    hyper: Annotated[
        bool,
        typer.Option("--hyper", help="Generate an adapter from three pictures in a second, then tune it."),
    ] = False,
    generator: Annotated[Path | None, typer.Option(help="With --hyper: another generator's file.")] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open its page in the browser.")] = True,
) -> None:
    """Train a first hypernetwork on 48 bundled pictures and see what it does (a few minutes)."""
    if generator is not None and not hyper:
        raise UserError("--generator is for --hyper")
    if quick and hyper:
        raise UserError("--quick and --hyper cannot be used together: leave one out")
    made: list[Path] = []

    def trained(on_prepare: object, **listeners: Any) -> str:
        from hyperbrush.commands.demo import QUICK, WHOLE, run_demo, run_hyper_demo

        if hyper:
            tuned = run_hyper_demo(out, generator=generator, steps=steps or 50, seed=seed, **listeners)
            made.append(tuned.grid)
            return tuned.summary()
        result = run_demo(out, QUICK if quick else WHOLE, steps=steps, seed=seed, **listeners)
        made.append(result.report)
        return result.summary()

    watch("hyperbrush train", "ink", trained)
    if browser:
        from hyperbrush.cli import console

        for page in made:
            console.show_page(page)

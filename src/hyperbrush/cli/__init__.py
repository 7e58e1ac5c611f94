"""The command line: one command per thing the user does, a module per kind of thing."""

import sys
from typing import Annotated, Any

import typer

from hyperbrush.cli import convert, demo, doctor, draw, inspect, library, serve, train
from hyperbrush.cli.hyper import hyper
from hyperbrush.cli.language import choose, told
from hyperbrush.cli.ldm import ldm
from hyperbrush.cli.options import completes
from hyperbrush.errors import UserError

app = typer.Typer(
    name="hyperbrush",
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Hypernetworks for Stable Diffusion: use, train and generate them.",
)
for commands in (demo.app, serve.app, draw.app, train.app):
    app.add_typer(commands)
app.add_typer(hyper, name="hyper", rich_help_panel="Train")
app.add_typer(ldm, name="ldm", rich_help_panel="Train")
for commands in (library.app, inspect.app, convert.app, doctor.app, serve.workers):
    app.add_typer(commands)

FIRST = {  # commands a newcomer wants, and what for
    "hyperbrush demo": "see what a hypernetwork does",
    "hyperbrush serve": "do everything in the browser",
    'hyperbrush generate "cat face"': "draw a picture",
    'hyperbrush generate "a city <hypernet:NAME>" --model MODEL': "draw with a file of models/hypernetworks",
    "hyperbrush train --data PICTURES --name mine": "train on your pictures",
    "hyperbrush inspect FILE.pt": "look into a file",
}


def _greet() -> None:
    """What one can do, where no command was given."""
    from hyperbrush import __version__
    from hyperbrush.cli import console

    console.done(
        f"hyperbrush {__version__}: hypernetworks for Stable Diffusion, used, trained and generated\n"
    )
    for command, purpose in FIRST.items():
        console.out.print(f"  {told(purpose)}", style="dim")
        console.out.print(f"    {command}")
    console.done("\nall commands: hyperbrush --help")


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    language: Annotated[
        str,
        typer.Option(
            help="Of errors and notes: en, ko or zh; LANG's if left out.",
            show_default=False,
            autocompletion=completes("en", "ko", "zh"),
        ),
    ] = "",
) -> None:
    choose(language)
    if version:
        from hyperbrush import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        _greet()
    if verbose:
        from hyperbrush.ldm.util import setup_logging

        setup_logging("INFO")
    else:
        import logging

        logging.basicConfig(level=logging.ERROR, format="%(message)s")
        logging.getLogger("hyperbrush").setLevel(logging.WARNING)  # a damaged checkpoint passed over, say


def _at_home(arguments: list[str]) -> list[str]:
    """Arguments with ~ as the home folder in options' values, also where no shell has done so: --data=~/pictures."""
    from pathlib import Path

    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if value.startswith("~/") and (equals or before.startswith("-")):
            argument = f"{option}{equals}{Path(value).expanduser()}"
        found.append(argument)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run a command: status 0, 2 for what the user can mend (one line), 1 for a bug."""
    import os
    import warnings

    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # Pillow's are about single pictures that they do not name; the preflight does.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        given = sys.argv[1:] if arguments is None else arguments
        result: Any = app(args=_at_home(given), standalone_mode=False)
    except UserError as error:
        print(f"hyperbrush: {told(error)}", file=sys.stderr)
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"hyperbrush: {told('stopped')}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # torch's
            short = UserError(
                "out of memory: take smaller pictures, fewer at once (--batch), --precision fp16 or --attention sliced"
            )
            print(f"hyperbrush: {told(short)}", file=sys.stderr)
            sys.exit(2)
        if not hasattr(error, "format_message"):  # what click raises for a wrong command line
            raise
        if message := error.format_message():  # of a group without a command, the help stands there already
            print(f"hyperbrush: {told(message)}; {told('see hyperbrush --help')}", file=sys.stderr)
        sys.exit(2)
    sys.exit(result if isinstance(result, int) else 0)

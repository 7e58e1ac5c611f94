"""`hyperbrush serve`: the web app; and the worker it starts."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.errors import UserError

app = typer.Typer()
workers = typer.Typer()

Folder = Annotated[
    Path, typer.Option(help="Workspace: its models/hypernetworks, runs, datasets and outputs.")
]


@app.command(rich_help_panel="Start here")
def serve(
    folder: Folder = Path(),
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine a token is asked.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7870,
    name: Annotated[
        list[str] | None, typer.Option(help="Another name browsers may call this machine by; repeat.")
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="HYPERBRUSH_TOKEN", help="Asked of everyone; made up beyond the loopback.")
    ] = "",
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key (PEM).")] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Serve the web app: train, watch, manage and use hypernetworks in the browser."""
    from hyperbrush.cli import console

    try:
        from hyperbrush.app.server import Address, serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"the web app needs {error.name}, which is not installed: pip install 'hyperbrush[app]'"
        ) from error
    from hyperbrush.app.workspace import Workspace

    def ready(url: str) -> None:
        console.done(f"hyperbrush is at {url}  (Ctrl-C stops the pages; a training goes on)")
        if browser:
            import webbrowser

            webbrowser.open(url)

    address = Address(host, port, tuple(name or ()), certificate, key)
    serve(Workspace(folder), address, token=token, on_ready=ready)


@workers.command(rich_help_panel="Maintenance")
def worker(
    folder: Folder = Path(),
    device: Annotated[str, typer.Option(help="Whose jobs are done: cpu, cuda, cuda:1 or mps.")] = "cpu",
) -> None:
    """Do the jobs of the web app's queue; `hyperbrush serve` starts one where none runs."""
    import faulthandler

    from hyperbrush.app.jobs.worker import Worker
    from hyperbrush.app.workspace import Workspace

    faulthandler.enable()
    Worker(Workspace(folder), device).run()

"""`hyperbrush list`: the folder of hypernetworks."""

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Networks

app = typer.Typer()


@app.command("list")
def list_networks(hypernetworks: Networks = DEFAULT_NETWORKS) -> None:
    """Names of the hypernetworks in the library."""
    from hyperbrush import console
    from hyperbrush.hypernetworks import HypernetworkLibrary

    names = HypernetworkLibrary(hypernetworks).names()
    for name in names:
        console.done(name)
    if not names:
        console.note(f"no hypernetworks in {hypernetworks}")

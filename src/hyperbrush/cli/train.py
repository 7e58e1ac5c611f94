"""`hyperbrush train`, `demo` and `evaluate`: hypernetworks learned and measured."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Model, Networks
from hyperbrush.errors import UserError

app = typer.Typer()


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="Folder of pictures with captions.")] = None,
    name: Annotated[str, typer.Option(help="Name of the hypernetwork.")] = "",
    model: Model = "emoji",
    validation: Annotated[
        Path | None, typer.Option(help="Folder of held-out pictures; else a tenth of the data.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; 20 epochs by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Of the previews; repeat for several.")] = None,
    hypernetworks: Networks = DEFAULT_NETWORKS,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    at: Annotated[
        int | None, typer.Option(help="Step to resume at; the newest checkpoint by default.")
    ] = None,
) -> None:
    """Train a hypernetwork on a folder of pictures."""
    from hyperbrush import console
    from hyperbrush.training.hypernetwork_run import HypernetworkRun, read_run, save_run, train_run
    from hyperbrush.training.trainer import Interrupted

    if resume is not None:
        folder, config = resume, read_run(resume)
    else:
        if data is None or not name:
            raise UserError("give --data FOLDER and --name NAME (or --resume RUN)")
        folder = run or Path("runs") / name
        given = {
            "max_steps": steps,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "seed": seed,
            "prompts": prompt or None,
        }
        config = HypernetworkRun.of(
            name=name,
            data=str(data),
            model=model,
            hypernetworks=str(hypernetworks),
            validation=str(validation) if validation else None,
            training={k: v for k, v in given.items() if v is not None},
        )
        save_run(config, folder)
    with console.stop_on_signal() as should_stop, console.training_bar(config.name) as told:
        try:
            result = train_run(
                config, folder, resume=resume is not None, at=at, on_progress=told, should_stop=should_stop
            )
        except Interrupted as stopped:
            console.note(f"stopped after step {stopped.step}; go on with: hyperbrush train --resume {folder}")
            raise typer.Exit(130) from None
    console.done(result.summary())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the grid, the report and the hypernetwork.")] = Path(
        "demo"
    ),
    steps: Annotated[int, typer.Option(help="Training steps.")] = 150,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a first hypernetwork on 48 bundled pictures and see what it does (a few minutes)."""
    from hyperbrush import console
    from hyperbrush.demo import run_demo
    from hyperbrush.training.trainer import Interrupted

    with console.stop_on_signal() as should_stop, console.training_bar("ink") as told:
        try:
            result = run_demo(out, steps=steps, seed=seed, on_progress=told, should_stop=should_stop)
        except Interrupted as stopped:
            console.note(
                f"stopped after step {stopped.step}; go on with: hyperbrush train --resume {stopped.run}"
            )
            raise typer.Exit(130) from None
    console.done(result.summary())


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of held-out pictures with captions.")],
    model: Model = "emoji",
    hypernetwork: Annotated[str, typer.Option(help="Name or file to compare with the bare model.")] = "",
    hypernetworks: Networks = DEFAULT_NETWORKS,
    limit: Annotated[int, typer.Option(help="Pictures at most.")] = 256,
) -> None:
    """Denoising loss on held-out pictures, and the first stage's PSNR, over one fixed grid."""
    from hyperbrush import console
    from hyperbrush.evaluation import evaluate_folder

    for line in evaluate_folder(
        data, model=model, hypernetwork=hypernetwork, library=hypernetworks, limit=limit
    ):
        console.done(line)

"""`hyperbrush train`, `sweep` and `evaluate`: hypernetworks learned and measured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Device, Model, Networks, complete_network
from hyperbrush.cli.training import (
    At,
    BaseModel,
    BatchSize,
    DryRun,
    LearningRate,
    Overwrite,
    Processes,
    Prompts,
    Resume,
    Run,
    Seed,
    Settings,
    check_at,
    launch_processes,
    loop_values,
    show_report,
    watch,
)
from hyperbrush.errors import UserError
from hyperbrush.shell import quoted

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun

app = typer.Typer()

# As `training.attention.config.PRESETS` has them: completion must not wait for torch.
PRESETS = ("quick", "balanced", "quality", "style", "subject")


def complete_preset(incomplete: str) -> list[str]:
    """Presets that begin so, after those given already."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in PRESETS if name.startswith(last)]


@app.command(rich_help_panel="Train")
def train(
    config: Settings = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures with captions; repeat for several.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the hypernetwork.")] = "",
    preset: Annotated[
        str,
        typer.Option(
            help="quick, balanced, quality; style, subject; or two: quick,style.",
            autocompletion=complete_preset,
        ),
    ] = "",
    model: BaseModel = "",
    validation: Annotated[
        list[Path] | None, typer.Option(help="Folder of held-out pictures; else a tenth of the data.")
    ] = None,
    start_from: Annotated[
        str,
        typer.Option(
            "--from",
            "--init",
            help="File to go on from: a hypernetwork (.pt with its .optim too), or generated weights.",
        ),
    ] = "",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; 20 epochs by default.")] = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    prompt: Prompts = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="Any other setting, as KEY=VALUE: -s loss=huber -s layer_norm=true."
        ),
    ] = None,
    hypernetworks: Annotated[
        Path | None, typer.Option(help="Folder the file goes to; models/hypernetworks by default.")
    ] = None,
    run: Run = None,
    resume: Resume = None,
    at: At = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    find_batch_size: Annotated[
        bool, typer.Option("--find-batch-size", help="The most pictures at once that fit; train nothing.")
    ] = False,
    processes: Processes = 1,
    server: Annotated[
        str,
        typer.Option(
            help="Address of a running `hyperbrush serve` that trains instead; data: its datasets, or folders here."
        ),
    ] = "",
    token: Annotated[str, typer.Option(envvar="HYPERBRUSH_TOKEN", help="Of that server.")] = "",
) -> None:
    """Train a hypernetwork on a folder of pictures."""
    from hyperbrush.training.attention.run import HypernetworkRun, configured, train_run
    from hyperbrush.training.loop.settings import resumed

    check_at(at, resume)
    here = {
        "--resume": resume,
        "--at": at,
        "--run": run,
        "--hypernetworks": hypernetworks,
        "--find-batch-size": find_batch_size,
        "--processes": processes > 1,
        "--overwrite": overwrite,
    }
    if server and (used := [flag for flag, value in here.items() if value]):
        raise UserError(
            f"{', '.join(used)} cannot be used with --server: leave it out, or see the run's page"
        )
    launch_processes(processes, trying=dry_run or find_batch_size)
    given: dict[str, Any] = {
        "settings": setting or (),
        "training": loop_values(steps, learning_rate, batch_size, seed, prompt),
        "name": name,
        "data": [str(folder) for folder in data or ()],
        "validation": [str(folder) for folder in validation or ()],
        "model": model,
        "start_from": start_from,
        "hypernetworks": str(hypernetworks) if hypernetworks else "",
    }
    changed = False
    if resume is not None:
        refused = {
            str(config): config,
            "--preset": preset,
            "--run": run,
            "--find-batch-size": find_batch_size,
        }
        settings, changed = resumed(HypernetworkRun, resume, at=at, refused=refused, **given)
    elif config is None and not (data and name):
        raise UserError("give --data FOLDER and --name NAME, a file of settings, or --resume RUN")
    else:
        settings = configured(config, presets=preset, **given)
    folder = resume or run or Path("runs") / settings.name
    if server:
        from hyperbrush.cli import remote

        sent = settings.model_dump(mode="json", exclude_unset=True, exclude={"hypernetworks"})
        remote.train(settings, sent, remote.Server(server, token), dry_run=dry_run)
    elif dry_run or find_batch_size:
        _try_out(settings, folder, dry_run, find_batch_size, at, resume=resume is not None)
    else:

        def trained(**listeners: Any) -> str:
            return train_run(
                settings,
                folder,
                resume=resume is not None,
                at=at,
                changed=changed,
                overwrite=overwrite,
                on_report=show_report,
                **listeners,
            ).summary()

        watch("hyperbrush train", settings.name, trained)


def _try_out(
    config: "HypernetworkRun", run: Path, dry_run: bool, batch: bool, at: int | None, *, resume: bool
) -> None:
    """What a training would be: its plan, a batch size."""
    from hyperbrush.cli import console
    from hyperbrush.training.before.plan import plan, suggest_batch_size
    from hyperbrush.training.loop.run_folder import step_to_go_on_from

    if dry_run:
        console.done(plan(config, done=step_to_go_on_from(run, at) if resume else 0).text())
        console.suggest_without("--dry-run")
    if batch:
        with console.preparing_bar() as on_prepare:
            size = suggest_batch_size(config, run, on_prepare)
        console.done(
            f"{size} pictures at a time fit: batch_size up to that, or gradient_accumulation beyond it"
        )


@app.command(rich_help_panel="Train")
def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file: a training, and 'sweep' with a grid or a list.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the sweep; runs/CONFIG by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a sweep; on several machines at once if they share it.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes on this machine, or jobs of the cluster with --executor.")
    ] = 1,
    executor: Annotated[
        str,
        typer.Option(
            help="slurm: the workers are jobs of the cluster; local: the same on this machine, to try it out.",
            autocompletion=lambda incomplete: [n for n in ("slurm", "local") if n.startswith(incomplete)],
        ),
    ] = "",
    overwrite: Overwrite = False,
    only_work: Annotated[
        bool, typer.Option("--only-work", hidden=True, help="Leave table and picture to another process.")
    ] = False,
) -> None:
    """Train with every setting of a grid or list; one table and picture at the end."""
    import contextlib
    from collections.abc import Iterator

    from hyperbrush.cli import console
    from hyperbrush.cli.tables import show
    from hyperbrush.training.loop.progress import PrepareCallback, Progress
    from hyperbrush.training.sweep.run import begin, work
    from hyperbrush.training.sweep.table import finish

    if (config is None) == (resume is None):
        raise UserError("give a sweep's YAML file, or --resume FOLDER")
    if resume is not None and run is not None:
        raise UserError("--resume names the sweep's folder; leave --run out")

    @contextlib.contextmanager
    def bars(name: str) -> Iterator[tuple[PrepareCallback, Callable[[Progress], None]]]:
        with console.preparing_bar() as on_prepare, console.training_bar(name) as on_progress:
            yield on_prepare, on_progress

    folder = (
        resume
        if resume is not None
        else begin(Path(str(config)), run, workers=workers, executor=executor, overwrite=overwrite)
    )
    with console.stop_on_signal() as should_stop:
        done = work(
            folder,
            workers=workers,
            executor=executor,
            note=console.note,
            bars=bars,
            should_stop=should_stop,
        )
    if not done:
        more = f" --executor {executor}" if executor else ""
        more += f" --workers {workers}" if workers > 1 else ""
        console.note(f"stopped; go on with: hyperbrush sweep --resume {quoted(folder)}{more}")
        raise typer.Exit(130)
    if not only_work:
        found = finish(folder)
        show(found.table())
        console.done(found.text())


@app.command(rich_help_panel="Train")
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of held-out pictures with captions.")],
    model: Model = "emoji",
    hypernetwork: Annotated[
        str,
        typer.Option(help="Name or file to compare with the bare model.", autocompletion=complete_network),
    ] = "",
    hypernetworks: Networks = DEFAULT_NETWORKS,
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most.")] = 256,
    classes: Annotated[
        str, typer.Option(help="Of models told classes: folders in the folder, or captions.")
    ] = "folders",
    condition_folder: Annotated[
        Path | None, typer.Option(help="Of models told pictures: such of the same names; else small ones.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Denoising loss on held-out pictures, and the first stage's PSNR, over one fixed grid."""
    from hyperbrush.cli import console
    from hyperbrush.cli.sources import find
    from hyperbrush.commands.evaluation import evaluate_folder

    file = find(hypernetwork, hypernetworks) if hypernetwork else None
    for line in evaluate_folder(
        data,
        model=model,
        hypernetwork=file,
        limit=limit,
        classes=classes,
        condition_folder=condition_folder,
        device=device,
    ):
        console.done(line)
    own = "" if model == "emoji" else f" --model {quoted(model)}"
    if file is None:
        console.suggest(f"hyperbrush train --data PICTURES --name mine{own}")
        return
    folder = "" if file.parent == DEFAULT_NETWORKS else f" --hypernetworks {quoted(file.parent)}"
    console.suggest(
        f'hyperbrush compare "cat face" --x strength=0,0.5,1 --y hypernet={quoted(file.stem)}{own}{folder}'
    )

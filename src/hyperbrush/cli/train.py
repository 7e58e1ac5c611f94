"""`hyperbrush train`, `sweep`, `demo` and `evaluate`: hypernetworks learned and measured."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Model, Networks
from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun

app = typer.Typer()

# As `training.hypernetwork_config.PRESETS` has them: completion must not wait for torch.
PRESETS = ("quick", "balanced", "quality", "style", "subject")


def complete_preset(incomplete: str) -> list[str]:
    """Presets that begin so, after those given already."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in PRESETS if name.startswith(last)]


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of settings; flags win over it. Or flags alone.")
    ] = None,
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
    model: Annotated[
        str, typer.Option(help="emoji (embedded, the default), a diffusers folder, a checkpoint or a hub id.")
    ] = "",
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
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Peak; by steps: -s schedule='5e-5:100, 5e-6:1000'."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Of the previews; repeat for several.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="Any other setting, as KEY=VALUE: -s loss=huber -s layer_norm=true."
        ),
    ] = None,
    hypernetworks: Annotated[
        Path | None, typer.Option(help="Folder the file goes to; models/hypernetworks by default.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run folder to go on with; --steps, --lr, --prompt, moved --data may change."),
    ] = None,
    at: Annotated[
        int | None, typer.Option(help="Step to resume at; the newest checkpoint by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show pictures, steps, memory and time; train nothing.")
    ] = False,
    find_lr: Annotated[bool, typer.Option("--find-lr", hidden=True)] = False,
    find_batch_size: Annotated[
        bool, typer.Option("--find-batch-size", help="The most pictures at once that fit; train nothing.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Train with so many processes on this machine.")] = 1,
    server: Annotated[
        str,
        typer.Option(
            help="Address of a running `hyperbrush serve` that trains instead; data: its datasets, or folders here."
        ),
    ] = "",
    token: Annotated[str, typer.Option(envvar="HYPERBRUSH_TOKEN", help="Of that server.")] = "",
) -> None:
    """Train a hypernetwork on a folder of pictures."""
    from hyperbrush.training.attention.run import HypernetworkRun, configured

    if find_lr:
        raise UserError(
            "--find-lr is no more, since its rates did worse than the default: leave the rate to the default or to "
            "-s optimizer=prodigy, or compare some by `hyperbrush sweep` (docs/sweeps.md)"
        )
    if processes < 1:
        raise UserError(f"--processes {processes}; expected 1 or more")
    if at is not None and resume is None:
        raise UserError(
            f"--at {at} is the step that --resume RUN goes on from; give the run, or leave it out"
        )
    if server:
        here = {
            "--resume": resume,
            "--at": at,
            "--run": run,
            "--hypernetworks": hypernetworks,
            "--find-batch-size": find_batch_size,
            "--processes": processes > 1,
        }
        if used := [flag for flag, value in here.items() if value]:
            raise UserError(
                f"{', '.join(used)} cannot be used with --server: leave it out, or see the run's page"
            )
    trying = dry_run or find_batch_size
    if processes > 1 and not trying:
        from hyperbrush.training.loop.launch import launch

        raise typer.Exit(launch(processes))
    given = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "prompts": prompt or None,
    }
    if resume is not None:
        from hyperbrush.training.loop.going_on import resumed

        settings, changed = resumed(
            HypernetworkRun,
            resume,
            at=at,
            refused={
                str(config): config,
                "--preset": preset,
                "--run": run,
                "--find-batch-size": find_batch_size,
            },
            settings=setting or (),
            training=given,
            name=name,
            model=model,
            start_from=start_from,
            data=[str(folder) for folder in data or ()],
            validation=[str(folder) for folder in validation or ()],
            hypernetworks=str(hypernetworks) if hypernetworks else "",
        )
        if dry_run:
            _try_out(settings, resume, dry_run=True, at=at, resume=True)
        else:
            _train(settings, resume, resume=True, at=at, changed=changed)
        return
    if config is None and not (data and name):
        raise UserError("give --data FOLDER and --name NAME, a file of settings, or --resume RUN")
    settings = configured(
        config,
        presets=preset,
        settings=setting or (),
        name=name,
        data=[str(folder) for folder in data or ()],
        validation=[str(folder) for folder in validation or ()],
        model=model,
        start_from=start_from,
        hypernetworks=str(hypernetworks) if hypernetworks else "",
        training=given,
    )
    if server:
        from hyperbrush.cli import remote

        sent = settings.model_dump(mode="json", exclude_unset=True, exclude={"hypernetworks"})
        remote.train(settings, sent, remote.Server(server, token), dry_run=dry_run)
        return
    folder = run or Path("runs") / settings.name
    if trying:
        _try_out(settings, folder, dry_run=dry_run, batch=find_batch_size)
        return
    _train(settings, folder)


def _train(
    config: "HypernetworkRun",
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
) -> None:
    from hyperbrush.cli import console
    from hyperbrush.training.attention.run import train_run
    from hyperbrush.training.loop.processes import is_main
    from hyperbrush.training.loop.trainer import Interrupted

    with (
        console.stop_on_signal() as should_stop,
        console.preparing_bar() as prepared,
        console.training_bar(config.name) as told,
    ):
        try:
            result = train_run(
                config,
                run,
                resume=resume,
                at=at,
                changed=changed,
                on_report=lambda report: console.note(report.text(limit=4)) if report.findings else None,
                on_prepare=prepared,
                on_progress=told,
                should_stop=should_stop,
            )
        except Interrupted as stopped:
            if is_main():
                console.stopped(stopped, "hyperbrush train")
            raise typer.Exit(130) from None
    if is_main():
        console.done(result.summary())


def _try_out(
    config: "HypernetworkRun",
    run: Path,
    *,
    dry_run: bool,
    batch: bool = False,
    resume: bool = False,
    at: int | None = None,
) -> None:
    """What a training would be: its plan, a batch size."""
    from hyperbrush.cli import console
    from hyperbrush.training.before.plan import plan, suggest_batch_size

    if dry_run:
        from hyperbrush.training.loop.run_folder import step_to_go_on_from

        console.done(plan(config, done=step_to_go_on_from(run, at) if resume else 0).text())
    if batch:
        with console.preparing_bar() as prepared:
            size = suggest_batch_size(config, run, prepared)
        console.done(
            f"{size} pictures at a time fit: batch_size up to that, or gradient_accumulation beyond it"
        )


@app.command()
def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file: a training, and 'sweep' with a grid or a list.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the sweep; runs/CONFIG by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a sweep; on several machines at once if they share it.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    only_work: Annotated[
        bool, typer.Option("--only-work", hidden=True, help="Leave table and picture to another process.")
    ] = False,
) -> None:
    """Train with every setting of a grid or list; one table and picture at the end."""
    import contextlib
    from collections.abc import Iterator

    from hyperbrush.cli import console
    from hyperbrush.cli.tables import show
    from hyperbrush.training.data.cached import Told
    from hyperbrush.training.loop.trainer import Progress
    from hyperbrush.training.sweep.run import begin, work
    from hyperbrush.training.sweep.table import finish

    if (config is None) == (resume is None):
        raise UserError("give a sweep's YAML file, or --resume FOLDER")
    if resume is not None and run is not None:
        raise UserError("--resume names the sweep's folder; leave --run out")

    @contextlib.contextmanager
    def bars(name: str) -> Iterator[tuple[Told, Callable[[Progress], None]]]:
        with console.preparing_bar() as prepared, console.training_bar(name) as told:
            yield prepared, told

    folder = resume if resume is not None else begin(Path(str(config)), run)
    with console.stop_on_signal() as should_stop:
        done = work(folder, workers=workers, note=console.note, bars=bars, should_stop=should_stop)
    if not done:
        more = f" --workers {workers}" if workers > 1 else ""
        console.note(f"stopped; go on with: hyperbrush sweep --resume {shlex.quote(str(folder))}{more}")
        raise typer.Exit(130)
    if not only_work:
        found = finish(folder)
        show(found.table())
        console.done(found.text())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the grid, the report and the hypernetwork.")] = Path(
        "demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; 150, or 50 of tuning with --hyper.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    hyper: Annotated[
        bool,
        typer.Option("--hyper", help="Generate an adapter from three pictures in a second, then tune it."),
    ] = False,
    generator: Annotated[Path | None, typer.Option(help="With --hyper: another generator's file.")] = None,
) -> None:
    """Train a first hypernetwork on 48 bundled pictures and see what it does (a few minutes)."""
    from hyperbrush.cli import console
    from hyperbrush.commands.demo import run_demo
    from hyperbrush.training.loop.trainer import Interrupted

    if generator is not None and not hyper:
        raise UserError("--generator is for --hyper")

    with console.stop_on_signal() as should_stop, console.training_bar("ink") as told:
        try:
            if hyper:
                from hyperbrush.commands.demo import run_hyper_demo

                made = run_hyper_demo(
                    out,
                    generator=generator,
                    steps=steps or 50,
                    seed=seed,
                    on_progress=told,
                    should_stop=should_stop,
                )
                summary = made.summary()
            else:
                summary = run_demo(
                    out, steps=steps or 150, seed=seed, on_progress=told, should_stop=should_stop
                ).summary()
        except Interrupted as stopped:
            console.stopped(stopped, "hyperbrush train")
            raise typer.Exit(130) from None
    console.done(summary)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of held-out pictures with captions.")],
    model: Model = "emoji",
    hypernetwork: Annotated[str, typer.Option(help="Name or file to compare with the bare model.")] = "",
    hypernetworks: Networks = DEFAULT_NETWORKS,
    limit: Annotated[int, typer.Option(help="Pictures at most.")] = 256,
    classes: Annotated[
        str, typer.Option(help="Of models told classes: folders in the folder, or captions.")
    ] = "folders",
    condition_folder: Annotated[
        Path | None, typer.Option(help="Of models told pictures: such of the same names; else small ones.")
    ] = None,
) -> None:
    """Denoising loss on held-out pictures, and the first stage's PSNR, over one fixed grid."""
    from hyperbrush.cli import console
    from hyperbrush.commands.evaluation import evaluate_folder

    for line in evaluate_folder(
        data,
        model=model,
        hypernetwork=hypernetwork,
        library=hypernetworks,
        limit=limit,
        classes=classes,
        condition_folder=condition_folder,
    ):
        console.done(line)

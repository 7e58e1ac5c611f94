"""What the commands that train share: options, and how a training is launched, watched and stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.before.preflight import Preflight

Settings = Annotated[
    Path | None, typer.Argument(help="YAML file of settings; flags win over it. Or flags alone.")
]
BaseModel = Annotated[
    str, typer.Option(help="emoji (embedded, the default), a diffusers folder, a checkpoint or a hub id.")
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", "--lr", help="Peak; by steps: -s schedule='5e-5:100, 5e-6:1000'."),
]
BatchSize = Annotated[int | None, typer.Option(help="Pictures per step.")]
Seed = Annotated[int | None, typer.Option(help="Everything random follows from it.")]
Prompts = Annotated[list[str] | None, typer.Option(help="Of the previews; repeat for several.")]
Run = Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Run folder to go on with; --steps, --lr, --prompt, moved --data may change."),
]
At = Annotated[int | None, typer.Option(help="Step to resume at; the newest checkpoint by default.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file of this name where the finished one goes.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show pictures, steps, memory and time; train nothing.")
]
Processes = Annotated[int, typer.Option(help="Train with so many processes on this machine.")]


def loop_values(
    steps: int | None,
    learning_rate: float | None,
    batch_size: int | None,
    seed: int | None,
    prompts: Sequence[str] | None,
) -> dict[str, Any]:
    """What these options say of an adapter's training."""
    return {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "prompts": prompts or None,
    }


def check_at(at: int | None, resume: Path | None) -> None:
    """Refuse a step to resume at without a run to resume."""
    if at is not None and resume is None:
        raise UserError(
            f"--at {at} is the step that --resume RUN goes on from; give the run, or leave it out"
        )


def launch_processes(processes: int, *, trying: bool) -> None:
    """Become the launcher of several processes where several are asked for; trying: one does for what is tried out.

    Raises:
        UserError: none are asked for.
        typer.Exit: the training of several is over.
    """
    if processes < 1:
        raise UserError(f"--processes {processes}; expected 1 or more")
    if processes > 1 and not trying:
        from hyperbrush.training.loop.launch import launch

        raise typer.Exit(launch(processes))


def show_report(report: "Preflight") -> None:
    """What a preflight found, where it found anything."""
    from hyperbrush.cli import console

    if report.findings:
        console.note(report.text(limit=4))


def watch(command: str, name: str, train: Callable[..., str]) -> None:
    """Train under progress bars, to be stopped by signals, and show the result.

    command: that goes on with a stopped training. train: is called with ``on_prepare``, ``on_progress`` and
    ``should_stop``; gives what to show in the end.

    Raises:
        typer.Exit: it was stopped.
    """
    from hyperbrush.cli import console
    from hyperbrush.training.loop.processes import is_main
    from hyperbrush.training.loop.progress import Interrupted

    with (
        console.stop_on_signal() as should_stop,
        console.preparing_bar() as on_prepare,
        console.training_bar(name) as on_progress,
    ):
        try:
            result = train(on_prepare=on_prepare, on_progress=on_progress, should_stop=should_stop)
        except Interrupted as stopped:
            if is_main():
                console.stopped(stopped, command)
            raise typer.Exit(130) from None
    if is_main():
        console.done(result)

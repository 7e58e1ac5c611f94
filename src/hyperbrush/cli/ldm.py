"""`hyperbrush ldm train` and `ldm sample`: latent diffusion models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperbrush.cli.options import Device, Guidance, Model, Precision, Sampler, Seed, Steps
from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.training.ldm.config import Run

ldm = typer.Typer(no_args_is_help=True, help="Latent diffusion models: train one, sample from one.")


@ldm.command("train")
def ldm_train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file; flags win over it. recipes/emoji has two.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Peak; by steps: -s schedule='5e-5:100, 5e-6:1000'."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Of a diffusion model's previews; repeat for several.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="Any other setting, as KEY=VALUE: -s crop=random -s validation_share=0.1."
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/CONFIG by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to go on with; --steps, --lr, --prompt may change.")
    ] = None,
    at: Annotated[
        int | None, typer.Option(help="Step to resume at; the newest checkpoint by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show pictures, steps, memory and time; train nothing.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Train with so many processes on this machine.")] = 1,
) -> None:
    """Train a first stage or a diffusion model from a config."""
    from hyperbrush.training.ldm.training import settings_of, settings_to_go_on

    if (config is None) == (resume is None):
        raise UserError("give a config file, or --resume RUN")
    if processes < 1:
        raise UserError(f"--processes {processes}; expected 1 or more")
    if resume is None and at is not None:
        raise UserError(
            f"--at {at} is the step that --resume RUN goes on from; give the run, or leave it out"
        )
    if resume is not None and run is not None:
        raise UserError("--resume names the run's folder; leave --run out")
    if processes > 1 and not dry_run:
        from hyperbrush.training.loop.launch import launch

        raise typer.Exit(launch(processes))
    numbers = {"steps": steps, "batch_size": batch_size, "seed": seed}
    training = numbers | ({} if learning_rate is None else {"optimizer": {"learning_rate": learning_rate}})
    given: dict[str, Any] = {"settings": setting or (), "training": training, "prompts": prompt}
    if resume is not None:
        folder = resume
        settings, changed = settings_to_go_on(resume, at=at, **given)
    else:
        assert config is not None
        folder, changed = run or Path("runs") / config.stem, False
        settings = settings_of(config, **given)
    if dry_run:
        from hyperbrush.cli import console
        from hyperbrush.training.ldm.plan import plan_ldm
        from hyperbrush.training.loop.run_folder import step_to_go_on_from

        done = step_to_go_on_from(folder, at) if resume is not None else 0
        console.done(plan_ldm(settings, done=done).text())
        return
    _train(settings, folder, resume=resume is not None, at=at, changed=changed)


def _train(config: "Run", run: Path, *, resume: bool, at: int | None, changed: bool) -> None:
    from hyperbrush.cli import console
    from hyperbrush.training.ldm.training import train_ldm
    from hyperbrush.training.loop.processes import is_main
    from hyperbrush.training.loop.trainer import Interrupted

    with (
        console.stop_on_signal() as should_stop,
        console.preparing_bar() as prepared,
        console.training_bar(config.kind) as told,
    ):
        try:
            saved = train_ldm(
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
                console.stopped(stopped, "hyperbrush ldm train")
            raise typer.Exit(130) from None
    if is_main():
        console.done(f"{saved}")


@ldm.command("sample")
def ldm_sample(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="One picture each; none for models that read no text.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Grid to write.")] = Path("sample.png"),
    model: Model = "emoji",
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Class of pictures, by name or number; repeat for several. In turn by default."
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Picture that a model conditioned by pictures is told of; repeat for several."),
    ] = None,
    hypernetwork: Annotated[
        Path | None, typer.Option(help="Attach this file's hypernetwork; --strength says how strongly.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Of the hypernetwork.")] = 1.0,
    count: Annotated[int, typer.Option(help="Pictures without prompts; of each --class or --image.")] = 4,
    seed: Seed = 0,
    steps: Steps = 25,
    sampler: Sampler = "DPM++ 2M Karras",
    cfg: Guidance = 4.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Sample a grid of pictures from a latent diffusion model."""
    from contextlib import nullcontext

    from hyperbrush.cli import console
    from hyperbrush.files import atomic_path
    from hyperbrush.generation.subjects import subjects
    from hyperbrush.hypernetworks import attach
    from hyperbrush.hypernetworks.files.adapters import load
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement
    from hyperbrush.ldm.pictures import grid, to_pictures

    if hypernetwork is None and strength != 1:
        raise UserError(
            f"--strength {strength:g} is a hypernetwork's: give --hypernetwork FILE, or leave it out"
        )
    network = None if hypernetwork is None else load(hypernetwork)
    opened = place(LatentDiffusion.from_pretrained(model), placement(device, precision))
    told = subjects(opened, prompts=prompts or (), classes=class_ or (), images=image or (), count=count)
    number = told["count"] if "count" in told else len(next(iter(told.values())))
    seeds = [(seed or 0) + i for i in range(number)]
    scope = nullcontext() if network is None else attach(opened, [(network, strength)])
    with scope, console.sampling_bar(steps) as on_step:
        images = opened.sample(
            **told, seeds=seeds, steps=steps, sampler=sampler, guidance_scale=cfg, on_step=on_step
        )
    with atomic_path(out) as temporary:
        grid(to_pictures(images), columns=min(8, number)).save(temporary)
    console.done(str(out))

"""`hyperbrush ldm train` and `ldm sample`: latent diffusion models."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperbrush.cli.options import Device, Model, Precision, Steps, complete_sampler, given
from hyperbrush.cli.training import (
    At,
    BatchSize,
    DryRun,
    LearningRate,
    Processes,
    Seed,
    check_at,
    launch_processes,
    show_report,
    watch,
)
from hyperbrush.errors import UserError
from hyperbrush.generation.settings import MAX_GUIDANCE, MAX_SEED

ldm = typer.Typer(no_args_is_help=True, help="Latent diffusion models: train one, sample from one.")


@ldm.command("train")
def ldm_train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file; flags win over it. recipes/emoji has two.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
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
    at: At = None,
    dry_run: DryRun = False,
    processes: Processes = 1,
) -> None:
    """Train a first stage or a diffusion model from a config."""
    from hyperbrush.training.ldm.config import settings_of, settings_to_go_on
    from hyperbrush.training.ldm.run import train_ldm

    if (config is None) == (resume is None):
        raise UserError("give a config file, or --resume RUN")
    if resume is not None and run is not None:
        raise UserError("--resume names the run's folder; leave --run out")
    check_at(at, resume)
    launch_processes(processes, trying=dry_run)
    numbers = {"steps": steps, "batch_size": batch_size, "seed": seed}
    training = numbers | ({} if learning_rate is None else {"optimizer": {"learning_rate": learning_rate}})
    wanted: dict[str, Any] = {"settings": setting or (), "training": training, "prompts": prompt}
    if resume is not None:
        folder = resume
        settings, changed = settings_to_go_on(resume, at=at, **wanted)
    else:
        assert config is not None
        folder, changed = run or Path("runs") / config.stem, False
        settings = settings_of(config, **wanted)
    if dry_run:
        from hyperbrush.cli import console
        from hyperbrush.training.before.plan import plan_ldm
        from hyperbrush.training.loop.run_folder import step_to_go_on_from

        done = step_to_go_on_from(folder, at) if resume is not None else 0
        console.done(plan_ldm(settings, done=done).text())
        console.suggest_without("--dry-run")
        return

    def trained(**listeners: Any) -> str:
        return str(
            train_ldm(
                settings,
                folder,
                resume=resume is not None,
                at=at,
                changed=changed,
                on_report=show_report,
                **listeners,
            )
        )

    watch("hyperbrush ldm train", settings.kind, trained)


@ldm.command("sample")
def ldm_sample(
    context: typer.Context,
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
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED - 1000, help="Of the first picture.")] = 0,
    steps: Steps = 25,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="As of generate; by default DPM++ 2M Karras, of a flow-matching model Flow Euler.",
            autocompletion=complete_sampler,
        ),
    ] = None,
    cfg: Annotated[
        float, typer.Option("--cfg", min=0, max=MAX_GUIDANCE, help="Guidance scale; 1 is none.")
    ] = 4.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Sample a grid of pictures from a latent diffusion model."""
    from contextlib import nullcontext

    from hyperbrush.cli import console
    from hyperbrush.files import atomic_path
    from hyperbrush.generation.batches import check_numbers
    from hyperbrush.generation.picture_files import check_picture_path
    from hyperbrush.generation.subjects import subjects
    from hyperbrush.generation.tags import near_tags, split_tags
    from hyperbrush.hypernetworks import attach
    from hyperbrush.hypernetworks.files.adapters import load
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement
    from hyperbrush.ldm.pictures import grid, to_pictures

    if hypernetwork is None and strength != 1:
        raise UserError(
            f"--strength {strength:g} is a hypernetwork's: give --hypernetwork FILE, or leave it out"
        )
    check_picture_path(out)
    for text in prompts or ():
        if split_tags(text)[1] or near_tags(text):
            raise UserError(
                f"{text!r:.60}: no tags are read here; give --hypernetwork FILE, or draw with hyperbrush generate"
            )
    if prompts and given(context, "count"):
        raise UserError(
            "--count is of pictures without prompts: write the prompt several times, or leave it out"
        )
    network = None if hypernetwork is None else load(hypernetwork)
    opened = place(LatentDiffusion.from_pretrained(model), placement(device, precision))
    told = subjects(opened, prompts=prompts or (), classes=class_ or (), images=image or (), count=count)
    number = told["count"] if "count" in told else len(next(iter(told.values())))
    seeds = [seed + i for i in range(number)]
    scope = nullcontext() if network is None else attach(opened, [(network, strength)])
    with scope, console.sampling_bar(steps) as on_step:
        images = opened.sample(
            **told, seeds=seeds, steps=steps, sampler=sampler, guidance_scale=cfg, on_step=on_step
        )
    check_numbers(images)
    with atomic_path(out) as temporary:
        grid(to_pictures(images), columns=min(8, number)).save(temporary)
    console.done(str(out))
    console.suggest(f"hyperbrush train --model {shlex.quote(model)} --data PICTURES --name mine")

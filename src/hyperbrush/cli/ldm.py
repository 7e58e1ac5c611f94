"""`hyperbrush ldm train` and `ldm sample`: latent diffusion models."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.cli.options import Device, Guidance, Model, Precision, Sampler, Seed, Steps
from hyperbrush.errors import UserError

ldm = typer.Typer(no_args_is_help=True, help="Latent diffusion models: train one, sample from one.")


@ldm.command("train")
def ldm_train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; recipes/emoji has two.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/CONFIG by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the config's.")] = None,
) -> None:
    """Train a first stage or a diffusion model from a config."""
    from hyperbrush import console
    from hyperbrush.training.ldm_run import build, read_config, save_config
    from hyperbrush.training.trainer import Interrupted, Trainer

    if (config is None) == (resume is None):
        raise UserError("give a config file, or --resume RUN")
    folder = resume or run or Path("runs") / Path(str(config)).stem
    settings = read_config(folder / "config.yaml" if config is None else config)
    if steps is not None:
        settings.training.steps = steps
    with console.stop_on_signal() as should_stop, console.training_bar(settings.kind) as told:
        objective = build(settings, folder)
        save_config(settings, folder)
        trainer = Trainer(objective, settings.training, folder, on_progress=told, should_stop=should_stop)
        try:
            saved = trainer.train(resume=resume is not None)
        except Interrupted as stopped:
            console.note(
                f"stopped after step {stopped.step}; go on with: hyperbrush ldm train --resume {folder}"
            )
            raise typer.Exit(130) from None
    console.done(f"{saved}")


@ldm.command("sample")
def ldm_sample(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="One picture each; none for unconditional models.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Grid to write.")] = Path("sample.png"),
    model: Model = "emoji",
    count: Annotated[int, typer.Option(help="Pictures without prompts.")] = 4,
    seed: Seed = 0,
    steps: Steps = 25,
    sampler: Sampler = "DPM++ 2M Karras",
    cfg: Guidance = 4.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Sample a grid of pictures from a latent diffusion model."""
    from hyperbrush import console
    from hyperbrush.files import atomic_path
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement
    from hyperbrush.ldm.pictures import grid, to_pictures

    opened = place(LatentDiffusion.from_pretrained(model), placement(device, precision))
    captions = list(prompts) if prompts else ([""] * count if opened.conditioning == "text" else None)
    number = len(captions) if captions else count
    seeds = [(seed or 0) + i for i in range(number)]
    with console.sampling_bar(steps) as on_step:
        images = opened.sample(
            captions,
            count=number,
            seeds=seeds,
            steps=steps,
            sampler=sampler,
            guidance_scale=cfg,
            on_step=on_step,
        )
    with atomic_path(out) as temporary:
        grid(to_pictures(images), columns=min(8, number)).save(temporary)
    console.done(str(out))

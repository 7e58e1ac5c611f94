"""The command line: one command per thing a person does."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperbrush.errors import UserError

app = typer.Typer(
    name="hyperbrush",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Hypernetworks for Stable Diffusion: use, train and generate them.",
)
ldm = typer.Typer(no_args_is_help=True, help="Latent diffusion models: train one, sample from one.")
app.add_typer(ldm, name="ldm")

Model = Annotated[
    str, typer.Option(help="emoji (embedded), a diffusers folder, a single-file checkpoint or a hub id.")
]
Networks = Annotated[Path, typer.Option("--hypernetworks", help="Folder where names are looked up.")]
Steps = Annotated[int, typer.Option(help="Sampling steps.")]
Sampler = Annotated[str, typer.Option(help="DDIM, PLMS, Euler, Euler a, Heun, DPM++ 2M Karras, …")]
Guidance = Annotated[float, typer.Option("--cfg", help="Guidance scale; 1 is none.")]
Seed = Annotated[int | None, typer.Option(help="Of the first picture; drawn and told where it is left out.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")]
Attention = Annotated[str, typer.Option(help="auto, sdpa, sliced (least memory), eager or flash.")]

DEFAULT_NETWORKS = Path("models/hypernetworks")


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to draw; <hypernet:NAME:STRENGTH> applies a hypernetwork.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write; several get a number.")] = Path("picture.png"),
    model: Model = "emoji",
    negative: Annotated[str, typer.Option(help="What to move away from.")] = "",
    seed: Seed = None,
    steps: Steps = 25,
    sampler: Sampler = "DPM++ 2M Karras",
    cfg: Guidance = 4.0,
    count: Annotated[int, typer.Option(help="Pictures, seeds counting up.")] = 1,
    width: Annotated[int | None, typer.Option(help="In pixels; the model's own by default.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels; the model's own by default.")] = None,
    hypernetworks: Networks = DEFAULT_NETWORKS,
    device: Device = "auto",
    precision: Precision = "auto",
    attention: Attention = "auto",
) -> None:
    """Draw pictures from a prompt."""
    from hyperbrush import console
    from hyperbrush.generation import generate as draw
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement

    where = placement(device, precision, attention)
    opened = place(LatentDiffusion.from_pretrained(model), where)
    own = opened.image_size
    size = (height or own, width or own) if height or width else None
    with console.sampling_bar(steps) as on_step:
        pictures = draw(
            prompt,
            model=opened,
            negative=negative,
            seed=seed,
            count=count,
            steps=steps,
            sampler=sampler,
            guidance_scale=cfg,
            size=size,
            hypernetworks=hypernetworks,
            on_step=on_step,
        )
    for text in pictures[0].notes:
        console.note(text)
    for i, picture in enumerate(pictures):
        path = out if len(pictures) == 1 else out.with_name(f"{out.stem}-{i + 1:02d}{out.suffix}")
        console.done(f"{picture.save(path)}  seed {picture.seed}")


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


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    if version:
        from hyperbrush import __version__

        print(__version__)
        raise typer.Exit
    if verbose:
        from hyperbrush.ldm.util import setup_logging

        setup_logging("INFO")
    else:
        import logging

        logging.basicConfig(level=logging.ERROR, format="%(message)s")
        logging.getLogger("hyperbrush").setLevel(logging.WARNING)  # a damaged checkpoint passed over, say


def main(arguments: list[str] | None = None) -> None:
    """Run a command: status 0, 2 for what the user can mend (one line), 1 for a bug."""
    import os

    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        result: Any = app(args=arguments, standalone_mode=False)
    except UserError as error:
        print(f"hyperbrush: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("hyperbrush: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what click raises for a wrong command line
            raise
        print(f"hyperbrush: {error.format_message()}; see hyperbrush --help", file=sys.stderr)
        sys.exit(2)
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()

"""`hyperbrush hyper train` and `hyper generate`: hypernetworks that generate weights."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.cli.options import Model
from hyperbrush.errors import UserError

hyper = typer.Typer(
    no_args_is_help=True, help="Hypernetworks that generate an adapter from pictures or a sentence."
)
FORMATS = ("safetensors", "lora-diffusers", "lora-peft", "lora-kohya")


def complete_format(incomplete: str) -> list[str]:
    """Formats that begin so."""
    return [name for name in FORMATS if name.startswith(incomplete)]


@hyper.command("train")
def hyper_train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of settings; flags win over it. Or flags alone.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder of captioned pictures for each style.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the generator.")] = "",
    validation: Annotated[
        Path | None, typer.Option(help="Folder of held-out styles; else a tenth of the data's.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="emoji (embedded, the default), a diffusers folder, a checkpoint or a hub id.")
    ] = "",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Peak; by steps: -s schedule='5e-5:100, 5e-6:1000'."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Target pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Of the previews; repeat for several.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Any other setting, as KEY=VALUE: -s rank=8 -s trunk=mlp."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    at: Annotated[int | None, typer.Option(help="Step to resume at; the newest by default.")] = None,
) -> None:
    """Train a generator on many styles: look at some pictures of one, draw others in it."""
    from hyperbrush.cli import console
    from hyperbrush.training.generator.run import GeneratorRun, configured_generator, train_generator
    from hyperbrush.training.loop.going_on import resumed
    from hyperbrush.training.loop.processes import is_main
    from hyperbrush.training.loop.trainer import Interrupted

    given = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "prompts": prompt or None,
    }
    changed = False
    if resume is not None:
        folder = resume
        settings, changed = resumed(
            GeneratorRun,
            resume,
            at=at,
            refused={str(config): config, "--run": run},
            settings=setting or (),
            training=given,
            name=name,
            model=model,
            data=str(data) if data else "",
            validation=str(validation) if validation else "",
        )
    else:
        if at is not None:
            raise UserError(
                f"--at {at} is the step that --resume RUN goes on from; give the run, or leave it out"
            )
        if config is None and not (data and name):
            raise UserError("give --data FOLDER and --name NAME, a file of settings, or --resume RUN")
        settings = configured_generator(
            config,
            settings=setting or (),
            name=name,
            data=str(data) if data else "",
            validation=str(validation) if validation else "",
            model=model,
            training=given,
        )
        folder = run or Path("runs") / settings.name
    with (
        console.stop_on_signal() as should_stop,
        console.preparing_bar() as prepared,
        console.training_bar(settings.name) as told,
    ):
        try:
            result = train_generator(
                settings,
                folder,
                resume=resume is not None,
                at=at,
                changed=changed,
                on_prepare=prepared,
                on_progress=told,
                should_stop=should_stop,
            )
        except Interrupted as stopped:
            if is_main():
                console.stopped(stopped, "hyperbrush hyper train")
            raise typer.Exit(130) from None
    if is_main():
        console.done(result.summary())


@hyper.command("generate", context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def hyper_generate(
    context: typer.Context,
    images: Annotated[
        list[Path] | None, typer.Option(help="Pictures of the style, one to sixteen: --images A.png B.png.")
    ] = None,
    text: Annotated[str, typer.Option(help="The style in words.")] = "",
    task: Annotated[str, typer.Option(help="A task the generator knows.")] = "",
    out: Annotated[Path, typer.Option(help="File to write (a folder for lora-peft).")] = Path(
        "style.safetensors"
    ),
    generator: Annotated[
        Path | None,
        typer.Option(help="Generator's file; the model's own, where it ships with one, by default."),
    ] = None,
    model: Model = "emoji",
    rank: Annotated[
        int | None, typer.Option(help="Expand to this rank: the same effect, room to tune.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="safetensors, lora-diffusers, lora-peft or lora-kohya.", autocompletion=complete_format
        ),
    ] = "safetensors",
) -> None:
    """Generate an adapter from pictures, a sentence or a task, in one pass."""
    import time

    from hyperbrush.cli import console
    from hyperbrush.hypernetworks.generator.generating import generate_adapter, open_generator

    pictures = [*(images or ()), *map(Path, context.args)]
    if not (pictures or text or task):
        raise UserError("give --images A.png B.png, --text, or --task: what the adapter is generated from")
    net = open_generator(generator, model)
    begin = time.perf_counter()
    weights = generate_adapter(net, pictures=pictures, text=text, task=task, name=out.stem)
    taken = time.perf_counter() - begin
    if rank is not None:
        weights = weights.expand_rank(rank)
    written = weights.save(out, format)
    console.done(
        f"{written}  ({len(weights.layers)} layers, rank {weights.rank}, {weights.size:,} numbers, {taken:.2f} s)"
    )
    if format == "safetensors":
        console.done(
            f'try: hyperbrush generate "cat face <hypernet:{out.stem}:0.8>" --model {model} --hypernetworks {out.parent}'
        )

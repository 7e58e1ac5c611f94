"""`hyperbrush hyper train`, `hyper generate` and `hyper compress`: hypernetworks that generate weights, and packs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperbrush.cli.options import Model, completes
from hyperbrush.cli.training import (
    At,
    BaseModel,
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
    watch,
)
from hyperbrush.errors import UserError
from hyperbrush.shell import quoted

hyper = typer.Typer(
    no_args_is_help=True, help="Hypernetworks that generate an adapter from pictures or a sentence."
)
FORMATS = ("safetensors", "lora-diffusers", "lora-peft", "lora-kohya")


@hyper.command("train")
def hyper_train(
    config: Settings = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder of captioned pictures for each style.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the generator.")] = "",
    validation: Annotated[
        Path | None, typer.Option(help="Folder of held-out styles; else a tenth of the data's.")
    ] = None,
    model: BaseModel = "",
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Go on from this generator, such as one for the model's earlier weights."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: LearningRate = None,
    batch_size: Annotated[int | None, typer.Option(help="Target pictures per step.")] = None,
    seed: Seed = None,
    prompt: Prompts = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Any other setting, as KEY=VALUE: -s rank=8 -s trunk=mlp."),
    ] = None,
    run: Run = None,
    resume: Resume = None,
    at: At = None,
    overwrite: Overwrite = False,
    processes: Processes = 1,
) -> None:
    """Train a generator on many styles: look at some pictures of one, draw others in it."""
    from hyperbrush.training.generator.run import GeneratorRun, configured_generator, train_generator
    from hyperbrush.training.loop.settings import resumed

    check_at(at, resume)
    launch_processes(processes, trying=False)
    given: dict[str, Any] = {
        "settings": setting or (),
        "training": loop_values(steps, learning_rate, batch_size, seed, prompt),
        "name": name,
        "data": str(data) if data else "",
        "validation": str(validation) if validation else "",
        "model": model,
        "start_from": str(start_from) if start_from else "",
    }
    changed = False
    if resume is not None:
        refused = {str(config): config, "--run": run}
        settings, changed = resumed(GeneratorRun, resume, at=at, refused=refused, **given)
    elif config is None and not (data and name):
        raise UserError("give --data FOLDER and --name NAME, a file of settings, or --resume RUN")
    else:
        settings = configured_generator(config, **given)
    folder = resume or run or Path("runs") / settings.name

    def trained(**listeners: Any) -> str:
        return train_generator(
            settings,
            folder,
            resume=resume is not None,
            at=at,
            changed=changed,
            overwrite=overwrite,
            **listeners,
        ).summary()

    watch("hyperbrush hyper train", settings.name, trained)


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
            help="safetensors, lora-diffusers, lora-peft or lora-kohya.", autocompletion=completes(*FORMATS)
        ),
    ] = "safetensors",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
) -> None:
    """Generate an adapter from pictures, a sentence or a task, in one pass; or give one of a pack back (--task)."""
    import time

    from hyperbrush.cli import console
    from hyperbrush.hypernetworks.files.packed import is_pack
    from hyperbrush.hypernetworks.generator.generating import generate_adapter, open_generator

    pictures = [*(images or ()), *map(Path, context.args)]
    if not (pictures or text or task):
        raise UserError("give --images A.png B.png, --text, or --task: what the adapter is generated from")
    if is_pack(out):
        raise UserError(f"{out} would be a pack, and this is one adapter: take another --out")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already: choose another name, or give --overwrite")
    if generator is not None and is_pack(generator):
        if pictures or text:
            raise UserError(
                f"{generator} is a pack, which knows its members by name alone: give --task NAME and no more"
            )
        _give_back(generator, task, out, format, rank)
        return
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
            f"try: hyperbrush generate {quoted(f'cat face <hypernet:{out.stem}:0.8>')} --model {quoted(model)} "
            f"--hypernetworks {quoted(out.parent)}"
        )


def _give_back(pack: Path, task: str, out: Path, format: str, rank: int | None) -> None:
    """Write one member of a pack as a file of its own."""
    from hyperbrush.cli import console
    from hyperbrush.hypernetworks import AttentionHypernetwork
    from hyperbrush.hypernetworks.files.pack import Pack

    adapter = Pack.load(pack).generate_weights(task, name=out.stem)
    if isinstance(adapter, AttentionHypernetwork):
        if format != "safetensors" or rank is not None:
            raise UserError(
                f"{task!r} is an attention hypernetwork: give it back without --format and --rank, then hyperbrush convert"
            )
        console.done(str(adapter.save(out)))
    else:
        weights = adapter if rank is None else adapter.expand_rank(rank)
        console.done(f"{weights.save(out, format)}  ({len(weights.layers)} layers, rank {weights.rank})")
    if format == "safetensors":
        console.suggest(f"hyperbrush inspect {quoted(out)}")


@hyper.command("compress")
def hyper_compress(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of LoRAs (any layout) or hypernetworks of one model.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, NAME.pack.safetensors; FOLDER.pack.safetensors by default."),
    ] = None,
    error: Annotated[
        float, typer.Option(help="Most of a member's change, ‖ΔW − ΔŴ‖ ÷ ‖ΔW‖, that its ranks may leave out.")
    ] = 0.2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that stands there.")] = False,
) -> None:
    """Put a folder of LoRAs or hypernetworks into one small file, each still called by its name."""
    from rich.table import Table
    from rich.text import Text

    from hyperbrush.cli import console, tables
    from hyperbrush.hypernetworks.convert.compression import compress, read_folder
    from hyperbrush.hypernetworks.files.packed import SUFFIX, is_pack

    target = out or folder.resolve().with_name(folder.resolve().name + SUFFIX)
    if not is_pack(target):
        raise UserError(f"cannot write {target}: a pack is a file ending in {SUFFIX}, such as looks{SUFFIX}")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: choose another name, or give --overwrite")
    with console.waiting("compressing"):
        pack = compress(read_folder(folder), error=error, name=target.name[: -len(SUFFIX)])
        pack.save(target)
    table = Table(box=None, padding=(0, 2))
    table.add_column("member", overflow="fold")
    for title in ("file", "here", "mean rank", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, member in pack.members.items():
        sizes = (f"{member.source_bytes / 1e3:.1f} kB", f"{member.nbytes / 1e3:.1f} kB")
        table.add_row(Text(name), *sizes, f"{member.rank:.1f}" if member.rank else "", f"{member.error:.3f}")
    tables.show(table)
    before, after = sum(m.source_bytes for m in pack.members.values()), target.stat().st_size
    console.done(
        f"{target}  ({len(pack)} members, {after / 1e3:.1f} kB, {after / before:.0%} of their files)"
    )
    console.done(
        f"try: hyperbrush generate {quoted(f'cat face <hypernet:{pack.name}/{pack.tasks[0]}:0.8>')} --model MODEL "
        f"--hypernetworks {quoted(target.parent)}"
    )

"""`hyperbrush generate` and `compare`: pictures from prompts, and grids of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperbrush.cli.options import (
    DEFAULT_NETWORKS,
    Attention,
    ClipSkip,
    Device,
    Discretisation,
    Guidance,
    Height,
    Loras,
    Missing,
    Model,
    Negative,
    Networks,
    Precision,
    Sampler,
    Seed,
    Steps,
    Width,
    given,
)
from hyperbrush.errors import UserError
from hyperbrush.generation.settings import Settings
from hyperbrush.shell import quoted

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.generation import OpenedModel

app = typer.Typer()

# Options of the command line → arguments of `generation.generate`.
_ARGUMENTS = {
    "prompts": "prompt",
    "negative": "negative",
    "seed": "seed",
    "steps": "steps",
    "sampler": "sampler",
    "cfg": "guidance_scale",
    "clip_skip": "clip_skip",
    "discretisation": "discretisation",
    "image": "image",
    "image_strength": "image_strength",
    "mask": "mask",
    "mask_padding": "mask_padding",
    "subseed": "subseed",
    "subseed_strength": "subseed_strength",
    "hires_scale": "hires_scale",
    "hires_strength": "hires_strength",
    "hires_steps": "hires_steps",
    "hires_upscaler": "hires_upscaler",
}
_KEPT = (
    "model",
    "hypernetworks",
    "loras",
    "image",
    "mask",
)  # what a picture's settings do not hold, or not where it lies
_AXES = ("prompt=", "hypernet=", "strength=", "seed=", "steps=", "cfg=", "sampler=", "clip_skip=", "size=")


def _complete_axis(incomplete: str) -> list[str]:
    return [name for name in _AXES if name.startswith(incomplete)]


Side = Annotated[
    int | None,
    typer.Option(help="In pixels; with --image of its form, else the model's own.", show_default=False),
]
Batch = Annotated[int, typer.Option(help="Pictures drawn at once.")]
Axis = Annotated[
    str | None, typer.Option(metavar="KIND=VALUES", autocompletion=_complete_axis, show_default=False)
]


@app.command(rich_help_panel="Draw")
def generate(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT…",
            help="What to draw; <hypernet:NAME:STRENGTH> applies a hypernetwork, <lora:NAME:STRENGTH> a LoRA, "
            "[cat:dog:0.5] changes half-way, [cat|dog] takes turns, AND composes.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture to write; several get a number.")] = Path("picture.png"),
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Repeat this picture from the settings in it; options given here win."),
    ] = None,
    model: Model = "emoji",
    negative: Negative = Settings.negative,
    seed: Seed = None,
    steps: Steps = Settings.steps,
    sampler: Sampler = Settings.sampler,
    cfg: Guidance = Settings.guidance_scale,
    count: Annotated[int, typer.Option(help="Pictures of each prompt, seeds counting up.")] = 1,
    batch: Batch = 4,
    width: Side = None,
    height: Side = None,
    clip_skip: ClipSkip = Settings.clip_skip,
    discretisation: Discretisation = Settings.discretisation,
    image: Annotated[Path | None, typer.Option(help="Picture to start from.")] = None,
    image_strength: Annotated[
        float, typer.Option(help="With --image: how much is drawn anew, above 0 to 1.")
    ] = Settings.image_strength,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="With --image: a picture of any size, white where it is drawn anew, black where it is kept."
        ),
    ] = None,
    mask_padding: Annotated[
        int | None,
        typer.Option(
            help="With --mask: draw its white region alone, with so many pixels of the picture around it, at the size of "
            "the drawing, and put it back (the webui's Only masked).",
            show_default=False,
        ),
    ] = None,
    subseed: Annotated[
        int | None,
        typer.Option(
            help="With --subseed-strength: variation seed of the first picture; drawn where it is left out.",
            show_default=False,
        ),
    ] = None,
    subseed_strength: Annotated[
        float,
        typer.Option(
            help="Pictures near that of --seed: how far they go to that of --subseed, above 0 to 1 (the webui's variation "
            "strength)."
        ),
    ] = Settings.subseed_strength,
    hires_scale: Annotated[
        float | None,
        typer.Option(
            help="Draw on, so many times as wide and high, in a second pass (the webui's hires fix).",
            show_default=False,
        ),
    ] = None,
    hires_strength: Annotated[
        float, typer.Option(help="With --hires-scale: how much is drawn anew, above 0 to 1.")
    ] = Settings.hires_strength,
    hires_steps: Annotated[
        int, typer.Option(help="With --hires-scale: steps of the second pass; 0: as many as of the first.")
    ] = Settings.hires_steps,
    hires_upscaler: Annotated[
        str, typer.Option(help="With --hires-scale: Latent, Latent (nearest), …, or Lanczos.")
    ] = Settings.hires_upscaler,
    hypernetworks: Networks = DEFAULT_NETWORKS,
    loras: Loras = None,
    missing: Missing = "error",
    device: Device = "auto",
    precision: Precision = "auto",
    attention: Attention = "auto",
) -> None:
    """Draw pictures from prompts, each with its own hypernetworks, or a picture once more (--from)."""
    from hyperbrush.cli import console
    from hyperbrush.generation import generate as draw
    from hyperbrush.generation.picture_files import check_picture_path
    from hyperbrush.ldm.data.pictures import opened as opened_picture

    check_picture_path(out)
    for option, path in (("--from", source), ("--image", image), ("--mask", mask)):
        if path is not None and path.resolve() == out.resolve():
            raise UserError(f"{path} is read ({option}) and would be replaced: give another --out")
    values: dict[str, Any] = {
        argument: context.params[option] for option, argument in _ARGUMENTS.items() if given(context, option)
    }
    if image is not None:
        values["image"] = opened_picture(image, "--image")
    elif "image_strength" in values:
        raise UserError("--image-strength needs --image: the picture that is drawn anew")
    if mask is not None:
        if image is None:
            raise UserError(f"--mask {mask} needs --image: the picture of which a part is drawn anew")
        values["mask"] = opened_picture(mask, "--mask", mask=True)
    elif mask_padding is not None:
        raise UserError("--mask-padding needs --mask, whose white region alone is drawn")
    notes: list[str] = []
    info = None
    if source is not None:
        from hyperbrush.generation import read_infotext, repeat_of, settings_text

        info = read_infotext(settings_text(source))
        repeat = repeat_of(info, values)
        values, notes = repeat.arguments | values, repeat.notes
    if values.get("hires_scale") is None and (idle := [name for name in values if name.startswith("hires_")]):
        raise UserError(f"--{idle[0].replace('_', '-')} needs --hires-scale: there is no second pass without")
    if not values.get("prompt"):
        if source is not None:
            raise UserError(f"the settings in {source} have no prompt: give one before --from")
        raise UserError(
            'no prompt was given: hyperbrush generate "cat face", or --from PICTURE to repeat one'
        )
    placed: dict[str, Any] = {"device": device, "precision": precision, "attention": attention}
    form = values.get("image") if values.get("mask_padding") is None else None
    opened, values["size"] = _size(model, placed, width, height, values.get("size"), form)
    if info is not None:
        from hyperbrush.generation.repeat import differences, lora_differences, renamed
        from hyperbrush.hypernetworks import HypernetworkLibrary

        library = HypernetworkLibrary(hypernetworks)
        if not prompts:
            values["prompt"], moved = renamed(info, values["prompt"], library)
            notes += moved
        notes += differences(info, opened, library)
        notes += lora_differences(info, HypernetworkLibrary(loras or hypernetworks.parent / "loras"))
    asked = values["prompt"]
    number = count * (1 if isinstance(asked, str) else len(asked))
    paths = [
        out if number == 1 else out.with_name(f"{out.stem}-{i + 1:02d}{out.suffix}") for i in range(number)
    ]
    with console.sampling_bar(values.get("steps", steps)) as on_step:
        pictures = draw(
            model=opened,
            count=count,
            hypernetworks=hypernetworks,
            loras=loras,
            missing=missing,
            batch=batch,
            on_step=on_step,
            on_picture=lambda place, picture: picture.save(paths[place]),  # what is drawn is kept
            **placed,
            **values,
        )
    for text in dict.fromkeys([*notes, *(note for picture in pictures for note in picture.notes)]):
        console.note(text)
    for path, picture in zip(paths, pictures, strict=True):
        console.done(f"{path}  seed {picture.seed}")
    again = out.with_name(f"{out.stem}-again{out.suffix}")
    console.suggest(
        f"hyperbrush generate --from {quoted(paths[-1])}{_kept(context)} --cfg 6 --out {quoted(again)}"
    )


@app.command(rich_help_panel="Draw")
def compare(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    x: Axis = None,
    y: Axis = None,
    z: Axis = None,
    out: Annotated[Path, typer.Option(help="Grid to write.")] = Path("grid.png"),
    model: Model = "emoji",
    negative: Negative = Settings.negative,
    seed: Seed = None,
    steps: Steps = Settings.steps,
    sampler: Sampler = Settings.sampler,
    cfg: Guidance = Settings.guidance_scale,
    width: Width = None,
    height: Height = None,
    clip_skip: ClipSkip = Settings.clip_skip,
    discretisation: Discretisation = Settings.discretisation,
    batch: Batch = 4,
    side: Annotated[
        int | None, typer.Option(help="Height of a picture in the grid; its own by default.")
    ] = None,
    hypernetworks: Networks = DEFAULT_NETWORKS,
    loras: Loras = None,
    missing: Missing = "error",
    device: Device = "auto",
    precision: Precision = "auto",
    attention: Attention = "auto",
) -> None:
    """Draw a labelled grid: one, two or three settings varied along --x, --y and --z.

    KIND is prompt (its first value is searched for in the prompt), hypernet, strength, seed, steps, cfg, sampler,
    clip_skip or size. VALUES are separated by commas, quotes protect a comma, numbers may be ranges: 1-5, or
    0-1:0.25 in steps of 0.25. hypernet=none is without.

    hyperbrush compare "a lighthouse" --x strength=0,0.5,1 --y hypernet=water,ink
    """
    from hyperbrush.cli import console
    from hyperbrush.generation import compare as draw
    from hyperbrush.generation.axes import read_axis
    from hyperbrush.generation.picture_files import check_picture_path

    axes = [None if axis is None else read_axis(axis) for axis in (x, y, z)]
    if axes == [None, None, None]:
        raise UserError("nothing is varied: give --x KIND=VALUES, such as --x strength=0,0.5,1")
    check_picture_path(out)
    placed: dict[str, Any] = {"device": device, "precision": precision, "attention": attention}
    opened, size = _size(model, placed, width, height, None, None)
    with console.bar(transient=True) as progress:
        task = progress.add_task("pictures", total=None, info="")
        grid = draw(
            prompt,
            *axes,
            model=opened,
            negative=negative,
            seed=seed,
            steps=steps,
            sampler=sampler,
            guidance_scale=cfg,
            size=size,
            clip_skip=clip_skip,
            discretisation=discretisation,
            hypernetworks=hypernetworks,
            loras=loras,
            missing=missing,
            batch=batch,
            side=side,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            **placed,
        )
    for text in grid.notes:
        console.note(text)
    varied = any(axis is not None and axis.kind == "seed" for axis in axes)
    console.done(f"{grid.save(out)}{'' if varied else f'  seed {grid.settings.seed}'}")
    console.suggest(f"hyperbrush generate --from {quoted(out)}{_kept(context)}")


def _kept(context: typer.Context) -> str:
    """Options of a command that one to draw again needs too."""
    kept = [name for name in _KEPT if name in context.params and given(context, name)]
    return "".join(f" --{name} {quoted(context.params[name])}" for name in kept)


def _size(
    model: str,
    placed: dict[str, Any],
    width: int | None,
    height: int | None,
    before: tuple[int, int] | None,
    image: "Image | None",
) -> "tuple[str | OpenedModel, tuple[int, int] | None]":
    """The model, opened only where its own size is needed, and (height, width): what is given, else as before,
    else of the start picture's form, else the model's own.
    """
    if width is None and height is None:
        return model, before
    if width is not None and height is not None:
        return model, (height, width)
    if before is not None:
        return model, (before[0] if height is None else height, before[1] if width is None else width)
    from hyperbrush.generation import open_model

    opened = open_model(model, **placed)
    own = opened.model.image_size
    if image is None:
        return opened, (own if height is None else height, own if width is None else width)
    unit = opened.model.size_unit
    if width is None:
        assert height is not None
        return opened, (height, max(unit, round(height * image.width / image.height / unit) * unit))
    return opened, (max(unit, round(width * image.height / image.width / unit) * unit), width)

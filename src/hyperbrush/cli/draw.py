"""`hyperbrush generate`: pictures from prompts."""

from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.cli.options import (
    DEFAULT_NETWORKS,
    Attention,
    Device,
    Guidance,
    Model,
    Networks,
    Precision,
    Sampler,
    Seed,
    Steps,
)

app = typer.Typer()


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

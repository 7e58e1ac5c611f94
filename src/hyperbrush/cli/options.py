"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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

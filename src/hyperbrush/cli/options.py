"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hyperbrush.ldm.sampling.names import sampler_names

SAMPLERS = tuple(sampler_names())


def complete_sampler(incomplete: str) -> list[str]:
    """Samplers that begin so."""
    return [name for name in SAMPLERS if name.casefold().startswith(incomplete.casefold())]


DEFAULT_NETWORKS = Path("models/hypernetworks")
_NETWORK_FILES = (".pt", ".safetensors")


def complete_network(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the library, and files, that begin so."""
    from hyperbrush.hypernetworks.library.library import HypernetworkLibrary

    folder = context.params.get("hypernetworks") or DEFAULT_NETWORKS
    library = HypernetworkLibrary(folder)
    names = library.names() if Path(folder).is_dir() else []
    beside = Path(incomplete or ".").parent
    files = [str(path) + "/" * path.is_dir() for path in beside.glob("*")] if beside.is_dir() else []
    wanted = (*names, *(file for file in files if file.endswith(("/", *_NETWORK_FILES))))
    return sorted(name for name in wanted if name.startswith(incomplete))


def given(context: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def completes(*names: str) -> Callable[[str], list[str]]:
    """Completes one of these names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Model = Annotated[
    str, typer.Option(help="emoji (embedded), a diffusers folder, a single-file checkpoint or a hub id.")
]
Networks = Annotated[Path, typer.Option("--hypernetworks", help="Folder where names are looked up.")]
Loras = Annotated[
    Path | None,
    typer.Option("--loras", help="Folder for <lora:NAME>; loras beside --hypernetworks by default."),
]
Steps = Annotated[int, typer.Option(help="Sampling steps.")]
Sampler = Annotated[
    str,
    typer.Option(
        help="DDIM, PLMS, Euler, Euler a, Heun, DPM++ 2M Karras, …", autocompletion=complete_sampler
    ),
]
Guidance = Annotated[float, typer.Option("--cfg", help="Guidance scale; 1 is none.")]
Seed = Annotated[int | None, typer.Option(help="Of the first picture; drawn and told where it is left out.")]
Negative = Annotated[str, typer.Option(help="What to move away from.")]
Width = Annotated[int | None, typer.Option(help="In pixels; the model's own by default.")]
Height = Annotated[int | None, typer.Option(help="In pixels; the model's own by default.")]
ClipSkip = Annotated[
    int,
    typer.Option("--clip-skip", help="Text states before the last N - 1 layers; 2 for files of NAI's time."),
]
Discretisation = Annotated[
    str,
    typer.Option(
        help="Where the steps lie: diffusers, or webui to repeat its pictures.",
        autocompletion=completes("diffusers", "webui"),
    ),
]
Missing = Annotated[
    str,
    typer.Option(
        help="Networks and LoRAs the folders do not have: error, or warn to draw without.",
        autocompletion=completes("error", "warn"),
    ),
]

Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1 or mps.", autocompletion=completes("auto", "cpu", "cuda", "mps")
    ),
]
Precision = Annotated[
    str,
    typer.Option(help="auto, fp32, fp16 or bf16.", autocompletion=completes("auto", "fp32", "fp16", "bf16")),
]
Attention = Annotated[
    str,
    typer.Option(
        help="auto, sdpa, sliced (least memory), eager or flash.",
        autocompletion=completes("auto", "sdpa", "sliced", "eager", "flash"),
    ),
]

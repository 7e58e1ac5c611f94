"""`hyperbrush convert` and `merge`: hypernetworks carried elsewhere."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperbrush.cli.options import DEFAULT_NETWORKS, Device, Networks, complete_network, completes, given
from hyperbrush.errors import UserError, unknown_name

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.convert.report import LoraReport

app = typer.Typer()
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@app.command(rich_help_panel="Files")
def convert(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A file, or a name in --hypernetworks.", autocompletion=complete_network
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="File to write; a folder for lora-peft.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="webui, safetensors, comfyui, lora-diffusers, lora-peft or lora-kohya; by DST's suffix if left out.",
            autocompletion=completes(
                "webui", "safetensors", "comfyui", "lora-diffusers", "lora-peft", "lora-kohya"
            ),
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="The model a LoRA is made for: emoji, a folder, a checkpoint or a hub id.")
    ] = "emoji",
    rank: Annotated[str | None, typer.Option(help="Of a LoRA: a number or full; 16 by default.")] = None,
    strength: Annotated[float, typer.Option(help="Of the hypernetwork, folded into a LoRA.")] = 1.0,
    bias: Annotated[
        bool | None,
        typer.Option("--bias/--no-bias", help="Carry the values' offset in a LoRA; all but kohya do."),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompts", help="Draw this for contexts; repeat for several.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps: 8 for contexts, 20 for pictures by default.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Compare a few pictures with a LoRA too.")] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Of the numbers: fp32, fp16 or bf16; as they are by default.",
            autocompletion=completes("fp32", "fp16", "bf16"),
        ),
    ] = None,
    legacy_zip: Annotated[bool, typer.Option(help="The .pt of torch before 2020, without a zip.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what stands at DST.")] = False,
    hypernetworks: Networks = DEFAULT_NETWORKS,
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option(help="Of a LoRA's contexts and pictures; 0 by default.", show_default=False)
    ] = None,
) -> None:
    """Write a hypernetwork as another program reads it: webui, ComfyUI, safetensors, or as a LoRA."""
    from hyperbrush.cli import console
    from hyperbrush.cli.sources import find
    from hyperbrush.hypernetworks.convert.convert import TARGETS, check_path, guess_target
    from hyperbrush.hypernetworks.convert.convert import convert as write
    from hyperbrush.hypernetworks.files import load_attention
    from hyperbrush.hypernetworks.files.adapters import is_generated_file

    chosen = guess_target(target) if to is None else to
    if chosen not in TARGETS:
        raise unknown_name("target", chosen, TARGETS)
    check_path(target, chosen)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: choose another name, or give --overwrite")
    for option in ("model", "device"):
        if given(context, option) and not chosen.startswith("lora-"):
            raise UserError(f"--{option} is of the LoRA targets: {chosen} takes the networks as they are")
    settings = _lora_settings(rank, bias, steps, seed)
    if precision is not None and precision not in _DTYPES:
        raise unknown_name("dtype", precision, _DTYPES)
    path = find(source, hypernetworks)
    if is_generated_file(path):
        import torch

        named = {
            "--pictures": pictures,
            "--prompts": prompts,
            "--steps": steps,
            "--seed": seed,
            "--bias": bias,
            "--legacy-zip": legacy_zip,
        }
        if unused := [name for name, value in named.items() if value not in (None, False, [], ())]:
            raise UserError(
                f"{', '.join(unused)}: of hypernetworks alone, and {path} has generated weights, which are written as they are"
            )

        from hyperbrush.hypernetworks.convert.convert import convert_generated

        written_to = convert_generated(
            path,
            target,
            chosen,
            rank=settings.get("rank"),
            strength=strength,
            dtype=None if precision is None else getattr(torch, _DTYPES[precision]),
        )
        console.done(str(written_to))
        _suggest(written_to, chosen)
        return
    hypernetwork = load_attention(path)
    opened = None
    if chosen.startswith("lora-"):
        from hyperbrush.ldm.models import LatentDiffusion
        from hyperbrush.ldm.models.device import place, placement

        opened = place(LatentDiffusion.from_pretrained(model), placement(device, "fp32"))
    import torch

    with console.waiting("converting") as tell:
        written = write(
            hypernetwork,
            target,
            chosen,
            model=opened,
            overwrite=overwrite,
            legacy_zip=legacy_zip,
            dtype=None if precision is None else getattr(torch, _DTYPES[precision]),
            pictures=pictures,
            prompts=prompts or None,
            strength=strength,
            on_progress=lambda path, done, count: tell(f"{done}/{count} {path}"),
            **settings,
        )
    if written.report is not None:
        show(written.report)
    console.done(str(written.path))
    _suggest(written.path, chosen)


def _suggest(path: Path, target: str) -> None:
    """How the file is used where it was converted to."""
    from hyperbrush.cli import console

    uses = {
        "webui": f"<hypernet:{path.stem}:1>, {path.name} in the webui's models/hypernetworks",
        "comfyui": f"Load Hypernetwork, {path.name} in ComfyUI's models/hypernetworks",
        "lora-diffusers": f"pipe.load_lora_weights({str(path.parent)!r}, weight_name={path.name!r})",
        "lora-peft": f"PeftModel.from_pretrained(pipe.unet, {str(path)!r})",
        "lora-kohya": f"<lora:{path.stem}:1>, {path.name} in the webui's models/Lora",
    }
    console.suggest(uses.get(target, f"hyperbrush inspect {shlex.quote(str(path))}"))


def _lora_settings(
    rank: str | None, bias: bool | None, steps: int | None, seed: int | None
) -> dict[str, object]:
    """Options that were given, as `to_lora` takes them."""
    settings: dict[str, object] = {}
    if rank is not None:
        if rank != "full" and not (rank.isdecimal() and int(rank) > 0):
            raise UserError(f"--rank {rank!r} is impossible: expected a whole number from 1, or full")
        settings["rank"] = "full" if rank == "full" else int(rank)
    named = {"bias": bias, "steps": steps, "seed": seed}
    return settings | {key: value for key, value in named.items() if value is not None}


def show(report: "LoraReport") -> None:
    """Print what a LoRA cost: a line per attention, then the whole."""
    from rich.table import Table

    from hyperbrush.cli import console, tables

    table = Table(box=None)
    for title in ("attention", "rank", "kept of keys", "of values", "output's error", "of the change"):
        table.add_column(title, no_wrap=True)
    for s in report.sites:
        error = s.error
        table.add_row(
            s.site.path.replace(".transformer_blocks", "").replace(".attentions", ""),
            f"{s.key_rank}" if s.key_rank == s.value_rank else f"{s.key_rank}, {s.value_rank}",
            f"{s.key_energy:.2%}",
            f"{s.value_energy:.2%}",
            "" if error is None else f"{error.relative:.2e}",
            "" if error is None else f"{error.of_change:.1%}",
        )
    tables.show(table)
    console.done(str(report))


@app.command(rich_help_panel="Files")
def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE:WEIGHT…",
            help="Files or library names with their weights.",
            autocompletion=complete_network,
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .safetensors or .pt.")],
    how: Annotated[
        str,
        typer.Option(
            help="average (equal structures), compose (affine ones, exactly) or auto.",
            autocompletion=completes("average", "compose", "auto"),
        ),
    ] = "auto",
    name: Annotated[str | None, typer.Option(help="Name inside the file; the file's own by default.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what stands at --out.")] = False,
    hypernetworks: Networks = DEFAULT_NETWORKS,
) -> None:
    """Merge hypernetworks, or generated weights, into one: A.pt:0.7 B.pt:0.3."""
    from hyperbrush.cli import console
    from hyperbrush.cli.sources import weighted
    from hyperbrush.hypernetworks import AttentionHypernetwork
    from hyperbrush.hypernetworks.convert.convert import convert as write
    from hyperbrush.hypernetworks.convert.convert import guess_target
    from hyperbrush.hypernetworks.convert.merging import merge as merged

    to = guess_target(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already: choose another name, or give --overwrite")
    result = merged([weighted(s, hypernetworks) for s in sources], how=how, name=name or out.stem)
    if isinstance(result, AttentionHypernetwork):
        write(result, out, overwrite=overwrite)
    elif to == "safetensors":
        result.save(out)
    else:
        raise UserError(
            f"{out}: generated weights are kept in .safetensors alone; name one, or convert it to a LoRA"
        )
    console.note(f"{result.metadata['merged_from']}: {result.metadata['merged_how']}")
    console.done(str(out))
    console.suggest(f"hyperbrush inspect {shlex.quote(str(out))}")

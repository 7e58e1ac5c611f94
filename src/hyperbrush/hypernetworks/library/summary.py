"""Reads what a hypernetwork's file says of itself, without reading its numbers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.files.adapters import is_generated_file, load
from hyperbrush.hypernetworks.files.checks import build
from hyperbrush.hypernetworks.files.modelspec import architecture
from hyperbrush.hypernetworks.files.native import CONFIG_KEY, FORMAT, FORMAT_KEY, header_of
from hyperbrush.hypernetworks.files.torch_files import Tensor, outline
from hyperbrush.hypernetworks.library.summaries import GENERATED, KIND, Summary
from hyperbrush.ldm.families import BY_ARCHITECTURE


def summarise(path: Path) -> Summary:
    """Read a file's header and settings; its numbers stay unread (NaN in them is not seen).

    Raises:
        UserError: the file is damaged, or of another kind; the words are the reader's own.
    """
    try:
        return _safetensors(path) if path.suffix.lower() == ".safetensors" else _webui(path)
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
        SafetensorError,
    ) as error:
        if isinstance(error, UserError):
            raise
        load(path)  # says what is wrong
        raise UserError(f"{path}: its header makes no sense ({type(error).__name__})") from error


def _safetensors(path: Path) -> Summary:
    header, _ = header_of(path)
    if is_generated_file(path):
        return _generated(path, header)
    if header.get(FORMAT_KEY) != FORMAT:
        raise ValueError
    config = json.loads(header[CONFIG_KEY])
    widths: dict[Key, int] = {int(k) if k.isdecimal() else k: v for k, v in config.pop("widths").items()}
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())
        shapes = [file.get_slice(name).get_shape() for name in names]
    counts = [math.prod(shape) for shape in shapes]
    return _summary(path, "safetensors", build(path, path.stem, config, widths, len(counts)), counts)


def _generated(path: Path, header: Mapping[str, str]) -> Summary:
    content = json.loads(header[CONFIG_KEY])
    with safe_open(path, framework="pt", device="cpu") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    layers = {name.rpartition(".")[0] for name in shapes}
    if not layers or len(shapes) != 2 * len(layers):
        raise ValueError
    base = header.get("modelspec.architecture", "").partition("/")[0]
    step = content["metadata"].get("generator_step", 0)
    return Summary(
        kind=GENERATED,
        format="safetensors",
        widths=(),
        sites=len({layer.partition(".to_")[0] for layer in layers}),
        structure=(),
        activation="",
        layer_norm=False,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        step=step if isinstance(step, int) else 0,
        trained_for=_family(base),
    )


def _family(architecture: str) -> str:
    """In words, of ModelSpec's name; "" for another."""
    return BY_ARCHITECTURE[architecture].name if architecture in BY_ARCHITECTURE else ""


def _webui(path: Path) -> Summary:
    content = outline(path)
    widths: dict[Key, int] = {k: k for k in content if isinstance(k, int) and not isinstance(k, bool)}
    if not widths:
        raise ValueError
    counts = []
    for width in widths:
        states: list[Mapping[str, Tensor]] = list(content[width])
        counts += [math.prod(tensor.shape) for state in states for tensor in state.values()]
    settings = {k: v for k, v in content.items() if isinstance(k, str)}
    return _summary(path, "webui", build(path, path.stem, settings, widths, len(counts)), counts)


def _summary(path: Path, form: str, network: AttentionHypernetwork, counts: list[int]) -> Summary:
    """network: built from the file's settings, on the meta device; counts: numbers per tensor of the file."""
    needed = [p.numel() for p in network.parameters()]
    if sorted(needed) != sorted(counts):
        raise UserError(
            f"{path} is not whole: its settings mean {len(needed)} tensors of {sum(needed):,} numbers, but it "
            f"has {len(counts)} of {sum(counts):,}"
        )
    settings = network.settings
    named = network.metadata.get("sd_checkpoint_name")
    return Summary(
        kind=KIND,
        format=form,
        widths=tuple(network.widths),
        sites=len(network.sites),
        structure=tuple(settings.layer_structure),
        activation=settings.activation or "linear",
        layer_norm=settings.layer_norm,
        parameters=sum(counts),
        step=network.step,
        trained_for=named if isinstance(named, str) and named else _family(architecture(network)),
    )

"""What a hypernetwork's file says of itself, as people and caches keep it; read without its numbers.

Only reading imports torch: a library's names and notes do without.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files import packed
from hyperbrush.ldm.families import BY_ARCHITECTURE

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.attention.hypernetwork import Key
    from hyperbrush.hypernetworks.files.torch_files import Tensor

KIND = "attention hypernetwork"
GENERATED = "generated"


@dataclass(frozen=True)
class Summary:
    """A file's header in words and numbers.

    Args:
        kind: "attention hypernetwork", or "generated": weights that a hypernetwork generated; what a kind
            does not have is empty or 0.
        format: "webui", "safetensors", or "pack" of a pack's member.
        widths: context widths it has networks for.
        sites: number of attention sites with a network or weights of their own; 0 where networks go by width.
        structure: widths of the layers as multiples of the context's.
        activation: its name; "linear" for none.
        layer_norm: whether a LayerNorm follows every layer.
        parameters: how many numbers it has.
        step: of its training.
        trained_for: the checkpoint it names, else the family of models by its widths, else "".
    """

    kind: str
    format: str
    widths: tuple[int, ...]
    sites: int
    structure: tuple[float, ...]
    activation: str
    layer_norm: bool
    parameters: int
    step: int
    trained_for: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def summary_from(value: Any) -> Summary | None:
    """A summary out of JSON; None if it is none."""
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        found = Summary(**values)
        sound = (
            all(isinstance(x, str) for x in (found.kind, found.format, found.activation, found.trained_for))
            and all(isinstance(x, int) for x in (found.sites, found.parameters, found.step, *found.widths))
            and all(isinstance(x, int | float) for x in found.structure)
            and isinstance(found.layer_norm, bool)
        )
    except (TypeError, AttributeError):
        return None
    return found if sound else None


def summarise(path: Path) -> Summary:
    """Read a file's header and settings; its numbers stay unread (NaN in them is not seen).

    Raises:
        UserError: the file is damaged, or of another kind; the words are the reader's own.
    """
    try:
        if packed.split(path) is not None:
            return _member(path)
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
        from hyperbrush.hypernetworks.files.adapters import load

        load(path)  # says what is wrong
        raise UserError(f"{path}: its header makes no sense ({type(error).__name__})") from error


def _safetensors(path: Path) -> Summary:
    from hyperbrush.hypernetworks.files.adapters import is_generated_file
    from hyperbrush.hypernetworks.files.headers import CONFIG_KEY, FORMAT_KEY, header_of
    from hyperbrush.hypernetworks.files.native import FORMAT

    header, _ = header_of(path)
    if is_generated_file(path):
        return _generated(path, header, json.loads(header[CONFIG_KEY]))
    if header.get(FORMAT_KEY) != FORMAT:
        raise ValueError
    config = json.loads(header[CONFIG_KEY])
    widths: dict[Key, int] = {int(k) if k.isdecimal() else k: v for k, v in config.pop("widths").items()}
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())
        shapes = [file.get_slice(name).get_shape() for name in names]
    counts = [math.prod(shape) for shape in shapes]
    return _summary(path, "safetensors", config, widths, counts)


def _member(path: Path) -> Summary:
    from hyperbrush.hypernetworks.files.pack import outline

    kind, about, shapes, base = outline(path)
    if kind == packed.ATTENTION:
        config = dict(about)
        widths: dict[Key, int] = {int(k) if k.isdecimal() else k: v for k, v in config.pop("widths").items()}
        return _summary(path, "pack", config, widths, [math.prod(shape) for shape, _ in shapes.values()])
    numbers = sum(rank * sum(shape) for shape, rank in shapes.values())
    return _of_weights("pack", list(shapes), numbers, about["metadata"], base)


def _generated(path: Path, header: Mapping[str, str], config: Mapping[str, Any]) -> Summary:
    with safe_open(path, framework="pt", device="cpu") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    layers = {name.rpartition(".")[0] for name in shapes}
    if not layers or len(shapes) != 2 * len(layers):
        raise ValueError
    numbers = sum(math.prod(shape) for shape in shapes.values())
    base = header.get("modelspec.architecture", "")
    return _of_weights("safetensors", layers, numbers, config["metadata"], base)


def _of_weights(
    form: str, layers: Iterable[str], numbers: int, metadata: Mapping[str, Any], base: str
) -> Summary:
    """base: ModelSpec's architecture."""
    step = metadata.get("generator_step", 0)
    return Summary(
        kind=GENERATED,
        format=form,
        widths=(),
        sites=len({layer.partition(".to_")[0] for layer in layers}),
        structure=(),
        activation="",
        layer_norm=False,
        parameters=numbers,
        step=step if isinstance(step, int) else 0,
        trained_for=_family(base.partition("/")[0]),
    )


def _family(architecture: str) -> str:
    """In words, of ModelSpec's name; "" for another."""
    return BY_ARCHITECTURE[architecture].name if architecture in BY_ARCHITECTURE else ""


def _webui(path: Path) -> Summary:
    from hyperbrush.hypernetworks.files.torch_files import outline

    content = outline(path)
    widths: dict[Key, int] = {k: k for k in content if isinstance(k, int) and not isinstance(k, bool)}
    if not widths:
        raise ValueError
    counts = []
    for width in widths:
        states: list[Mapping[str, Tensor]] = list(content[width])
        counts += [math.prod(tensor.shape) for state in states for tensor in state.values()]
    settings = {k: v for k, v in content.items() if isinstance(k, str)}
    return _summary(path, "webui", settings, widths, counts)


def _summary(
    path: Path, form: str, settings: Mapping[str, Any], widths: "Mapping[Key, int]", counts: list[int]
) -> Summary:
    """settings: by the webui's keys; counts: numbers per tensor of the file."""
    from hyperbrush.hypernetworks.files.checks import build
    from hyperbrush.hypernetworks.files.modelspec import architecture

    network = build(path, path.stem, settings, widths, len(counts))
    needed = [p.numel() for p in network.parameters()]
    if sorted(needed) != sorted(counts):
        raise UserError(
            f"{path} is not whole: its settings mean {len(needed)} tensors of {sum(needed):,} numbers, but it "
            f"has {len(counts)} of {sum(counts):,}"
        )
    built = network.settings
    named = network.metadata.get("sd_checkpoint_name")
    return Summary(
        kind=KIND,
        format=form,
        widths=tuple(network.widths),
        sites=len(network.sites),
        structure=tuple(built.layer_structure),
        activation=built.activation or "linear",
        layer_norm=built.layer_norm,
        parameters=sum(counts),
        step=network.step,
        trained_for=named if isinstance(named, str) and named else _family(architecture(network)),
    )

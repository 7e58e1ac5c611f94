"""Files of generated weights: our safetensors form, low-rank factors by layer.

Tensors: ``{layer}.down`` (rank, in) and ``{layer}.up`` (out, rank), with ΔW = up · down: every scale is folded in.
The layer's name is the UNet's own ("down_blocks.0.….attn2.to_k") or an attention hypernetwork's
("768.key.layers.0").  Weights of HyperDreamBooth's lightweight form (metadata ``frames``: "seed,inner,inner") are
``{layer}.inner_down`` and ``{layer}.inner_up`` instead, see `lightweight`.
Header: ``hyperbrush.format`` = "generated-weights/1"; ``hyperbrush.config``: JSON with ``metadata``, and ``shapes``
({layer: [out, in]}) of the lightweight form; and ModelSpec 1.0.0 (title is the name).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.files.headers import CONFIG_KEY, FORMAT_KEY, MAX_CONFIG, sort_header
from hyperbrush.hypernetworks.files.modelspec import tensors_hash
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.frames import Frames
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.families import architecture_of

FORMAT = "generated-weights/1"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST = 65536  # of a layer's width


def write(weights: GeneratedWeights, path: Path, dtype: torch.dtype | None = None) -> Path:
    """Write one adapter; equal weights make equal files.

    Raises:
        UserError: another suffix, a dtype that is none of `DTYPES`, numbers that are not finite or too large for it,
            metadata that JSON cannot hold, or the file cannot be written.
    """
    if path.suffix.lower() != ".safetensors" or path.is_dir():
        raise UserError(f"cannot write {path}: generated weights are a file ending in .safetensors")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype} is impossible: expected {', '.join(map(str, DTYPES))}")
    weights = weights.folded()
    content: dict[str, Any] = {"metadata": weights.metadata}
    parts = _compressed(weights)
    if parts is not None:
        content["shapes"] = {layer: list(f.shape) for layer, f in weights.factors.items()}
    else:
        parts = {
            f"{layer}.{part}": value
            for layer, f in weights.factors.items()
            for part, value in (("down", f.down), ("up", f.up))
        }
    tensors = {name: finite_copy(value, dtype or value.dtype, name) for name, value in parts.items()}
    try:
        config = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"cannot write {path}: the metadata of {weights.name!r} must be texts, finite numbers, booleans or None ({error})"
        ) from error
    header = {
        FORMAT_KEY: FORMAT,
        CONFIG_KEY: config,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(weights)}/generated",
        "modelspec.implementation": "hyperbrush",
        "modelspec.title": weights.name,
        "modelspec.hash_sha256": "0x" + tensors_hash(tensors),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        sort_header(temporary)
    return path


def is_generated(header: Mapping[str, str]) -> bool:
    """Whether a safetensors header is one of `write`, of any version.

    Raises:
        UserError: of a version this hyperbrush does not read.
    """
    found = header.get(FORMAT_KEY, "")
    if found.startswith("generated-weights/") and found != FORMAT:
        raise UserError(f"its format is {found!r:.80}, but this hyperbrush reads {FORMAT!r}; update it")
    return found == FORMAT


def architecture(weights: GeneratedWeights) -> str:
    """ModelSpec's name of the base model, read off the cross-attention widths."""
    crossing = (".attn2.to_k", ".attn2.to_v")
    return architecture_of({f.shape[1] for name, f in weights.factors.items() if name.endswith(crossing)})


def factors_of(path: Path, down: Tensor, up: Tensor, layer: str) -> Factors:
    """Two tensors of a file as factors.

    Raises:
        UserError: they do not fit, or are not finite floating-point numbers.
    """
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not len(down):
        raise UserError(
            f"{path}: the tensors of {layer} are {tuple(down.shape)} and {tuple(up.shape)}; expected (rank, in) and (out, rank)"
        )
    if not all(t.dtype in DTYPES and bool(torch.isfinite(t).all()) for t in (down, up)):
        raise UserError(f"{path}: the numbers of {layer} are not finite floating-point numbers")
    return Factors(down, up)


def finite_copy(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A tensor of its own on the CPU in a dtype.

    Raises:
        UserError: numbers that are not finite in it.
    """
    tensor = value.detach().to("cpu", dtype).contiguous().clone()
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} has numbers that are not finite or too large for {dtype}")
    return tensor


def _compressed(weights: GeneratedWeights) -> dict[str, Tensor] | None:
    """The tensors of the lightweight form; None for weights that are not (or no longer) of it."""
    frames = _frames(weights.metadata)
    if frames is None:
        return None
    tensors = {}
    for layer, factors in weights.factors.items():
        found = frames.compress(layer, factors)
        if found is None:
            return None
        tensors[f"{layer}.inner_down"], tensors[f"{layer}.inner_up"] = found
    return tensors


def _frames(metadata: Mapping[str, Any]) -> Frames | None:
    try:
        seed, down, up = (int(number) for number in str(metadata["frames"]).split(","))
    except (KeyError, ValueError):
        return None
    return Frames(seed, down, up) if 0 < min(down, up) <= max(down, up) <= _MOST else None


def read(path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> GeneratedWeights:
    """Read what `write` wrote: a file's header and tensors.

    Raises:
        UserError: it is not whole, or its header is damaged.
    """
    try:
        text = header[CONFIG_KEY]
        if len(text) > MAX_CONFIG:
            raise ValueError("too long")
        content = json.loads(text)
        metadata: dict[str, Any] = dict(content["metadata"])
        shapes = {str(k): (int(v[0]), int(v[1])) for k, v in content.get("shapes", {}).items()}
        if any(not 0 < side <= _MOST for shape in shapes.values() for side in shape):
            raise ValueError("shapes")
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path}: the header's {CONFIG_KEY} is damaged; expected JSON with metadata"
        ) from error
    down, up = ("inner_down", "inner_up") if shapes else ("down", "up")
    layers = [name.removesuffix(f".{down}") for name in tensors if name.endswith(f".{down}")]
    if not layers or {f"{x}.{part}" for x in layers for part in (down, up)} != set(tensors):
        raise UserError(f"{path} is not whole: expected tensors LAYER.{down} and LAYER.{up}")
    made = {}
    frames = _frames(metadata) if shapes else None
    for x in layers:
        a, b = tensors[f"{x}.{down}"], tensors[f"{x}.{up}"]
        if not shapes:
            made[x] = factors_of(path, a, b, x)
            continue
        inner = factors_of(path, a, b, x)
        if frames is None or x not in shapes or inner.shape != frames.inner(*shapes[x]):
            raise UserError(f"{path}: the lightweight form of {x} contradicts the header")
        made[x] = frames.restore(x, a, b, shapes[x][1], shapes[x][0])
    return GeneratedWeights(made, name=header.get("modelspec.title") or path.stem, metadata=metadata)

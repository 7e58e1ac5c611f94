"""The webui's .pt, {width: (key tensors, value tensors), settings…}, and its older variants."""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.attention import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.context_network import ContextLayer, ContextNetwork
from hyperbrush.hypernetworks.formats.checks import build, fill, settings_of

_NULLS = {"sd_checkpoint": None, "sd_checkpoint_name": None, "optional_info": None}
_PARAMETER = re.compile(r"^linear\.?\d+(?:\.linear\.\d+|\.upsample_layer)?\.(weight|bias)$")


def read(path: Path) -> AttentionHypernetwork:
    """Read a webui hypernetwork: present and older forms, bare widths, lists, residual layers.

    Raises:
        UserError: the file is not a whole and sound hypernetwork.
    """
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}: expected a hypernetwork, a mapping from widths"
        )
    widths: dict[Key, int] = {k: k for k in content if isinstance(k, int) and not isinstance(k, bool)}
    if not widths:
        raise UserError(f"{path} is not a hypernetwork: {_looks_like(content)}")
    hypernetwork = build(path, path.stem, {k: v for k, v in content.items() if isinstance(k, str)}, widths)
    for width, pair in hypernetwork.pairs():
        states = content[width]
        if not isinstance(states, list | tuple) or len(states) != 2:
            got = (
                f"{len(states)} of them" if isinstance(states, list | tuple) else f"a {type(states).__name__}"
            )
            raise UserError(
                f"{path}, width {width}: expected two sets of tensors, for keys and values, but got {got}"
            )
        for network, state, use in (
            (pair.key, states[0], "keys"),
            (pair.value, states[1], "values"),
        ):
            where = f"width {width}, {use}"
            fill(path, where, network, _ordered(path, where, state))
    return hypernetwork


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        detail = re.search(
            r"(?:Unsupported (?:global|class|operand)|WeightsUnpickler error)[^\n]*", str(error)
        )
        raise UserError(
            f"{path} is damaged, or holds more than tensors and settings, which is never executed "
            f"({detail[0] if detail else reason:.200}). Get it again from a source you trust"
        ) from error
    except Exception as error:  # whatever a broken file makes the reader stumble over
        if isinstance(error, MemoryError):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"{path} is damaged or no torch file ({reason:.160}). Copy or download it again"
        ) from error


def _looks_like(content: Mapping[Any, Any]) -> str:
    keys = [str(k) for k in list(content)[:2000]]
    if any("lora" in k.lower() for k in keys):
        return "it looks like a LoRA; load it with pipe.load_lora_weights"
    if "string_to_param" in keys or "emb_params" in keys:
        return "it is a textual inversion; load it with pipe.load_textual_inversion"
    if "optimizer_state_dict" in keys:
        return "it is the optimizer state that belongs beside a hypernetwork"
    if "state_dict" in keys or any(k.startswith("model.diffusion_model") for k in keys):
        return "it looks like a whole checkpoint"
    shown = ", ".join(keys[:4]) if keys else "nothing"
    return f"expected widths such as 320 or 768 as keys, but found {shown:.120}"


def _ordered(path: Path, where: str, state: Any) -> list[tuple[str, Any]]:
    """Tensors in layer order: module numbers vary with the settings, only their order counts."""
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}, {where}: expected a mapping of tensors, but got a {type(state).__name__}")
    for key in state:
        if not isinstance(key, str) or not _PARAMETER.match(key):
            hint = " (multihead attention cannot work here)" if "proj" in str(key) else ""
            raise UserError(
                f"{path}, {where}: unexpected tensor name {str(key)[:80]!r}{hint}; expected linear.N.weight"
            )
    return sorted(state.items(), key=lambda item: _position(item[0]))


def _position(key: str) -> tuple[list[int], bool]:
    return [int(n) for n in re.findall(r"\d+", key)], key.endswith("bias")


def write(hypernetwork: AttentionHypernetwork, path: Path) -> None:
    """Write the webui's present form, every key explicit.

    Raises:
        UserError: there are networks per site, which the webui cannot hold; or as `atomic_path`.
    """
    if hypernetwork.sites:
        raise UserError(
            f"cannot write {path}: {hypernetwork.name!r} has networks per site, "
            "and the webui's .pt only holds one per width. Save it as .safetensors"
        )
    content: dict[int | str, Any] = {}
    for width, pair in hypernetwork.pairs():
        content[width] = (_state(pair.key), _state(pair.value))
    content.update(_NULLS | settings_of(hypernetwork))
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _state(network: ContextNetwork) -> "OrderedDict[str, torch.Tensor]":
    return OrderedDict(
        # A copy: a view would take the whole storage it looks at into the file.
        (name, parameter.detach().cpu().clone().contiguous())
        for name, parameter in zip(_names(network), network.parameters(), strict=True)
    )


def _names(network: ContextNetwork) -> Iterator[str]:
    """The webui's own names, in order: module numbers count activations, norms and dropouts too."""
    number = 0
    for index, layer in enumerate(network.layers):
        assert isinstance(layer, ContextLayer)
        prefix = f"linear.{index}.linear" if layer.residual else "linear"
        number = 0 if layer.residual else number
        if layer.skip is not None:
            yield f"linear.{index}.upsample_layer.weight"
        yield f"{prefix}.{number}.weight"
        yield f"{prefix}.{number}.bias"
        number += 1
        parts = [("activation", layer.activation), ("norm", layer.norm)]
        for _, part in reversed(parts) if layer.residual else parts:
            if part is None:
                continue
            for name, _ in part.named_parameters():
                yield f"{prefix}.{number}.{name}"
            number += 1
            if layer.residual and part is layer.norm and layer.dropout > 0:
                number += 1
        if not layer.residual and layer.dropout > 0:
            number += 1

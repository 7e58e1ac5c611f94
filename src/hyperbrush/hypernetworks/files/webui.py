"""The webui's .pt, {width: (key tensors, value tensors), settings…}, and its older variants."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.context_network import ContextLayer, ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.files.checks import alone, build, check_apart, check_tensors, fill, settings_of
from hyperbrush.hypernetworks.files.suspects import foreign_kind
from hyperbrush.hypernetworks.files.torch_files import outline
from hyperbrush.hypernetworks.files.torch_files import read as read_content
from hyperbrush.hypernetworks.files.torch_writing import write_content

_NULLS = {"sd_checkpoint": None, "sd_checkpoint_name": None, "optional_info": None}
_PARAMETER = re.compile(
    r"linear\.?[0-9]{1,5}(?:\.linear\.[0-9]{1,5}|\.upsample_layer)?\.(?:weight|bias)", re.ASCII
)


def read(path: Path) -> AttentionHypernetwork:
    """Read a webui hypernetwork: present and older forms, bare widths, lists, residual layers.

    Everything but the numbers is checked on the file's outline, before a tensor is read.

    Raises:
        UserError: the file is not a whole and sound hypernetwork.
    """
    content = outline(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}: expected a hypernetwork, a mapping from widths"
        )
    widths: dict[Key, int] = {k: k for k in content if isinstance(k, int) and not isinstance(k, bool)}
    if not widths:
        raise UserError(f"{path} is not a hypernetwork: {_looks_like(content)}")
    tensors = 0
    for width in widths:
        tensors += sum(len(state) for state in _pair(path, width, content[width]))
    settings = {k: v for k, v in content.items() if isinstance(k, str)}
    hypernetwork = build(path, path.stem, settings, widths, tensors)
    seen: list[tuple[str, Any]] = []
    for where, network, items in _networks(path, hypernetwork, content):
        check_tensors(path, where, network, items)
        seen += [(f"{where}, {name}", tensor) for name, tensor in items]
    check_apart(path, seen)
    content = read_content(path)
    for where, network, items in _networks(path, hypernetwork, content):
        fill(path, where, network, items)
    return hypernetwork


def _networks(
    path: Path, hypernetwork: AttentionHypernetwork, content: Mapping[Any, Any]
) -> Iterator[tuple[str, ContextNetwork, list[tuple[str, Any]]]]:
    """Each network with its place in words and the file's tensors for it, in layer order."""
    for width, pair in hypernetwork.pairs():
        states = zip(_pair(path, width, content[width]), (pair.key, pair.value), strict=True)
        for use, (state, network) in zip(("keys", "values"), states, strict=True):
            where = f"width {width}, {use}"
            yield where, network, _ordered(path, where, state)


def _pair(path: Path, width: Key, states: Any) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """The two sets of tensors of a width: a tuple, or a list as some writers have it."""
    if not isinstance(states, list | tuple) or len(states) != 2:
        got = f"{len(states)} of them" if isinstance(states, list | tuple) else f"a {type(states).__name__}"
        raise UserError(
            f"{path}, width {width}: expected two sets of tensors, for keys and values, but got {got}"
        )
    for use, state in zip(("keys", "values"), states, strict=True):
        if not isinstance(state, Mapping) or not state:
            got = "an empty one" if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise UserError(f"{path}, width {width}, {use}: expected a mapping of tensors, but got {got}")
    return states[0], states[1]


def _looks_like(content: Mapping[Any, Any]) -> str:
    keys = [str(k) for k in list(content)[:2000]]
    shown = ", ".join(keys[:4]) if keys else "nothing"
    return foreign_kind(keys) or f"expected widths such as 320 or 768 as keys, but found {shown!r:.120}"


def _ordered(path: Path, where: str, state: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Tensors in layer order: module numbers vary with the settings, only their order counts."""
    for key in state:
        if not isinstance(key, str) or not _PARAMETER.fullmatch(key):
            hint = " (multihead attention cannot work here)" if "proj" in str(key) else ""
            raise UserError(
                f"{path}, {where}: unexpected tensor name {str(key)[:80]!r}{hint}; expected linear.N.weight"
            )
    return sorted(state.items(), key=lambda item: _position(item[0]))


def _position(key: str) -> tuple[list[int], bool]:
    return [int(n) for n in re.findall(r"\d+", key)], key.endswith("bias")


def write(hypernetwork: AttentionHypernetwork, path: Path, *, legacy_zip: bool = False) -> None:
    """Write the webui's present form, every key explicit, so that its versions from 2022 on open it.

    legacy_zip: torch's form before 2020, without a zip, for programs with a torch older than 1.6.

    Raises:
        UserError: there are networks per site, which the webui cannot hold; or as `write_content`.
    """
    if hypernetwork.sites:
        raise UserError(
            f"cannot write {path}: {hypernetwork.name!r} has networks per site, "
            "and the webui's .pt only holds one per width. Save it as .safetensors"
        )
    write_content(content_of(hypernetwork), path, legacy_zip=legacy_zip)


def content_of(hypernetwork: AttentionHypernetwork, *, dropout: bool = True) -> dict[int | str, Any]:
    """A hypernetwork without networks per site as the mapping that the webui's file holds.

    dropout: False: say that there is none, which changes the names of the tensors too.
    """
    content: dict[int | str, Any] = {}
    for width, pair in hypernetwork.pairs():
        assert isinstance(width, int)
        content[width] = (_state(pair.key, dropout), _state(pair.value, dropout))
    content.update(_NULLS | settings_of(hypernetwork))
    if not dropout:
        rates = [0] * len(hypernetwork.settings.layer_structure)
        content |= {"use_dropout": False, "dropout_structure": rates, "last_layer_dropout": False}
    return content


def _state(network: ContextNetwork, dropout: bool) -> "OrderedDict[str, torch.Tensor]":
    return OrderedDict(
        (name, alone(parameter))
        for name, parameter in zip(_names(network, dropout), network.parameters(), strict=True)
    )


def _names(network: ContextNetwork, dropout: bool) -> Iterator[str]:
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
            if layer.residual and part is layer.norm and layer.dropout > 0 and dropout:
                number += 1
        if not layer.residual and layer.dropout > 0 and dropout:
            number += 1

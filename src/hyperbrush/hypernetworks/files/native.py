"""Our safetensors form: tensors by width or site; settings and ModelSpec fields in the header.

Tensor names: ``{width or site path}.{key|value}.layers.{i}.{part}.{weight|bias}``, where part is
linear, norm, activation (PReLU) or skip.
Header: ``hyperbrush.format`` = "attention-hypernetwork/1", ``hyperbrush.config`` (the webui's
keys as JSON, and ``widths``: width or site path → context width), and ModelSpec 1.0.0.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.files.checks import alone, build, fill, settings_of
from hyperbrush.hypernetworks.files.headers import (
    CONFIG_KEY,
    FORMAT_KEY,
    MAX_CONFIG,
    check_header,
    damaged,
    sort_header,
)
from hyperbrush.hypernetworks.files.modelspec import PREFIX, fields, given_fields
from hyperbrush.hypernetworks.files.packed import FORMAT as PACK
from hyperbrush.hypernetworks.files.packed import SUFFIX as PACK_SUFFIX
from hyperbrush.hypernetworks.files.suspects import foreign_kind

FORMAT = "attention-hypernetwork/1"
_NAME = re.compile(r"(?P<key>.+)\.(?P<use>key|value)\.(?P<parameter>layers\.[0-9]{1,5}\.[a-z]+\.[a-z]+)")


def read(path: Path) -> AttentionHypernetwork:
    """Read a hypernetwork that `write` wrote.

    The numbers stay in the file until they are looked at (safetensors maps it into memory): replace a
    file that is in use by another, as `write` does, but do not write into it.

    Raises:
        UserError: the file is damaged, or is a safetensors file of another kind.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            names = list(file.keys())
            config, widths = _config(path, header, names)
            hypernetwork = build(path, path.stem, config, widths, len(names))
            hypernetwork.metadata.update(given_fields(header))
            groups = _groups(path, names)
            for where, network, group in _networks(path, hypernetwork, groups):
                fill(path, where, network, [(name, file.get_tensor(full)) for name, full in group])
    except SafetensorError as error:
        raise damaged(path, error) from error
    return hypernetwork


def _config(path: Path, header: Mapping[str, str], names: list[str]) -> tuple[dict[str, Any], dict[Key, int]]:
    """The settings under the webui's keys, and the width of each network."""
    if header.get(FORMAT_KEY) != FORMAT:
        raise UserError(f"{path} is not an attention hypernetwork: {_looks_like(header, names)}")
    text = header.get(CONFIG_KEY, "")
    try:
        if len(text) > MAX_CONFIG:
            raise ValueError("too long")
        config = json.loads(text, parse_constant=_not_finite)
        widths = config.pop("widths")
        by_key: dict[Key, int] = {_key(text): width for text, width in widths.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: the header's {CONFIG_KEY} is damaged; expected JSON with widths") from error
    if not by_key or any(isinstance(key, int) and key != width for key, width in by_key.items()):
        raise UserError(f"{path}: the header's widths contradict themselves: {widths!s:.120}")
    return config, by_key


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _key(text: str) -> Key:
    if len(text) > 300 or not text.isprintable():
        raise ValueError("site")
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,8}", text) else text


def _groups(path: Path | str, names: Iterable[str]) -> dict[tuple[str, str], dict[str, str]]:
    """(width or site, use) → {a network's parameter: the tensor's name}."""
    groups: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(
                f"{path}: unexpected tensor {name!r:.100}; expected WIDTH.key.layers.N.linear.weight"
            )
        groups[match["key"], match["use"]][match["parameter"]] = name
    return groups


def _networks(
    path: Path | str, hypernetwork: AttentionHypernetwork, groups: dict[tuple[str, str], dict[str, str]]
) -> list[tuple[str, ContextNetwork, list[tuple[str, str]]]]:
    """Each network with its place in words and its tensors' (parameter, name), in layer order.

    Raises:
        UserError: a network without tensors, or tensors without a network.
    """
    found = []
    for key, pair in hypernetwork.pairs():
        for network, use in ((pair.key, "key"), (pair.value, "value")):
            order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
            group = groups.pop((str(key), use), {})
            where = f"{'width' if isinstance(key, int) else 'site'} {key}, {use}s"
            ordered = sorted(group.items(), key=lambda item: order.get(item[0], len(order)))
            found.append((where, network, ordered))
    if groups:
        name, use = next(iter(groups))
        raise UserError(f"{path}: tensors for {name!r:.100} ({use}s), which the header does not name")
    return found


def _looks_like(header: Mapping[str, str], names: list[str]) -> str:
    if FORMAT_KEY in header:
        found = header[FORMAT_KEY]
        if found.startswith("generated-weights/"):
            return "it holds weights that a hypernetwork generated: hyperbrush.load reads it"
        if found.startswith("hypernetwork/"):
            return "it holds a hypernetwork that generates weights: hyperbrush.Hypernetwork.load reads it"
        if found == PACK:
            return f"it is a pack of several: call it NAME{PACK_SUFFIX}, and one of them NAME/MEMBER"
        return f"its format is {found!r:.80}, but this hyperbrush reads {FORMAT!r}; update it"
    shown = ", ".join(names[:2]) or "nothing"
    other = f"its header has no {FORMAT_KEY}, and it holds {len(names)} tensors ({shown!r:.120})"
    return foreign_kind(names) or other


def taken_apart(hypernetwork: AttentionHypernetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings under the webui's keys, with ``widths``, and the tensors by name, each with a storage of its own."""
    tensors = {}
    for key, pair in hypernetwork.pairs():
        for network, use in ((pair.key, "key"), (pair.value, "value")):
            for name, parameter in network.named_parameters():
                tensors[f"{key}.{use}.{name}"] = alone(parameter)
    settings = {k: v for k, v in settings_of(hypernetwork).items() if not k.startswith(PREFIX)}
    return settings | {"widths": {str(key): pair.width for key, pair in hypernetwork.pairs()}}, tensors


def assemble(
    where: str, name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> AttentionHypernetwork:
    """Undo `taken_apart`, in evaluation mode.

    where: what they are from, in words.

    Raises:
        UserError: they contradict each other.
    """
    config = dict(settings)
    try:
        widths: dict[Key, int] = {_key(text): width for text, width in config.pop("widths").items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged: its settings have no widths") from error
    made = build(where, name, config, widths, len(tensors))
    for place, network, group in _networks(where, made, _groups(where, tensors)):
        fill(where, place, network, [(parameter, tensors[full]) for parameter, full in group])
    return made.eval()


def write(hypernetwork: AttentionHypernetwork, path: Path) -> None:
    """Write all networks with their settings; equal networks make equal files.

    Raises:
        UserError: ``metadata`` holds what JSON or ModelSpec cannot, or the file cannot be written.
    """
    settings, tensors = taken_apart(hypernetwork)
    text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
    header = {FORMAT_KEY: FORMAT, CONFIG_KEY: text, **fields(hypernetwork, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        sort_header(temporary)

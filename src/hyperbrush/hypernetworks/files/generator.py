"""Files of whole hypernetworks: safetensors, with everything they are built from as JSON in the header.

Header: ``hyperbrush.format`` = "hypernetwork/1"; ``hyperbrush.config``: JSON with ``settings``
(`HypernetworkSettings`), ``targets`` (rows of `Target`), ``name``, ``step``, ``size`` where it has one, and ``parts``: class
names of parts that are not ours.  Tensors: the state dict.  Nothing is pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.files.generated import finite_copy
from hyperbrush.hypernetworks.files.headers import (
    CONFIG_KEY,
    FORMAT_KEY,
    MAX_CONFIG,
    header_of,
    read_tensors,
    sort_header,
)
from hyperbrush.hypernetworks.generator.decoder import HypernetworkDecoder
from hyperbrush.hypernetworks.generator.encoder import HypernetworkEncoder
from hyperbrush.hypernetworks.generator.weight_generator import WeightGenerator
from hyperbrush.hypernetworks.weights.layers import from_rows, to_rows

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.generator.hypernetwork import Hypernetwork

FORMAT = "hypernetwork/1"
_OWN = {"encoder": HypernetworkEncoder, "weight_generator": WeightGenerator, "decoder": HypernetworkDecoder}


def write(net: "Hypernetwork", path: Path, dtype: torch.dtype | None) -> Path:
    """Write a hypernetwork; equal ones make equal files.

    Raises:
        UserError: another suffix, numbers too large for the dtype, or the file cannot be written.
    """
    if path.suffix.lower() != ".safetensors" or path.is_dir():
        raise UserError(f"cannot write {path}: a hypernetwork is a file ending in .safetensors")
    parts = {
        name: type(getattr(net, name)).__name__
        for name, own in _OWN.items()
        if type(getattr(net, name)) is not own
    }
    config = {
        "settings": asdict(net.settings),
        "targets": to_rows(net.targets),
        "name": net.name,
        "step": net.step,
        "learned": list(net.learned),
        "parts": parts,
        **({} if net.size is None else {"size": net.size}),
    }
    tensors = {
        name: finite_copy(value, dtype if dtype and value.is_floating_point() else value.dtype, name)
        for name, value in net.state_dict().items()
    }
    header = {
        FORMAT_KEY: FORMAT,
        CONFIG_KEY: json.dumps(config, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "hyperbrush",
        "modelspec.title": net.name,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        sort_header(temporary)
    return path


def read(path: Path, parts: Mapping[str, nn.Module]) -> "Hypernetwork":
    """Read what `write` wrote, in float32.

    Raises:
        UserError: no such file, damaged, of another kind, or a part is missing.
    """
    for name in parts:
        if name not in _OWN:
            raise unknown_name("part of a hypernetwork", name, _OWN)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        raise UserError(f"{path} is no .safetensors file: expected what Hypernetwork.save wrote")
    try:
        header, _ = header_of(path)
        if header.get(FORMAT_KEY) != FORMAT:
            raise UserError(
                f"{path} is not a hypernetwork of format {FORMAT!r}: its format is "
                f"{header.get(FORMAT_KEY, 'not said')!r:.80}; hyperbrush.load reads finished adapters"
            )
        net = _build(path, header, parts)
        state = read_tensors(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    expected = net.state_dict()
    wrong = [n for n in expected.keys() | state.keys() if n not in state or n not in expected]
    wrong += [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if wrong:
        raise UserError(
            f"{path} is not whole or for other parts: {len(wrong)} tensors are missing, too many or of another shape, such "
            f"as {min(wrong)}"
        )
    broken = [n for n, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(f"{path}: {broken[0]} holds numbers that are not finite")
    net.load_state_dict(state)
    net.trained = True
    return net


def _build(path: Path, header: Mapping[str, str], parts: Mapping[str, nn.Module]) -> "Hypernetwork":
    from hyperbrush.hypernetworks.generator.hypernetwork import Hypernetwork

    try:
        text = header[CONFIG_KEY]
        if len(text) > MAX_CONFIG:
            raise ValueError("too long")
        config: dict[str, Any] = json.loads(text)
        settings: dict[str, Any] = dict(config["settings"])
        settings |= {key: tuple(settings[key]) for key in ("tasks", "frame_widths")}
        targets = from_rows(config["targets"])
        foreign: dict[str, str] = dict(config["parts"])
        name, step = str(config["name"]), int(config["step"])
        missing = [part for part in foreign if part not in parts]
        if missing:
            raise UserError(
                f"{path}: its {missing[0]} is a {foreign[missing[0]]}, not ours: Hypernetwork.load(path, {missing[0]}=…)"
            )
        net = Hypernetwork(target=targets, name=name, step=step, **settings, **parts)  # type: ignore[arg-type]
        net.learned = tuple(map(str, config.get("learned", ())))
        net.size = None if "size" not in config else int(config["size"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the header's {CONFIG_KEY} is damaged ({type(error).__name__})") from error
    return net

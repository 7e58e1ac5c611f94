"""Our safetensors form: tensors by width or site; settings and ModelSpec fields in the header.

Tensor names: ``{width or site path}.{key|value}.layers.{i}.{part}.{weight|bias}``, where part is
linear, norm, activation (PReLU) or skip.
Header: ``hyperbrush.format`` = "attention-hypernetwork/1", ``hyperbrush.config`` (the webui's
keys as JSON, and ``widths``: width or site path → context width), and ModelSpec 1.0.0.
"""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.attention import AttentionHypernetwork, Key
from hyperbrush.hypernetworks.formats.checks import build, fill, settings_of

FORMAT_KEY = "hyperbrush.format"
FORMAT = "attention-hypernetwork/1"
CONFIG_KEY = "hyperbrush.config"
_NAME = re.compile(r"^(?P<key>.+)\.(?P<use>key|value)\.(?P<parameter>layers\.\d+\..+)$")


def read(path: Path) -> AttentionHypernetwork:
    """Read a hypernetwork that `write` wrote.

    Raises:
        UserError: the file is damaged, or is a safetensors file of another kind.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            names = list(file.keys())
            config = _config(path, header, names)
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}). Copy or download it again"
        ) from error
    widths: dict[Key, int] = {int(k) if k.isdecimal() else k: w for k, w in config.pop("widths").items()}
    if any(isinstance(key, int) and key != width for key, width in widths.items()):
        raise UserError(f"{path}: the header's widths contradict themselves: {widths}")
    hypernetwork = build(path, path.stem, config, widths)
    groups: defaultdict[tuple[str, str], dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _NAME.match(name)
        if match is None:
            raise UserError(
                f"{path}: unexpected tensor {name!r:.100}; expected WIDTH.key.layers.N.linear.weight"
            )
        groups[match["key"], match["use"]][match["parameter"]] = tensor
    for key, pair in hypernetwork.pairs():
        for network, use in ((pair.key, "key"), (pair.value, "value")):
            group = groups.pop((str(key), use), {})
            order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
            ordered = sorted(group.items(), key=lambda item: order.get(item[0], len(order)))
            where = f"{'width' if isinstance(key, int) else 'site'} {key}, {use}s"
            fill(path, where, network, ordered)
    if groups:
        key, use = next(iter(groups))
        raise UserError(f"{path}: tensors for {key!r:.100} ({use}s), which the header does not name")
    return hypernetwork


def _config(path: Path, header: dict[str, str], names: list[str]) -> dict[str, Any]:
    if header.get(FORMAT_KEY) != FORMAT:
        raise UserError(f"{path} is not an attention hypernetwork: {_looks_like(header, names)}")
    try:
        config = json.loads(header[CONFIG_KEY])
        assert isinstance(config, dict)
        widths = config["widths"]
        assert isinstance(widths, dict)
    except (KeyError, ValueError, AssertionError, RecursionError) as error:
        raise UserError(f"{path}: the header's {CONFIG_KEY} is damaged; expected JSON with widths") from error
    return config


def _looks_like(header: dict[str, str], names: list[str]) -> str:
    if FORMAT_KEY in header:
        found = header[FORMAT_KEY]
        return f"its format is {found!r:.80}, but this hyperbrush reads {FORMAT!r}; update it"
    if any("lora" in name.lower() for name in names):
        return "it is a LoRA; load it with pipe.load_lora_weights"
    if any(name.startswith("model.diffusion_model") for name in names):
        return "it is a whole checkpoint"
    shown = ", ".join(names[:2]) or "nothing"
    return f"its header has no {FORMAT_KEY}, and it holds {len(names)} tensors ({shown:.120})"


def write(hypernetwork: AttentionHypernetwork, path: Path) -> None:
    """Write all networks with their settings.

    Raises:
        UserError: ``metadata`` holds what JSON cannot, or the file cannot be written.
    """
    tensors = {}
    for key, pair in hypernetwork.pairs():
        for network, use in ((pair.key, "key"), (pair.value, "value")):
            for name, parameter in network.named_parameters():
                tensors[f"{key}.{use}.{name}"] = parameter.detach().cpu().clone().contiguous()
    config = settings_of(hypernetwork) | {
        "widths": {str(key): pair.width for key, pair in hypernetwork.pairs()}
    }
    try:
        text = json.dumps(config, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"cannot write {path}: the metadata of {hypernetwork.name!r} must be texts, finite "
            f"numbers, "
            f"booleans or None ({error})"
        ) from error
    header = {
        FORMAT_KEY: FORMAT,
        CONFIG_KEY: text,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(hypernetwork)}/hypernetwork",
        "modelspec.implementation": "hyperbrush",
        "modelspec.title": hypernetwork.name,
        "modelspec.hash_sha256": "0x" + _hash(tensors),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def architecture(hypernetwork: AttentionHypernetwork) -> str:
    """ModelSpec's name of the base model, read off the cross-attention widths."""
    widths = {pair.width for _, pair in hypernetwork.pairs()}
    by_width = {
        768: "stable-diffusion-v1",
        1024: "stable-diffusion-v2",
        2048: "stable-diffusion-xl-v1-base",
    }
    found = [name for width, name in by_width.items() if width in widths]
    return found[0] if len(found) == 1 else "latent-diffusion"


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

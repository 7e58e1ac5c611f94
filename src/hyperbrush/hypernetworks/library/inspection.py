"""Everything a hypernetwork file says, and what its numbers do: for people and for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import sha256
from hyperbrush.hypernetworks.attention.affine import is_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files import WEBUI_SUFFIXES, load_attention
from hyperbrush.hypernetworks.files.native import CONFIG_KEY, header_of
from hyperbrush.hypernetworks.files.optimizer import read_optimizer, sidecar_of
from hyperbrush.hypernetworks.files.torch_files import outline
from hyperbrush.hypernetworks.files.torch_writing import foreign_members
from hyperbrush.hypernetworks.library.oddities import oddities
from hyperbrush.hypernetworks.library.readers import readers
from hyperbrush.hypernetworks.library.summaries import Summary
from hyperbrush.hypernetworks.library.summary import summarise
from hyperbrush.ldm.util import keyed_generator

_PROBES = 256  # contexts of unit variance that a network is tried on


@dataclass(frozen=True)
class NetworkFacts:
    """One network, for keys or values of one width or site."""

    where: str  # "768" or the path of a site
    use: str  # "keys" or "values"
    width: int
    layers: tuple[tuple[int, int], ...]  # (in, out) of each
    norms: tuple[float, ...]  # Frobenius norm of each layer's weight
    bias_norms: tuple[float, ...]
    effect: float  # ‖MLP(c)‖ / ‖c‖ over random contexts of unit variance
    dead: tuple[float, ...]  # share of each hidden layer's units that those contexts never wake
    zero: bool  # every parameter is 0

    @property
    def name(self) -> str:
        """In words: "width 768, keys"."""
        kind = "width" if self.where.isdecimal() else "site"
        return f"{kind} {self.where}, {self.use}"


@dataclass(frozen=True)
class Written:
    """What stands in the file itself, before defaults fill it up."""

    writer: str  # our best guess of the program, in words
    given: Mapping[str, Any]  # settings as in the file
    legacy_zip: bool | None  # whether a .pt is of torch's form before 2020; None for safetensors


@dataclass(frozen=True)
class Inspection:
    """A hypernetwork file, with all that can be known of it."""

    path: Path
    size: int  # bytes
    sha256: str
    summary: Summary
    written: Written
    hypernetwork: AttentionHypernetwork
    dtypes: tuple[str, ...]
    networks: tuple[NetworkFacts, ...]
    affine: bool  # no non-linearity: it fuses and becomes a LoRA exactly
    readers: Mapping[str, str]  # program → "yes", or how, or why not
    optimizer: str | None  # name of the optimizer's file beside it
    odd: tuple[str, ...]  # what deserves a second look

    @property
    def short_hash(self) -> str:
        """The webui's: the first 10 digits of the sha256."""
        return self.sha256[:10]

    @property
    def activate_output_given(self) -> bool:
        """Whether the file says so itself; readers disagree on what its absence means."""
        return "activate_output" in self.written.given

    def as_dict(self) -> dict[str, Any]:
        """For JSON: kind, format, writer, name, path, size, sha256, hash, dtypes, and all the rest by name."""
        network, settings = self.hypernetwork, self.hypernetwork.settings
        return {
            "path": str(self.path),
            "name": network.name,
            "size": self.size,
            "sha256": self.sha256,
            "hash": self.short_hash,
            **self.summary.as_dict(),
            "writer": self.written.writer,
            "site_paths": network.sites,
            "dtypes": list(self.dtypes),
            "activate_output": settings.activate_output,
            "activate_output_given": self.activate_output_given,
            "use_dropout": network.use_dropout,
            "dropout_structure": list(settings.rates),
            "last_layer_dropout": network.last_layer_dropout,
            "weight_initialization": network.weight_init,
            "skip_connection": settings.skip_connection,
            "upsample_linear": settings.upsample_linear,
            "affine": self.affine,
            "readers": dict(self.readers),
            "networks": [asdict(facts) for facts in self.networks],
            "optimizer": self.optimizer,
            "metadata": network.metadata,
            "odd": list(self.odd),
        }


@torch.no_grad()
def inspect(path: str | Path) -> Inspection:
    """Look at a hypernetwork file of any known format; nothing in it is executed.

    Raises:
        UserError: no such file, damaged, or of another kind (a LoRA, a textual inversion, a checkpoint: it
            says which).
    """
    path = Path(path)
    hypernetwork = load_attention(path)
    written = _written(path)
    networks = tuple(
        _facts(str(key), use, network)
        for key, pair in hypernetwork.pairs()
        for use, network in (("keys", pair.key), ("values", pair.value))
    )
    affine = all(is_affine(n) for _, pair in hypernetwork.pairs() for n in (pair.key, pair.value))
    optimizer, warning = _optimizer(path)
    return Inspection(
        path=path,
        size=path.stat().st_size,
        sha256=sha256(path),
        summary=summarise(path),
        written=written,
        hypernetwork=hypernetwork,
        dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in hypernetwork.parameters()})),
        networks=networks,
        affine=affine,
        readers=readers(path, hypernetwork, written.given, affine),
        optimizer=optimizer,
        odd=(*oddities(path, hypernetwork, written, networks), *warning),
    )


def _optimizer(path: Path) -> tuple[str | None, list[str]]:
    """The optimizer's file beside a network's, and what is wrong with it."""
    sidecar = sidecar_of(path)
    try:
        state = read_optimizer(path)
    except UserError as error:
        return sidecar.name, [f"its optimizer's file cannot be used: {error}"]
    if state is None:
        return None, []
    odd = [state.warning] if state.warning else []
    if foreign_members(sidecar):
        odd.append(
            f"{sidecar.name} is of a newer torch: the webui refuses it, and the network with it; remove it"
        )
    return f"{sidecar.name} ({state.optimizer_name})", odd


def _written(path: Path) -> Written:
    if path.suffix.lower() not in WEBUI_SUFFIXES:
        header, _ = header_of(path)
        config = json.loads(header[CONFIG_KEY])
        config.pop("widths", None)
        return Written("hyperbrush (safetensors)", config, None)
    with path.open("rb") as file:
        legacy = not file.read(2).startswith(b"PK")
    content = outline(path)
    given = {k: v for k, v in content.items() if isinstance(k, str)}
    states = [v for k, v in content.items() if isinstance(k, int) and not isinstance(k, bool)]
    return Written(_writer(given, states), given, legacy)


def _writer(given: Mapping[str, Any], states: list[Any]) -> str:
    """A guess from which keys there are: each program and version writes its own."""
    names = [str(name) for pair in states for state in pair for name in state]
    if given.get("skip_connection"):
        return "the webui's MonkeyPatch extension (residual layers)"
    if any(isinstance(pair, list) for pair in states):
        return "kohya's scripts or a script like them (lists in place of tuples)"
    if not given:
        old = any(name.startswith(("linear1", "linear2")) for name in names)
        return "the first format, NovelAI's (widths only" + (", linear1 and linear2)" if old else ")")
    # These two came one after the other; later keys are the extension's and ours.
    if "activate_output" not in given:
        age = "of autumn 2022 or older (no activate_output)"
    elif "dropout_structure" not in given:
        age = "of late 2022 (no dropout_structure)"
    else:
        age = "of 2023 or later"
    like = (
        ", or a program that writes its format (skip_connection is there)"
        if "skip_connection" in given
        else ""
    )
    return f"the webui {age}{like}"


def _facts(where: str, use: str, network: ContextNetwork) -> NetworkFacts:
    layers: list[Any] = list(network.layers)
    probes = torch.randn(1, _PROBES, network.width, generator=keyed_generator("probes", network.width))
    dtype = torch.promote_types(torch.float32, next(network.parameters()).dtype)
    contexts = probes.to(dtype)
    effect = float(network(contexts).norm() / contexts.norm())
    x, dead = contexts, []
    for layer in layers:
        x = layer(x)
        if layer is not layers[-1]:
            dead.append(float((x.flatten(0, -2) == 0).all(0).float().mean()))
    return NetworkFacts(
        where=where,
        use=use,
        width=network.width,
        layers=tuple((layer.linear.in_features, layer.linear.out_features) for layer in layers),
        norms=tuple(float(layer.linear.weight.double().norm()) for layer in layers),
        bias_norms=tuple(float(layer.linear.bias.double().norm()) for layer in layers),
        effect=effect,
        dead=tuple(dead),
        zero=all(not parameter.any() for parameter in network.parameters()),
    )

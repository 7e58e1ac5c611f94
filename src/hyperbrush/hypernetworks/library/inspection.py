"""Everything a hypernetwork file says, and what its numbers do: for people and for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import sha256
from hyperbrush.hypernetworks.attention.activations import OVER_THE_BATCH
from hyperbrush.hypernetworks.attention.affine import is_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files import WEBUI_SUFFIXES, load_attention
from hyperbrush.hypernetworks.files.comfyui import comfyui_reason
from hyperbrush.hypernetworks.files.headers import CONFIG_KEY, header_of
from hyperbrush.hypernetworks.files.modelspec import hash_matches
from hyperbrush.hypernetworks.files.optimizer import read_optimizer, sidecar_of
from hyperbrush.hypernetworks.files.packed import file_of, split
from hyperbrush.hypernetworks.files.torch_files import outline
from hyperbrush.hypernetworks.files.torch_writing import foreign_members
from hyperbrush.hypernetworks.library.summary import GENERATED, Summary, summarise
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.families import BY_CROSS_WIDTH
from hyperbrush.ldm.modules.transformer_sites import STREAMS
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.shell import quoted

_PROBES = 256  # contexts of unit variance that a network is tried on
_HUGE = 2.0  # times the context's own size
_DEAD = 0.2  # share of a layer's units


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
    if split(path) is not None:
        raise UserError(
            f"{path.name!r} is a member of the pack {file_of(path)}: give it back as a file first, hyperbrush hyper "
            f"generate --generator {quoted(file_of(path))} --task {quoted(path.name)} --out {quoted(path.name + '.safetensors')}"
        )
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
        readers=_readers(path, hypernetwork, written.given, affine),
        optimizer=optimizer,
        odd=(*_odd(path, hypernetwork, written, networks), *warning),
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


def _readers(
    path: Path, hypernetwork: AttentionHypernetwork, given: Mapping[str, Any], affine: bool
) -> dict[str, str]:
    """Program → "yes", or how, or why not.

    given: the settings that stand in the file. affine: whether no network has a non-linearity.
    """
    return {
        "webui": _webui(path, hypernetwork),
        "ComfyUI": _comfyui(path, hypernetwork, given),
        "diffusers": "yes, through hyperbrush: hyperbrush.attach(pipe, hyperbrush.load(FILE))",
        "LoRA": _lora(hypernetwork, affine),
    }


def _webui(path: Path, hypernetwork: AttentionHypernetwork) -> str:
    if hypernetwork.sites:
        return "no: it has networks per site, and the webui knows one network per width only"
    if hypernetwork.settings.skip_connection:
        return "only with its MonkeyPatch extension: it has residual layers"
    if path.suffix.lower() not in WEBUI_SUFFIXES:
        return "after hyperbrush convert --to webui"
    if foreign := foreign_members(path):
        return (
            f"no: its check refuses {foreign[0]!r:.60} in the zip, as newer versions of torch write it; "
            "after hyperbrush convert --to webui"
        )
    name = "" if path.suffix == ".pt" else ", once its name ends in .pt"
    if any(parameter.dtype == torch.bfloat16 for parameter in hypernetwork.parameters()):
        return f"since 2023, for its bfloat16 numbers{name}"
    return f"yes{name}"


def _comfyui(path: Path, hypernetwork: AttentionHypernetwork, given: Mapping[str, Any]) -> str:
    reason = comfyui_reason(hypernetwork)
    if reason is not None:
        return f"no: {reason}"
    after = "after hyperbrush convert --to comfyui"
    if path.suffix.lower() not in WEBUI_SUFFIXES:
        return after
    if "activate_output" not in given and hypernetwork.settings.activation != "linear":
        return (
            f"differently: the file does not say activate_output, which ComfyUI takes for no; alike {after}"
        )
    if hypernetwork.use_dropout:
        return f"differently: it never switches the file's dropout off; alike {after}"
    if hypernetwork.settings.activation == "hardswish":
        return f"{after}: it knows hardswish as swish"
    return "yes"


def _lora(hypernetwork: AttentionHypernetwork, affine: bool) -> str:
    if any(site.rpartition(".")[2] in STREAMS for site in hypernetwork.sites):
        return "no: it is for a transformer, of which hyperbrush makes no LoRA"
    if affine:
        return "exactly, up to the rank (hyperbrush convert --to lora-diffusers); it fuses exactly too"
    if hypernetwork.settings.activation in OVER_THE_BATCH:
        return f"no: {hypernetwork.settings.activation} networks mix the rows of a batch"
    return "approximately, by least squares (hyperbrush convert --to lora-diffusers prints the error)"


def _odd(
    path: Path, hypernetwork: AttentionHypernetwork, written: Written, networks: Sequence[NetworkFacts]
) -> Iterator[str]:
    """One line for each thing that is odd; none for a sound file."""
    if hypernetwork.name != path.stem:
        yield f"its name inside is {hypernetwork.name!r}; prompts go by the file's name, {path.stem!r}"
    yield from _widths(hypernetwork)
    yield from _effects(networks)
    yield from _settings(hypernetwork, written)
    if written.legacy_zip is None and hash_matches(path) is False:
        yield "its tensors are not those the header's hash was made of: the file was changed by another program"


def _widths(hypernetwork: AttentionHypernetwork) -> Iterator[str]:
    if hypernetwork.sites:
        return
    crossing = [BY_CROSS_WIDTH[w] for w in hypernetwork.widths if w in BY_CROSS_WIDTH]
    if len(crossing) > 1:
        yield f"it has networks for the cross-attention of {' and '.join(family.name for family in crossing)}"
    elif crossing:
        name, widths = crossing[0].name, crossing[0].widths
        missing = [w for w in widths if w not in hypernetwork.widths]
        extra = [w for w in hypernetwork.widths if w not in widths]
        if missing:
            yield f"{name} also has contexts {_listed(missing)} wide: the file leaves those attentions as they are"
        if extra:
            yield f"its networks for {_listed(extra)} fit nothing in {name}"
    elif not set(hypernetwork.widths) & {320, 640, 1280}:
        yield f"no Stable Diffusion has contexts {_listed(hypernetwork.widths)} wide: it is for a model of its own"
    else:
        yield "no network for cross-attention (768, 1024 or 2048): it acts on self-attention alone, in any family"


def _effects(networks: Sequence[NetworkFacts]) -> Iterator[str]:
    idle = [n for n in networks if n.effect == 0]
    if len(idle) == len(networks):
        yield "no network changes anything: the file is at its start, or was never trained"
    elif idle:
        yield f"without effect: {_some([n.name for n in idle])}"
    zeros = [n for n in networks if n.zero]
    if zeros and len(zeros) < len(networks):
        yield f"nothing but zeros in {_some([n.name for n in zeros])}"
    huge = [n for n in networks if n.effect > _HUGE]
    if huge:
        most = max(huge, key=lambda n: n.effect)
        yield (
            f"far stronger than contexts themselves: {most.name} adds {most.effect:.1f} times their size at strength "
            f"1 ({len(huge)} of {len(networks)} networks over {_HUGE:g}); try a low strength"
        )
    dead = [n for n in networks if n.dead and max(n.dead) > _DEAD and not n.zero]
    if dead:
        most = max(dead, key=lambda n: max(n.dead))
        yield (
            f"dead units: {max(most.dead):.0%} of a layer of {most.name} are zero for random contexts "
            f"({len(dead)} of {len(networks)} networks over {_DEAD:.0%})"
        )


def _settings(hypernetwork: AttentionHypernetwork, written: Written) -> Iterator[str]:
    settings = hypernetwork.settings
    if hypernetwork.use_dropout:
        yield "it has dropout, which acts in training alone (ComfyUI never switches it off)"
    if settings.layer_norm:
        yield "it has LayerNorm, which trains unstably and never goes below a certain strength"
    nonlinear = settings.activation != "linear" or settings.skip_connection
    if "activate_output" not in written.given and written.given and nonlinear:
        yield "it does not say activate_output: True as in the webui, but ComfyUI takes it for False"


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def generated_facts(path: Path) -> dict[str, Any]:
    """kind, name, format, layers, rank, numbers, size, sha256, norm, metadata, readers and norms by layer, for JSON.

    Raises:
        UserError: as `GeneratedWeights.load`.
    """
    weights = GeneratedWeights.load(path)
    exact = weights.to(torch.float64)  # half precision rounds small numbers to 0
    return {
        "kind": GENERATED,
        "name": weights.name,
        "format": "hyperbrush safetensors" if split(path) is None else f"a member of {file_of(path).name}",
        "layers": len(weights.layers),
        "rank": weights.rank,
        "numbers": weights.size,
        "size": file_of(path).stat().st_size,
        "sha256": sha256(file_of(path)),
        "norm": round(float(exact.squared_norm()) ** 0.5, 6),
        "metadata": weights.metadata,
        "readers": "hyperbrush; as a LoRA (convert --to lora-kohya, lora-diffusers, lora-peft) diffusers, PEFT, webui, ComfyUI",
        "norms": {name: round(float(f.delta().norm()), 6) for name, f in exact.factors.items()},
    }

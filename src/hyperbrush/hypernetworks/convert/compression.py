"""A folder of adapters as one pack: `hyperbrush hyper compress`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.uses import Adapter
from hyperbrush.hypernetworks.files import (
    SUFFIXES,
    adapters,
    generated,
    load_attention,
    modelspec,
    native,
    packed,
)
from hyperbrush.hypernetworks.files.headers import FORMAT_KEY, header_of
from hyperbrush.hypernetworks.files.pack import Member, Pack
from hyperbrush.hypernetworks.files.packed import ATTENTION, GENERATED, is_member
from hyperbrush.hypernetworks.weights.coding import SCALE_BYTES, Coded, Triples, plain, ranks_within, rows
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.families import UNKNOWN

ERROR = 0.2  # of ‖ΔW‖: 96 % of its squares stay


@dataclass(frozen=True)
class Source:
    """An adapter with the bytes of its file (0: it has none)."""

    adapter: Adapter
    bytes: int = 0


@torch.no_grad()
def compress(given: Mapping[str, Adapter | Source], *, error: float = ERROR, name: str = "pack") -> Pack:
    """Adapters of one base model as a pack.

    A generated adapter (a LoRA) keeps, over all its layers, the singular values that matter most for their bytes; a
    matrix of an attention hypernetwork its own, or all its rows where that is smaller. What is kept has eight bits a
    number.

    given: by name. error: the most that ranks may leave out, ‖ΔW − ΔŴ‖ ÷ ‖ΔW‖; eight bits add some thousandths, and
        `Member.error` is what both come to.

    Raises:
        UserError: nothing given, an impossible error or name, adapters of different models, a batch of several.
    """
    if not 0 <= error < 1:
        raise UserError(
            f"error {error:g} is impossible: expected a share of the change from 0 to below 1, such as {ERROR}"
        )
    sources = {n: one if isinstance(one, Source) else Source(one) for n, one in given.items()}
    base = _check(sources)
    return Pack({n: _member(source, error) for n, source in sources.items()}, name, base)


def read_folder(folder: Path) -> dict[str, Source]:
    """Every LoRA and hypernetwork of a folder by its file's name, LoRAs in any layout; PEFT's are folders themselves.

    Raises:
        UserError: no such folder, nothing in it, two of one name; or files that cannot be read, all of them named.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: expected one with LoRAs or hypernetworks of one model")
    found: dict[str, Source] = {}
    wrong: list[str] = []
    for path in sorted(folder.iterdir()):
        peft = path.is_dir() and (path / "adapter_config.json").is_file()
        if path.name.startswith(".") or packed.is_pack(path) or not (peft or path.suffix.lower() in SUFFIXES):
            continue
        name = path.name if peft else path.stem
        try:
            if name in found:
                raise UserError(f"{folder} has two adapters called {name!r}: rename one")
            found[name] = Source(_read(path), _size(path))
        except (UserError, OSError) as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(wrong) + len(found)} cannot go into a pack; move them elsewhere: {'; '.join(wrong)}"
        )
    if not found:
        raise UserError(
            f"{folder} holds no LoRA and no hypernetwork ({', '.join(SUFFIXES)}, or folders of PEFT)"
        )
    return found


def _read(path: Path) -> Adapter:
    if path.is_file() and path.suffix.lower() == ".safetensors":
        attention = header_of(path)[0].get(FORMAT_KEY) == native.FORMAT
        return load_attention(path) if attention else adapters.read_weights(path, whole=True)
    return adapters.read_weights(path, whole=True) if path.is_dir() else load_attention(path)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _check(sources: Mapping[str, Source]) -> str:
    """See that the adapters can stand in one pack; the name of their model.

    Raises:
        UserError: a name that no prompt can say; several in one; other models.
    """
    first: dict[str, tuple[str, tuple[int, int]]] = {}
    bases: dict[str, str] = {}
    for name, source in sources.items():
        if not is_member(name):
            raise UserError(
                f"{name!r} is no name for a member of a pack: a prompt says <hypernet:PACK/{name}:1>; rename it"
            )
        adapter = source.adapter
        if isinstance(adapter, GeneratedWeights):
            if adapter.batch is not None:
                raise UserError(
                    f"{name!r} is a batch of {len(adapter)} adapters: give each a name, weights[0], weights[1], …"
                )
            base = generated.architecture(adapter)
            for layer, factors in adapter.factors.items():
                other, shape = first.setdefault(layer, (name, factors.shape))
                if shape != factors.shape:
                    raise UserError(
                        f"{name!r} and {other!r} are for different models: {layer} is {factors.shape} in one and {shape} "
                        "in the other; a pack holds adapters of one"
                    )
        else:
            base = modelspec.architecture(adapter)
        bases.setdefault(base, name)
    known = {base: name for base, name in bases.items() if base != UNKNOWN} or bases
    if len(known) > 1:
        said = "; ".join(f"{name!r} for {base}" for base, name in known.items())
        raise UserError(f"a pack holds adapters of one model, and these are for several: {said}")
    return next(iter(known), "")


def _member(source: Source, error: float) -> Member:
    adapter = source.adapter
    if isinstance(adapter, GeneratedWeights):
        weights = adapter.detach().to("cpu", torch.float64).folded()
        triples = {layer: Triples.of_factors(f) for layer, f in weights.factors.items()}
        kept = ranks_within(triples, error)
        if not any(kept.values()):
            kept[next(iter(kept))] = 1  # all zeros
        low = {layer: triples[layer].coded(rank) for layer, rank in kept.items() if rank}
        made = GeneratedWeights({layer: coded.factors() for layer, coded in low.items()}).to(torch.float64)
        whole = float(weights.squared_norm())
        left = float(weights.squared_distance(made)) if whole else 0.0
        about = {"name": adapter.name, "metadata": adapter.metadata}
        return Member(GENERATED, about, low, _share(left, whole), source.bytes)
    settings, tensors = native.taken_apart(adapter)
    settings |= {  # author, licence, trigger phrase: a file has them in its header
        key: value
        for key, value in adapter.metadata.items()
        if key.startswith(modelspec.PREFIX) and key != "modelspec.thumbnail"
    }
    coded = {key: _tensor(tensor.float(), error) for key, tensor in tensors.items()}
    matrices = [key for key, tensor in tensors.items() if tensor.ndim == 2]
    left = sum(float((coded[key].tensor() - tensors[key].float()).square().sum()) for key in matrices)
    whole = sum(float(tensors[key].float().square().sum()) for key in matrices)
    return Member(ATTENTION, settings, coded, _share(left, whole), source.bytes)


def _share(left: float, whole: float) -> float:
    return round((max(left, 0.0) / whole) ** 0.5, 6) if whole else 0.0


def _tensor(tensor: torch.Tensor, error: float) -> Coded:
    """A parameter in the fewest bytes."""
    if tensor.ndim != 2:
        return plain(tensor)
    by_rows = rows(tensor)
    triples = Triples.of(tensor)
    rank = triples.rank_within(error**2 * float(triples.s.square().sum()))
    smaller = rank and rank * (sum(tensor.shape) + SCALE_BYTES) < by_rows.nbytes
    return triples.coded(rank) if smaller else by_rows

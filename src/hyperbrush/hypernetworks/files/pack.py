"""Packs: adapters of one base model in one safetensors file, NAME.pack.safetensors, each given back by its name, a task's.

What a generator would have to learn by heart is kept as it is instead: ranks by singular values (Eckart & Young 1936)
within a given error, numbers of eight bits; `convert.compression` makes them.

Tensors, three a member: ``{member}.codes`` (int8), ``{member}.scales`` and ``{member}.plain`` (float32), in the order of
the table of tensors; see `weights.coding`.
Header: ``hyperbrush.format`` = "adapter-pack/1"; ``hyperbrush.config``: JSON with ``tensors`` (rows of a name and a
shape) and ``members`` (``name``, ``kind``, ``about``, ``error``, ``source_bytes``, and ``ranks``: the table's rows
it has, [row, rank], see `coding.Coded`); and ModelSpec 1.0.0.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.attaching.uses import Adapter
from hyperbrush.hypernetworks.files.headers import (
    CONFIG_KEY,
    FORMAT_KEY,
    MAX_CONFIG,
    check_header,
    damaged,
    header_of,
    sort_header,
)
from hyperbrush.hypernetworks.files.modelspec import tensors_hash
from hyperbrush.hypernetworks.files.native import assemble
from hyperbrush.hypernetworks.files.packed import (
    ATTENTION,
    FORMAT,
    GENERATED,
    SUFFIX,
    is_member,
    is_pack,
    split,
)
from hyperbrush.hypernetworks.generator.conditions import TaskCondition
from hyperbrush.hypernetworks.weights.coding import PLAIN, ROWS, Coded, lengths
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights

_MOST = 65536  # of a tensor's side
_PARTS = ("codes", "scales", "plain")
Row = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a pack.

    kind: `packed.GENERATED` or `packed.ATTENTION`. about: its name and metadata; of an attention hypernetwork its settings, with
        widths, as `files.native` writes them. coded: its layers, or its parameters. error: ‖ΔW − ΔŴ‖ ÷ ‖ΔW‖ over all
        matrices. source_bytes: of the file it came from.
    """

    kind: str
    about: Mapping[str, Any]
    coded: Mapping[str, Coded]
    error: float
    source_bytes: int

    @property
    def nbytes(self) -> int:
        """What its numbers take in the pack's file."""
        return sum(coded.nbytes for coded in self.coded.values())

    @property
    def rank(self) -> float:
        """The mean rank of its layers; 0 where none has a low-rank form."""
        ranks = [max(coded.rank, 0) for coded in self.coded.values() if len(coded.shape) == 2]
        return sum(ranks) / max(len(ranks), 1)

    def adapter(self, name: str) -> Adapter:
        """The adapter itself, float32, on the CPU.

        Raises:
            UserError: its settings and numbers contradict each other.
        """
        if self.kind == ATTENTION:
            tensors = {key: coded.tensor() for key, coded in self.coded.items()}
            return assemble(f"{name!r} of a pack", name, self.about, tensors)
        factors = {layer: coded.factors() for layer, coded in self.coded.items()}
        return GeneratedWeights(factors, name=name, metadata=self.about["metadata"])


class Pack:
    """Adapters by name.

    >>> from hyperbrush.hypernetworks import AttentionHypernetwork
    >>> from hyperbrush.hypernetworks.convert.compression import compress
    >>> pack = compress({"water": AttentionHypernetwork([8])})
    >>> pack.tasks, pack.generate_weights("water").widths
    (('water',), [8])

    name: of the pack. members: at least one. base: ModelSpec's name of their model; "" where that is not known.

    Raises:
        UserError: no members.
    """

    def __init__(self, members: Mapping[str, Member], name: str = "pack", base: str = "") -> None:
        if not members:
            raise UserError("a pack needs at least one adapter, but got none")
        self.members, self.name, self.base = dict(members), name, base

    @property
    def tasks(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of a task; see `generate_weights`."""
        return self.generate_weights(name)

    def generate_weights(self, condition: Any, *, name: str | None = None) -> Adapter:
        """The adapter of a task: its name, a `TaskCondition`, or a list with one.

        name: of the adapter; the task's own by default.

        Raises:
            UserError: another condition, as a pack listens to names alone; or an unknown name.
        """
        wanted = condition[0] if isinstance(condition, Sequence) and len(condition) == 1 else condition
        wanted = wanted.names if isinstance(wanted, TaskCondition) else wanted
        if not isinstance(wanted, str):
            raise UserError(
                f"the pack {self.name!r} knows its members by name alone: give one task, of {', '.join(self.tasks[:8])}"
            )
        if wanted not in self.members:
            raise unknown_name("member of the pack", wanted, self.tasks)
        made = self.members[wanted].adapter(wanted)
        made.name = name or wanted
        return made

    def save(self, path: str | Path) -> Path:
        """Write NAME.pack.safetensors, whole or not at all; equal packs make equal files.

        Raises:
            UserError: another ending, or the file cannot be written.
        """
        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Pack":
        """Read what `save` wrote.

        Raises:
            UserError: no such file, damaged, or of another kind.
        """
        return read(Path(path))


def write(pack: Pack, path: Path) -> Path:
    """Write a pack; equal ones make equal files.

    Raises:
        UserError: another ending, numbers that are not finite, more than a header holds, or the file cannot be written.
    """
    if not is_pack(path) or path.is_dir():
        raise UserError(f"cannot write {path}: a pack is a file ending in {SUFFIX}, such as looks{SUFFIX}")
    table: dict[Row, int] = {}
    tensors: dict[str, Tensor] = {}
    members = []
    for name, member in pack.members.items():
        ranks = [
            (table.setdefault((key, coded.shape), len(table)), coded.rank)
            for key, coded in member.coded.items()
        ]
        tensors |= {f"{name}.{part}": value for part, value in _flat(member).items()}
        members.append(
            {
                "name": name,
                "kind": member.kind,
                "about": dict(member.about),
                "error": member.error,
                "source_bytes": member.source_bytes,
                "ranks": ranks,
            }
        )
    broken = next((n for n, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise UserError(f"cannot write {path}: {broken} has numbers that are not finite")
    config = {"tensors": [[key, list(shape)] for key, shape in table], "members": members}
    text = json.dumps(config, ensure_ascii=False)
    if len(text) > MAX_CONFIG:
        raise UserError(
            f"cannot write {path}: {len(pack)} members are more than one file's header holds; make two packs"
        )
    header = {
        FORMAT_KEY: FORMAT,
        CONFIG_KEY: text,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{pack.base}/pack",
        "modelspec.implementation": "hyperbrush",
        "modelspec.title": pack.name,
        "modelspec.hash_sha256": "0x" + tensors_hash(tensors),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        sort_header(temporary)
    return path


def read(path: Path) -> Pack:
    """Read what `write` wrote.

    Raises:
        UserError: no such file, damaged, or of another kind.
    """
    members = _read(path, None)
    base = header_of(path)[0].get("modelspec.architecture", "").partition("/")[0]
    return Pack(members, path.name[: -len(SUFFIX)] if is_pack(path) else path.stem, base)


def read_member(path: Path) -> Adapter:
    """Read one adapter, of a path such as looks.pack.safetensors/ink.

    Raises:
        UserError: as `read`; or an unknown name.
    """
    found = split(path)
    if found is None:
        raise UserError(f"{path} names no member of a pack: expected NAME{SUFFIX}/MEMBER")
    file, name = found
    return _read(file, name)[name].adapter(name)


def outline(path: Path) -> tuple[str, dict[str, Any], dict[str, tuple[tuple[int, ...], int]], str]:
    """A member's kind, what is told about it, shape and rank of its tensors, and ModelSpec's architecture; no numbers.

    Raises:
        UserError: as `read_member`.
    """
    found = split(path)
    if found is None:
        raise UserError(f"{path} names no member of a pack: expected NAME{SUFFIX}/MEMBER")
    header, _ = header_of(found[0])
    config = _config(found[0], header.get(CONFIG_KEY, ""))
    row = next((row for row in config["members"] if row["name"] == found[1]), None)
    if row is None:
        raise unknown_name("member of the pack", found[1], [row["name"] for row in config["members"]])
    tensors = {
        config["tensors"][place][0]: (config["tensors"][place][1], rank) for place, rank in row["ranks"]
    }
    return row["kind"], row["about"], tensors, header.get("modelspec.architecture", "")


def _flat(member: Member) -> dict[str, Tensor]:
    """The three tensors of a member."""
    codes, scales = [torch.empty(0, dtype=torch.int8)], [torch.empty(0)]
    plain = [torch.empty(0)]
    for coded in member.coded.values():
        codes.append(coded.codes)
        (plain if coded.rank == PLAIN else scales).append(coded.scales)
    return dict(zip(_PARTS, map(torch.cat, (codes, scales, plain)), strict=True))


def _read(path: Path, only: str | None) -> dict[str, Member]:
    """The members, or one of them."""
    try:
        if not path.is_file():
            raise UserError(f"{path} does not exist: expected a pack; check the folder and the spelling")
        check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            if header.get(FORMAT_KEY) != FORMAT:
                raise UserError(
                    f"{path} is no pack of format {FORMAT!r}: its format is {header.get(FORMAT_KEY, 'not said')!r:.80}"
                )
            config = _config(path, header.get(CONFIG_KEY, ""))
            names = [row["name"] for row in config["members"]]
            if only is not None and only not in names:
                raise unknown_name("member of the pack", only, names, hint=f"; looked in {path}")
            found = {}
            for row in config["members"]:
                if only in (None, row["name"]):
                    parts = [file.get_tensor(f"{row['name']}.{part}") for part in _PARTS]
                    found[row["name"]] = _member(path, config["tensors"], row, *parts)
    except SafetensorError as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return found


def _config(path: Path, text: str) -> dict[str, Any]:
    """The header's table and members, looked at."""
    try:
        if len(text) > MAX_CONFIG:
            raise ValueError("too long")
        content = json.loads(text)
        table: list[Row] = [(str(key), tuple(map(int, shape))) for key, shape in content["tensors"]]
        if any(
            len(shape) not in (1, 2) or not all(0 < side <= _MOST for side in shape) for _, shape in table
        ):
            raise ValueError("shapes")
        members = [_row(row, table) for row in content["members"]]
        if not members or len({row["name"] for row in members}) != len(members):
            raise ValueError("names")
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path}: the header's {CONFIG_KEY} is damaged; expected JSON with tensors and members"
        ) from error
    return {"tensors": table, "members": members}


def _row(row: Mapping[str, Any], table: list[Row]) -> dict[str, Any]:
    """One member of the header.

    Raises:
        ValueError, KeyError, TypeError: it makes no sense.
    """
    name, about, kind = row["name"], dict(row["about"]), row["kind"]
    ranks = [(int(place), int(rank)) for place, rank in row["ranks"]]
    error = float(row["error"])
    if (
        not isinstance(name, str)
        or not is_member(name)
        or kind not in (GENERATED, ATTENTION)
        or not math.isfinite(error)
    ):
        raise ValueError("member")
    if not ranks or len({place for place, _ in ranks}) != len(ranks):
        raise ValueError("ranks")
    for place, rank in ranks:
        shape = table[place][1]
        matrix = len(shape) == 2 and (rank == ROWS or 0 < rank <= min(shape))
        if (
            place < 0
            or not (matrix or (rank == PLAIN and kind == ATTENTION))
            or (kind == GENERATED and rank < 1)
        ):
            raise ValueError("rank")
    if kind == GENERATED and not isinstance(about["metadata"], dict):
        raise TypeError("metadata")
    return {**row, "about": about, "ranks": ranks, "error": error, "source_bytes": int(row["source_bytes"])}


def _member(
    path: Path, table: list[Row], row: Mapping[str, Any], codes: Tensor, scales: Tensor, plain: Tensor
) -> Member:
    wanted = [(*table[place], rank) for place, rank in row["ranks"]]
    sizes = [(rank, lengths(shape, rank)) for _, shape, rank in wanted]
    need = (
        sum(size[0] for _, size in sizes),
        sum(size[1] for rank, size in sizes if rank != PLAIN),
        sum(size[1] for rank, size in sizes if rank == PLAIN),
    )
    given = (codes, scales, plain)
    if tuple(t.shape for t in given) != tuple((n,) for n in need) or [t.dtype for t in given] != [
        torch.int8,
        torch.float32,
        torch.float32,
    ]:
        raise UserError(f"{path} is not whole: the numbers of {row['name']!r} are not those its header means")
    if not all(bool(torch.isfinite(t).all()) for t in (scales, plain)) or bool((scales < 0).any()):
        raise UserError(f"{path}: {row['name']!r} holds numbers that are not finite")
    coded, at, scale_at, plain_at = {}, 0, 0, 0
    for (key, shape, rank), (_, (many, few)) in zip(wanted, sizes, strict=True):
        own_codes = codes[at : at + many]
        at += many
        if rank == PLAIN:
            own, plain_at = plain[plain_at : plain_at + few], plain_at + few
        else:
            own, scale_at = scales[scale_at : scale_at + few], scale_at + few
        coded[key] = Coded(shape, rank, own_codes, own)
    return Member(row["kind"], row["about"], coded, row["error"], row["source_bytes"])

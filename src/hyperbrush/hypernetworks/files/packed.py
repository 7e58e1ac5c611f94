"""Packs: one file with many adapters of one base model, each addressed as PACK/MEMBER; told without torch."""

import json
import struct
from pathlib import Path

SUFFIX = ".pack.safetensors"  # so that a folder is listed without opening every file
FORMAT = "adapter-pack/1"
GENERATED, ATTENTION = "generated", "attention"  # kinds of members
_LONGEST = 8 * 1024 * 1024  # bytes of a header, as `headers.MAX_HEADER`


def is_pack(file: Path) -> bool:
    """Whether a file is called as packs are."""
    return file.name.lower().endswith(SUFFIX) and file.name[: -len(SUFFIX)] != ""


def split(path: Path) -> tuple[Path, str] | None:
    """The pack and the member that a path such as looks.pack.safetensors/ink means; None for any other.

    >>> split(Path("models/looks.pack.safetensors/ink"))[1]
    'ink'
    """
    return (path.parent, path.name) if is_pack(path.parent) else None


def file_of(path: Path) -> Path:
    """The file that holds an adapter: of a pack's member the pack."""
    found = split(path)
    return path if found is None else found[0]


def place_of(path: Path) -> str:
    """A path without suffix, as names are: looks.pack.safetensors/ink is looks/ink.

    >>> place_of(Path("styles/water.pt")), place_of(Path("looks.pack.safetensors/ink 2.0"))
    ('styles/water', 'looks/ink 2.0')
    """
    found = split(path)
    if found is None:
        return path.with_suffix("").as_posix()
    pack, member = found
    return pack.with_name(pack.name[: -len(SUFFIX)]).as_posix() + "/" + member


def is_member(name: str) -> bool:
    """Whether a prompt and a path can say a member's name.

    >>> [is_member(name) for name in ("ink 2.0", "a/b", "", "..")]
    [True, False, False, False]
    """
    return name.isprintable() and not set(name) & set("/\\:<>") and name not in ("", ".", "..")


def members(file: Path) -> dict[str, str]:
    """What a pack holds, kind by name; nothing of a damaged one, of which `pack.read` says what is wrong."""
    try:
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            header = json.loads(opened.read(length)) if length <= _LONGEST else {}
        about = header["__metadata__"]
        known = about["hyperbrush.format"] == FORMAT
        rows = json.loads(about["hyperbrush.config"])["members"] if known else []
        return {str(row["name"]): str(row["kind"]) for row in rows if is_member(str(row["name"]))}
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError, AttributeError):
        return {}

"""What the zip of a ``.pt`` holds, read off its directory before anything is unpacked.

torch writes its zips in one way: members stored as they are, nothing before and nothing after.  Only
that way is read, so that no two readers can see two different archives in one file.
"""

import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hyperbrush.errors import UserError

MAX_MEMBERS = 50_000  # Stable Diffusion XL has 2,500 tensors
_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FOLDER = 0x10  # MS-DOS's attribute
_NAME = re.compile(r"[\w .+-]+(?:/[\w .+-]+)*", re.ASCII)  # within the folder


class Member(NamedTuple):
    """Where the bytes of one member begin in the file, and how many there are."""

    offset: int
    size: int


def members(path: Path, file: BinaryIO, file_size: int) -> dict[str, Member]:
    """The members of torch's zip, by name, without the folder that all of them lie in.

    Raises:
        UserError: no whole zip, compressed or overlapping members, repeated or unsafe names, more
            bytes declared than the file has, far too many members.
    """
    found: dict[str, Member] = {}
    seen: set[str] = set()
    folder = ""
    for name, member in _directory(path, file, file_size):
        # The folder bears the name the file was saved under, in whatever script.
        first, _, rest = name.partition("/")
        if first in ("", ".", "..") or "\0" in first or not _NAME.fullmatch(rest) or ".." in rest.split("/"):
            raise UserError(f"{path}: its zip has a member named {name!r:.80}, which torch never writes")
        if name.casefold() in seen:  # torch's reader takes no notice of the case
            raise UserError(f"{path}: its zip has two members named {name!r:.80}; get the file again")
        seen.add(name.casefold())
        folder = folder or first
        if first != folder:
            raise UserError(f"{path} is a zip, but not one of torch's: it holds {name!r:.80}")
        found[rest] = member
    if sum(member.size for member in found.values()) > file_size:
        raise UserError(
            f"{path}: its zip declares more bytes than the file's {file_size}: damaged, or a zip bomb"
        )
    end = 0
    for name, member in sorted(found.items(), key=lambda item: item[1].offset):
        if member.offset < end:
            raise UserError(f"{path}: its zip's members overlap at {name!r:.80}: damaged, or a zip bomb")
        found[name] = _without_header(path, file, member)
        end = sum(found[name])
        if end > file_size:
            raise _damaged(path, f"its zip's {name!r:.80} reaches past its end")
    if "data.pkl" not in found:
        raise UserError(f"{path} is a zip, but not one of torch's: it has no data.pkl; unpack it")
    if "constants.pkl" in found:
        raise UserError(f"{path} is a TorchScript program, which is never executed")
    return found


def _without_header(path: Path, file: BinaryIO, member: Member) -> Member:
    """The member's bytes behind its local header, at which the directory points."""
    signature, *_, name, extra = _LOCAL.unpack(_exactly(path, file, member.offset, _LOCAL.size))
    if signature != b"PK\3\4":
        raise _damaged(path, f"its zip has no member at byte {member.offset}")
    return Member(member.offset + _LOCAL.size + name + extra, member.size)


def _directory(path: Path, file: BinaryIO, file_size: int) -> list[tuple[str, Member]]:
    """Name, local header's place and size of each member, in the order of the directory."""
    count, size, offset, end = _directory_place(path, file, file_size)
    if count > MAX_MEMBERS:
        raise UserError(f"{path}: its zip has {count} members; no hypernetwork has over {MAX_MEMBERS}")
    if offset + size != end or not count * _ENTRY.size <= size <= count * 1024:
        raise _damaged(path, f"its zip's directory does not fit ({size} bytes for {count} members)")
    raw = _exactly(path, file, offset, size)
    found = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > size:
            raise _damaged(path, "its zip's directory is cut off")
        signature, _, _, flags, method, _, _, _, packed, unpacked, n, extra, comment, disk, _, kind, place = (
            _ENTRY.unpack_from(raw, at)
        )
        name = raw[at + _ENTRY.size : at + _ENTRY.size + n].decode("utf-8", "backslashreplace")
        at += _ENTRY.size + n + extra + comment
        if signature != b"PK\1\2" or disk != 0 or at > size:
            raise _damaged(path, "its zip's directory is broken")
        if flags & 1:
            raise UserError(f"{path}: its zip is locked with a password, which torch never writes")
        if method != 0 or packed != unpacked:
            raise UserError(
                f"{path}: its zip's {name!r:.80} is compressed ({packed} bytes to {unpacked}), which torch "
                "never writes: a zip bomb, or packed by hand; unpack it and zip it again without compression"
            )
        if kind & _FOLDER:  # torch would read nothing and leave its tensors as they lay in memory
            raise UserError(
                f"{path}: its zip's {name!r:.80} is said to be a folder, which torch never writes"
            )
        if 0xFFFFFFFF in (unpacked, place):
            raise UserError(f"{path} holds over 4 GiB: no hypernetwork, perhaps a whole checkpoint")
        found.append((name, Member(place, unpacked)))
    return found


def _directory_place(path: Path, file: BinaryIO, file_size: int) -> tuple[int, int, int, int]:
    """Number of members, and the directory's size, begin and end."""
    place = file_size - _END.size
    raw = _exactly(path, file, place, _END.size)
    signature, disk, start, here, count, size, offset, comment = _END.unpack(raw)
    if signature != b"PK\5\6" or comment != 0 or disk != 0 or start != 0 or here != count:
        raise _damaged(path, "it begins as a zip and does not end as one")
    place64 = place - _END64_PLACE.size
    raw = _exactly(path, file, place64, _END64_PLACE.size) if place64 >= 0 else b""
    if not raw.startswith(b"PK\6\7"):
        return count, size, offset, place
    end = place64 - _END64.size
    signature, *_, here64, count64, size64, offset64 = _END64.unpack(_exactly(path, file, end, _END64.size))
    short = (min(count64, 0xFFFF), min(size64, 0xFFFFFFFF), min(offset64, 0xFFFFFFFF))
    if (_END64_PLACE.unpack(raw)[2], signature, here64) != (end, b"PK\6\6", count64) or (
        count,
        size,
        offset,
    ) != short:
        raise _damaged(path, "its zip has two directories that disagree")
    return count64, size64, offset64, end


def _exactly(path: Path, file: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 0:
        file.seek(offset)
        raw = file.read(size)
        if len(raw) == size:
            return raw
    raise _damaged(path, "it is cut off")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Copy or download it again")

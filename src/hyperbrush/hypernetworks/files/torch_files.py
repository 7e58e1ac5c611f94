"""Files of ``torch.save``: their outline first, then ``torch.load(weights_only=True)``, never a fallback."""

import io
import pickle
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.archive import members
from hyperbrush.hypernetworks.files.outlines import Storage
from hyperbrush.hypernetworks.files.pickles import PickleOutline
from hyperbrush.hypernetworks.files.suspects import what_it_is

MAX_PICKLE = 4 * 1024 * 1024  # bytes; a hypernetwork's pickle has a few thousand
_MAGIC = 0x1950A86A20F9469CFC6C  # of the form before 2020, without a zip
_PROTOCOL = 1001


@dataclass
class Outline:
    """What a file holds, `outlines.Tensor` in the place of tensors; what torch could not read as such."""

    content: Any
    odd: list[str]


def outline(path: Path) -> Outline:
    """What a file of ``torch.save`` holds, of the present form (zip) or the one before.

    Takes little memory, whatever the file says: tensors are not read, and each storage is known to lie in
    the file, so that `read` allocates no more than the file's size.

    Raises:
        UserError: the file is damaged, of another program, asks for code to be executed, or declares
            more than it has.
    """
    size = regular_size(path)
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"PK"):
            return _zip_outline(path, file, size)
        if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
            return _legacy_outline(path, file, size)
    raise UserError(f"{path} is damaged or no torch file: {what_it_is(head)}. Copy or download it again")


def read(path: Path, outlined: Outline) -> Any:
    """The content of a file whose outline was found sound, its tensors on the CPU.

    Raises:
        UserError: torch cannot read it, or it holds tensors that are no plain ones.
    """
    if outlined.odd:
        raise UserError(f"{path} holds {outlined.odd[0]}: expected plain tensors and settings alone")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is damaged, or holds more than tensors and settings, which is never executed "
            f"({reason:.200}). Get it again from a source you trust"
        ) from error
    except Exception as error:  # whatever a broken file makes the reader stumble over
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"{path} is damaged or no torch file ({reason:.160}). Copy or download it again"
        ) from error


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        UserError: it is empty, or a pipe, a device or the like (reading one could wait for ever).
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path} is no regular file (a pipe, socket or device): expected a hypernetwork file")
    if state.st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy or download it again")
    return state.st_size


def _zip_outline(path: Path, file: BinaryIO, size: int) -> Outline:
    found = members(path, file, size)
    member = found["data.pkl"]
    if member.size > MAX_PICKLE:
        raise UserError(
            f"{path}: its pickle has {member.size} bytes, far more than a hypernetwork's settings"
        )
    file.seek(member.offset)
    pickled = PickleOutline(path, io.BytesIO(file.read(member.size)))
    content = pickled.read()
    for storage in pickled.storages.values():
        place = found.get(f"data/{storage.key}")
        has = 0 if place is None else place.size
        if place is None or has != storage.nbytes:
            raise _wrong_size(path, storage, has)
    return Outline(content, pickled.odd)


def _legacy_outline(path: Path, file: BinaryIO, size: int) -> Outline:
    """The form before 2020: five pickles, then each storage's length and numbers, in order of keys."""
    file.seek(0)
    pickled = PickleOutline(path, file)
    if pickled.read() != _MAGIC or pickled.read() != _PROTOCOL:
        raise UserError(f"{path} is damaged or no torch file: it is a pickle of another program")
    pickled.read()  # the writer's byte order, of no use to torch either
    content = pickled.read()
    keys = pickled.read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path} is damaged: it has no list of storages. Copy or download it again")
    if sorted(keys) != sorted(pickled.storages):
        raise UserError(f"{path} is damaged: its list of storages is not the one of its tensors")
    at = file.tell()
    for key in keys:
        storage = pickled.storages[key]
        file.seek(at)
        head = file.read(8)
        at += 8 + storage.nbytes
        if len(head) < 8 or at > size:
            raise _wrong_size(path, storage, max(0, size - at + storage.nbytes))
        numel = struct.unpack("<q", head)[0]
        if numel != storage.numel:
            raise _wrong_size(path, storage, numel * storage.element_size)
    return Outline(content, pickled.odd)


def _wrong_size(path: Path, storage: Storage, has: int) -> UserError:
    return UserError(
        f"{path} is damaged: its storage {storage.key!r:.40} is said to have {storage.nbytes} bytes, "
        f"but the file has {has}. Copy or download it again"
    )

"""Files of ``torch.save`` that the webui's pickle check lets through, from its first in 2022 on.

The check knows one folder with ``data.pkl``, ``version`` and ``data/N`` in it (at first by the name "archive"
alone), and a short list of classes.  Today's torch puts more into the zip (``byteorder``, ``.format_version``,
``.storage_alignment``, ``.data/serialization_id``), of which no reader of torch's needs any.
"""

import io
import logging
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.hypernetworks.files.archive import Member, members

WEBUI_MEMBER = re.compile(r"data\.pkl|version|data/[0-9]+", re.ASCII)
# Classes and functions: of the check of autumn 2022, and those that came in 2023.
_FIRST = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "Int", "Long", "Double")),
}
_LATER = {
    "torch ByteStorage": "8-bit numbers",
    "torch BFloat16Storage": "bfloat16",
    "torch float32": "the name of a type",
}
_ALIGNED = 64  # bytes, as torch aligns numbers for readers that map the file into memory
_LOCAL_HEADER = 30  # bytes, before the name
_log = logging.getLogger(__name__)


def write_content(content: Any, path: Path, *, legacy_zip: bool = False) -> None:
    """Write a mapping of tensors and settings as `torch.save` does, whole or not at all.

    legacy_zip: torch's form before 2020, without a zip. A warning is logged where only the webuis of 2023 and
    later read the numbers (bfloat16, 8-bit).

    Raises:
        UserError: it holds what the webui refuses to read; or as `atomic_path`.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy_zip)
    size = buffer.tell()
    if legacy_zip:
        buffer.seek(0)
        _check_classes(path, buffer, pickles=5)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        return
    kept = {name: m for name, m in members(path, buffer, size).items() if WEBUI_MEMBER.fullmatch(name)}
    buffer.seek(kept["data.pkl"].offset)
    _check_classes(path, buffer, pickles=1)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_zip(file, buffer.getbuffer(), kept)


def foreign_members(path: Path) -> list[str]:
    """What the webui's check refuses in the zip of a ``.pt``; nothing in torch's form before 2020."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return []
        names = members(path, file, path.stat().st_size)
    return [name for name in names if not WEBUI_MEMBER.fullmatch(name)]


def _check_classes(path: Path, file: BinaryIO, pickles: int) -> None:
    """See that the webui's check knows every class that the pickles name, from the file's place on."""
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(file):
            if operation.name != "GLOBAL" or argument in _FIRST:
                continue
            if argument not in _LATER:
                raise UserError(
                    f"cannot write {path}: it would hold {str(argument).replace(' ', '.')!r:.120}, which the webui "
                    "refuses to read; expected tensors of float16, float32 or float64, numbers and texts"
                )
            _log.warning(
                "%s holds %s, which the webuis of 2022 refuse to read: float16 or float32 serves all of them",
                path,
                _LATER[str(argument)],
            )


def _write_zip(file: BinaryIO, source: memoryview, kept: dict[str, Member]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, member in kept.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            begin = file.tell() + _LOCAL_HEADER + len(info.filename) + 4
            info.extra = struct.pack("<2sH", b"FB", -begin % _ALIGNED) + b"Z" * (-begin % _ALIGNED)
            archive.writestr(info, source[member.offset : member.offset + member.size])

"""What our safetensors files share: a header looked at before it is read, and written in one order."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.suspects import regular_size, what_it_is

FORMAT_KEY = "hyperbrush.format"
CONFIG_KEY = "hyperbrush.config"
MAX_HEADER = 8 * 1024 * 1024  # bytes; a whole Stable Diffusion XL has 0.5 MB
MAX_CONFIG = 1024 * 1024  # characters


def header_of(path: Path) -> tuple[dict[str, str], int]:
    """A safetensors file's own texts (``__metadata__``), and the byte at which its tensors begin.

    Raises:
        UserError: no safetensors file, or its header is damaged.
    """
    length = check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {}), 8 + length
    except SafetensorError as error:
        raise damaged(path, error) from error


def check_header(path: Path) -> int:
    """Bytes of the header, before any of it is read.

    Raises:
        UserError: no safetensors file, cut off, or far too long a header.
    """
    size = regular_size(path)
    with path.open("rb") as file:
        head = file.read(64)
    length = int(struct.unpack("<Q", head[:8].ljust(8, b"\0"))[0])
    if head[8:9] != b"{" or length + 8 > size:
        cut = head[8:9] == b"{" and length < 1 << 40
        what = f"it is cut off: its header alone has {length} bytes" if cut else what_it_is(head)
        raise UserError(f"{path} is damaged or no safetensors file: {what}. Copy or download it again")
    if length > MAX_HEADER:
        raise UserError(
            f"{path}: its header has {length} bytes; a hypernetwork's has a few thousand, at most {MAX_HEADER}"
        )
    return length


def damaged(path: Path, error: Exception) -> UserError:
    """What safetensors says of a broken file, in one line."""
    reason = str(error).partition("\n")[0]
    return UserError(f"{path} is damaged or no safetensors file ({reason:.160}). Copy or download it again")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(path, error) from error


def sort_header(path: Path) -> None:
    """Put the header's own texts in order of their names: safetensors writes them in a random one."""
    with path.open("rb+") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header: dict[str, Any] = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(raw) <= length:  # it is the same text in another order
            file.seek(8)
            file.write(raw.ljust(length))

"""Files of attention hypernetworks: which format a path holds, reading and writing it."""

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    import torch

    from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork

WEBUI_SUFFIXES = (".pt", ".bin", ".ckpt")
SUFFIXES = (*WEBUI_SUFFIXES, ".safetensors")
OPTIMIZER_SUFFIX = ".optim"  # beside a network, as the webui names it


def load_attention(path: str | Path, dtype: "torch.dtype | None" = None) -> "AttentionHypernetwork":
    """Read an attention hypernetwork of any known format, in evaluation mode, on the CPU.

    Nothing in the file is executed: .pt, .bin and .ckpt are read with ``weights_only`` alone, after a
    look at what they would take.
    dtype: float16, bfloat16, float32 or float64 to convert to; None: as in the file.

    Raises:
        UserError: no such file, a folder, a pipe, another suffix, or not a whole and sound
            hypernetwork; or its numbers are too large for the dtype.
    """
    from hyperbrush.hypernetworks.files import checks, native, webui
    from hyperbrush.hypernetworks.files.packed import split

    path = Path(path)
    suffix = path.suffix.lower()
    if "\0" in str(path):
        raise UserError(f"the file name {str(path)!r} has a NUL character in it")
    if split(path) is not None:
        return _of_pack(path, dtype)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: expected a hypernetwork file ({', '.join(SUFFIXES)})")
        if suffix not in SUFFIXES:
            raise UserError(
                f"{path}: expected a file ending in {', '.join(SUFFIXES)}, not {suffix or 'none'!r}"
            )
        if not path.exists():
            raise UserError(
                f"{path} does not exist: expected a hypernetwork file; check the folder and the spelling"
            )
        hypernetwork = native.read(path) if suffix == ".safetensors" else webui.read(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return hypernetwork if dtype is None else checks.converted(path, hypernetwork, dtype)


def _of_pack(path: Path, dtype: "torch.dtype | None") -> "AttentionHypernetwork":
    from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
    from hyperbrush.hypernetworks.files.checks import converted
    from hyperbrush.hypernetworks.files.pack import read_member

    member = read_member(path)
    if not isinstance(member, AttentionHypernetwork):
        raise UserError(f"{path} holds generated weights: expected an attention hypernetwork")
    return member if dtype is None else converted(path, member, dtype)


def save(hypernetwork: "AttentionHypernetwork", path: str | Path, *, legacy_zip: bool = False) -> Path:
    """Write a hypernetwork, whole or not at all; the suffix chooses the format.

    >>> from hyperbrush.hypernetworks import AttentionHypernetwork
    >>> save(AttentionHypernetwork([8]), "water.pt").name
    'water.pt'

    .pt, .bin and .ckpt are such as the webui's check lets through, from 2022 on.
    legacy_zip: torch's form before 2020, without a zip; .pt, .bin and .ckpt only.

    Raises:
        UserError: the suffix is none of `SUFFIXES`, the format cannot hold it, or the file cannot be
            written.
    """
    from hyperbrush.hypernetworks.files import native, webui

    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it, such as water.safetensors")
    if suffix in WEBUI_SUFFIXES:
        webui.write(hypernetwork, path, legacy_zip=legacy_zip)
    elif suffix == ".safetensors" and not legacy_zip:
        native.write(hypernetwork, path)
    elif suffix == ".safetensors":
        raise UserError(
            f"cannot write {path}: legacy_zip is a form of .pt, .bin and .ckpt, not of .safetensors"
        )
    else:
        raise UserError(
            f"cannot write {path}: expected the suffix .safetensors (ours) or .pt, .bin or .ckpt (the "
            f"webui's), not {path.suffix!r}"
        )
    return path

"""Files of attention hypernetworks: which format a path holds, reading and writing it."""

from pathlib import Path

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention import AttentionHypernetwork

WEBUI_SUFFIXES = (".pt", ".bin", ".ckpt")
SUFFIXES = (*WEBUI_SUFFIXES, ".safetensors")


def load(path: str | Path) -> AttentionHypernetwork:
    """Read a hypernetwork file of any known format, in evaluation mode, on the CPU.

    Nothing in the file is executed: .pt, .bin and .ckpt are read with ``weights_only`` alone.

    Raises:
        UserError: no such file, a folder, another suffix, or not a whole and sound hypernetwork.
    """
    from hyperbrush.hypernetworks.formats import native, webui

    path = Path(path)
    suffix = path.suffix.lower()
    if "\0" in str(path):
        raise UserError(f"the file name {str(path)!r} has a NUL character in it")
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a hypernetwork file ({', '.join(SUFFIXES)})")
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}, not {suffix or 'none'!r}")
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: expected a hypernetwork file; check the folder and the spelling"
        )
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): copy or download it again")
        with path.open("rb"):
            pass  # what the system refuses is told apart from what the readers stumble over
        return native.read(path) if suffix == ".safetensors" else webui.read(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def save(hypernetwork: AttentionHypernetwork, path: str | Path) -> Path:
    """Write a hypernetwork, whole or not at all; the suffix chooses the format.

    Raises:
        UserError: the suffix is neither .safetensors nor .pt, the format cannot hold it, or the
            file cannot be written.
    """
    from hyperbrush.hypernetworks.formats import native, webui

    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it, such as water.safetensors")
    if path.suffix.lower() == ".safetensors":
        native.write(hypernetwork, path)
    elif path.suffix.lower() == ".pt":
        webui.write(hypernetwork, path)
    else:
        raise UserError(
            f"cannot write {path}: expected the suffix .safetensors (ours) or .pt (the webui's), "
            f"not {path.suffix!r}"
        )
    return path

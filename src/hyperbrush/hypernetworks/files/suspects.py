"""What a file is that should be a hypernetwork and is not: by its first bytes, or by the names in it."""

import stat
from collections.abc import Iterable
from pathlib import Path

from hyperbrush.errors import UserError

_SIGNS = (
    (b"PK", "it is a zip, as a .pt is; name it NAME.pt"),
    (b"\x89PNG", "it is a PNG picture"),
    (b"\xff\xd8\xff", "it is a JPEG picture"),
    (b"RIFF", "it is a WebP picture or a sound"),
    (b"\x1f\x8b", "it is packed with gzip; unpack it"),
    (b"7z\xbc\xaf", "it is packed with 7-Zip; unpack it"),
    (b"Rar!", "it is packed with RAR; unpack it"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"\x80", "it is a pickle, as an old .pt is; name it NAME.pt"),
)


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        UserError: it is empty, or a pipe, a device or the like (reading one could never end).
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path} is no regular file (a pipe, socket or device): expected a hypernetwork file")
    if state.st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy or download it again")
    return state.st_size


def what_it_is(head: bytes) -> str:
    """The kind of a file by its first bytes (16 or more), in words.

    >>> what_it_is(b"<!DOCTYPE html><html>")
    'it is a web page, as a failed download leaves behind'
    """
    for sign, what in _SIGNS:
        if head.startswith(sign):
            return what
    if head.lstrip()[:1] == b"<":
        return "it is a web page, as a failed download leaves behind"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "it is a safetensors file; name it NAME.safetensors"
    if not any(head):
        return "it begins with zeros, as a download that was cut off does"
    return "it begins with " + repr(head[:8])


def foreign_kind(names: Iterable[str]) -> str | None:
    """What a mapping with such names or tensors is, in words, if it is well known.

    >>> foreign_kind(["state_dict", "global_step"])
    'it is a whole checkpoint'
    """
    keys = list(names)
    if any("lora" in k.lower() for k in keys):
        return "it is a LoRA; load it with pipe.load_lora_weights"
    if "string_to_param" in keys or "emb_params" in keys:
        return "it is a textual inversion; load it with pipe.load_textual_inversion"
    if "optimizer_state_dict" in keys:
        return "it is the optimizer state that belongs beside a hypernetwork"
    if "state_dict" in keys or any(k.startswith("model.diffusion_model") for k in keys):
        return "it is a whole checkpoint"
    if any(k.startswith(("down_blocks.", "encoder.down", "text_model.")) for k in keys):
        return "it is a part of a model, a UNet, VAE or text encoder"
    return None

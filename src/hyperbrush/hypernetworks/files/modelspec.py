"""Fields of Stability AI's ModelSpec 1.0.0 in a safetensors header, and the hash in it.

https://github.com/Stability-AI/ModelSpec.  The fields a user may set (author, date, description,
license, thumbnail, …) live in a hypernetwork's ``metadata`` under their full names, such as
``modelspec.date``; what is not set there is not written, so that equal networks make equal files.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files.headers import header_of
from hyperbrush.ldm.families import architecture_of
from hyperbrush.ldm.modules.transformer_sites import STREAMS

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "modelspec."
MAX_THUMBNAIL = 1_000_000  # characters; the specification asks for "very small", 256×256
_OWN = ("sai_model_spec", "architecture", "implementation", "title", "hash_sha256")
# The order in which safetensors lays tensors of several types.
_BY_WIDTH = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)


def fields(hypernetwork: AttentionHypernetwork, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The header's ModelSpec fields: what must be there, the hash of the tensors, and what was set.

    Raises:
        UserError: a field in the metadata is no text, a date or a thumbnail is not as the specification
            has them.
    """
    given = {k: v for k, v in hypernetwork.metadata.items() if k.startswith(PREFIX)}
    for name, value in given.items():
        _check(name, value)
    return {
        **given,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(hypernetwork)}/hypernetwork",
        "modelspec.implementation": "hyperbrush",
        "modelspec.title": hypernetwork.name,
        "modelspec.hash_sha256": "0x" + tensors_hash(tensors),
    }


def given_fields(header: Mapping[str, str]) -> dict[str, str]:
    """The fields of a header that a user has set: metadata, not derived from the network."""
    own = {PREFIX + name for name in _OWN}
    return {name: value for name, value in header.items() if name.startswith(PREFIX) and name not in own}


def architecture(hypernetwork: AttentionHypernetwork) -> str:
    """ModelSpec's name of the base model, read off the cross-attention widths."""
    streams = tuple(f".{stream}" for stream in STREAMS)  # of a transformer, whose widths tell no family
    return architecture_of(
        {pair.width for key, pair in hypernetwork.pairs() if not str(key).endswith(streams)}
    )


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Sha256 of all that follows the header, as safetensors lays the tensors there; hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors, key=lambda name: (_BY_WIDTH.index(tensors[name].dtype), name)):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_matches(path: str | Path) -> bool | None:
    """Whether a safetensors file's tensors are those its header was written for; None: it does not say.

    Raises:
        UserError: no safetensors file.
    """
    header, begin = header_of(Path(path))
    stored = header.get("modelspec.hash_sha256")
    if stored is None:
        return None
    with Path(path).open("rb") as file:
        file.seek(begin)
        return stored.removeprefix("0x").lower() == hashlib.file_digest(file, "sha256").hexdigest()


def thumbnail(picture: "Image.Image", size: int = 256) -> str:
    """A picture as ModelSpec's thumbnail: a JPEG of at most size×size pixels as a data URL.

    Set ``hypernetwork.metadata["modelspec.thumbnail"] = thumbnail(picture)`` before saving.
    """
    from hyperbrush.ldm.data.pictures import opened

    small = opened(picture, "the thumbnail")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _check(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"metadata {name!r} is a {type(value).__name__}: ModelSpec's fields are texts")
    if name == "modelspec.date":
        try:
            datetime.fromisoformat(value)
        except ValueError as error:
            raise UserError(
                f"metadata {name!r} is {value!r:.60}: expected an ISO 8601 date, 2024-05-31"
            ) from error
    if name == "modelspec.thumbnail":
        kind, _, data = value.partition(";base64,")
        try:
            base64.b64decode(data, validate=True)
            sound = kind in ("data:image/jpeg", "data:image/png", "data:image/webp") and bool(data)
        except binascii.Error:
            sound = False
        if not sound or len(value) > MAX_THUMBNAIL:
            raise UserError(
                f"metadata {name!r} is {value!r:.40}: expected data:image/jpeg;base64,… (or png, webp) of at "
                f"most {MAX_THUMBNAIL} characters; modelspec.thumbnail(picture) makes one"
            )

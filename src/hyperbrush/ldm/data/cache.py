"""Tensors on disk by content: what an encoder gave for a picture or a text, kept between runs."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, clear_parts
from hyperbrush.ldm.data.archives import content_of

_FORMAT = "hyperbrush cache 1"


def content_key(path_or_bytes: str | Path | bytes, settings: Mapping[str, Any]) -> str:
    """Hex digest of a file's content (or bytes) and of the settings it is encoded with.

    Raises:
        UserError: the file cannot be read; settings that JSON cannot hold.
    """
    return key_of(content_digest(path_or_bytes), settings)


def content_digest(path_or_bytes: str | Path | bytes) -> bytes:
    """SHA-256 of a file's content (or bytes), inside archives too: read once for several keys.

    Raises:
        UserError: the file cannot be read.
    """
    if isinstance(path_or_bytes, bytes):
        content = path_or_bytes
    else:
        try:
            content = content_of(path_or_bytes)
        except OSError as error:
            raise UserError(f"cannot read {path_or_bytes}: {error.strerror or error}") from error
    return hashlib.sha256(content).digest()


def key_of(digest: bytes, settings: Mapping[str, Any]) -> str:
    """The ``content_key`` of a content with this ``content_digest``.

    Raises:
        UserError: settings that JSON cannot hold.
    """
    try:
        canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"settings of a cache key: {error}; expected what JSON can hold") from error
    return hashlib.sha256(digest + canonical.encode()).hexdigest()


class LatentCache:
    """Named tensors by key, for latents and for text contexts, in shards of many entries.

    A shard is a safetensors file, written whole or not at all, with a checksum of each tensor in
    its header; the headers are the index. A damaged file or entry counts as absent, so it is
    computed again. Several processes may share a folder: each writes shards of its own.

    folder: made when first written to.
    fingerprint: names what made the tensors (an encoder's hash, its precision); other fingerprints
        in the same folder are not seen.
    shard_entries, shard_bytes: a shard is written when it has as much, or somewhat more (`put_batch`); the
        rest on ``flush``, ``close`` or the end of a ``with``.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: str,
        *,
        shard_entries: int = 1024,
        shard_bytes: int = 64 * 2**20,
    ) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder) / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        self._shard_entries, self._shard_bytes = shard_entries, shard_bytes
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        self._shards: dict[Path, Any] = {}
        self._checksums: dict[Path, dict[str, int]] = {}
        self._places: dict[str, dict[Path, list[str]]] = {}
        clear_parts(self.folder, shared=True)
        for path in sorted(self.folder.glob("*.safetensors")):
            if not path.name.startswith("."):  # a write that was cut short
                self._open(path)

    def __len__(self) -> int:
        return len(self._places.keys() | self._pending.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._pending or key in self._places

    def get(self, key: str, *, copy: bool = True) -> dict[str, Tensor] | None:
        """Tensors of an entry, or None where there is none or none undamaged.

        copy: False leaves what is on disk there, read through a memory map when it is asked for, so that a large
            dataset takes no memory; the file may be removed meanwhile (where the system allows it), not changed.
        """
        if key in self._pending:
            return dict(self._pending[key])
        for path, names in self._places.get(key, {}).items():
            found = {}
            for name in names:
                try:
                    tensor = self._shards[path].get_tensor(f"{key}/{name}")
                    tensor = tensor.clone() if copy else tensor
                except (SafetensorError, OSError, RuntimeError):
                    break
                if _checksum(tensor) != self._checksums[path].get(f"{key}/{name}"):
                    break
                found[name] = tensor
            else:
                return found
        return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep an entry; it replaces one of the same key.

        Raises:
            UserError: a key or name that is empty or holds a slash; a shard cannot be written.
        """
        self.put_batch({key: tensors})

    def put_batch(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep what was encoded in one batch, in one shard: all of it is there afterwards, or none.

        An encoder's bits depend on what else is in a batch.  So a run that was killed and goes on finds
        whole batches, and encodes the same ones as it would have.

        Raises:
            UserError: as `put`.
        """
        for key, tensors in entries.items():
            for name in (key, *tensors):
                if not name or "/" in name:
                    raise UserError(f"cache name {name!r}; expected one without a slash, not empty")
            if not tensors:
                raise UserError(f"cache entry {key!r} has no tensors; expected 1 or more")
            entry = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
            self._pending[key] = entry
            self._pending_bytes += sum(t.nbytes for t in entry.values())
        if len(self._pending) >= self._shard_entries or self._pending_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet.

        Raises:
            UserError: it cannot be written; it stays in memory.
        """
        if not self._pending:
            return
        tensors = {f"{k}/{n}": t for k, entry in self._pending.items() for n, t in entry.items()}
        checksums = json.dumps({name: _checksum(t) for name, t in tensors.items()}, sort_keys=True)
        path = self._path(checksums)
        self._forget(path)  # Windows replaces no file that is open
        metadata = {"format": _FORMAT, "fingerprint": self.fingerprint, "checksums": checksums}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        for key in self._pending:
            self._places.pop(key, None)  # what was put last counts
        self._pending, self._pending_bytes = {}, 0
        self._open(path)

    def close(self) -> None:
        """Write what is not on disk yet and let go of the files; the cache is then empty."""
        self.flush()
        self._shards, self._checksums, self._places = {}, {}, {}

    def __enter__(self) -> "LatentCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        try:
            shard: Any = safe_open(path, framework="pt")
            metadata = shard.metadata() or {}
        except (SafetensorError, OSError):
            return
        listed = metadata.get("checksums", "")
        # The file's name is the hash of its list, so a damaged list is never believed.
        if path != self._path(listed) or metadata.get("fingerprint") != self.fingerprint:
            return
        self._shards[path], self._checksums[path] = shard, json.loads(listed)
        for key, _, name in (full.rpartition("/") for full in self._checksums[path]):
            self._places.setdefault(key, {}).setdefault(path, []).append(name)

    def _path(self, checksums: str) -> Path:
        return self.folder / f"{hashlib.sha256(checksums.encode()).hexdigest()[:16]}.safetensors"

    def _forget(self, path: Path) -> None:
        self._shards.pop(path, None)
        self._checksums.pop(path, None)
        for places in self._places.values():
            places.pop(path, None)


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's type, shape and bytes."""
    start = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, start)

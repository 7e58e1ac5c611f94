"""Pictures encoded once: the first stage runs before training, not in each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.augment import flips
from hyperbrush.ldm.data.cache import LatentCache, content_key
from hyperbrush.ldm.data.folder import ImageFolder

Encode = Callable[[Tensor], Mapping[str, Tensor]]


class LatentDataset(Dataset[dict[str, Any]]):
    """An ``ImageFolder`` with latents for pictures, in memory; same captions, groups and flips.

    rows: for each example, the encoder's tensors as they are and, if the folder flips, mirrored.
    """

    def __init__(self, dataset: ImageFolder, rows: Sequence[Sequence[dict[str, Tensor]]]) -> None:
        self.captions, self.paths, self.groups = dataset.captions, dataset.paths, dataset.groups
        self.seed, self.flip = dataset.seed, dataset.flip
        self._rows = rows

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, epoch=0)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """Give one example, the same whenever it is asked for the same (seed, epoch, index).

        Returns ``latent_NAME`` for each tensor NAME of the encoder, (channels, height, width) for a
        mean or a standard deviation; ``caption``; ``path``.

        Raises:
            IndexError: no such example.
        """
        index = range(len(self))[index]
        row = self._rows[index][flips(self.seed, epoch, index, self.flip)]
        latents = {f"latent_{name}": tensor for name, tensor in row.items()}
        return {**latents, "caption": self.captions[index], "path": self.paths[index]}


def cache_latents(
    dataset: ImageFolder,
    encode: Encode,
    cache: LatentCache,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> LatentDataset:
    """Encode every picture once, or read what an earlier run encoded.

    encode: pictures (batch, 3, height, width) in [-1, 1] to tensors with one row for each, such as
        ``{"mean": (batch, channels, h, w), "std": …}``. What it depends on belongs in the cache's
        fingerprint.
    progress: called with (pictures done, pictures in all); mirrored ones count too.

    Raises:
        UserError: the dataset changes its pictures at random otherwise than by flipping; a picture
            has become unreadable; the encoder gives other rows than asked, or NaN.
    """
    _check_cacheable(dataset)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected 1 or more")
    sides = (False, True) if dataset.flip else (False,)
    entries: dict[str, dict[str, Tensor]] = {}
    missing: dict[tuple[int, int], list[tuple[str, int, bool]]] = {}
    keys = []
    for index, path in enumerate(dataset.paths):
        keys.append([content_key(path, _settings(dataset, index, side)) for side in sides])
        for key, side in zip(keys[-1], sides, strict=True):
            if key in entries:
                continue
            entries[key] = found = cache.get(key) or {}
            if not found:
                missing.setdefault(dataset.groups[index], []).append((key, index, side))
    total, done = len(entries), len(entries) - sum(map(len, missing.values()))
    if progress is not None:
        progress(done, total)
    for wanted in missing.values():
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            images = [dataset.picture(index, flipped=side) for _, index, side in batch]
            with torch.no_grad():
                encoded = encode(torch.stack(images))
            paths = [dataset.paths[index] for _, index, _ in batch]
            rows = _rows(encoded, paths)
            for (key, _, _), row in zip(batch, rows, strict=True):
                entries[key] = row
                cache.put(key, row)
            done += len(batch)
            if progress is not None:
                progress(done, total)
    cache.flush()
    return LatentDataset(dataset, [[entries[key] for key in row] for row in keys])


def _check_cacheable(dataset: ImageFolder) -> None:
    chances = {
        'crop="random"': dataset.crop == "random",
        "jitter": dataset.jitter > 0,
        "rotate": dataset.rotate > 0,
        "transform": dataset.transform is not None,
    }
    if used := [name for name, on in chances.items() if on]:
        raise UserError(
            f"latents cannot be cached with {' and '.join(used)}: each epoch sees other pictures. "
            "Leave that out (flip and buckets may stay), or train without the latent cache"
        )


def _settings(dataset: ImageFolder, index: int, flipped: bool) -> dict[str, Any]:
    return {
        "preparation": 1,  # raise it when ImageFolder prepares pictures differently
        "shape": dataset.groups[index],
        "crop": dataset.crop,
        "background": dataset.background,
        "flipped": flipped,
    }


def _rows(encoded: Mapping[str, Tensor], paths: Sequence[str]) -> list[dict[str, Tensor]]:
    """Cut an encoder's batch into rows on the CPU, each with memory of its own."""
    for name, tensor in encoded.items():
        if tensor.ndim < 1 or len(tensor) != len(paths):
            raise UserError(
                f"the encoder gave {name!r} with shape {tuple(tensor.shape)} for {len(paths)} "
                "pictures; expected one row for each"
            )
    moved = {name: tensor.detach().cpu() for name, tensor in encoded.items()}
    rows = [{n: t[i].clone() for n, t in moved.items()} for i in range(len(paths))]
    for path, row in zip(paths, rows, strict=True):
        for name, tensor in row.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"the encoder gave NaN or infinity in {name!r} for {path}; run it in float32 "
                    "(Stable Diffusion XL's first stage overflows in float16)"
                )
    return rows

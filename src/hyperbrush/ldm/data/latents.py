"""Pictures encoded once: the first stage runs before training, not in each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.data.augment import view
from hyperbrush.ldm.data.cache import LatentCache, key_of
from hyperbrush.ldm.data.examples import CaptionedPictures, Selection
from hyperbrush.ldm.data.folder import ImageFolder
from hyperbrush.ldm.data.mixture import Mixture
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.stopping import may_stop_here

Encode = Callable[[Tensor], Mapping[str, Tensor]]
Posterior = Literal["deterministic", "once", "random"]
View = tuple[int, bool]  # (which fixed crop, mirrored?)
Some = TypeVar("Some", Selection, Mixture)

POSTERIORS = ("deterministic", "once", "random")


class LatentDataset(CaptionedPictures):
    """An ``ImageFolder`` with latents for pictures; same captions, groups, flips and crops.

    rows: for each example, by its number, the encoder's tensors for each of its views (``views``);
        examples that are left out cannot be asked for.
    masks: in the same way the masks' coverage, (1, h, w) in [0, 1].
    posterior: what stands for a picture, of the encoder's "mean" and "std". "deterministic": both as
        they are. "once": one sample, always the same. "random": a sample of its own each epoch. A
        sample comes as the mean, without a standard deviation, so that nobody samples it again.

    Raises:
        UserError: an unknown posterior; samples asked for and no mean and standard deviation there.
    """

    def __init__(
        self,
        dataset: ImageFolder,
        rows: Sequence[Sequence[dict[str, Tensor]]] | Mapping[int, Sequence[dict[str, Tensor]]],
        *,
        masks: Mapping[int, Sequence[Tensor]] | None = None,
        posterior: Posterior = "deterministic",
    ) -> None:
        if posterior not in POSTERIORS:
            raise unknown_name("posterior", posterior, POSTERIORS)
        self.captions, self.paths, self.groups = dataset.captions, dataset.paths, dataset.groups
        self.alternatives = dataset.alternatives
        self.seed, self.flip, self.crop_variants = dataset.seed, dataset.flip, dataset.crop_variants
        self.captioning, self.masks, self.posterior = dataset.captioning, dataset.masks, posterior
        self._views = {seen: number for number, seen in enumerate(views(dataset))}
        self._rows, self._coverages = rows, masks
        first = rows[next(iter(rows))][0] if isinstance(rows, Mapping) else rows[0][0]
        if posterior != "deterministic" and not {"mean", "std"} <= first.keys():
            raise UserError(
                f'posterior is {posterior!r}, but the encoder gave {", ".join(first)}; expected "mean" and '
                '"std" to sample from'
            )

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """Give one example, the same whenever it is asked for the same (seed, epoch, index).

        Returns ``latent_NAME`` for each tensor NAME of the encoder, (channels, height, width) for a
        mean or a standard deviation; ``caption``; ``path``; with masks, ``mask``: float32 (1, height,
        width), weights of the loss.

        Raises:
            IndexError: no such example.
        """
        index = range(len(self))[index]
        seen = view(self.seed, epoch, index, flip=self.flip, variants=self.crop_variants)
        number = self._views[seen]
        row = self._rows[index][number]
        if self.posterior != "deterministic":
            moment = (epoch,) if self.posterior == "random" else ("once", number)
            row = _sample(row, keyed_generator(self.seed, "posterior", index, *moment))
        found = {f"latent_{name}": tensor for name, tensor in row.items()}
        if self.masks is not None and self._coverages is not None:
            found["mask"] = self.masks.weights(self._coverages[index][number])
        return {**found, "caption": self.caption(index, epoch), "path": self.paths[index]}


def views(dataset: ImageFolder) -> list[View]:
    """Every (crop, mirrored?) that an example of a dataset may show."""
    sides = [side for side, on in ((False, dataset.flip < 1), (True, dataset.flip > 0)) if on]
    return [(variant, side) for variant in range(dataset.crop_variants or 1) for side in sides]


def cache_latents(
    dataset: Any,
    encode: Encode,
    cache: LatentCache,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    *,
    posterior: Posterior = "deterministic",
) -> Any:
    """Encode every picture once, or read what an earlier run encoded; the same dataset of latents.

    dataset: an ``ImageFolder``, a ``Selection`` of one (only those pictures are encoded), or a
        ``Mixture`` of both. Each picture is encoded in every view (``views``); masks are kept beside.
    encode: pictures (batch, 3, height, width) in [-1, 1] to tensors with one row for each, such as
        ``{"mean": (batch, channels, h, w), "std": …}``. What it depends on belongs in the cache's
        fingerprint.
    progress: called with (views done, views in all), for each part of a mixture anew.
    posterior: see ``LatentDataset``.

    Raises:
        UserError: the dataset changes its pictures at random otherwise than by flips and fixed crops; a
            picture has become unreadable; the encoder gives other rows than asked, NaN, or latents of
            another size than the masks.
    """

    def cached(data: Any) -> Any:
        return cache_latents(data, encode, cache, batch_size, progress, posterior=posterior)

    if isinstance(dataset, Mixture):
        return dataset.over(cached)
    if isinstance(dataset, ImageFolder):
        return _cached(dataset, range(len(dataset)), encode, cache, batch_size, progress, posterior)
    if isinstance(dataset, Selection) and isinstance(dataset.data, ImageFolder):
        chosen = _cached(dataset.data, dataset.indices, encode, cache, batch_size, progress, posterior)
        return Selection(chosen, dataset.indices)
    raise UserError(f"latents of a {type(dataset).__name__}; expected an ImageFolder or a mixture of some")


def _cached(
    dataset: ImageFolder,
    indices: Sequence[int],
    encode: Encode,
    cache: LatentCache,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
    posterior: Posterior,
) -> LatentDataset:
    _check_cacheable(dataset)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected 1 or more")
    entries: dict[str, dict[str, Tensor]] = {}  # in the cache's files; memory holds one shard
    missing: dict[tuple[int, int], list[tuple[str, int, View]]] = {}
    keys: dict[int, list[str]] = {}
    for index in indices:
        may_stop_here()
        digest = dataset.digest(index)
        keys[index] = [key_of(digest, _settings(dataset, index, seen)) for seen in views(dataset)]
        for key, seen in zip(keys[index], views(dataset), strict=True):
            if key in entries:
                continue
            entries[key] = found = cache.get(key, copy=False) or {}
            if not found:
                missing.setdefault(dataset.groups[index], []).append((key, index, seen))
    total, done = len(entries), len(entries) - sum(map(len, missing.values()))
    if progress is not None:
        progress(done, total)
    for wanted in missing.values():
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            images = [dataset.picture(i, flipped=side, variant=crop) for _, i, (crop, side) in batch]
            may_stop_here()
            with torch.no_grad():
                encoded = encode(torch.stack(images))
            paths = [dataset.paths[index] for _, index, _ in batch]
            rows = _rows(encoded, paths)
            cache.put_batch({key: row for (key, _, _), row in zip(batch, rows, strict=True)})
            done += len(batch)
            if progress is not None:
                progress(done, total)
    masks = None if dataset.masks is None else {index: _masks(dataset, index, cache) for index in indices}
    cache.flush()
    for key in [key for key, found in entries.items() if not found]:
        entries[key] = _written(cache, key)
    found_rows = {index: [entries[key] for key in row] for index, row in keys.items()}
    if masks is not None:
        _check_sizes(dataset, found_rows, masks)
    return LatentDataset(dataset, found_rows, masks=masks, posterior=posterior)


def _written(cache: LatentCache, key: str) -> dict[str, Tensor]:
    if (found := cache.get(key, copy=False)) is None:
        raise UserError(
            f"the cache {cache.folder} does not give back what was written there: is the disk in order?"
        )
    return found


def _masks(dataset: ImageFolder, index: int, cache: LatentCache) -> list[Tensor]:
    """Coverage of one example's mask in every view, from the cache or put there."""
    assert dataset.masks is not None
    may_stop_here()
    digest = dataset.mask_digest(index)
    found = []
    for crop, side in views(dataset):
        settings = _settings(dataset, index, (crop, side)) | {
            "kind": "mask",
            "source": dataset.masks.source,
            "downscale": dataset.masks.downscale,
            "picture": dataset.sizes[index],
        }
        key = key_of(digest, settings)
        if (kept := cache.get(key)) is None:
            kept = {"mask": dataset.mask(index, flipped=side, variant=crop)}
            cache.put(key, kept)
        found.append(kept["mask"])
    return found


def _check_sizes(
    dataset: ImageFolder,
    rows: Mapping[int, Sequence[Mapping[str, Tensor]]],
    masks: Mapping[int, Sequence[Tensor]],
) -> None:
    for index, row in rows.items():
        latent, mask = next(iter(row[0].values())), masks[index][0]
        if latent.shape[-2:] != mask.shape[-2:]:
            raise UserError(
                f"the mask of {dataset.paths[index]} is {tuple(mask.shape[-2:])} where its latents are "
                f"{tuple(latent.shape[-2:])}; set the downscale of masks to the first stage's, "
                f"{dataset.groups[index][0] // latent.shape[-2]}"
            )


def _sample(row: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(row["mean"].shape, generator=generator)
    rest = {name: tensor for name, tensor in row.items() if name != "std"}
    return rest | {"mean": row["mean"] + row["std"] * noise.to(row["mean"])}


def _check_cacheable(dataset: ImageFolder) -> None:
    chances = {
        'crop="random"': dataset.crop == "random" and dataset.crop_variants is None,
        "jitter": dataset.jitter > 0,
        "rotate": dataset.rotate > 0,
        "transform": dataset.transform is not None,
    }
    if used := [name for name, on in chances.items() if on]:
        raise UserError(
            f"latents cannot be cached with {' and '.join(used)}: each epoch sees other pictures. "
            "Leave that out (flip and buckets may stay, and random crops with crop_variants=4, say), or "
            "train without the latent cache"
        )


def _settings(dataset: ImageFolder, index: int, seen: View) -> dict[str, Any]:
    variant, flipped = seen
    found = {
        "preparation": 1,  # raise it when ImageFolder prepares pictures differently
        "shape": dataset.groups[index],
        "crop": dataset.crop,
        "background": dataset.background,
        "flipped": flipped,
    }
    # What a setting changes is in the key only where it is on: older caches stay good.
    if (window := dataset.window(index, variant)) is not None:
        found["window"] = window
    if dataset.slack:
        found["slack"] = dataset.slack
    return found


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

"""What frozen encoders say of pictures and captions, computed once and kept on disk."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import LatentCache, cache_latents, cache_texts, folders_in
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.conditioning import FORMS, stacked
from hyperbrush.training.data.pictures import Pictures
from hyperbrush.training.loop.checkpoint import digest
from hyperbrush.training.loop.progress import PrepareCallback

Texts = dict[
    str, dict[str, Tensor]
]  # caption → "embeddings", and "pooled_embeddings" for Stable Diffusion XL
TEXT_BYTES = 2**31  # of text states that are kept in memory at most


def cached_latents(
    model: LatentDiffusion,
    parts: Sequence[Pictures | None],
    folder: Path,
    *,
    posterior: str = "deterministic",
    on_prepare: PrepareCallback | None = None,
) -> list[Pictures | None]:
    """The same datasets with latents for pictures; None stays None.

    Pictures that jitter, rotation or a transform of one's own show another way each time stay pictures, which each step
    encodes.

    Raises:
        UserError: see `ldm.data.cache_latents`; draws from the posterior of pictures that stay such.
    """
    for data in parts:
        if data is not None and repaints(data):
            check_posterior(posterior)
    progress = None if on_prepare is None else partial(on_prepare, "pictures")
    with LatentCache(folder, digest(dict(model.first_stage.state_dict()))) as cache:
        return [
            None
            if data is None
            else data
            if repaints(data)
            else cache_latents(data, model.moments, cache, progress=progress, posterior=posterior)  # type: ignore[arg-type]
            for data in parts
        ]


def text_states(texts: Texts, captions: Sequence[str]) -> dict[str, Tensor]:
    """What the UNet is told of captions, a row each."""
    return stacked([texts[caption] for caption in captions])


def repaints(data: Any) -> bool:
    """Whether a dataset's pictures are others each time, so that they cannot be encoded once."""
    return any(folder.repaints for folder in folders_in(data))


def check_posterior(posterior: str) -> None:
    """Refuse draws from the posterior of pictures that are encoded in each step.

    Raises:
        UserError: it is not the mean.
    """
    if posterior != "deterministic":
        raise UserError(
            f"latent_sampling {posterior!r} is of latents that are kept, and pictures that jitter, rotation or a transform "
            "shows another way each time are encoded in each step by their mean: leave one of them out"
        )


def cached_texts(
    model: LatentDiffusion, captions: Sequence[str], folder: Path, on_prepare: PrepareCallback | None = None
) -> Texts | None:
    """What the UNet is told of each caption; None where they take more than `TEXT_BYTES` together."""
    captions = list(dict.fromkeys(captions))
    with torch.no_grad():
        one = model.text_conditions([""])
    if sum(value.nbytes for value in one.values()) * len(captions) > TEXT_BYTES:
        return None
    found: Texts = {caption: {} for caption in captions}
    weights = {f"{i}.{k}": v for i, e in enumerate(model.text_encoders) for k, v in e.state_dict().items()}
    progress = None if on_prepare is None else partial(on_prepare, "captions")
    told: dict[tuple[str, ...], dict[str, Tensor]] = {}  # batches that were encoded for another key

    for key in one:

        def encode(texts: list[str], key: str = key) -> Tensor:
            batch = tuple(texts)
            if batch not in told:
                told[batch] = {name: value.cpu() for name, value in model.text_conditions(texts).items()}
            return told[batch].pop(key)

        with LatentCache(folder / key, digest(weights)) as cache:
            for caption, states in cache_texts(captions, encode, cache, progress=progress).items():
                found[caption][FORMS[key]] = states
    return found

"""What frozen encoders say of pictures and captions, computed once and kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyperbrush.ldm.data import LatentCache, cache_latents, cache_texts
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.checkpoint import digest
from hyperbrush.training.pictures import Pictures

Told = Callable[[str, int, int], None]  # (what is encoded, done, in all)
Texts = dict[
    str, dict[str, Tensor]
]  # caption → "embeddings", and "pooled_embeddings" for Stable Diffusion XL
TEXT_BYTES = 2**31  # of text states that are kept in memory at most
FORMS = {"context": "embeddings", "pooled": "pooled_embeddings"}  # the model's names → a batch's


def cached_latents(
    model: LatentDiffusion,
    parts: Sequence[Pictures | None],
    folder: Path,
    *,
    posterior: str = "deterministic",
    told: Told | None = None,
) -> list[Pictures | None]:
    """The same datasets with latents for pictures; None stays None.

    Raises:
        UserError: see `ldm.data.cache_latents`.
    """
    progress = None if told is None else lambda done, of: told("pictures", done, of)
    with LatentCache(folder, digest(dict(model.first_stage.state_dict()))) as cache:
        return [
            None
            if data is None
            else cache_latents(data, model.moments, cache, progress=progress, posterior=posterior)  # type: ignore[call-overload]
            for data in parts
        ]


def cached_texts(
    model: LatentDiffusion, captions: Sequence[str], folder: Path, told: Told | None = None
) -> Texts | None:
    """What the UNet is told of each caption; None where they take more than `TEXT_BYTES` together."""
    captions = list(dict.fromkeys(captions))
    with torch.no_grad():
        one = model.text_conditions([""])
    if sum(value.nbytes for value in one.values()) * len(captions) > TEXT_BYTES:
        return None
    found: Texts = {caption: {} for caption in captions}
    encoders = [e for e in (model.text_encoder, model.text_encoder_2) if e is not None]
    weights = {f"{i}.{k}": v for i, e in enumerate(encoders) for k, v in e.state_dict().items()}
    progress = None if told is None else lambda done, of: told("captions", done, of)
    for key in one:

        def encode(texts: list[str], key: str = key) -> Tensor:
            return model.text_conditions(texts)[key]

        with LatentCache(folder / key, digest(weights)) as cache:
            for caption, states in cache_texts(captions, encode, cache, progress=progress).items():
                found[caption][FORMS[key]] = states
    return found

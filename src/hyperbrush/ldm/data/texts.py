"""Captions encoded once: the text encoder runs before training, not in each step."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.cache import LatentCache, content_key
from hyperbrush.ldm.data.examples import CaptionedExamples
from hyperbrush.ldm.data.order import BatchOrder
from hyperbrush.stopping import may_stop_here


def cache_texts(
    texts: Iterable[str],
    encode: Callable[[list[str]], Tensor],
    cache: LatentCache,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Context of each different text, (tokens, width) or (width,), encoded now or by an earlier run.

    encode: texts to contexts (batch, tokens, width). What it depends on belongs in the cache's
        fingerprint.
    progress: called with (texts done, texts in all).

    Raises:
        UserError: the encoder gives other rows than asked, or NaN; a batch of none.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected 1 or more")
    contexts: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    ordered = list(dict.fromkeys(texts))
    for text in ordered:
        may_stop_here()
        key = content_key(text.encode(), {"kind": "text"})
        if found := cache.get(key):
            contexts[text] = found["context"]
        else:
            missing[text] = key
    if progress is not None:
        progress(len(contexts), len(ordered))
    wanted = list(missing)
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        with torch.no_grad():
            encoded = encode(batch).detach().cpu()
        if encoded.ndim < 2 or len(encoded) != len(batch):
            raise UserError(
                f"the text encoder gave shape {tuple(encoded.shape)} for {len(batch)} texts; "
                "expected (texts, tokens, width) or (texts, width)"
            )
        for text, context in zip(batch, encoded, strict=True):
            if not torch.isfinite(context).all():
                raise UserError(f"the text encoder gave NaN or infinity for {text!r}; run it in float32")
            contexts[text] = context.clone()
        cache.put_batch({missing[text]: {"context": contexts[text]} for text in batch})
        if progress is not None:
            progress(len(contexts), len(ordered))
    cache.flush()
    return {text: contexts[text] for text in ordered}


def captions_seen(data: CaptionedExamples, order: BatchOrder, steps: int) -> list[str]:
    """Each different caption of the first ``steps`` batches, in the order they come.

    Examples are keyed by (seed, epoch, index), so a training's captions are known before it starts,
    templates, shuffled and dropped tags included: all can be encoded once and the text encoder
    unloaded. With shuffled tags they may be as many as examples: ask how many, and what a context
    takes, before keeping them all.
    """
    pairs = (pair for step in range(steps) for pair in order.pairs(step))
    return list(dict.fromkeys(data.caption(index, epoch) for epoch, index in pairs))

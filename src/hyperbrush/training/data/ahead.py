"""Batches whose pictures are decoded ahead of the step, in threads; each is the same as without."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from hyperbrush.ldm.data import BatchOrder, collate, folders_in

AHEAD = 2  # batches
MOST_THREADS = 4


class Examples(Protocol):
    """A dataset: `example(index, epoch)` is a function of its arguments (and the dataset's seed)."""

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """One training example."""
        ...


def as_batch(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Examples as one batch, keys in the plural: images, captions, paths, …"""
    return {f"{key}s": value for key, value in collate(examples).items()}


class Ahead:
    """The batches of datasets by step: those of the next steps are decoded while this one is computed.

    An example is a function of (seed, epoch, index), so it does not matter when and where it is made. What is in
    memory (latents) is taken as it is, and so are pictures with a ``transform``: that may draw from global generators.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._of: tuple[Examples, BatchOrder] | None = None
        self._coming: dict[int, list[Future[dict[str, Any]]]] = {}

    def batch(self, data: Examples, order: BatchOrder, step: int) -> dict[str, Any]:
        """The batch of a step.

        Raises:
            UserError: a picture has become unreadable.
        """
        if not decodes(data):
            return as_batch([data.example(index, epoch) for epoch, index in order.pairs(step)])
        if self._pool is None:
            workers = min(MOST_THREADS, os.cpu_count() or 1)
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        if self._of is None or data is not self._of[0] or order is not self._of[1]:
            self._of, self._coming = (data, order), {}
        wanted = range(step, step + 1 + AHEAD)
        self._coming = {at: self._coming.get(at) or self._begin(data, order, at) for at in wanted}
        return as_batch([future.result() for future in self._coming.pop(step)])

    def _begin(self, data: Examples, order: BatchOrder, step: int) -> list[Future[dict[str, Any]]]:
        assert self._pool is not None
        return [self._pool.submit(data.example, index, epoch) for epoch, index in order.pairs(step)]


def decodes(data: Examples) -> bool:
    """Whether a dataset's examples are pictures that may be decoded in threads."""
    folders = [folder for source in getattr(data, "sources", (data,)) for folder in folders_in(source)]
    return bool(folders) and all(folder.transform is None for folder in folders)

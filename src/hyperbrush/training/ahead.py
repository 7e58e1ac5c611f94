"""Batches whose pictures are decoded ahead of the step, in threads; each is the same as without."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from hyperbrush.ldm.data import BatchOrder, ImageFolder, collate

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
    """The batches of a dataset by step: those of the next steps are decoded while this one is computed.

    An example is a function of (seed, epoch, index), so it does not matter when and where it is made. What is in
    memory (latents) is taken as it is, and so are pictures with a ``transform``: that may draw from global generators.
    """

    def __init__(self, data: Examples) -> None:
        self.data = data
        folders = _folders(data)
        self.threads = bool(folders) and all(folder.transform is None for folder in folders)
        self._pool: ThreadPoolExecutor | None = None
        self._order: BatchOrder | None = None
        self._coming: dict[int, list[Future[dict[str, Any]]]] = {}

    def batch(self, order: BatchOrder, step: int) -> dict[str, Any]:
        """The batch of a step.

        Raises:
            UserError: a picture has become unreadable.
        """
        if not self.threads:
            return as_batch([self.data.example(index, epoch) for epoch, index in order.pairs(step)])
        if self._pool is None:
            workers = min(MOST_THREADS, os.cpu_count() or 1)
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        wanted = range(step, step + 1 + AHEAD)
        if order is not self._order:
            self._order, self._coming = order, {}
        self._coming = {at: self._coming.get(at) or self._begin(order, at) for at in wanted}
        return as_batch([future.result() for future in self._coming.pop(step)])

    def _begin(self, order: BatchOrder, step: int) -> list[Future[dict[str, Any]]]:
        assert self._pool is not None
        return [self._pool.submit(self.data.example, index, epoch) for epoch, index in order.pairs(step)]


def _folders(data: Any) -> list[ImageFolder]:
    """The folders of pictures that a dataset decodes: its parts', what it selects from, what is beside its examples."""
    if isinstance(data, ImageFolder):
        return [data]
    inside = [part.data for part in getattr(data, "parts", ())]
    inside += [getattr(data, "data", None), getattr(getattr(data, "beside", None), "pictures", None)]
    return [folder for one in inside if one is not None for folder in _folders(one)]

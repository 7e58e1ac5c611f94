"""Rows of sequences that text and picture share, in a transformer's forward pass."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.transformer_sites import Ranges, Transformer


class StreamRows:
    """Stream → its rows, ``now``: seen before each pass."""

    def __init__(self, transformer: Transformer | None) -> None:
        self._transformer = transformer
        self.now: Mapping[str, Ranges] = {}

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins with these arguments; a forward pre-hook.

        Raises:
            UserError: as `Transformer.rows`.
        """
        if self._transformer is not None:
            self.now = self._transformer.rows(self._transformer.call(args, kwargs))

    def span(self, stream: str, context: Tensor) -> tuple[int, int]:
        """First row and last + 1 of a stream in a context (batch, tokens, width), over all of its pictures.

        Raises:
            UserError: the batch is another than the pass was told of, or there is no pass.
        """
        ranges = self._ranges(stream, context)
        return min(start for start, _ in ranges), max(stop for _, stop in ranges)

    def through(self, stream: str, context: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """A context (batch, tokens, width) with a stream's rows changed and all others as they were.

        change: takes and gives (batch, rows, width).

        Raises:
            UserError: as `span`.
        """
        ranges = self._ranges(stream, context)
        first, last = self.span(stream, context)
        part = context[:, first:last]
        changed = change(part)
        if any(own != (first, last) for own in ranges):
            place = torch.arange(first, last, device=context.device)
            starts, stops = torch.tensor(ranges, device=context.device).T[..., None]
            changed = torch.where(((place >= starts) & (place < stops))[..., None], changed, part)
        return torch.cat([context[:, :first], changed, context[:, last:]], dim=1)

    def _ranges(self, stream: str, context: Tensor) -> list[tuple[int, int]]:
        if stream not in self.now:
            raise UserError(
                "a block was called outside of its transformer's forward pass: hypernetworks cannot tell the text's rows "
                "there. Call the transformer, or detach() first"
            )
        ranges, tokens = self.now[stream], context.shape[1]
        if len(ranges) not in (1, len(context)):
            raise UserError(
                f"an attention sees {len(context)} pictures, but the model was called with {len(ranges)}: "
                "hypernetworks cannot tell the text's rows there"
            )
        return [(start, tokens if stop is None else stop) for start, stop in ranges]

"""Slow work beside the server's event loop."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nicegui import run

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns that reads or writes files, called in a thread.

    Raises:
        RuntimeError: the server ends.
    """
    found: list[T] | None = await run.io_bound(lambda: [do(*args, **kwargs)])
    if not found:
        raise RuntimeError("the server ends")
    return found[0]

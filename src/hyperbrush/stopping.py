"""Long work that can be told to stop: it asks as it goes along, and whoever began it says how it ends."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_ask: ContextVar[Callable[[], None] | None] = ContextVar("ask", default=None)


def may_stop_here() -> None:
    """For loops over pictures or texts: raises what the surrounding `stoppable` raises, if it is to stop."""
    if (ask := _ask.get()) is not None:
        ask()


@contextlib.contextmanager
def stoppable(ask: Callable[[], None]) -> Iterator[None]:
    """Within, ``ask`` is called before each layer that any network computes and at each `may_stop_here`.

    What it raises ends the work there: of a large picture's batch, one layer is all that is waited for.
    Within another one the inner alone is asked: what is done between the steps of long work ends as itself.
    """
    from torch.nn.modules.module import register_module_forward_pre_hook

    token = _ask.set(ask)
    hook = register_module_forward_pre_hook(lambda *_: may_stop_here())
    try:
        ask()
        yield
    finally:
        hook.remove()
        _ask.reset(token)

"""What gradient checkpointing must find again when it computes a block a second time.

It does so during backward.  If other adapters are at work then, or none any more, the gradients would be those of
another function, in silence.  So each checkpointed block remembers what acted when it first ran, and has exactly that
at work while it runs again.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from hyperbrush.hypernetworks.attaching.hooks import ProjectionHook

_CHECKPOINT = "_gradient_checkpointing_func"  # diffusers' name, on every block that can be checkpointed
Hooks = Callable[[], list[ProjectionHook]]  # those that act now
Wrapped = list[tuple[torch.nn.Module, Callable[..., Any]]]


def wrap_checkpoints(unet: torch.nn.Module, hooks: Hooks) -> Wrapped:
    """Let the checkpointed blocks of a UNet remember what acts; returns what `unwrap_checkpoints` takes."""
    functions = [(module, vars(module).get(_CHECKPOINT)) for module in unet.modules()]
    wrapped = [(module, function) for module, function in functions if function is not None]
    for module, function in wrapped:
        setattr(module, _CHECKPOINT, partial(_checkpoint, hooks, function))
    return wrapped


def unwrap_checkpoints(wrapped: Wrapped) -> None:
    """Undo `wrap_checkpoints`."""
    for module, function in wrapped:
        setattr(module, _CHECKPOINT, function)


def _checkpoint(hooks: Hooks, function: Callable[..., Any], block: Callable[..., Any], *args: Any) -> Any:
    """Run a block through ``function``, diffusers' checkpointing."""
    then = _Then(hooks())

    def run(*inputs: Any) -> Any:
        with then.again(hooks()):
            return block(*inputs)

    return function(run, *args)


class _Then:
    """Hooks, and the factors, strengths and rows of streams they had."""

    def __init__(self, hooks: list[ProjectionHook]) -> None:
        self._hooks = hooks
        self._factors = [(one, one.factors) for hook in hooks for one in hook.low_rank]
        strengths = {id(s): s for hook in hooks for s in hook.strengths}.values()
        self._values = [(s, s.value) for s in strengths]
        rows = {id(hook.rows): hook.rows for hook in hooks if hook.rows is not None}.values()
        self._rows = [(one, one.now) for one in rows]

    @contextmanager
    def again(self, now: list[ProjectionHook]) -> Iterator[None]:
        """Act as then, in the place of the hooks that act now; afterwards these again, as they were."""
        factors = [(one, one.factors, own) for one, own in self._factors if one.factors is not own]
        later_rows = [(one, one.now) for one, _ in self._rows]
        with ExitStack() as strengths:
            for strength, value in self._values:
                if strength.value != value:
                    strengths.enter_context(strength.held(value))
            try:
                _replace(now, self._hooks)
                for one, _, own in factors:
                    one.factors = own
                for shared, now_rows in self._rows:
                    shared.now = now_rows
                yield
            finally:
                for shared, now_rows in later_rows:
                    shared.now = now_rows
                for one, later, _ in factors:
                    one.factors = later
                _replace(self._hooks, now)


def _replace(hooks: list[ProjectionHook], others: list[ProjectionHook]) -> None:
    if hooks != others:
        for hook in hooks:
            hook.remove()
        for hook in others:
            hook.hook()

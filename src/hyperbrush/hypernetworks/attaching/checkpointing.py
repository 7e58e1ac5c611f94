"""Weights bound to a UNet, and what gradient checkpointing must find again when it computes a block anew.

Checkpointing runs a block a second time during backward.  If other weights are bound then, or none any more,
the gradients would be those of another function, in silence.  So each checkpointed block remembers what was
bound when it first ran, and has exactly that bound while it runs again.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from hyperbrush.hypernetworks.attaching.low_rank_hooks import LowRankHook
from hyperbrush.hypernetworks.attaching.progress import Progress
from hyperbrush.hypernetworks.attaching.strengths import PerPicture
from hyperbrush.hypernetworks.weights.factors import Factors

_CHECKPOINT = "_gradient_checkpointing_func"  # diffusers' name, on every block that can be checkpointed
State = tuple[tuple[Factors, ...], tuple[Any, ...]]  # factors by hook, strengths' values


class Binding:
    """One set of weights on one UNet: its hooks, its strengths, and its place in the sampling."""

    def __init__(self, hooks: Sequence[LowRankHook], pipe_or_unet: Any) -> None:
        self.hooks = list(hooks)
        self.strengths = list({id(h.strength): h.strength for h in hooks}.values())
        self.progress = Progress(pipe_or_unet)

    @property
    def scheduled(self) -> bool:
        """Whether a strength depends on the sampling step."""
        return any(strength.scheduled for strength in self.strengths)

    def follow(self, timestep: Any) -> None:
        """Set scheduled strengths to this timestep's."""
        self.progress.see(timestep)
        if self.scheduled:
            now = self.progress.at(timestep)
            for strength in self.strengths:
                strength.at(now)

    def set_factors(self, factors: Mapping[str, Factors]) -> None:
        """Other weights for the same layers."""
        for hook in self.hooks:
            hook.factors = factors[hook.layer]

    @property
    def state(self) -> State:
        """What its effect depends on, now."""
        return tuple(h.factors for h in self.hooks), tuple(s.value for s in self.strengths)

    @contextmanager
    def held(self, state: State) -> Iterator[None]:
        """Act as in that state, whatever was set since."""
        now, specs = self.state, [strength.spec for strength in self.strengths]
        if now == state:
            yield
            return
        try:
            self._set_state(state[0], state[1])
            yield
        finally:
            self._set_state(now[0], specs)

    def _set_state(self, factors: Sequence[Factors], specs: Sequence[Any]) -> None:
        for hook, own in zip(self.hooks, factors, strict=True):
            hook.factors = own
        for strength, spec in zip(self.strengths, specs, strict=True):
            strength.set(PerPicture(spec) if type(spec) is tuple else spec)


class Bound:
    """All that is bound to one UNet, in order; the hooks that only act together live here."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self._unet = weakref.ref(unet)
        self.bindings: list[Binding] = []
        self._handles: list[Any] = []
        self._wrapped: list[tuple[torch.nn.Module, Callable[..., Any]]] = []
        self._outside_the_graph = _uncompiled(Bound._follow)

    def add(self, binding: Binding) -> None:
        """Let a binding act, after those that do."""
        unet = self._unet()
        assert unet is not None
        for hook in binding.hooks:
            hook.hook()
        self.bindings.append(binding)
        if not self._handles:
            self._handles = [
                unet.register_forward_pre_hook(self._before, with_kwargs=True),
                unet.register_forward_hook(self._after, always_call=True),
            ]
        forget_compiled_graphs()

    def remove(self, binding: Binding) -> None:
        """Let a binding act no longer."""
        for hook in binding.hooks:
            hook.remove()
        self.bindings.remove(binding)
        if not self.bindings:
            for handle in self._handles:
                handle.remove()
            self._handles = []
        forget_compiled_graphs()

    def __getstate__(self) -> dict[str, Any]:
        return {"unet": self._unet(), "bindings": self.bindings, "handles": self._handles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied UNet has copies of the bindings at work, which go on acting.
        self.__init__(state["unet"])  # type: ignore[misc]
        self.bindings, self._handles = state["bindings"], state["handles"]
        _BOUND[state["unet"]] = self

    def _before(self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if not torch.compiler.is_compiling():
            self._follow(timestep)
            if torch.is_grad_enabled():
                self._wrap_checkpoints(unet)
        elif any(binding.scheduled for binding in self.bindings):
            self._outside_the_graph(self, timestep)

    def _follow(self, timestep: Any) -> None:
        for binding in self.bindings:
            binding.follow(timestep)

    def _after(self, unet: torch.nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for module, function in self._wrapped:
            setattr(module, _CHECKPOINT, function)
        self._wrapped = []

    def _wrap_checkpoints(self, unet: torch.nn.Module) -> None:
        for module in unet.modules():
            function = vars(module).get(_CHECKPOINT)
            if function is not None:
                self._wrapped.append((module, function))
                setattr(module, _CHECKPOINT, partial(self._checkpoint, function))

    def _checkpoint(self, function: Callable[..., Any], block: Callable[..., Any], *args: Any) -> Any:
        """Run a block through ``function``, diffusers' checkpointing, that remembers what is bound now."""
        then = [(binding, binding.state) for binding in self.bindings]

        def run(*inputs: Any) -> Any:
            with self._as_it_was(then):
                return block(*inputs)

        return function(run, *args)

    @contextmanager
    def _as_it_was(self, then: Sequence[tuple[Binding, State]]) -> Iterator[None]:
        """Exactly these bindings in these states; afterwards what is bound now."""
        now, wanted = list(self.bindings), [binding for binding, _ in then]
        gone = [b for b in now if b not in wanted]
        back = [b for b in wanted if b not in now]
        held = [binding.held(state) for binding, state in then]
        try:
            for binding in gone:
                for hook in binding.hooks:
                    hook.remove()
            for binding in back:
                for hook in binding.hooks:
                    hook.hook()
            for context in held:
                context.__enter__()
            yield
        finally:
            for context in reversed(held):
                context.__exit__(None, None, None)
            for binding in back:
                for hook in binding.hooks:
                    hook.remove()
            for binding in gone:
                for hook in binding.hooks:
                    hook.hook()


_BOUND: "weakref.WeakKeyDictionary[torch.nn.Module, Bound]" = weakref.WeakKeyDictionary()


def bound_to(unet: torch.nn.Module) -> Bound:
    """What is bound to a UNet; one per UNet."""
    if unet not in _BOUND:
        _BOUND[unet] = Bound(unet)
    return _BOUND[unet]


def forget_compiled_graphs() -> None:
    """Compiled graphs are not guarded against new hooks and would go on without them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _uncompiled(function: Any) -> Any:
    """A graph that looked at the sampling step would be compiled again for each."""
    disable: Any = torch.compiler.disable
    return disable(function)

"""The hooks that change what to_k and to_v of one attention see, whatever module stands there.

A forward pre-hook sits on the module that is called at ``to_k``. LoRA libraries put another
module in its place and keep the old one inside; a second pre-hook, on the attention itself,
notices and moves the first one along, so that base layer and LoRA both see the transformed
context in either order of loading.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.kv_cache import Memo
from hyperbrush.hypernetworks.attaching.strengths import Strength
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import apply_networks
from hyperbrush.ldm.modules.attention_sites import AttentionSite


class ProjectionHook:
    """Transforms what one projection (to_k or to_v) of one attention sees.

    attention: the module with the projection. networks: (network, strength) in the order they
        compose.
    rows_per_picture: asked at each call, and only where a softmax-like activation needs it.
    memo: where results are kept over the steps; None where contexts change with every step.
    """

    def __init__(
        self,
        site: AttentionSite,
        attention: torch.nn.Module,
        projection: str,
        networks: Sequence[tuple[ContextNetwork, Strength]],
        rows_per_picture: Callable[[int], int | None] | None,
        memo: Memo | None,
    ) -> None:
        self.site = site
        self.attention = attention
        self.projection = projection
        self.networks = tuple(networks)
        self.rows_per_picture = rows_per_picture
        self.memo = memo
        refuse_bypassing(site, attention)
        self._hook_projection()
        self._follower = attention.register_forward_pre_hook(self._follow)

    def _hook_projection(self) -> None:
        module = self.attention._modules[self.projection]
        assert module is not None
        self._module = module
        self._handle = module.register_forward_pre_hook(self._transform)
        # Layers inside LoRA or offloading wrappers have weights or a forward of their own ways.
        self._keeps = (
            self.memo is not None and type(module) is torch.nn.Linear and "forward" not in vars(module)
        )
        if self._keeps:
            module.forward = self._project

    def _unhook_projection(self) -> None:
        self._handle.remove()
        own = vars(self._module)
        if self._keeps and own.get("forward") == self._project:
            del self._module.forward
        elif self._keeps and own.get("_old_forward") == self._project:
            # accelerate's hooks came later and would put our forward back when they go.
            own["_old_forward"] = torch.nn.Linear.forward.__get__(self._module)

    def _follow(self, attention: torch.nn.Module, args: Any) -> None:
        refuse_bypassing(self.site, attention)
        if attention._modules[self.projection] is not self._module:
            self._unhook_projection()
            self._hook_projection()

    def _transform(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context = args[0]
        compiling = torch.compiler.is_compiling()
        networks = [(n, s) for n, s in self.networks if compiling or s.acts]
        if not networks:
            return args
        rows = None if self.rows_per_picture is None else self.rows_per_picture(len(context))
        if self.memo is None or compiling:
            return (apply_networks(context, networks, rows), *args[1:])
        return (self.memo.transform(context, networks, rows), *args[1:])

    def _project(self, context: torch.Tensor) -> torch.Tensor:
        module = self._module
        assert isinstance(module, torch.nn.Linear)
        if self.memo is None or torch.compiler.is_compiling():
            return torch.nn.Linear.forward(module, context)
        return self.memo.project(module, context)

    def remove(self) -> None:
        """Take both hooks away."""
        self._follower.remove()
        self._unhook_projection()


def refuse_bypassing(site: AttentionSite, attention: torch.nn.Module) -> None:
    """Refuse attention processors that compute keys and values without calling to_k and to_v.

    Raises:
        UserError: the attention has such a processor.
    """
    processor = getattr(attention, "processor", None)
    name = type(processor).__name__
    if name.startswith("Fused"):
        raise UserError(
            f"{site.path} has fused projections ({name}), which never call to_k and to_v, so a "
            f"hypernetwork "
            "cannot act there: call unfuse_qkv_projections() first"
        )
    if hasattr(processor, "to_k_custom_diffusion"):
        raise UserError(
            f"{site.path} has {name}, which brings its own to_k and to_v, so a hypernetwork "
            "cannot act there: unload Custom Diffusion first"
        )

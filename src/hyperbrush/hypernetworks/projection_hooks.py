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
from hyperbrush.hypernetworks.attention import apply_networks, finite
from hyperbrush.hypernetworks.context_network import ContextNetwork
from hyperbrush.ldm.modules.attention_sites import AttentionSite


class Strength:
    """A number that compiled graphs read as a tensor, so that changing it recompiles nothing."""

    def __init__(self, value: float, device: torch.device) -> None:
        self.value = finite(value)
        self.tensor = self._tensor(device)

    def _tensor(self, device: torch.device) -> torch.Tensor:
        # A 0-dim tensor never raises the precision of what it multiplies.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            return torch.tensor(self.value, dtype=dtype, device=device)

    def on(self, device: torch.device) -> torch.Tensor:
        """The strength as a 0-dim tensor on a device; it stays there."""
        if self.tensor.device != device:
            self.tensor = self._tensor(device)
        return self.tensor

    def set(self, value: float) -> None:
        """Take a new value.

        Raises:
            UserError: it is not a finite number.
        """
        self.value = finite(value)
        self.tensor.fill_(self.value)


class ProjectionHook:
    """Transforms what one projection (to_k or to_v) of one attention sees.

    attention: the module with the projection. networks: (network, strength) in the order they
        compose.
    rows_per_picture: asked at each call, and only where a softmax-like activation needs it.
    """

    def __init__(
        self,
        site: AttentionSite,
        attention: torch.nn.Module,
        projection: str,
        networks: Sequence[tuple[ContextNetwork, Strength]],
        rows_per_picture: Callable[[int], int | None] | None,
    ) -> None:
        self.site = site
        self.attention = attention
        self.projection = projection
        self.networks = tuple(networks)
        self.rows_per_picture = rows_per_picture
        refuse_bypassing(site, attention)
        self._hook_projection()
        self._follower = attention.register_forward_pre_hook(self._follow)

    def _hook_projection(self) -> None:
        module = self.attention._modules[self.projection]
        assert module is not None
        self._module = module
        self._handle = module.register_forward_pre_hook(self._transform)

    def _follow(self, attention: torch.nn.Module, args: Any) -> None:
        refuse_bypassing(self.site, attention)
        if attention._modules[self.projection] is not self._module:
            self._handle.remove()
            self._hook_projection()

    def _transform(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context = args[0]
        # Compiled code must serve every strength; elsewhere a strength of 0 costs nothing.
        compiling = torch.compiler.is_compiling()
        networks = [(n, s.on(context.device)) for n, s in self.networks if compiling or s.value != 0]
        if not networks:
            return args
        rows = None if self.rows_per_picture is None else self.rows_per_picture(len(context))
        return (apply_networks(context, networks, rows), *args[1:])

    def remove(self) -> None:
        """Take both hooks away."""
        self._follower.remove()
        self._handle.remove()


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

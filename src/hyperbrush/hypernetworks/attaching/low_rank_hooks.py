"""The hook that adds a low-rank change to what one projection gives, whatever module stands there.

A forward hook sees what the projection saw, after every pre-hook: with an attention hypernetwork attached
(before or after), base layer, LoRA and generated weights all act on the transformed context.  LoRA libraries put
another module in the projection's place; a pre-hook on the attention notices and moves the hook along.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.hooks import refuse_bypassing
from hyperbrush.hypernetworks.attaching.strengths import Strength
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import AttentionSite, find_attentions


class LowRankHook:
    """y ← y + strength·ΔW x at one projection of one attention, until `remove`.

    attention: the module with the projection, of ``site``. factors, strength: may be replaced at any time.

    Raises:
        UserError: the attention has a processor that never calls the projection.
    """

    def __init__(
        self,
        site: AttentionSite,
        attention: torch.nn.Module,
        projection: str,
        factors: Factors,
        strength: Strength,
    ) -> None:
        self.site = site
        self.attention = attention
        self.projection = projection
        self.factors = factors
        self.strength = strength
        self._handles: list[Any] = []
        self._module: torch.nn.Module | None = None
        refuse_bypassing(site, attention)

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return f"{self.site.path}.{self.projection}"

    def hook(self) -> None:
        """Begin to act; a second call does nothing."""
        if not self._handles:
            self._handles = [self.attention.register_forward_pre_hook(self._follow), self._hook_projection()]

    def remove(self) -> None:
        """Take the hooks away; `hook` puts them back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook_projection(self) -> Any:
        self._module = self._standing()
        return self._module.register_forward_hook(self._add)

    def _standing(self) -> torch.nn.Module:
        module: Any = self.attention._modules[self.projection.partition(".")[0]]
        found: torch.nn.Module = module[0] if self.projection.endswith(".0") else module
        return found

    def _follow(self, attention: torch.nn.Module, args: Any) -> None:
        refuse_bypassing(self.site, attention)
        if self._standing() is not self._module:
            self._handles.pop().remove()
            self._handles.append(self._hook_projection())

    def _add(self, module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        strength = self.strength
        # Compiled code must serve every strength; elsewhere a strength of 0 costs nothing.
        if not torch.compiler.is_compiling() and not strength.acts:
            return output
        x: Tensor = args[0]
        if self.factors.down.device != x.device:
            self.factors = self.factors.to(x.device)
        value = strength.on(x.device)
        if strength.per_picture:
            if len(x) % len(value):
                raise UserError(
                    f"there are strengths for {len(value)} pictures, but the batch has {len(x)} rows: expected a "
                    f"multiple of {len(value)}, one strength for each picture of the batch"
                )
            value = value.repeat(len(x) // len(value))[:, None, None]
        return (output + self.factors.apply(x, value)).to(output.dtype)


def low_rank_hooks(
    unet: torch.nn.Module,
    weights: GeneratedWeights,
    layers: Collection[str],
    strengths: Any,
) -> list[LowRankHook]:
    """Hooks, not acting yet, for the named layers of a UNet.

    layers: names out of ``weights`` that are the UNet's. strengths: called with (`AttentionSite`, projection),
    gives a `Strength`.
    """
    hooks = []
    for site, attention in find_attentions(unet):
        for projection in site.projections:
            name = f"{site.path}.{projection.name}"
            if name in layers:
                strength = strengths(site, projection.name)
                hooks.append(LowRankHook(site, attention, projection.name, weights.factors[name], strength))
    return hooks

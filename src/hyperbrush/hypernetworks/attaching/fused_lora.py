"""LoRA that is loaded onto a UNet with fused hypernetworks sees what the base layers' weights have baked in.

Fused weights W M take the bare context c, and so would a LoRA beside them. Its first matrix is given M c + t
instead, and at to_out the values' offset that its bias has baked in, so that fusing and loading a LoRA mean
the same in either order.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.attention_sites import AttentionSite

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class FusedProjection:
    """A projection whose weights have a map of its input baked in; ``attention`` is the module it belongs to."""

    def __init__(
        self, site: AttentionSite, attention: nn.Module, name: str, matrix: Tensor | None, offset: Tensor
    ) -> None:
        self.site, self.attention, self.name = site, attention, name
        self.matrix, self.offset = matrix, offset  # no matrix: the identity

    def transform(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A pre-hook: input (…, width) → M c + t."""
        context = args[0]
        self.offset = self.offset.to(context)
        if self.matrix is None:
            return (context + self.offset, *args[1:])
        self.matrix = self.matrix.to(context)
        return (context @ self.matrix.T + self.offset, *args[1:])


def is_fused(unet: nn.Module) -> bool:
    """Whether hypernetworks are baked into a UNet's weights."""
    owners = (getattr(hook, "__self__", None) for hook in unet._forward_pre_hooks.values())
    return any(isinstance(owner, FusedWatch) for owner in owners)


class FusedWatch:
    """Looks, before each call of a UNet, for LoRA that came to its fused projections; `remove` ends it.

    Raises (at a call):
        UserError: another adapter than plain LoRA, or one that is merged, stands there: it cannot see the
            networks' context.
    """

    def __init__(self, unet: nn.Module, projections: Sequence[FusedProjection]) -> None:
        self._projections = list(projections)
        self._hooked: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()
        self._own = unet.register_forward_pre_hook(self._look)

    def _look(self, unet: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for projection in self._projections:
            module: Any = projection.attention.get_submodule(projection.name)
            if type(module) is nn.Linear:
                continue
            if (
                not isinstance(getattr(module, "lora_A", None), nn.ModuleDict)
                or module.merged
                or any(getattr(module, "use_dora", {}).values())
                or getattr(module, "lora_variant", None)
            ):
                raise UserError(
                    f"{type(module).__name__} stands at {projection.site.path}.{projection.name}, where hypernetworks "
                    "are fused, and is no plain LoRA, or is merged: it does not see the networks' context. Call "
                    "unfuse() first; or merge the LoRA (pipe.fuse_lora(), pipe.unload_lora_weights()) before you fuse"
                )
            for first in module.lora_A.values():
                if first not in self._hooked:
                    self._hooked[first] = first.register_forward_pre_hook(projection.transform)

    def remove(self) -> None:
        """Take every hook away."""
        self._own.remove()
        for handle in self._hooked.values():
            handle.remove()
        self._hooked.clear()

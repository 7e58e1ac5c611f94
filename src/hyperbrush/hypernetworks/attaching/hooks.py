"""The hook at one projection of one attention, whatever module stands there.

Networks change what the projection sees, low-rank factors add to what it gives: y = W c' + strength·ΔW c' with
c' = c + strength·MLP(c).  LoRA libraries put another module in the projection's place and keep the old one inside; a
pre-hook on the attention itself notices and moves the hook along, so that base layer, LoRA and factors all see the
transformed context in either order of loading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.kv_cache import KVCache
from hyperbrush.hypernetworks.attaching.stream_rows import StreamRows
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import apply_networks
from hyperbrush.hypernetworks.attention.strengths import Strength
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.ldm.modules.attention_sites import AttentionSite


@dataclass(eq=False)
class LowRank:
    """Y ← y + strength·ΔW x; the factors may be replaced at any time."""

    factors: Factors
    strength: Strength

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """What a projection sees, (rows, tokens, in), and gives, (rows, tokens, out) → what it gives now.

        Raises:
            UserError: the rows are no multiple of the pictures' strengths, or of the weights' batch.
        """
        change = self.change(x)
        return output if change is None else (output + change).to(output.dtype)

    def change(self, x: Tensor) -> Tensor | None:
        """strength·ΔW x, (rows, tokens, out); None for a strength of 0.

        Raises:
            UserError: as `add`.
        """
        strength = self.strength
        # Compiled code must serve every strength; elsewhere a strength of 0 costs nothing.
        if not torch.compiler.is_compiling() and not strength.acts:
            return None
        if self.factors.down.device != x.device:
            self.factors = self.factors.to(x.device)
        value = strength.of_rows(x) if strength.per_picture else strength.on(x.device)
        return self.factors.apply(x, value)


class ProjectionHook:
    """What acts at one projection of one attention, from `hook` to `remove`.

    attention: the module with the projection. changes: what acts there with its strength, in the order they compose.
    rows_per_picture: asked at each call, and only where a softmax-like activation needs it.
    cache: where results are kept over the steps; None where contexts change with every step.
    rows: where the projection sees other streams' rows too: which are this site's.
    """

    def __init__(
        self,
        site: AttentionSite,
        attention: torch.nn.Module,
        projection: str,
        changes: Sequence[tuple[ContextNetwork | Factors, Strength]],
        rows_per_picture: Callable[[int], int | None],
        cache: KVCache | None,
        rows: StreamRows | None = None,
    ) -> None:
        self.site = site
        self.attention = attention
        self.projection = projection
        made_by = site.projection(projection)
        self._place, self._slice = made_by.layer, made_by.rows
        self.rows = rows
        self.networks = tuple((n, s) for n, s in changes if isinstance(n, ContextNetwork))
        self.low_rank = tuple(LowRank(f, s) for f, s in changes if isinstance(f, Factors))
        over_the_batch = any(network.over_the_batch for network, _ in self.networks)
        self.rows_per_picture = rows_per_picture if over_the_batch else None
        self.cache = cache if self.networks else None
        self._follower: Any = None
        self._handles: list[Any] = []
        self._keeps = False

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return f"{self.site.path}.{self.projection}"

    @property
    def strengths(self) -> list[Strength]:
        """Of all that acts here."""
        return [s for _, s in self.networks] + [low_rank.strength for low_rank in self.low_rank]

    def hook(self) -> None:
        """Begin to act; a second call does nothing."""
        if self._follower is None:
            self._follower = self.attention.register_forward_pre_hook(self._follow)
            self._hook_projection()

    def remove(self) -> None:
        """Take every hook away; `hook` puts them back."""
        if self._follower is not None:
            self._follower.remove()
            self._follower = None
            self._unhook_projection()

    def _standing(self) -> torch.nn.Module:
        return self.attention.get_submodule(self._place)  # "to_k", "to_out.0", "net.2"

    def _hook_projection(self) -> None:
        module = self._module = self._standing()
        if self.networks and self._slice is not None:
            self._handles.append(module.register_forward_hook(self._replace_slice))
        elif self.networks:
            self._handles.append(module.register_forward_pre_hook(self._transform))
        if self.low_rank:  # before slices are replaced, which bring it along
            first = bool(self.site.family)
            self._handles.append(module.register_forward_hook(self._add, prepend=first))
        # Layers inside LoRA or offloading wrappers have weights or a forward of their own ways.
        self._keeps = (
            self.cache is not None and type(module) is torch.nn.Linear and "forward" not in vars(module)
        )
        if self._keeps:
            module.forward = self._project

    def _unhook_projection(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        own = vars(self._module)
        if self._keeps and own.get("forward") == self._project:
            del self._module.forward
        elif self._keeps and own.get("_old_forward") == self._project:
            # accelerate's hooks came later and would put our forward back when they go.
            own["_old_forward"] = torch.nn.Linear.forward.__get__(self._module)

    def _follow(self, attention: torch.nn.Module, args: Any) -> None:
        refuse_bypassing(self.site, attention)
        if self._standing() is not self._module:
            self._unhook_projection()
            self._hook_projection()

    def _transform(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context = args[0]
        compiling = torch.compiler.is_compiling()
        networks = [(n, s) for n, s in self.networks if compiling or s.acts]
        if not networks:
            return args
        rows = None if self.rows_per_picture is None else self.rows_per_picture(len(context))
        if self.rows is not None:
            changed = self.rows.through(
                self.site.stream, context, lambda part: apply_networks(part, networks, rows)
            )
            return (changed, *args[1:])
        if self.cache is None or compiling:
            return (apply_networks(context, networks, rows), *args[1:])
        return (self.cache.transform(context, networks, rows), *args[1:])

    def _replace_slice(self, module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Of a layer that computes several projections: this one's outputs, from the context as all that came here
        up to now change it, for what came before cannot hand it on.
        """
        seen = args
        here = [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]
        owners = [owner for owner in here if isinstance(owner, ProjectionHook)]
        for owner in owners:
            if owner.layer == self.layer:
                seen = owner._transform(module, seen)
            if owner is self:
                break
        changed = seen[0]
        if changed is args[0] or self._slice is None:
            return output
        first, last = (0, changed.shape[1])
        if self.rows is not None:
            first, last = self.rows.span(self.site.stream, changed)
        changed = changed[:, first:last]
        start, stop = self._slice
        if type(module) is torch.nn.Linear and "forward" not in vars(module):
            bias = None if module.bias is None else module.bias[start:stop]
            part = torch.nn.functional.linear(changed, module.weight[start:stop], bias)
        else:  # LoRA or offloading: the whole layer as it is, without hooks
            part = module.forward(changed)[..., start:stop]
        for low_rank in [one for owner in owners for one in owner.low_rank]:
            change = low_rank.change(changed)
            part = part if change is None else (part + change[..., start:stop]).to(part.dtype)
        if torch.is_grad_enabled():
            output = output.clone()
        output[:, first:last, start:stop] = part
        return output

    def _project(self, context: Tensor) -> Tensor:
        module = self._module
        assert isinstance(module, torch.nn.Linear)
        if self.cache is None or torch.compiler.is_compiling():
            return torch.nn.Linear.forward(module, context)
        return self.cache.project(module, context)

    def _add(self, module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        for low_rank in self.low_rank:
            output = low_rank.add(args[0], output)
        return output


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
    # diffusers' older Attention keeps this mark after its processors are back.
    if (
        site.family
        and type(attention).__name__ != "Attention"
        and getattr(attention, "fused_projections", False)
    ):
        raise UserError(
            f"{site.path} has fused projections, so that a hypernetwork cannot act there: call "
            "unfuse_qkv_projections() first"
        )
    if hasattr(processor, "to_k_custom_diffusion"):
        raise UserError(
            f"{site.path} has {name}, which brings its own to_k and to_v, so a hypernetwork "
            "cannot act there: unload Custom Diffusion first"
        )

"""Baking hypernetworks into a UNet's own weights, and taking them out again.

An affine chain c → M c + t needs no network at run time: to_k(M c + t) and to_v(M c + t) are again
linear, with weight W M. The key offset W_k t adds one number to all logits of a query, which the softmax
cancels; the value offset W_v t passes through the attention unchanged, since its weights sum to 1, and
moves into the bias of to_out: no module is added, none is removed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.activations import OverTheBatch
from hyperbrush.hypernetworks.affine import Affine, chain_as_affine, fit_affine, is_affine
from hyperbrush.hypernetworks.attention import apply_networks
from hyperbrush.hypernetworks.context_network import ContextNetwork
from hyperbrush.ldm.modules.attention_sites import AttentionSite

Chain = Sequence[tuple[ContextNetwork, float]]


class SiteChains(NamedTuple):
    """What acts at one attention: networks with their strengths, in order."""

    site: AttentionSite
    attention: torch.nn.Module
    keys: Chain
    values: Chain


@dataclass(frozen=True)
class FitReport:
    """How far affine maps are off the networks they replace, on the contexts they were fitted to.

    errors: site path → relative errors ‖fit − exact‖ / ‖exact − bare‖ of what the keys and the values change
        (0: exact; 1: no better than leaving the network out).
    """

    errors: Mapping[str, tuple[float, float]]

    def __str__(self) -> str:
        keys = sorted(k for k, _ in self.errors.values())
        values = sorted(v for _, v in self.errors.values())
        middle = len(keys) // 2
        return (
            f"{len(keys)} sites fitted; share of the networks' effect that an affine map cannot say: keys "
            f"{keys[middle]:.1%} (worst {keys[-1]:.1%}), values {values[middle]:.1%} (worst {values[-1]:.1%})"
        )


@dataclass
class Fused:
    """Weights put in place of a UNet's own, which are kept as they were."""

    _own: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = field(default_factory=list)

    def replace(self, module: torch.nn.Module, name: str, value: Tensor) -> None:
        """Put a weight into a module, in the precision and on the device of its own."""
        own = module._parameters[name]
        assert own is not None
        self._own.append((module, name, own))
        new = torch.nn.Parameter(value.to(own), requires_grad=own.requires_grad)
        module._parameters[name] = new

    def undo(self) -> None:
        """Put the UNet's own weights back, bit for bit (on the device where the UNet is now)."""
        for module, name, own in reversed(self._own):
            there = module._parameters[name]
            if there is not None and (there.device, there.dtype) != (own.device, own.dtype):
                own.data = own.data.to(there.device, there.dtype)
            module._parameters[name] = own
        self._own.clear()


def fuse_chains(
    pipe_or_unet: Any,
    chains: Sequence[SiteChains],
    *,
    approximate: bool = False,
    contexts: Mapping[str, Tensor] | None = None,
) -> tuple[Fused, FitReport | None]:
    """Bake chains of networks into their attentions' weights; nothing may be hooked meanwhile.

    approximate, contexts: see `Attached.fuse`. Returns what undoes it, and a report where something was fitted.

    Raises:
        UserError: see `Attached.fuse`; nothing was changed then.
    """
    for c in chains:
        check_site(c.site, c.attention)
    bent = [c for c in chains if not (_straight(c.keys) and _straight(c.values))]
    if bent and not approximate:
        raise UserError(
            f"cannot fuse exactly: the networks at {bent[0].site.path} (and {len(bent) - 1} more sites) have a "
            "non-linearity. fuse(approximate=True) puts the best affine map in their place"
        )
    if bent and contexts is None:
        from hyperbrush.hypernetworks.contexts import sample_contexts

        contexts = sample_contexts(pipe_or_unet)
    exact: dict[Any, Affine] = {}  # sites of one width share their chains
    fused, errors = Fused(), {}
    try:
        for c in chains:
            maps, off = [], []
            for chain, name in ((c.keys, "to_k"), (c.values, "to_v")):
                if _straight(chain):
                    key = (c.site.context_width, *((id(network), strength) for network, strength in chain))
                    if key not in exact:
                        whole = chain_as_affine(chain, c.site.context_width)
                        assert whole is not None
                        exact[key] = whole
                    maps.append(exact[key])
                    off.append(0.0)
                else:
                    fit, error = _fitted(c, chain, name, contexts or {})
                    maps.append(fit)
                    off.append(error)
            fuse_site(fused, c.attention, *maps)
            errors[c.site.path] = (off[0], off[1])
    except BaseException:
        fused.undo()
        raise
    return fused, FitReport(errors) if bent else None


def _straight(chain: Chain) -> bool:
    return all(is_affine(network) for network, _ in chain)


@torch.no_grad()
def _fitted(c: SiteChains, chain: Chain, name: str, contexts: Mapping[str, Tensor]) -> tuple[Affine, float]:
    """The best affine map for a chain at one site, and its relative error in the projection's output."""
    if any(isinstance(layer.activation, OverTheBatch) for network, _ in chain for layer in network.layers):
        raise UserError("cannot fuse: softmax-like networks mix the rows of a batch, which no weight can say")
    if c.site.path not in contexts:
        raise UserError(f"cannot fit at {c.site.path}: contexts has no (tokens, width) tensor for it")
    seen = contexts[c.site.path].to(next(chain[0][0].parameters()).device, torch.float32)
    wanted = apply_networks(seen[None], chain)[0].cpu().double()
    bare = seen.cpu().double()
    fit = fit_affine(bare, wanted)
    weight = _linear(c.attention, name).weight.cpu().double()
    off = ((fit(bare) - wanted) @ weight.T).norm()
    change = ((wanted - bare) @ weight.T).norm()
    return fit, float(off / change) if change > 0 else 0.0


@torch.no_grad()
def fuse_site(fused: Fused, attention: torch.nn.Module, keys: Affine, values: Affine) -> None:
    """Bake two maps of the context into the projections of one attention (`check_site` comes first)."""
    for name, change in (("to_k", keys), ("to_v", values)):
        linear = _linear(attention, name)
        weight = linear.weight.double()
        matrix, offset = change.matrix.to(weight), change.offset.to(weight)
        fused.replace(linear, "weight", weight @ matrix)
        shift = weight @ offset
        if linear.bias is not None:
            fused.replace(linear, "bias", linear.bias.double() + shift)
        elif name == "to_v" and shift.any():
            out = _linear(attention, "to_out.0")
            fused.replace(out, "bias", out.bias.double() + out.weight.double() @ shift)


def _linear(attention: torch.nn.Module, name: str) -> Any:
    return attention.get_submodule(name)


def check_site(site: AttentionSite, attention: torch.nn.Module) -> None:
    """Refuse attentions whose weights cannot be replaced exactly.

    Raises:
        UserError: LoRA or other wrappers stand at a projection, keys are normalised, or to_out has no bias.
    """
    modules = dict(attention.named_modules())
    for name in ("to_k", "to_v", "to_out.0"):
        module = modules.get(name)
        if type(module) is not torch.nn.Linear:
            raise UserError(
                f"cannot fuse at {site.path}: {name} is a {type(module).__name__}, expected a plain linear "
                "layer. Fuse or unload LoRA first (pipe.fuse_lora() and pipe.unload_lora_weights()), then fuse"
            )
    if _linear(attention, "to_out.0").bias is None:
        raise UserError(f"cannot fuse at {site.path}: its to_out has no bias to take the values' offset")
    if getattr(attention, "norm_k", None) is not None:
        raise UserError(f"cannot fuse at {site.path}: its keys are normalised, so an offset does not cancel")

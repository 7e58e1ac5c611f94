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
import torch.nn.functional as F
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.contexts import AttentionInputs, sample_attention_inputs
from hyperbrush.hypernetworks.attaching.fused_lora import FusedProjection
from hyperbrush.hypernetworks.attaching.output_error import OutputError, attention_error
from hyperbrush.hypernetworks.attaching.uses import PipeOrUNet
from hyperbrush.hypernetworks.attention.affine import Affine, chain_as_affine, fit_affine, is_affine
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import apply_networks
from hyperbrush.ldm.modules.attention_sites import AttentionSite

Chain = Sequence[tuple[ContextNetwork, float]]
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what fused weights may be stored as


class SiteChains(NamedTuple):
    """What acts at one attention: networks with their strengths, in order."""

    site: AttentionSite
    attention: torch.nn.Module
    keys: Chain
    values: Chain

    @property
    def affine(self) -> bool:
        """Whether no network has a non-linearity."""
        return all(is_affine(network) for network, _ in (*self.keys, *self.values))


@dataclass(frozen=True)
class FitReport:
    """How far affine maps are off the networks they replace.

    errors: site path → ‖fitted − exact‖ / ‖exact − bare‖ (0: exact; 1: no better than leaving the networks
        out) of what was measured: the attention's output on calls that the fit has not seen, or, where
        only contexts were given, keys and values on these.
    """

    errors: Mapping[str, float]
    measured: str

    def __str__(self) -> str:
        errors = sorted(self.errors.values())
        return (
            f"{len(errors)} sites fitted; share of the networks' effect on {self.measured} that affine maps do "
            f"not say: {errors[len(errors) // 2]:.1%} (median of the sites; worst {errors[-1]:.1%})"
        )


@dataclass
class Fused:
    """Weights put in place of a UNet's own, which are kept as they were."""

    _own: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = field(default_factory=list)
    projections: list[FusedProjection] = field(default_factory=list)

    def replace(self, module: torch.nn.Module, name: str, value: Tensor) -> None:
        """Put a weight into a module, in the precision and on the device of its own.

        Raises:
            UserError: it is not finite there.
        """
        own = module._parameters[name]
        assert own is not None
        self._own.append((module, name, own))
        baked = value.to(own.dtype).to(own.device)
        if not torch.isfinite(baked).all():
            raise UserError(
                f"cannot fuse: a new {name} has numbers that are NaN or too large for {own.dtype}. Look at the networks "
                "(hyperbrush inspect) and the model, or fuse in float32 and convert afterwards"
            )
        new = torch.nn.Parameter(baked, requires_grad=own.requires_grad)
        module._parameters[name] = new

    @property
    def offloaded(self) -> bool:
        """Whether weights are elsewhere between calls (accelerate's sequential offload)."""
        there = [module._parameters[name] for module, name, _ in self._own]
        return any(own is None or own.is_meta for own in there)

    def undo(self) -> None:
        """Put the UNet's own weights back, bit for bit (on the device where the UNet is now)."""
        for module, name, own in reversed(self._own):
            there = module._parameters[name]
            if there is not None and (there.device, there.dtype) != (own.device, own.dtype):
                own.data = own.data.to(there.device, there.dtype)
            module._parameters[name] = own
        self._own.clear()
        self.projections.clear()


def fuse_chains(
    pipe_or_unet: PipeOrUNet,
    chains: Sequence[SiteChains],
    *,
    approximate: bool = False,
    contexts: Mapping[str, Tensor | AttentionInputs] | None = None,
) -> tuple[Fused, FitReport | None]:
    """Bake chains of networks into their attentions' weights; nothing may be hooked meanwhile.

    approximate, contexts: see `Attached.fuse`. Returns what undoes it, and a report where something was fitted.

    Raises:
        UserError: see `Attached.fuse`; nothing was changed then.
    """
    for c in chains:
        check_site(c.site, c.attention)
    nonlinear = [c for c in chains if not c.affine]
    if nonlinear and not approximate:
        raise UserError(
            f"cannot fuse exactly: the networks at {nonlinear[0].site.path} (and {len(nonlinear) - 1} more sites) have a "
            "non-linearity. fuse(approximate=True) puts the best affine map in their place"
        )
    if nonlinear and contexts is None:
        contexts = sample_attention_inputs(pipe_or_unet)
    seen = {path: _inputs(given) for path, given in (contexts or {}).items()}
    affine: dict[Any, Affine] = {}  # sites of one width share their chains
    fused, errors = Fused(), {}
    try:
        for c in chains:
            keys, values = _map(c, c.keys, seen, affine), _map(c, c.values, seen, affine)
            if not c.affine:
                errors[c.site.path] = _error(c, keys, values, seen[c.site.path]).of_change
            moved = fuse_site(fused, c.attention, keys, values)
            for name, change in (("to_k", keys), ("to_v", values)):
                own = (
                    change.matrix if c.affine else change.matrix.float()
                )  # fitted ones are a site's own: large
                fused.projections.append(FusedProjection(c.site, c.attention, name, own, change.offset))
            if moved is not None:
                fused.projections.append(FusedProjection(c.site, c.attention, "to_out.0", None, moved.cpu()))
    except BaseException:
        fused.undo()
        raise
    if not nonlinear:
        return fused, None
    outputs = all(seen[path].calls for path in errors)
    return fused, FitReport(errors, "the attention's output" if outputs else "keys and values")


def _inputs(given: Tensor | AttentionInputs) -> AttentionInputs:
    return AttentionInputs(given, ()) if isinstance(given, Tensor) else given


@torch.no_grad()
def _map(
    c: SiteChains, chain: Chain, seen: Mapping[str, AttentionInputs], affine: dict[Any, Affine]
) -> Affine:
    """A chain as an affine map: its own, or the best fit to what the site sees."""
    key = (c.site.context_width, *((id(network), strength) for network, strength in chain))
    if key in affine:
        return affine[key]
    whole = chain_as_affine(chain, c.site.context_width)
    if whole is not None:
        return affine.setdefault(key, whole)
    if any(network.over_the_batch for network, _ in chain):
        raise UserError("cannot fuse: softmax-like networks mix the rows of a batch, which no weight can say")
    if c.site.path not in seen:
        raise UserError(f"cannot fit at {c.site.path}: contexts has no (tokens, width) tensor for it")
    bare = seen[c.site.path].contexts
    return fit_affine(bare.cpu(), _through_chain(chain, bare[None])[0].cpu())


def _through_chain(chain: Chain, context: Tensor) -> Tensor:
    device = next((p.device for network, _ in chain for p in network.parameters()), context.device)
    return apply_networks(context.to(device, torch.float32), chain)


@torch.no_grad()
def _error(c: SiteChains, keys: Affine, values: Affine, inputs: AttentionInputs) -> OutputError:
    to_k, to_v = _linear(c.attention, "to_k"), _linear(c.attention, "to_v")

    def through(linear: Any, context: Tensor) -> Tensor:
        bias = None if linear.bias is None else _wide(linear.bias)
        return F.linear(_wide(context), _wide(linear.weight), bias)

    def project(for_keys: Tensor, for_values: Tensor) -> tuple[Tensor, Tensor]:
        return through(to_k, for_keys), through(to_v, for_values)

    def exact(context: Tensor) -> tuple[Tensor, Tensor]:
        return project(_through_chain(c.keys, context), _through_chain(c.values, context))

    def fitted(context: Tensor) -> tuple[Tensor, Tensor]:
        return project(keys(context.cpu()), values(context.cpu()))

    if inputs.calls:
        return attention_error(c.attention, exact, fitted, inputs.calls)
    bare = inputs.contexts[None]
    pairs = zip(fitted(bare), exact(bare), project(bare, bare), strict=True)
    return sum(
        (
            OutputError(_square(made - wanted), _square(wanted), _square(wanted - own))
            for made, wanted, own in pairs
        ),
        OutputError(),
    )


def _wide(x: Tensor) -> Tensor:
    """In float64 on the CPU: Apple's GPUs have none."""
    return x.detach().cpu().double()


def _square(x: Tensor) -> float:
    return float(x.square().sum())


@torch.no_grad()
def fuse_site(fused: Fused, attention: torch.nn.Module, keys: Affine, values: Affine) -> Tensor | None:
    """Bake two maps of the context into the projections of one attention (`check_site` comes first).

    Returns the values' offset (inner width,) that moved behind the softmax, into to_out's bias; None: there is none.
    """
    moved = None
    for name, change in (("to_k", keys), ("to_v", values)):
        linear = _linear(attention, name)
        weight = _wide(linear.weight)
        matrix, offset = change.matrix.to(weight), change.offset.to(weight)
        fused.replace(linear, "weight", weight @ matrix)
        shift = weight @ offset
        if linear.bias is not None:
            fused.replace(linear, "bias", _wide(linear.bias) + shift)
        elif name == "to_v" and shift.any():
            out = _linear(attention, "to_out.0")
            fused.replace(out, "bias", _wide(out.bias) + _wide(out.weight) @ shift)
            moved = shift
    return moved


def _linear(attention: torch.nn.Module, name: str) -> Any:
    return attention.get_submodule(name)


def _check_storage(what: str, weight: Tensor) -> None:
    if weight.is_meta:
        raise UserError(f"{what} is offloaded: fuse before enable_sequential_cpu_offload()")
    if weight.dtype not in _EXACT or type(weight.data) is not Tensor:
        kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
        raise UserError(
            f"{what} is stored as {str(kind).removeprefix('torch.')}, which would round the fused weights too: fuse "
            "first, then cast or quantise"
        )


def check_site(site: AttentionSite, attention: torch.nn.Module) -> None:
    """Refuse attentions whose weights cannot be replaced exactly.

    Raises:
        UserError: LoRA or other wrappers stand at a projection, weights are offloaded or stored in 8 bits, keys are
            normalised, or to_out has no bias.
    """
    modules = dict(attention.named_modules())
    for name in ("to_k", "to_v", "to_out.0"):
        module = modules.get(name)
        if type(module) is not torch.nn.Linear:
            raise UserError(
                f"cannot fuse at {site.path}: {name} is a {type(module).__name__}, expected a plain linear "
                "layer. Fuse or unload LoRA first (pipe.fuse_lora() and pipe.unload_lora_weights()), then fuse"
            )
        for parameter in module.parameters():
            _check_storage(f"cannot fuse at {site.path}: {name}", parameter)
    if _linear(attention, "to_out.0").bias is None:
        raise UserError(f"cannot fuse at {site.path}: its to_out has no bias to take the values' offset")
    if getattr(attention, "norm_k", None) is not None:
        raise UserError(f"cannot fuse at {site.path}: its keys are normalised, so an offset does not cancel")

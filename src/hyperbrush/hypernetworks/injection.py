"""Attaching hypernetworks to a UNet: k = to_k(c + s·MLP_k(c)), v = to_v(c + s·MLP_v(c)).

Only what to_k and to_v see changes; queries, weights, processors and the module tree stay as they
are.
"""

import sys
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.activations import OVER_THE_BATCH
from hyperbrush.hypernetworks.applied import Applied, reach
from hyperbrush.hypernetworks.attention import AttentionHypernetwork, finite
from hyperbrush.hypernetworks.projection_hooks import (
    ProjectionHook,
    Strength,
    refuse_bypassing,
)
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, find_attentions

StrengthLike = float | tuple[float, float]  # one number, or (for keys, for values)
Entry = AttentionHypernetwork | tuple[AttentionHypernetwork, StrengthLike]


def attach(
    pipe_or_unet: Any,
    hypernetworks: Entry | Iterable[Entry],
    *,
    attn: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
) -> "Attached":
    """Let hypernetworks act on a UNet until `Attached.detach`, or until the end of a ``with``.

    pipe_or_unet: a diffusers pipeline with a UNet, a UNet2DConditionModel (also wrapped),
        LatentDiffusion.
    hypernetworks: one, or (hypernetwork, strength), or a list of these; several compose in order,
        each on the output of the one before. A strength is any finite number, or a pair (for
        keys, for values).
    attn, blocks: act only there; blocks are "down.1", "mid", "up.2", or "down" and "up" for all
        of them.

    The networks move to the UNet's device and compute in their own or the context's precision,
    whichever is higher. Gradients reach their parameters; keep them attached until backward has
    run.

    Raises:
        UserError: nothing to attach to, a hypernetwork that reaches no site, a strength that is not
            finite, an unknown kind or block, or projections that are fused.
    """
    return Attached(pipe_or_unet, hypernetworks, attn=attn, blocks=blocks)


class Attached:
    """Hypernetworks at work on a UNet; see `attach`. A context manager that detaches on exit."""

    def __init__(
        self,
        pipe_or_unet: Any,
        hypernetworks: Entry | Iterable[Entry],
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
    ) -> None:
        entries = _entries(hypernetworks)
        self._pipe = pipe_or_unet
        self._hooks: list[ProjectionHook] = []
        # How many rows of a batch are one picture's: only softmax-like activations ask.
        self.rows_per_picture: int | None = None
        unet = _unet(pipe_or_unet)
        everything = [site for site, _ in find_attentions(unet)]
        found = find_attentions(unet, attn, blocks)
        wanted = [site for site, _ in found]
        self.hypernetworks = [hypernetwork for hypernetwork, _ in entries]
        self.applied = Applied(tuple(reach(h, wanted, everything) for h in self.hypernetworks))
        device = _device(found[0][1])
        pairs = [_pair(strength) for _, strength in entries]
        self._strengths = [(Strength(k, device), Strength(v, device)) for k, v in pairs]
        for site, attention in found:
            refuse_bypassing(site, attention)
        for hypernetwork in self.hypernetworks:
            hypernetwork.to(device)
        for site, attention in found:
            self._hook(site, attention)
        _forget_compiled_graphs()

    def _hook(self, site: AttentionSite, attention: torch.nn.Module) -> None:
        keys, values, rows = [], [], None
        for hypernetwork, (for_keys, for_values) in zip(self.hypernetworks, self._strengths, strict=True):
            pair = hypernetwork.network_for(site.context_width, site)
            if pair is not None:
                keys.append((pair.key, for_keys))
                values.append((pair.value, for_values))
                if hypernetwork.settings.activation in OVER_THE_BATCH:
                    rows = self._rows
        if keys:
            self._hooks.append(ProjectionHook(site, attention, "to_k", keys, rows))
            self._hooks.append(ProjectionHook(site, attention, "to_v", values, rows))

    def _rows(self, batch: int) -> int | None:
        """As set, else 2 or 1 as the pipeline has guidance or not; None: all are one picture's."""
        if self.rows_per_picture is not None:
            return self.rows_per_picture
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        if guided is None:
            return None
        rows = 1 + bool(guided) + bool(getattr(self._pipe, "do_perturbed_attention_guidance", False))
        return rows if batch % rows == 0 else 1

    @property
    def strengths(self) -> list[StrengthLike]:
        """The strengths now: a number each, or (for keys, for values) where the two differ."""
        return [k.value if k.value == v.value else (k.value, v.value) for k, v in self._strengths]

    def set_strengths(self, strengths: StrengthLike | Sequence[StrengthLike]) -> None:
        """Change all strengths: one per hypernetwork, each a number or (for keys, for values).

        A number alone is for all of them. Nothing is recompiled.

        Raises:
            UserError: another number of entries, or one that is not finite; nothing was changed
                then.
        """
        given = list(strengths) if isinstance(strengths, Sequence) else [strengths] * len(self._strengths)
        if len(given) != len(self._strengths):
            raise UserError(
                f"got {len(given)} strengths for {len(self._strengths)} hypernetworks: expected one each"
            )
        pairs = [_pair(strength) for strength in given]
        for (for_keys, for_values), (key, value) in zip(self._strengths, pairs, strict=True):
            for_keys.set(key)
            for_values.set(value)

    def detach(self) -> None:
        """Leave the UNet exactly as it was found. A second call does nothing."""
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            _forget_compiled_graphs()

    def __enter__(self) -> "Attached":
        if not self._hooks:
            raise UserError("these hypernetworks are already detached: call attach again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def _entries(hypernetworks: Any) -> list[tuple[AttentionHypernetwork, Any]]:
    if _is_entry(hypernetworks):
        hypernetworks = [hypernetworks]
    if not isinstance(hypernetworks, Iterable) or isinstance(hypernetworks, str):
        raise UserError(
            f"cannot attach {hypernetworks!r:.100}: expected a hypernetwork (from hb.load), "
            "(hypernetwork, strength), or a list of these"
        )
    entries: list[tuple[AttentionHypernetwork, Any]] = []
    for entry in hypernetworks:
        if not _is_entry(entry):
            raise UserError(
                f"cannot attach {entry!r:.100}: expected a hypernetwork (from hb.load) or "
                f"(hypernetwork, strength)"
            )
        entries.append(entry if isinstance(entry, tuple) else (entry, 1.0))
    if not entries:
        raise UserError("no hypernetwork to attach: the list is empty")
    return entries


def _is_entry(value: Any) -> bool:
    if isinstance(value, tuple) and len(value) == 2:
        # (a, b) of two hypernetworks is a list of two, not a hypernetwork with a strength.
        return isinstance(value[0], AttentionHypernetwork) and not (
            isinstance(value[1], AttentionHypernetwork) or _is_entry(value[1])
        )
    return isinstance(value, AttentionHypernetwork)


def _pair(strength: Any) -> tuple[float, float]:
    if isinstance(strength, tuple | list):
        if len(strength) != 2:
            raise UserError(f"strength {strength!r}: expected a number, or two (for keys, for values)")
        return finite(strength[0]), finite(strength[1])
    return finite(strength), finite(strength)


def _unet(pipe_or_unet: Any) -> torch.nn.Module:
    unet = getattr(pipe_or_unet, "unet", None)
    if isinstance(unet, torch.nn.Module):
        return unet
    if isinstance(pipe_or_unet, torch.nn.Module):
        return pipe_or_unet
    raise UserError(
        f"{type(pipe_or_unet).__name__} has no UNet to attach to: expected a Stable Diffusion "
        f"pipeline "
        "or a UNet2DConditionModel"
    )


def _device(attention: torch.nn.Module) -> torch.device:
    device = next(attention.parameters()).device
    # Offloaded layers are on "meta" between calls; the networks then follow their first context.
    return torch.device("cpu") if device.type == "meta" else device


def _forget_compiled_graphs() -> None:
    """Compiled graphs are not guarded against new hooks and would go on without them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()

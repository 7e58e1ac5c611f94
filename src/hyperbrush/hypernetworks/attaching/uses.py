"""What is attached, how strongly and where; and what it is attached to."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import StrengthLike
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import KINDS

Adapter = AttentionHypernetwork | GeneratedWeights


class HasUNet(Protocol):
    """A diffusers pipeline with a UNet, or LatentDiffusion.

    Read where there: ``scheduler`` (how far a sampling has come), ``do_classifier_free_guidance`` and
    ``rows_per_picture`` (how its batches are laid out).
    """

    @property
    def unet(self) -> torch.nn.Module:
        """The UNet."""


class HasTransformer(Protocol):
    """A diffusers pipeline with a transformer."""

    @property
    def transformer(self) -> torch.nn.Module:
        """The transformer."""


PipeOrUNet = HasUNet | HasTransformer | torch.nn.Module


@dataclass(frozen=True)
class Use:
    """One hypernetwork at work, or weights that one generated: how strongly, and where.

    strength: a number; a schedule over the sampling steps (`Window`, `Ramp`, any callable from progress, 0
        to 1, to a number); `PerPicture`; or a pair of these (for keys, for values; of generated weights for
        to_q and to_k, for to_v and to_out).
    attn, blocks: act only there; blocks are "down.1", "mid", "up.2", or "down" and "up" for all of them. For
        transformers see `attention_sites`.
    guidance: "both" sides of classifier-free guidance, as in the webui, or the "conditional" one alone: the picture
        then moves away from what the model would draw without the network.
    name: how `Attached` calls it; the hypernetwork's own name by default.
    """

    hypernetwork: Adapter
    strength: StrengthLike = 1.0
    attn: Collection[str] = KINDS
    blocks: Collection[str] | None = None
    name: str | None = None
    guidance: str = "both"


Entry = Adapter | tuple[Adapter, StrengthLike] | Use


def uses_of(
    hypernetworks: Entry | Iterable[Entry],
    attn: Collection[str],
    blocks: Collection[str] | None,
    guidance: str,
) -> list[Use]:
    """One entry, or several, as uses; ``attn``, ``blocks`` and ``guidance`` of those that are none yet.

    Raises:
        UserError: there is none, or something is no hypernetwork.
    """
    entries: Any = [hypernetworks] if _is_entry(hypernetworks) else hypernetworks
    if not isinstance(entries, Iterable) or isinstance(entries, str):
        raise UserError(
            f"cannot attach {entries!r:.100}: expected a hypernetwork (from hb.load), "
            "(hypernetwork, strength), hb.Use(…), or a list of these"
        )
    uses = []
    for entry in entries:
        if not _is_entry(entry):
            raise UserError(
                f"cannot attach {entry!r:.100}: expected a hypernetwork (from hb.load), "
                f"(hypernetwork, strength) or hb.Use(…)"
            )
        if not isinstance(entry, Use):
            hypernetwork, strength = entry if isinstance(entry, tuple) else (entry, 1.0)
            entry = Use(hypernetwork, strength, attn, blocks, guidance=guidance)
        uses.append(entry)
    if not uses:
        raise UserError("no hypernetwork to attach: the list is empty")
    return uses


def _is_entry(value: Any) -> bool:
    if isinstance(value, tuple) and len(value) == 2:
        # (a, b) of two hypernetworks is a list of two, not a hypernetwork with a strength.
        return isinstance(value[0], Adapter) and not _is_entry(value[1])
    return isinstance(value, Adapter | Use)


def unet_of(pipe_or_unet: PipeOrUNet) -> torch.nn.Module:
    """The UNet or transformer of a pipeline, or the one handed over.

    Raises:
        UserError: there is none.
    """
    for candidate in (*(getattr(pipe_or_unet, part, None) for part in ("unet", "transformer")), pipe_or_unet):
        if isinstance(candidate, torch.nn.Module):
            return candidate
    raise UserError(
        f"{type(pipe_or_unet).__name__} has no UNet to attach to: expected a Stable Diffusion "
        f"pipeline "
        "or a UNet2DConditionModel"
    )

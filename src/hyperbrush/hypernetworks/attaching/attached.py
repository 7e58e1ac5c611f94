"""Attaching hypernetworks to a UNet: k = to_k(c + s·MLP_k(c)), v = to_v(c + s·MLP_v(c)).

Only what to_k and to_v see changes; queries, weights, processors and the module tree stay as they
are.  Generated weights add to what a projection makes of that: the order in which the two kinds stand in a list makes
no difference.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.contexts import AttentionInputs
from hyperbrush.hypernetworks.attaching.fused_lora import FusedWatch, is_fused
from hyperbrush.hypernetworks.attaching.fusing import FitReport, Fused, SiteChains, fuse_chains
from hyperbrush.hypernetworks.attaching.hooked import AtWork, Hooked, hooked_onto
from hyperbrush.hypernetworks.attaching.hooks import refuse_bypassing
from hyperbrush.hypernetworks.attaching.reach import Applied
from hyperbrush.hypernetworks.attaching.uses import Adapter, Entry, PipeOrUNet, uses_of
from hyperbrush.hypernetworks.attaching.uses import Use as Use
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.strengths import PerPicture, StrengthLike, pair_of
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, choose_attentions


def attach(
    pipe_or_unet: PipeOrUNet,
    hypernetworks: Entry | Iterable[Entry] = (),
    *,
    attn: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
    guidance: str = "both",
) -> "Attached":
    """Let hypernetworks act on a UNet until `Attached.detach`, or until the end of a ``with``.

    pipe_or_unet: a diffusers pipeline with a UNet, a UNet2DConditionModel (also wrapped),
        LatentDiffusion; or a transformer of a family of `transformer_sites.FAMILIES`, or its pipeline. Schedules follow the sampling steps of a pipeline or LatentDiffusion; with a bare
        UNet, progress is read off the timestep (0 at the noisiest, 1 at the clean end).
    hypernetworks: one, or (hypernetwork, strength), or `Use`, or a list of these; several compose in
        order, each on the output of the one before. None yet: `Attached.load` adds them. `GeneratedWeights`
        stand in the list like any other: they add to what the layers make of the context the others leave.
    attn, blocks, guidance: as in `Use`, for those that are not given as one.

    The networks move to the UNet's device and compute in their own or the context's precision,
    whichever is higher: ``hypernetwork.to(torch.bfloat16)`` first is the webui's half precision. Gradients
    reach their parameters, also through gradient checkpointing: a block computed again in backward finds what
    acted when it first ran. (A checkpoint of one's own around the whole UNet does not: keep the networks
    attached until backward has run.)

    Raises:
        UserError: nothing to attach to, a hypernetwork that reaches no site, a strength that is not
            finite, an unknown kind or block, projections that are fused, or "conditional" guidance on a bare UNet
            or a transformer, which do not know the sides.
    """
    return Attached(pipe_or_unet, hypernetworks, attn=attn, blocks=blocks, guidance=guidance)


class Attached(Hooked):
    """Hypernetworks at work on a UNet; see `attach`. A context manager that detaches on exit."""

    def __init__(
        self,
        pipe_or_unet: PipeOrUNet,
        hypernetworks: Entry | Iterable[Entry] = (),
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        guidance: str = "both",
    ) -> None:
        super().__init__(pipe_or_unet)
        self._fused: Fused | None = None
        self._watch: FusedWatch | None = None
        choose_attentions(self._attentions, attn, blocks)  # unknown ones are wrong whatever the list holds
        uses = [] if hypernetworks == () else uses_of(hypernetworks, attn, blocks, guidance)
        self._act([self._prepare(use) for use in uses])

    @property
    def hypernetworks(self) -> list[Adapter]:
        """The hypernetworks, in the order they compose."""
        return [a.use.hypernetwork for a in self._at_work]

    @property
    def names(self) -> list[str]:
        """Their names here; equal ones are numbered."""
        names: list[str] = []
        for a in self._at_work:
            name, number = a.name, 2
            while name in names:
                name, number = f"{a.name}-{number}", number + 1
            names.append(name)
        return names

    @property
    def applied(self) -> Applied:
        """What each of them reaches: "32 of 64 projections reached: …"."""
        return Applied(tuple(a.reach for a in self._at_work))

    @property
    def strengths(self) -> list[StrengthLike]:
        """Their strengths as set: one each, or (for keys, for values) where the two differ."""
        return [a.strength for a in self._at_work]

    def list(self) -> dict[str, StrengthLike]:
        """Name → strength of all of them, in the order they compose."""
        return dict(zip(self.names, self.strengths, strict=True))

    def load(
        self,
        hypernetwork: Adapter | str | Path,
        strength: StrengthLike = 1.0,
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        name: str | None = None,
        guidance: str = "both",
    ) -> str:
        """Add a hypernetwork, or the file of one, after the others; returns its name here.

        Raises:
            UserError: as `attach` and `files.adapters.load`; nothing was changed then. Or while fused.
        """
        self._refuse_fused("load")
        if not isinstance(hypernetwork, Adapter):
            from hyperbrush.hypernetworks.files.adapters import load

            hypernetwork = load(hypernetwork)
        use = Use(hypernetwork, strength, attn, blocks, name, guidance)
        self._act([*self._at_work, self._prepare(use)])
        return self.names[-1]

    def unload(self, name: str | Adapter) -> None:
        """Take one away, by its name here or by itself.

        Raises:
            UserError: there is no such one; or while fused.
        """
        self._refuse_fused("unload")
        gone = self._index(name)
        self._act([a for i, a in enumerate(self._at_work) if i != gone])

    def set_hypernetworks(self, hypernetworks: Entry | Iterable[Entry]) -> None:
        """Let these act, in this order, in the place of all before; an empty list: none.

        Raises:
            UserError: as `attach`; nothing was changed then. Or while fused.
        """
        self._refuse_fused("change hypernetworks")
        uses = [] if hypernetworks == [] else uses_of(hypernetworks, KINDS, None, "both")
        self._act([self._prepare(use) for use in uses])

    def set_strengths(
        self, strengths: StrengthLike | Sequence[StrengthLike] | Mapping[str, StrengthLike]
    ) -> None:
        """Change strengths: one per hypernetwork, or by name; see `Use` for what a strength can be.

        A single one that is no list is for all of them. Nothing is recompiled, and no network of
        cross-attention is computed again where only its strength changed.

        Raises:
            UserError: another number of entries, an unknown name, or one that is not finite; nothing was
                changed then. Or while fused.
        """
        self._refuse_gone()
        self._refuse_fused("change strengths")
        given: Any = self.strengths
        if isinstance(strengths, Mapping):
            for name, strength in strengths.items():
                given[self._index(name)] = strength
        else:
            several = isinstance(strengths, Sequence) and not isinstance(strengths, PerPicture)
            given = strengths if several else [strengths] * len(given)
            if len(given) != len(self._at_work):
                raise UserError(
                    f"got {len(given)} strengths for {len(self._at_work)} hypernetworks: expected one each"
                )
        pairs = [pair_of(strength) for strength in given]
        for a, pair in zip(self._at_work, pairs, strict=True):
            a.check(pair)
        for a, pair in zip(self._at_work, pairs, strict=True):
            a.set(pair)

    @property
    def enabled(self) -> bool:
        """Whether they act, from `enable` to `disable`."""
        return self._enabled

    def enable(self) -> None:
        """Let them act again.

        Raises:
            UserError: they were detached.
        """
        self._refuse_gone()
        self._enabled = True
        self._hook()

    def disable(self) -> None:
        """Let none act, at no cost, until `enable`; the UNet is then as it was found.

        Raises:
            UserError: while fused.
        """
        self._refuse_fused("disable")
        self._enabled = False
        self._unhook()

    @property
    def fused(self) -> bool:
        """Whether they are baked into the UNet's weights."""
        return self._fused is not None

    def fuse(
        self,
        approximate: bool = False,
        contexts: Mapping[str, torch.Tensor | AttentionInputs] | None = None,
    ) -> FitReport | None:
        """Bake them, at their present strengths, into to_k, to_v and to_out's bias, and take the hooks away.

        The UNet then is an ordinary one of the same modules, which costs and saves as before. Exact for
        networks without a non-linearity, also in chains (FACTS: the bias argument is in `fusing`). A LoRA that is
        loaded afterwards sees the changed context too, until it is merged or the UNet saved.

        approximate: put the affine map of least squared error in the place of chains that are not
            affine, fitted per site to the contexts of a few generations, or to ``contexts``: site path →
            (tokens, width), or what `contexts.sample_attention_inputs` gives. Returns a
            `fusing.FitReport` that says how far off it is.

        Raises:
            UserError: others are attached to this UNet too, or fused into it; a network is not affine; a strength is no constant number; LoRA stands at a projection
                (fuse it first); weights are stored in 8 bits or offloaded, or would not be finite; generated
                weights are among them; disabled; already fused; a transformer. Nothing was changed then.
        """
        self._refuse_gone()
        self._refuse_fused("fuse again")
        if is_fused(self._unet) or any(other is not self for other in hooked_onto(self._unet)):
            raise UserError(
                "cannot fuse: other hypernetworks or generated weights act on this UNet, and would see other contexts then. "
                "Attach all of them in one list, or detach the others"
            )
        if self._transformer is not None:
            raise UserError(
                f"cannot fuse hypernetworks into {self._transformer.layout.name}: its keys are normalised, or shared with "
                "other rows. Keep them attached"
            )
        if not self._enabled:
            raise UserError(
                "cannot fuse the hypernetworks while they are disabled: call enable() first, or detach()"
            )
        for a in self._at_work:
            _check_fusable(a)
        chains = [
            SiteChains(site, module, self._constants(site, "to_k"), self._constants(site, "to_v"))
            for site, module in self._attentions
        ]
        self._unhook()
        try:
            self._fused, report = fuse_chains(
                self._pipe,
                [c for c in chains if c.keys or c.values],
                approximate=approximate,
                contexts=contexts,
            )
            self._watch = FusedWatch(self._unet, self._fused.projections)
        finally:
            self._hook()
        return report

    def unfuse(self) -> None:
        """Put the UNet's own weights back, bit for bit, and go on with the networks. Else does nothing.

        Raises:
            UserError: the weights are offloaded now, or projections were fused since.
        """
        if self._fused is not None:
            for site, attention in self._attentions:
                refuse_bypassing(site, attention)
            if self._fused.offloaded:
                raise UserError(
                    "cannot unfuse while the UNet's weights are offloaded: call pipe.remove_all_hooks() first"
                )
            if self._watch is not None:
                self._watch.remove()
                self._watch = None
            self._fused.undo()
            self._fused = None
            self._hook()

    def detach(self) -> None:
        """Leave the UNet exactly as it was found. A second call does nothing."""
        self.unfuse()
        super().detach()

    def _hook(self) -> None:
        if self._fused is None:
            super()._hook()

    def _constants(self, site: AttentionSite, projection: str) -> Sequence[tuple[ContextNetwork, float]]:
        """The chain at a site with plain numbers, without those that do nothing."""
        return [
            (network, strength.constant)
            for network, strength in self._changes(site).get(projection, ())
            if isinstance(network, ContextNetwork) and strength.constant
        ]

    def _index(self, name: str | Adapter) -> int:
        for i, (own, a) in enumerate(zip(self.names, self._at_work, strict=True)):
            if name == own or name is a.use.hypernetwork:
                return i
        raise unknown_name("attached hypernetwork", str(name), self.names)

    def _refuse_fused(self, what: str) -> None:
        if self._fused is not None:
            raise UserError(
                f"cannot {what} while the hypernetworks are fused into the UNet: call unfuse() first"
            )


def _check_fusable(a: AtWork) -> None:
    """Refuse what acts in a way no weight can.

    Raises:
        UserError: generated weights, one side of guidance alone, or a strength that is no constant number.
    """
    if isinstance(a.use.hypernetwork, GeneratedWeights):
        raise UserError(
            f"cannot fuse {a.name!r}, generated weights: unload them, or save them as a LoRA and use "
            "pipe.fuse_lora()"
        )
    if a.use.guidance != "both":
        raise UserError(
            f"cannot fuse {a.name!r}: it acts on the conditional side of guidance alone, weights on both"
        )
    if a.keys.constant is None or a.values.constant is None:
        raise UserError(
            f"cannot fuse {a.name!r}: its strength changes with the step or the picture; "
            "set a number first (set_strengths)"
        )

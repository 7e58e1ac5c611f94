"""Attaching hypernetworks to a UNet: k = to_k(c + s·MLP_k(c)), v = to_v(c + s·MLP_v(c)).

Only what to_k and to_v see changes; queries, weights, processors and the module tree stay as they
are.
"""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.guidance import check_guidance, unconditional_rows
from hyperbrush.hypernetworks.attaching.hooks import ProjectionHook, refuse_bypassing
from hyperbrush.hypernetworks.attaching.kv_cache import Memo
from hyperbrush.hypernetworks.attaching.progress import Progress
from hyperbrush.hypernetworks.attaching.reach import Applied, Reach, reach
from hyperbrush.hypernetworks.attaching.strengths import PerPicture, Strength, StrengthLike, pair_of
from hyperbrush.hypernetworks.attaching.weights_reach import WeightsReach, reach_of_weights, weight_hooks
from hyperbrush.hypernetworks.attention.activations import OVER_THE_BATCH
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files.adapters import Adapter
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, find_attentions

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.attaching.contexts import AttentionInputs
    from hyperbrush.hypernetworks.attaching.fused_lora import FusedWatch
    from hyperbrush.hypernetworks.attaching.fusing import FitReport, Fused


@dataclass(frozen=True)
class Use:
    """One hypernetwork at work, or weights that one generated: how strongly, and where.

    strength: a number; a schedule over the sampling steps (`Window`, `Ramp`, any callable from progress, 0
        to 1, to a number); `PerPicture`; or a pair of these (for keys, for values; of generated weights for
        to_q and to_k, for to_v and to_out).
    attn, blocks: act only there; blocks are "down.1", "mid", "up.2", or "down" and "up" for all of them.
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


def attach(
    pipe_or_unet: Any,
    hypernetworks: Entry | Iterable[Entry] = (),
    *,
    attn: Collection[str] = KINDS,
    blocks: Collection[str] | None = None,
    guidance: str = "both",
) -> "Attached":
    """Let hypernetworks act on a UNet until `Attached.detach`, or until the end of a ``with``.

    pipe_or_unet: a diffusers pipeline with a UNet, a UNet2DConditionModel (also wrapped),
        LatentDiffusion. Schedules follow the sampling steps of a pipeline or LatentDiffusion; with a bare
        UNet, progress is read off the timestep (0 at the noisiest, 1 at the clean end).
    hypernetworks: one, or (hypernetwork, strength), or `Use`, or a list of these; several compose in
        order, each on the output of the one before. None yet: `Attached.load` adds them. `GeneratedWeights`
        stand in the list like any other: they add to what the layers make of the context the others leave.
    attn, blocks, guidance: as in `Use`, for those that are not given as one.

    The networks move to the UNet's device and compute in their own or the context's precision,
    whichever is higher: ``hypernetwork.to(torch.bfloat16)`` first is the webui's half precision. Gradients
    reach their parameters; keep them attached until backward has run.

    Raises:
        UserError: nothing to attach to, a hypernetwork that reaches no site, a strength that is not
            finite, an unknown kind or block, projections that are fused, or "conditional" guidance on a bare UNet,
            which does not know the sides.
    """
    return Attached(pipe_or_unet, hypernetworks, attn=attn, blocks=blocks, guidance=guidance)


class Attached:
    """Hypernetworks at work on a UNet; see `attach`. A context manager that detaches on exit."""

    def __init__(
        self,
        pipe_or_unet: Any,
        hypernetworks: Entry | Iterable[Entry] = (),
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        guidance: str = "both",
    ) -> None:
        self._pipe = pipe_or_unet
        self._unet = _unet(pipe_or_unet)
        self._hooks: list[Any] = []
        self._memo = Memo()
        self._progress = Progress(pipe_or_unet)
        self._outside_the_graph = _uncompiled(Attached._follow_schedules)
        self._fused: Fused | None = None
        self._watch: FusedWatch | None = None
        self._enabled = True
        self._gone = False
        # How many rows of a batch are one picture's: only softmax-like activations ask.
        self.rows_per_picture: int | None = None
        self._batch: int | None = None  # rows of the forward pass that is running
        self._at_work: list[_AtWork] = []
        find_attentions(self._unet, attn, blocks)  # say first of all what is wrong with the UNet
        uses = [] if hypernetworks == () else _uses(hypernetworks, attn, blocks, guidance)
        self._at_work = [self._prepare(use) for use in uses]
        self._hook()

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
        pairs = [(a.keys.spec, a.values.spec) for a in self._at_work]
        return [keys if keys == values else (keys, values) for keys, values in pairs]

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
        if not isinstance(hypernetwork, AttentionHypernetwork | GeneratedWeights):
            from hyperbrush.hypernetworks.files.adapters import load

            hypernetwork = load(hypernetwork)
        self._at_work.append(self._prepare(Use(hypernetwork, strength, attn, blocks, name, guidance)))
        self._hook()
        return self.names[-1]

    def unload(self, name: str | Adapter) -> None:
        """Take one away, by its name here or by itself.

        Raises:
            UserError: there is no such one; or while fused.
        """
        self._refuse_fused("unload")
        del self._at_work[self._index(name)]
        self._hook()

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
        self._refuse_fused("change strengths")
        pairs: Any = [(a.keys.spec, a.values.spec) for a in self._at_work]
        if isinstance(strengths, Mapping):
            for name, strength in strengths.items():
                pairs[self._index(name)] = pair_of(strength)
        else:
            several = isinstance(strengths, Sequence) and not isinstance(strengths, PerPicture)
            given: Any = strengths if several else [strengths] * len(pairs)
            if len(given) != len(pairs):
                raise UserError(
                    f"got {len(given)} strengths for {len(pairs)} hypernetworks: expected one each"
                )
            pairs = [pair_of(strength) for strength in given]
        for a, (keys, values) in zip(self._at_work, pairs, strict=True):
            a.keys.set(keys)
            a.values.set(values)

    def enable(self) -> None:
        """Let them act again."""
        self._enabled = True
        self._hook()

    def disable(self) -> None:
        """Let none act, at no cost, until `enable`; the UNet is then as it was found.

        Raises:
            UserError: while fused.
        """
        self._refuse_fused("disable")
        self._enabled = False
        self._hook()

    @property
    def fused(self) -> bool:
        """Whether they are baked into the UNet's weights."""
        return self._fused is not None

    def fuse(
        self,
        approximate: bool = False,
        contexts: "Mapping[str, torch.Tensor | AttentionInputs] | None" = None,
    ) -> "FitReport | None":
        """Bake them, at their present strengths, into to_k, to_v and to_out's bias, and take the hooks away.

        The UNet then is an ordinary one of the same modules, which costs and saves as before. Exact for
        networks without a non-linearity, also in chains (FACTS: the bias argument is in `fusing`). A LoRA that is
        loaded afterwards sees the changed context too, until it is merged or the UNet saved.

        approximate: put the affine map of least squared error in the place of chains that are not
            affine, fitted per site to the contexts of a few generations, or to ``contexts``: site path →
            (tokens, width), or what `contexts.sample_attention_inputs` gives. Returns a
            `fusing.FitReport` that says how far off it is.

        Raises:
            UserError: a network is not affine; a strength is no constant number; LoRA stands at a projection
                (fuse it first); weights are stored in 8 bits or offloaded, or would not be finite; generated
                weights are among them; disabled; already fused. Nothing was changed then.
        """
        from hyperbrush.hypernetworks.attaching.fused_lora import FusedWatch
        from hyperbrush.hypernetworks.attaching.fusing import SiteChains, fuse_chains

        self._refuse_fused("fuse again")
        if not self._enabled:
            raise UserError(
                "cannot fuse the hypernetworks while they are disabled: call enable() first, or detach()"
            )
        for a in self._at_work:
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
        chains = [
            SiteChains(site, module, self._constant(site, keys=True), self._constant(site, keys=False))
            for site, module in find_attentions(self._unet)
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
        """Put the UNet's own weights back, bit for bit, and go on with the networks. Else does nothing."""
        if self._fused is not None:
            if self._watch is not None:
                self._watch.remove()
                self._watch = None
            self._fused.undo()
            self._fused = None
            self._hook()

    def detach(self) -> None:
        """Leave the UNet exactly as it was found. A second call does nothing."""
        if not self._gone:
            self.unfuse()
            self._unhook()
            self._gone = True

    def __enter__(self) -> "Attached":
        if self._gone:
            raise UserError("these hypernetworks are already detached: call attach again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_outside_the_graph"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._outside_the_graph = _uncompiled(Attached._follow_schedules)

    def _prepare(self, use: Use) -> "_AtWork":
        if self._gone:
            raise UserError("these hypernetworks are already detached: call attach again")
        check_guidance(use.guidance, self._pipe)
        everything = [site for site, _ in find_attentions(self._unet)]
        found = find_attentions(self._unet, use.attn, use.blocks)
        sites = [site for site, _ in found]
        if isinstance(use.hypernetwork, GeneratedWeights):
            reached: Reach = reach_of_weights(use.hypernetwork, sites, everything)
        else:
            reached = reach(use.hypernetwork, sites, everything)
        for site, attention in found:
            refuse_bypassing(site, attention)
        device = _device(found[0][1])
        keys, values = pair_of(use.strength)
        prepared = _AtWork(use, reached, Strength(keys, device), Strength(values, device))
        if isinstance(use.hypernetwork, AttentionHypernetwork):
            use.hypernetwork.to(device)
        return prepared

    def _chain(self, site: AttentionSite, *, keys: bool) -> "list[tuple[Any, Strength]]":
        """(network, strength) of those that reach a site, in order."""
        chain = []
        for a in self._at_work:
            if isinstance(a.use.hypernetwork, GeneratedWeights):
                continue
            pair = a.use.hypernetwork.network_for(site.context_width, site)
            if pair is not None and site in a.reach.sites:
                chain.append((pair.key, a.keys) if keys else (pair.value, a.values))
        return chain

    def _constant(self, site: AttentionSite, *, keys: bool) -> "list[tuple[Any, float]]":
        """The chain at a site with plain numbers, without those that do nothing."""
        return [(network, s.constant) for network, s in self._chain(site, keys=keys) if s.constant]

    def _hook(self) -> None:
        """Hook the UNet as the present state wants it."""
        self._unhook()
        if self._gone or not self._enabled or self._fused is not None or not self._at_work:
            return
        softmax = {
            a.use.hypernetwork
            for a in self._at_work
            if isinstance(a.use.hypernetwork, AttentionHypernetwork)
            and a.use.hypernetwork.settings.activation in OVER_THE_BATCH
        }
        for site, attention in find_attentions(self._unet):
            reaching = [
                a
                for a in self._at_work
                if site in a.reach.sites and isinstance(a.use.hypernetwork, AttentionHypernetwork)
            ]
            if not reaching:
                continue
            rows = self._rows if any(a.use.hypernetwork in softmax for a in reaching) else None
            memo = self._memo if site.kind == "attn2" else None
            for name, keys in (("to_k", True), ("to_v", False)):
                chain = self._chain(site, keys=keys)
                self._hooks.append(ProjectionHook(site, attention, name, chain, rows, memo))
        for a in self._at_work:
            if isinstance(a.use.hypernetwork, GeneratedWeights) and isinstance(a.reach, WeightsReach):
                self._hooks += weight_hooks(self._unet, a.use.hypernetwork, a.reach, a.keys, a.values)
        unet = self._unet
        self._hooks.append(unet.register_forward_pre_hook(self._before, with_kwargs=True))
        self._hooks.append(unet.register_forward_hook(self._after, always_call=True))
        _forget_compiled_graphs()

    def _unhook(self) -> None:
        self._memo.clear()
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            _forget_compiled_graphs()

    def _before(self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if not torch.compiler.is_compiling():
            sample = kwargs.get("sample", args[0] if args else None)
            self._batch = len(sample) if isinstance(sample, torch.Tensor) else None
            self._follow_schedules(timestep, self._batch)
            self._memo.begin(timestep)
        elif any(a.keys.scheduled or a.values.scheduled or a.use.guidance != "both" for a in self._at_work):
            sample = kwargs.get("sample", args[0] if args else None)
            self._outside_the_graph(self, timestep, None if sample is None else len(sample))

    def _follow_schedules(self, timestep: Any, batch: int | None) -> None:
        for a in self._at_work:
            if a.use.guidance == "conditional" and batch is not None:
                first = unconditional_rows(self._pipe, batch)
                a.keys.act_behind(first, batch)
                a.values.act_behind(first, batch)
        self._progress.see(timestep)
        if any(a.keys.scheduled or a.values.scheduled for a in self._at_work):
            progress = self._progress.at(timestep)
            for a in self._at_work:
                a.keys.at(progress)
                a.values.at(progress)

    def _after(self, unet: torch.nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._memo.end()
            self._batch = None

    def _rows(self, batch: int) -> int | None:
        """As set, else as the pipeline's guidance lays out a batch; None: all are one picture's."""
        if self.rows_per_picture is not None:
            return self.rows_per_picture
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        if guided is None:
            return None
        rows = 1 + bool(guided) + bool(getattr(self._pipe, "do_perturbed_attention_guidance", False))
        if self._batch is not None and self._batch % rows == 0 and batch % (self._batch // rows) == 0:
            return batch // (self._batch // rows)  # perturbed attentions see a part of the rows at a time
        return rows if batch % rows == 0 else 1

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

    def list(self) -> dict[str, StrengthLike]:
        """Name → strength of all of them, in the order they compose."""
        return dict(zip(self.names, self.strengths, strict=True))


@dataclass(frozen=True)
class _AtWork:
    """One `Use` on this UNet."""

    use: Use
    reach: Reach
    keys: Strength
    values: Strength

    @property
    def name(self) -> str:
        return self.use.name or self.use.hypernetwork.name


def _uses(
    hypernetworks: Any, attn: Collection[str], blocks: Collection[str] | None, guidance: str
) -> list[Use]:
    if _is_entry(hypernetworks):
        hypernetworks = [hypernetworks]
    if not isinstance(hypernetworks, Iterable) or isinstance(hypernetworks, str):
        raise UserError(
            f"cannot attach {hypernetworks!r:.100}: expected a hypernetwork (from hb.load), "
            "(hypernetwork, strength), hb.Use(…), or a list of these"
        )
    uses = []
    for entry in hypernetworks:
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
        return isinstance(value[0], AttentionHypernetwork | GeneratedWeights) and not _is_entry(value[1])
    return isinstance(value, AttentionHypernetwork | GeneratedWeights | Use)


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


def _uncompiled(function: Any) -> Any:
    """A graph that looked at the sampling step would be compiled again for each."""
    disable: Any = torch.compiler.disable
    return disable(function)


def _forget_compiled_graphs() -> None:
    """Compiled graphs are not guarded against new hooks and would go on without them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()

"""Adapters hooked onto a UNet: their hooks, their strengths over a sampling, compiled graphs, gradient checkpointing."""

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.checkpointing import Wrapped, unwrap_checkpoints, wrap_checkpoints
from hyperbrush.hypernetworks.attaching.fused_lora import is_fused
from hyperbrush.hypernetworks.attaching.guidance import check_guidance, unconditional_rows
from hyperbrush.hypernetworks.attaching.hooks import ProjectionHook, refuse_bypassing
from hyperbrush.hypernetworks.attaching.kv_cache import KVCache
from hyperbrush.hypernetworks.attaching.progress import Progress
from hyperbrush.hypernetworks.attaching.reach import Reach, reach
from hyperbrush.hypernetworks.attaching.stream_rows import StreamRows
from hyperbrush.hypernetworks.attaching.uses import Adapter, PipeOrUNet, Use, unet_of
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.strengths import Strength, StrengthLike, pair_of
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.ldm.modules.attention_sites import (
    AttentionSite,
    choose_attentions,
    find_layers,
    find_sites,
)
from hyperbrush.ldm.modules.transformer_sites import FUSED, find_transformer

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class AtWork:
    """One `Use` on this UNet.

    adapter: the use's, on the UNet's device. keys: the strength at to_q and to_k, which decide where attention looks;
    values: at to_v and to_out, which decide what it takes along.
    """

    use: Use
    adapter: Adapter
    reach: Reach
    keys: Strength
    values: Strength

    @property
    def name(self) -> str:
        """As asked for, else the adapter's own."""
        return self.use.name or self.use.hypernetwork.name

    @property
    def strength(self) -> StrengthLike:
        """As set: one, or (for keys, for values) where the two differ."""
        keys, values = self.keys.spec, self.values.spec
        return keys if keys == values else (keys, values)

    @property
    def scheduled(self) -> bool:
        """Whether a strength depends on the sampling step."""
        return self.keys.scheduled or self.values.scheduled

    @property
    def by_row(self) -> bool:
        """Whether rows of a batch are changed differently."""
        several = isinstance(self.adapter, GeneratedWeights) and (self.adapter.batch or 1) > 1
        return several or self.use.guidance != "both" or self.keys.per_picture or self.values.per_picture

    def check(self, strength: StrengthLike) -> None:
        """Refuse two strengths where one layer makes keys and values.

        Raises:
            UserError: generated weights of a layer of Flux.2's single blocks.
        """
        keys, values = pair_of(strength)
        if keys == values or not isinstance(self.adapter, GeneratedWeights):
            return
        fused = [site for site in self.reach.sites if FUSED in self.adapter.changes(site)]
        if fused:
            raise UserError(
                f"{self.name!r} changes {fused[0].path}.{FUSED}, which makes keys and values in one: give one strength for both"
            )

    def set(self, strength: StrengthLike) -> None:
        """Take a new strength."""
        keys, values = pair_of(strength)
        self.keys.set(keys)
        self.values.set(values)

    def changes(self, site: AttentionSite) -> dict[str, tuple[ContextNetwork | Factors, Strength]]:
        """Projection → what acts at a site, and how strongly."""
        if site not in self.reach.sites:
            return {}
        looks = ("to_q", "to_k", "add_q_proj", "add_k_proj")
        changes = self.adapter.changes(site)
        return {
            name: (change, self.keys if name in looks else self.values) for name, change in changes.items()
        }


class Hooked:
    """Adapters on a UNet, the base of `Attached` and `AppliedWeights`. A context manager that detaches on exit."""

    _ALREADY_GONE = "these hypernetworks are already detached: call attach again"

    _follow_uncompiled: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Also of copies and pickles."""
        if Hooked._follow_uncompiled is None:
            # A graph that looked at the sampling step would be compiled again for each. Here and not above, for it
            # imports the compiler, which takes as long as torch itself.
            Hooked._follow_uncompiled = torch.compiler.disable(Hooked._follow)  # type: ignore[no-untyped-call]
        return super().__new__(cls)

    def __init__(self, pipe_or_unet: PipeOrUNet) -> None:
        self._pipe = pipe_or_unet
        self._unet = unet_of(pipe_or_unet)
        self._attentions = find_sites(self._unet)
        self._transformer = find_transformer(self._unet)
        # Of low-rank weights, where those of networks are streams.
        self._layers = [] if self._transformer is None else find_layers(self._unet)
        self._stream_rows = StreamRows(self._transformer)
        self._at_work: list[AtWork] = []
        self._hooks: list[ProjectionHook] = []
        self._handles: list[RemovableHandle] = []  # of the UNet, while the hooks act
        self._cache = KVCache(by_content=self._transformer is not None)
        self._progress = Progress(pipe_or_unet, rounded=self._transformer is not None)
        self._enabled = True
        self._gone = False
        # How many rows of a batch are one picture's: only softmax-like activations ask.
        self.rows_per_picture: int | None = None
        self._batch: int | None = None  # rows of the forward pass that is running
        self._checkpoints: Wrapped = []

    def detach(self) -> None:
        """Leave the UNet exactly as it was found. A second call does nothing."""
        self._unhook()
        unwrap_checkpoints(self._checkpoints)
        self._checkpoints = []
        self._gone = True

    @property
    def detached(self) -> bool:
        """Whether it was detached for good."""
        return self._gone

    def __enter__(self) -> Self:
        self._refuse_gone()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _refuse_gone(self) -> None:
        if self._gone:
            raise UserError(self._ALREADY_GONE)

    def _prepare(self, use: Use) -> AtWork:
        """See that a use is possible here; nothing is hooked yet."""
        self._refuse_gone()
        if is_fused(self._unet):
            raise UserError(
                "hypernetworks are fused into this UNet, and what is attached now would act before them: call unfuse() first"
            )
        check_guidance(use.guidance, self._pipe, self._transformer is not None)
        if self._transformer is not None:
            _check_for_transformer(use)
        every = (
            self._layers
            if self._layers and isinstance(use.hypernetwork, GeneratedWeights)
            else self._attentions
        )
        wanted = choose_attentions(every, use.attn, use.blocks)
        sites = [site for site, _ in wanted]
        reached = reach(use.hypernetwork, sites, [site for site, _ in every])
        for site, attention in wanted:
            if site in reached.sites:
                refuse_bypassing(site, attention)
        device = next(wanted[0][1].parameters()).device
        if device.type == "meta":
            device = torch.device("cpu")  # offloaded between calls: what acts follows its first input
        keys, values = pair_of(use.strength)
        at_work = AtWork(
            use, use.hypernetwork.to(device), reached, Strength(keys, device), Strength(values, device)
        )
        at_work.check(use.strength)
        return at_work

    def _act(self, at_work: list[AtWork]) -> None:
        """Let these act, in their order, in the place of those before."""
        self._unhook()
        self._at_work = at_work
        self._hooks = [
            ProjectionHook(
                site,
                attention,
                projection,
                changes,
                self._rows,
                self._cache if site.lasting else None,
                self._stream_rows if site.shared else None,
            )
            for site, attention in (*self._attentions, *self._layers)
            for projection, changes in self._changes(site).items()
        ]
        self._hook()

    def _changes(self, site: AttentionSite) -> dict[str, list[tuple[ContextNetwork | Factors, Strength]]]:
        """Projection → all that acts at a site, in order."""
        each = [a.changes(site) for a in self._at_work]
        names = [projection.name for projection in site.projections]
        every = {name: [changes[name] for changes in each if name in changes] for name in names}
        return {name: changes for name, changes in every.items() if changes}

    def _hook(self) -> None:
        """Begin to act, if it is time to."""
        if self._gone or not self._enabled or not self._hooks or self._handles:
            return
        self._progress.begin()
        for hook in self._hooks:
            hook.hook()
        self._handles = [
            self._unet.register_forward_pre_hook(self._before, with_kwargs=True),
            self._unet.register_forward_hook(self._after, always_call=True),
        ]
        if self._transformer is not None and any(hook.rows is not None for hook in self._hooks):
            inner = (
                self._transformer.module
            )  # may be called by itself, or with other arguments than its wrapper
            self._handles.append(inner.register_forward_pre_hook(self._stream_rows.see, with_kwargs=True))
        _forget_compiled_graphs()

    def _unhook(self) -> None:
        """Act no longer."""
        self._cache.clear()
        if not self._handles:
            return
        for hook in self._hooks:
            hook.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _forget_compiled_graphs()

    def _before(self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._transformer is None:
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            sample = kwargs.get("sample", args[0] if args else None)
            batch = len(sample) if isinstance(sample, torch.Tensor) else None
            if isinstance(sample, torch.Tensor) and sample.ndim == 5 and any(a.by_row for a in self._at_work):
                raise UserError(
                    "a video's UNet lays the frames of all pictures into one batch: strengths for each picture or side of "
                    "guidance, and several generated weights at once, cannot be told apart there"
                )
        else:
            call = self._transformer.call(args, kwargs)
            timestep, batch = self._transformer.timestep(call), self._transformer.batch(call)
        if not torch.compiler.is_compiling():
            self._batch = batch
            self._follow(timestep, batch)
            if any(hook.cache is not None for hook in self._hooks):
                self._cache.begin(timestep)
            unwrap_checkpoints(self._checkpoints)  # of a pass that Ctrl-C ended
            self._checkpoints = []
            if torch.is_grad_enabled() and hooked_onto(unet)[0] is self:
                self._checkpoints = wrap_checkpoints(unet, lambda: _acting(unet))
        elif any(a.scheduled or a.use.guidance != "both" for a in self._at_work):
            self._follow_uncompiled(timestep, batch)

    def _follow(self, timestep: Any, batch: int | None) -> None:
        """Set strengths to this step's, and to the rows of this batch."""
        for a in self._at_work:
            if a.use.guidance == "conditional" and batch is not None:
                first = unconditional_rows(self._pipe, batch)
                a.keys.act_behind(first, batch)
                a.values.act_behind(first, batch)
        self._progress.see(timestep)
        if any(a.scheduled for a in self._at_work):
            progress = self._progress.at(timestep)
            for a in self._at_work:
                a.keys.at(progress)
                a.values.at(progress)

    def _after(self, unet: torch.nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._cache.end()
            self._batch = None
            unwrap_checkpoints(self._checkpoints)
            self._checkpoints = []

    def _rows(self, batch: int) -> int | None:
        """As set, else as the pipeline's guidance lays out a batch; None: all are one picture's."""
        for rows in (self.rows_per_picture, getattr(self._pipe, "rows_per_picture", None)):
            if rows is not None:  # the second is of a `LatentDiffusion` while it draws
                return int(rows)
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        if guided is None:
            return None
        rows = 1 + bool(guided) + bool(getattr(self._pipe, "do_perturbed_attention_guidance", False))
        if self._batch is not None and self._batch % rows == 0 and batch % (self._batch // rows) == 0:
            return batch // (self._batch // rows)  # perturbed attentions see a part of the rows at a time
        return rows if batch % rows == 0 else 1


def hooked_onto(unet: torch.nn.Module) -> list[Hooked]:
    """All that acts on a UNet, in the order it came."""
    owners = (getattr(hook, "__self__", None) for hook in unet._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, Hooked)]


def _check_for_transformer(use: Use) -> None:
    """Refuse what only UNets can have.

    Raises:
        UserError: an activation over the batch.
    """
    adapter = use.hypernetwork
    if isinstance(adapter, AttentionHypernetwork) and any(
        pair.key.over_the_batch for _, pair in adapter.pairs()
    ):
        raise UserError(
            f"{adapter.name!r} has the activation {adapter.settings.activation!r}, which mixes the rows of a batch as the "
            "webui lays it out for UNets: it has no meaning on a transformer. Train one with another activation"
        )


def _acting(unet: torch.nn.Module) -> list[ProjectionHook]:
    return [hook for hooked in hooked_onto(unet) for hook in hooked._hooks]


def _forget_compiled_graphs() -> None:
    """Compiled graphs are not guarded against new hooks and would go on without them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()

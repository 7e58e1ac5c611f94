"""What an attach reached, in words: "32 of 64 projections reached: widths 320, 640, 1280; …"."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.uses import Adapter
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import check_shape
from hyperbrush.ldm.families import BY_CROSS_WIDTH
from hyperbrush.ldm.modules.attention_sites import AttentionSite


@dataclass(frozen=True)
class Reach:
    """What one hypernetwork reached on one UNet."""

    name: str
    sites: tuple[AttentionSite, ...]  # reached: both to_k and to_v
    total: int  # sites the UNet has
    missed: tuple[AttentionSite, ...] = ()  # asked for, but the hypernetwork has no network for them
    unused_widths: tuple[int, ...] = ()  # networks that fit no site of the UNet
    left_out: tuple[int, ...] = ()  # networks that fit sites, none of which was asked for
    per_site: bool = False

    def __str__(self) -> str:
        widths = f"widths {_listed(s.context_width for s in self.sites)}"
        text = f"{2 * len(self.sites)} of {2 * self.total} projections reached: {widths}"
        if self.sites[0].family:
            streams = Counter(s.stream for s in self.sites)
            counts = ", ".join(f"{streams[stream]} of the {stream}" for stream in sorted(streams))
            text = f"{len(self.sites)} of {self.total} sites reached: {counts}; {widths}"
        if self.missed:
            count = f"{len(self.missed)} sites of widths " if self.per_site else ""
            widths = _listed(s.context_width for s in self.missed)
            text += f"; the file has no network for {count}{widths}"
        if self.left_out:
            text += f"; its networks for {_listed(self.left_out)} are left out by attn or blocks"
        if self.unused_widths:
            text += f"; its networks for {_listed(self.unused_widths)} fit nothing here"
        # Widths are shared between families, so part of a foreign file can fit by accident.
        for width in self.unused_widths:
            if width in BY_CROSS_WIDTH:
                text += f" (the file is likely for {BY_CROSS_WIDTH[width].name})"
        return text


@dataclass(frozen=True)
class WeightsReach(Reach):
    """What generated weights reached on one UNet."""

    layers: tuple[str, ...] = ()
    layers_made: int = 0  # that the weights change
    layers_there: int = 0  # that the UNet has

    def __str__(self) -> str:
        text = f"{len(self.layers)} of {self.layers_there} layers reached"
        if len(self.layers) < self.layers_made:
            text += f"; {self.layers_made - len(self.layers)} of its layers are not here or not asked for"
        return text


@dataclass(frozen=True)
class Applied:
    """What an attach reached: one `Reach` per hypernetwork, in their order."""

    networks: tuple[Reach, ...]

    @property
    def sites(self) -> list[AttentionSite]:
        """Every site that at least one hypernetwork reaches, in the order of the forward pass."""
        reached = {s.path: s for r in self.networks for s in r.sites}
        return sorted(reached.values(), key=lambda s: (s.depth, s.kind))

    def __str__(self) -> str:
        if len(self.networks) == 1:
            return str(self.networks[0])
        return "\n".join(f"{reach.name}: {reach}" for reach in self.networks)


def reach(adapter: Adapter, wanted: Sequence[AttentionSite], everything: Collection[AttentionSite]) -> Reach:
    """Which of the ``wanted`` sites a hypernetwork has networks for, or weights have layers at.

    Raises:
        UserError: none of them; or a layer of the weights has another shape.
    """
    if isinstance(adapter, GeneratedWeights):
        return _of_weights(adapter, wanted, everything)
    sites = tuple(site for site in wanted if adapter.changes(site))
    if not sites:
        raise UserError(_explain(adapter, wanted, everything))
    reached, there = ({s.context_width for s in some} for some in (sites, everything))
    idle = [w for w in adapter.widths if w not in reached]
    return Reach(
        name=adapter.name,
        sites=sites,
        total=len(everything),
        missed=tuple(s for s in wanted if s not in sites),
        unused_widths=tuple(w for w in idle if w not in there),
        left_out=tuple(w for w in idle if w in there),
        per_site=bool(adapter.sites),
    )


def _of_weights(
    weights: GeneratedWeights, wanted: Sequence[AttentionSite], everything: Collection[AttentionSite]
) -> WeightsReach:
    by_site = {site: changes for site in wanted if (changes := weights.changes(site))}
    layers = []
    for site, changes in by_site.items():
        for name in changes:
            projection = site.projection(name)
            layers.append(f"{site.path}.{name}")
            check_shape(weights, layers[-1], (projection.out_width, projection.in_width))
    if not layers:
        raise UserError(
            f"{weights.name!r} reaches none of the {len(wanted)} attentions asked for: it changes {len(weights.layers)} "
            f"layers such as {weights.layers[0]}. Use weights made for this model, or the model they were made for"
        )
    return WeightsReach(
        name=weights.name,
        sites=tuple(by_site),
        total=len(everything),
        layers=tuple(layers),
        layers_made=len(weights.layers),
        layers_there=sum(len(site.projections) for site in everything),
    )


def _explain(
    hypernetwork: AttentionHypernetwork,
    wanted: Sequence[AttentionSite],
    everything: Collection[AttentionSite],
) -> str:
    where = "" if len(wanted) == len(everything) else f" at the {len(wanted)} sites asked for"
    family = next(iter(everything)).family
    model, sites = (f"{family} transformer", "sites") if family else ("UNet", "attentions")
    text = (
        f"{hypernetwork.name!r} reaches none of this {model}'s {len(everything)} {sites}: "
        f"it has networks for {hypernetwork.describe_keys()}, but the contexts{where} are "
        f"{_listed(s.context_width for s in wanted)} wide. "
    )
    families = [BY_CROSS_WIDTH[w].name for w in hypernetwork.widths if w in BY_CROSS_WIDTH]
    if families:
        text += f"The file is likely for {families[0]}. "
    return text + "Use a hypernetwork made for this model, or the model it was made for"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(widths)))) or "none"

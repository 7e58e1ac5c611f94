"""What an attach reached, in words: "32 of 64 projections reached: widths 320, 640, 1280; …"."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.ldm.families import BY_CROSS_WIDTH
from hyperbrush.ldm.modules.attention_sites import AttentionSite


@dataclass(frozen=True)
class Reach:
    """What one hypernetwork reached on one UNet."""

    name: str
    sites: tuple[AttentionSite, ...]  # reached: both to_k and to_v
    total: int  # sites the UNet has
    missed: tuple[AttentionSite, ...]  # asked for, but the hypernetwork has no network for them
    unused_widths: tuple[int, ...]  # networks that fit no site of the UNet
    left_out: tuple[int, ...] = ()  # networks that fit sites, none of which was asked for
    per_site: bool = False

    def __str__(self) -> str:
        text = (
            f"{2 * len(self.sites)} of {2 * self.total} projections reached: "
            f"widths {_listed(s.context_width for s in self.sites)}"
        )
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


def reach(
    hypernetwork: AttentionHypernetwork,
    wanted: Sequence[AttentionSite],
    everything: Collection[AttentionSite],
) -> Reach:
    """Which of the ``wanted`` sites a hypernetwork has networks for.

    Raises:
        UserError: none of them.
    """
    sites = [s for s in wanted if hypernetwork.network_for(s.context_width, s) is not None]
    if not sites:
        raise UserError(_explain(hypernetwork, wanted, everything))
    reached, there = ({s.context_width for s in some} for some in (sites, everything))
    idle = [w for w in hypernetwork.widths if w not in reached]
    return Reach(
        name=hypernetwork.name,
        sites=tuple(sites),
        total=len(everything),
        missed=tuple(s for s in wanted if s not in sites),
        unused_widths=tuple(w for w in idle if w not in there),
        left_out=tuple(w for w in idle if w in there),
        per_site=bool(hypernetwork.sites),
    )


def _explain(
    hypernetwork: AttentionHypernetwork,
    wanted: Sequence[AttentionSite],
    everything: Collection[AttentionSite],
) -> str:
    where = "" if len(wanted) == len(everything) else f" at the {len(wanted)} sites asked for"
    text = (
        f"{hypernetwork.name!r} reaches none of this UNet's {len(everything)} attentions: "
        f"it has networks for {hypernetwork.describe_keys()}, but the contexts{where} are "
        f"{_listed(s.context_width for s in wanted)} wide. "
    )
    families = [BY_CROSS_WIDTH[w].name for w in hypernetwork.widths if w in BY_CROSS_WIDTH]
    if families:
        text += f"The file is likely for {families[0]}. "
    return text + "Use a hypernetwork made for this model, or the model it was made for"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(widths)))) or "none"

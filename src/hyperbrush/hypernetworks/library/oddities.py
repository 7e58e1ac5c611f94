"""What deserves a second look in a hypernetwork file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.hypernetworks.attention.hypernetwork import AttentionHypernetwork
from hyperbrush.hypernetworks.files.modelspec import hash_matches
from hyperbrush.ldm.families import BY_CROSS_WIDTH

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.library.inspection import NetworkFacts, Written

_HUGE = 2.0  # times the context's own size
_DEAD = 0.2  # share of a layer's units


def oddities(
    path: Path, hypernetwork: AttentionHypernetwork, written: "Written", networks: "Sequence[NetworkFacts]"
) -> Iterator[str]:
    """One line for each thing that is odd; none for a sound file."""
    if hypernetwork.name != path.stem:
        yield f"its name inside is {hypernetwork.name!r}; prompts go by the file's name, {path.stem!r}"
    yield from _widths(hypernetwork)
    yield from _effects(networks)
    yield from _settings(hypernetwork, written)
    if written.legacy_zip is None and hash_matches(path) is False:
        yield "its tensors are not those the header's hash was made of: the file was changed by another program"


def _widths(hypernetwork: AttentionHypernetwork) -> Iterator[str]:
    if hypernetwork.sites:
        return
    crossing = [BY_CROSS_WIDTH[w] for w in hypernetwork.widths if w in BY_CROSS_WIDTH]
    if len(crossing) > 1:
        yield f"it has networks for the cross-attention of {' and '.join(family.name for family in crossing)}"
    elif crossing:
        name, widths = crossing[0].name, crossing[0].widths
        missing = [w for w in widths if w not in hypernetwork.widths]
        extra = [w for w in hypernetwork.widths if w not in widths]
        if missing:
            yield f"{name} also has contexts {_listed(missing)} wide: the file leaves those attentions as they are"
        if extra:
            yield f"its networks for {_listed(extra)} fit nothing in {name}"
    elif not set(hypernetwork.widths) & {320, 640, 1280}:
        yield f"no Stable Diffusion has contexts {_listed(hypernetwork.widths)} wide: it is for a model of its own"
    else:
        yield "no network for cross-attention (768, 1024 or 2048): it acts on self-attention alone, in any family"


def _effects(networks: "Sequence[NetworkFacts]") -> Iterator[str]:
    idle = [n for n in networks if n.effect == 0]
    if len(idle) == len(networks):
        yield "no network changes anything: the file is at its start, or was never trained"
    elif idle:
        yield f"without effect: {_some([n.name for n in idle])}"
    zeros = [n for n in networks if n.zero]
    if zeros and len(zeros) < len(networks):
        yield f"nothing but zeros in {_some([n.name for n in zeros])}"
    huge = [n for n in networks if n.effect > _HUGE]
    if huge:
        most = max(huge, key=lambda n: n.effect)
        yield (
            f"far stronger than contexts themselves: {most.name} adds {most.effect:.1f} times their size at strength "
            f"1 ({len(huge)} of {len(networks)} networks over {_HUGE:g}); try a low strength"
        )
    dead = [n for n in networks if n.dead and max(n.dead) > _DEAD and not n.zero]
    if dead:
        most = max(dead, key=lambda n: max(n.dead))
        yield (
            f"dead units: {max(most.dead):.0%} of a layer of {most.name} are zero for random contexts "
            f"({len(dead)} of {len(networks)} networks over {_DEAD:.0%})"
        )


def _settings(hypernetwork: AttentionHypernetwork, written: "Written") -> Iterator[str]:
    settings = hypernetwork.settings
    if hypernetwork.use_dropout:
        yield "it has dropout, which acts in training alone (ComfyUI never switches it off)"
    if settings.layer_norm:
        yield "it has LayerNorm, which trains unstably and never goes below a certain strength"
    said = settings.activation != "linear" or settings.skip_connection
    if "activate_output" not in written.given and written.given and said:
        yield "it does not say activate_output: True as in the webui, but ComfyUI takes it for False"


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

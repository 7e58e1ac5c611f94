"""What prompts say over the sampling steps, as text states: editing, alternation and composition carried out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from hyperbrush.generation.encoding import Encoded
from hyperbrush.generation.prompt_schedule import schedule, split_parts
from hyperbrush.generation.settings import Settings
from hyperbrush.ldm.models.prompted import Prompted, Stretch

Encode = Callable[[str], Encoded]
Line = tuple[tuple[int, str], ...]  # (last step, text), …


@dataclass(frozen=True)
class Wording:
    """One prompt (without tags): the texts of each of its parts, and the parts' weights."""

    parts: tuple[Line, ...]
    weights: tuple[float, ...]

    @property
    def texts(self) -> list[str]:
        """Every text that is said at some step, once."""
        return list(dict.fromkeys(text for line in self.parts for _, text in line))


def wording(prompt: str, settings: Settings, *, second: bool = False) -> Wording:
    """What a prompt says at the steps of a sampling, or of the second pass of one.

    Raises:
        UserError: brackets nested too deep, a weight that is no finite number.
    """
    parts = split_parts(prompt)
    count = _count(settings, second)
    return Wording(
        tuple(tuple(schedule(part.text, *count)) for part in parts), tuple(part.weight for part in parts)
    )


def _count(settings: Settings, second: bool) -> tuple[int, int]:
    """(steps that a prompt's numbers count, those of the first pass before them)."""
    if not second:
        return counted(settings), 0
    again = replace(settings, steps=settings.hires_steps or settings.steps, hires_scale=None)
    return counted(again), counted(settings)


def counted(settings: Settings) -> int:
    """How many steps a prompt's numbers count, in the first pass where there are two.

    The steps that are run; with ``discretisation="webui"`` all that are asked for, and of samplers of second order each
    evaluation of the network, as the webui counts since 1.6.
    """
    from hyperbrush.ldm.sampling.names import USUAL, find_sampler

    if settings.discretisation == "webui":
        return settings.steps * find_sampler(settings.sampler or USUAL).order
    if settings.image is None:
        return settings.steps
    return max(1, min(int(settings.steps * settings.image_strength), settings.steps))


def layout(said: Wording, encode: Encode) -> tuple[tuple[tuple[int, int], ...], ...]:
    """When the text of each part changes, and to how many tokens: pictures of one layout can be drawn together."""
    return tuple(
        tuple((last, encode(text).embeddings.shape[1]) for last, text in line) for line in said.parts
    )


def prompted(
    said: Sequence[Wording], settings: Settings, encode: Encode, *, second: bool = False
) -> Prompted:
    """What pictures of one layout are told, as a batch; second: in the second pass."""

    @cache
    def together(texts: tuple[str, ...]) -> Encoded:
        every = [encode(text) for text in texts]
        pooled = [one.pooled for one in every if one.pooled is not None]
        return Encoded(torch.cat([one.embeddings for one in every]), torch.cat(pooled) if pooled else None)

    def stretches(lines: Sequence[Line]) -> list[Stretch]:
        return [
            Stretch(now[0][0], (one := together(tuple(text for _, text in now))).embeddings, one.pooled)
            for now in zip(*lines, strict=True)
        ]

    # AND is a word in the negative prompt, as in the webui.
    negative = tuple(schedule(settings.negative, *_count(settings, second)))
    return Prompted(
        [stretches(lines) for lines in zip(*(one.parts for one in said), strict=True)],
        torch.tensor([one.weights for one in said]).T,
        stretches([negative] * len(said)),
        evaluations=settings.discretisation == "webui",
    )

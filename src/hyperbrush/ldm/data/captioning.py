"""From the captions as they are written to the one of a moment: which, tags in other orders, templates, words."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.templates import fill
from hyperbrush.ldm.util import keyed_generator


@dataclass(frozen=True)
class Captioning:
    """What is done to written captions; every chance is keyed by (seed, epoch, index).

    First one of a picture's captions is drawn, then its tags (parts between separators) are dropped and
    shuffled, then a template takes them in as ``[filewords]``, then words and the suffix follow. Leaving
    out whole captions, for classifier-free guidance, is the objective's business (condition_dropout).

    templates: sentences, see ``read_templates``; one is drawn each time. None: the caption alone.
    name: what ``[name]`` stands for.
    first_caption: probability of the first of several captions, in [0, 1]; the others share the rest
        equally. None: all alike.
    append: words such as ", in flat style", one of which is joined to the end each time; a mapping gives
        their weights. "" appends nothing; words with ``[filewords]`` in them take the caption in there:
        "thin line [filewords]".
    suffix: joined to the end of all that, such as ", flat style".
    shuffle_tags: tags come in a random order.
    drop_tags: probability of each tag to be left out, in [0, 1].
    keep_tags: so many first tags keep their place and are never left out.
    separator: between tags.

    Raises:
        UserError: a number out of range; an empty separator; ``[name]`` in a template and no name; words
            to append that are no texts, or weights that are none.
    """

    templates: Sequence[str] = ()
    name: str = ""
    suffix: str = ""
    shuffle_tags: bool = False
    drop_tags: float = 0.0
    keep_tags: int = 0
    separator: str = ","
    first_caption: float | None = None
    append: Sequence[str] | Mapping[str, float] = ()

    def __post_init__(self) -> None:
        check_append(self.append)
        if self.first_caption is not None and not 0 <= self.first_caption <= 1:
            raise UserError(f"first_caption is {self.first_caption}; expected a number from 0 to 1")
        if not 0 <= self.drop_tags <= 1:
            raise UserError(f"drop_tags is {self.drop_tags}; expected a number from 0 to 1")
        if self.keep_tags < 0:
            raise UserError(f"keep_tags is {self.keep_tags}; expected 0 or more")
        if not self.separator.strip():
            raise UserError(
                f"separator is {self.separator!r}; expected what stands between tags, such as ','"
            )
        if isinstance(self.templates, str):
            raise UserError(
                f"templates is the text {self.templates!r}; expected read_templates({self.templates!r})"
            )
        for template in self.templates:
            if "[name]" in template and not self.name.strip():
                raise UserError(
                    f"the template {template!r} asks for a name and none is given; set name to the word "
                    "that is to be learnt"
                )

    @property
    def _varies_in_text(self) -> bool:
        return self.shuffle_tags or self.drop_tags > 0 or len(self.templates) > 1

    def caption(self, written: str | Sequence[str], seed: int, epoch: int, index: int) -> str:
        """Caption of one example in one epoch.

        written: the picture's caption, or all of its captions.

        >>> style = Captioning(("[filewords], painted by [name]",), name="anna", keep_tags=1, drop_tags=1.0)
        >>> style.caption("cat, sitting, outdoors", seed=0, epoch=0, index=0)
        'cat, painted by anna'
        """
        captions = [written] if isinstance(written, str) else written
        written, end = captions[0], self._ends[0]
        if len(captions) > 1 or len(self._ends) > 1:
            # A key of their own: what else is drawn is the same with and without them.
            chances = keyed_generator(seed, "captions", epoch, index)
            which, word = torch.rand(2, generator=chances, dtype=torch.float64).tolist()
            written, end = captions[self._which(which, len(captions))], self._end(word)
        if not self._varies_in_text:
            return self._finished(written, 0, end)
        generator = keyed_generator(seed, "caption", epoch, index)
        # Drawn whether used or not: the template stays when tags are shuffled too.
        template = int(torch.rand((), generator=generator, dtype=torch.float64) * max(1, len(self.templates)))
        if self.shuffle_tags or self.drop_tags:
            written = self._tags(written, generator)
        return self._finished(written, template, end)

    def variants(self, written: str | Sequence[str]) -> list[str]:
        """Each caption that may come, in every template, with all words that may follow.

        Tags are all there, in the written order.
        """
        captions = [written] if isinstance(written, str) else list(written)
        if len(captions) > 1 and self.first_caption in (0, 1):
            captions = captions[:1] if self.first_caption else captions[1:]
        return [
            self._finished(caption, number, end)
            for caption in captions
            for number in range(max(1, len(self.templates)))
            for end in self._ends
        ]

    def without_chance(self) -> "Captioning":
        """The same, always alike: first caption and template, first or heaviest words, tags as written."""
        heaviest = self._ends[self._weights.index(max(self._weights))]
        return replace(
            self,
            templates=self.templates[:1],
            shuffle_tags=False,
            drop_tags=0.0,
            first_caption=1.0,
            append=(heaviest,) if self.append else (),
        )

    @cached_property
    def _ends(self) -> list[str]:
        return list(self.append) or [""]

    @cached_property
    def _weights(self) -> list[float]:
        return list(self.append.values()) if isinstance(self.append, Mapping) else [1.0] * len(self._ends)

    @cached_property
    def _sums(self) -> list[float]:
        return list(accumulate(self._weights))

    def _end(self, chance: float) -> str:
        # The last sum itself is never reached: chance is below 1, but rounding may say otherwise.
        return self._ends[bisect_right(self._sums, chance * self._sums[-1], hi=len(self._ends) - 1)]

    def _which(self, chance: float, count: int) -> int:
        """Number of the caption drawn among ``count``."""
        first = self.first_caption
        if count == 1 or first is None:
            return int(chance * count)
        if chance < first:
            return 0
        return 1 + min(count - 2, int((chance - first) / (1 - first) * (count - 1)))

    def _tags(self, written: str, generator: torch.Generator) -> str:
        tags = [tag for part in written.split(self.separator) if (tag := part.strip())]
        first, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        chances = torch.rand(len(rest), generator=generator, dtype=torch.float64).tolist()
        order = torch.randperm(len(rest), generator=generator).tolist()
        places = order if self.shuffle_tags else range(len(rest))
        kept = [rest[place] for place in places if chances[place] >= self.drop_tags]
        joint = self.separator if self.separator[-1].isspace() else f"{self.separator} "
        return joint.join(first + kept)

    def _finished(self, filewords: str, template: int, end: str) -> str:
        text = fill(self.templates[template], self.name, filewords) if self.templates else filewords
        joined = end.replace("[filewords]", text) if "[filewords]" in end else text + end
        return joined + self.suffix


def check_append(append: Any) -> None:
    """Tell whether words to append are what ``Captioning`` takes.

    Raises:
        UserError: neither a list of texts nor a mapping of texts to weights above 0.
    """
    if isinstance(append, str) or not isinstance(append, Sequence | Mapping):
        raise UserError(
            f"append is {append!r}; expected a list of texts, such as [', flat style', ''], or a mapping of "
            "texts to weights"
        )
    if wrong := [words for words in append if not isinstance(words, str)]:
        raise UserError(f"append has {wrong[0]!r}; expected a text, in quotation marks if need be")
    if not isinstance(append, Mapping):
        return
    for words, weight in append.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"append gives {words!r} the weight {weight!r}; expected a number above 0")

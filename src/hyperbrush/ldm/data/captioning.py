"""From the caption as it is written to the one of a moment: tags in other orders, templates, a name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.templates import fill
from hyperbrush.ldm.util import keyed_generator


@dataclass(frozen=True)
class Captioning:
    """What is done to written captions; every chance is keyed by (seed, epoch, index).

    First the tags (parts between separators) are dropped and shuffled, then a template takes them
    in as ``[filewords]``, then the suffix follows. Leaving out whole captions, for classifier-free
    guidance, is the objective's business (condition_dropout).

    templates: sentences, see ``read_templates``; one is drawn each time. None: the caption alone.
    name: what ``[name]`` stands for.
    suffix: joined to the end, such as ", flat style".
    shuffle_tags: tags come in a random order.
    drop_tags: probability of each tag to be left out, in [0, 1].
    keep_tags: so many first tags keep their place and are never left out.
    separator: between tags.

    Raises:
        UserError: a number out of range; an empty separator; ``[name]`` in a template and no name.
    """

    templates: Sequence[str] = ()
    name: str = ""
    suffix: str = ""
    shuffle_tags: bool = False
    drop_tags: float = 0.0
    keep_tags: int = 0
    separator: str = ","

    def __post_init__(self) -> None:
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
    def varies(self) -> bool:
        """Whether a picture's caption may differ from epoch to epoch."""
        return self.shuffle_tags or self.drop_tags > 0 or len(self.templates) > 1

    def caption(self, written: str, seed: int, epoch: int, index: int) -> str:
        """Caption of one example in one epoch.

        >>> style = Captioning(("[filewords], painted by [name]",), name="anna", keep_tags=1, drop_tags=1.0)
        >>> style.caption("cat, sitting, outdoors", seed=0, epoch=0, index=0)
        'cat, painted by anna'
        """
        if not self.varies:
            return self.variants(written)[0]
        generator = keyed_generator(seed, "caption", epoch, index)
        # Drawn whether used or not: the template stays when tags are shuffled too.
        template = int(torch.rand((), generator=generator, dtype=torch.float64) * max(1, len(self.templates)))
        if self.shuffle_tags or self.drop_tags:
            written = self._tags(written, generator)
        return self._finished(written, template)

    def variants(self, written: str) -> list[str]:
        """The caption in every template, with all of its tags in the written order."""
        return [self._finished(written, number) for number in range(max(1, len(self.templates)))]

    def _tags(self, written: str, generator: torch.Generator) -> str:
        tags = [tag for part in written.split(self.separator) if (tag := part.strip())]
        first, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        chances = torch.rand(len(rest), generator=generator, dtype=torch.float64).tolist()
        order = torch.randperm(len(rest), generator=generator).tolist()
        places = order if self.shuffle_tags else range(len(rest))
        kept = [rest[place] for place in places if chances[place] >= self.drop_tags]
        joint = self.separator if self.separator[-1].isspace() else f"{self.separator} "
        return joint.join(first + kept)

    def _finished(self, filewords: str, template: int) -> str:
        text = fill(self.templates[template], self.name, filewords) if self.templates else filewords
        return text + self.suffix

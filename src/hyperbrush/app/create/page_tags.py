"""`<hypernet:NAME:STRENGTH>` in a prompt that is being written: found, changed and taken out where it stands."""

import re
from dataclasses import dataclass

from hyperbrush.generation.tags import TAG

CONDITIONAL = "guidance=conditional"


@dataclass(frozen=True)
class Written:
    """A tag as it stands in a prompt, whether its numbers make sense or not."""

    start: int
    end: int
    items: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the network."""
        return self.items[0]

    @property
    def strength(self) -> float:
        """1 where it says none, or none that is a number."""
        at = self._place()
        try:
            return float(self.items[at].removeprefix("strength=")) if at else 1.0
        except ValueError:
            return 1.0

    @property
    def conditional(self) -> bool:
        """Whether it acts on the conditional side of guidance alone."""
        return CONDITIONAL in self.items

    def with_guidance(self, conditional: bool) -> str:
        """The tag's text for one side of guidance or both, and everything else as it was."""
        items = [item for item in self.items if not item.startswith("guidance=")]
        return f"<hypernet:{':'.join(items + [CONDITIONAL] * conditional)}>"

    def with_strength(self, strength: float) -> str:
        """The tag's text with another strength, and everything else as it was."""
        items, at, text = list(self.items), self._place(), f"{strength:g}"
        if at:
            items[at] = f"strength={text}" if items[at].startswith("strength=") else text
        else:
            items.insert(1, text)
        return f"<hypernet:{':'.join(items)}>"

    def _place(self) -> int:
        """Which of the items is the strength; 0 for none."""
        for at, item in enumerate(self.items[1:], start=1):
            if "=" not in item or item.startswith("strength="):
                return at
        return 0


def written(prompt: str) -> list[Written]:
    """The hypernetwork tags of a prompt, in order."""
    return [
        Written(match.start(), match.end(), tuple(match[2].split(":")))
        for match in TAG.finditer(prompt)
        if match[1] == "hypernet"
    ]


def changed(prompt: str, number: int, strength: float | None) -> str:
    """A prompt with one of its tags at another strength, or (None) without it; unchanged where there is no such tag.

    >>> changed("a cat <hypernet:ink:1>, blue", 0, 0.5)
    'a cat <hypernet:ink:0.5>, blue'
    >>> changed("a cat <hypernet:ink:1>, blue", 0, None)
    'a cat, blue'
    """
    found = written(prompt)
    if number >= len(found):
        return prompt
    tag = found[number]
    if strength is not None:
        return prompt[: tag.start] + tag.with_strength(strength) + prompt[tag.end :]
    before, after = prompt[: tag.start], prompt[tag.end :]
    if not after or re.match(r"[\s,.;]", after):
        before = before.rstrip(" ")
    return before + after


def one_sided(prompt: str, number: int, conditional: bool) -> str:
    """A prompt with one of its networks on the conditional side of guidance alone, or on both.

    >>> one_sided("a cat <hypernet:ink:1>", 0, True)
    'a cat <hypernet:ink:1:guidance=conditional>'
    """
    found = written(prompt)
    if number >= len(found):
        return prompt
    tag = found[number]
    return prompt[: tag.start] + tag.with_guidance(conditional) + prompt[tag.end :]


def added(prompt: str, name: str, words: str = "", strength: float = 1.0) -> str:
    """A prompt with a network's tag and trigger words at its end, unless they are in it.

    >>> added("a cat", "ink", "inked")
    'a cat, inked <hypernet:ink:1>'
    """
    if words and words not in prompt:
        prompt = ", ".join(filter(None, (prompt.rstrip(" ,"), words)))
    if any(tag.name == name for tag in written(prompt)):
        return prompt
    return f"{prompt} <hypernet:{name}:{strength:g}>".lstrip()

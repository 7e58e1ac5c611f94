"""One change to many captions: find and replace, words before and behind, tags taken away; and the tags there are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hyperbrush.errors import UserError


@dataclass(frozen=True)
class CaptionEdit:
    """What is done to each caption, in this order.

    Args:
        find, replace: every occurrence of a text becomes another one.
        drop: tags (what stands between commas) that are taken away, whatever their letters' case.
        prefix, suffix: what stands before and behind; a caption that has it already stays.

    >>> CaptionEdit(find="kitty", replace="cat", drop=("blurry",), prefix="ink style, ").apply("a kitty, Blurry, red")
    'ink style, a cat, red'
    """

    find: str = ""
    replace: str = ""
    drop: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.replace and not self.find:
            raise UserError("replace: there is nothing to find; say what it takes the place of")
        if not (self.find or self.drop or self.prefix.strip() or self.suffix.strip()):
            raise UserError("nothing to change: give a text to find, tags to drop, a prefix or a suffix")

    def apply(self, caption: str) -> str:
        """The changed caption, on one line."""
        text = caption.replace(self.find, self.replace) if self.find else caption
        unwanted = {tag.strip().casefold() for tag in self.drop}
        if unwanted and any(tag.casefold() in unwanted for tag in tags_of(text)):
            text = ", ".join(tag for tag in tags_of(text) if tag.casefold() not in unwanted)
        text = text if f"{text} ".startswith(self.prefix) else self.prefix + text
        text = text if f" {text}".endswith(self.suffix) else text + self.suffix
        return " ".join(text.split())


def tags_of(caption: str) -> list[str]:
    """What stands between its commas."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def tags(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Tags with the number of captions that have them, the most frequent first, then by name."""
    counts = Counter(tag for caption in captions for tag in dict.fromkeys(tags_of(caption)))
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

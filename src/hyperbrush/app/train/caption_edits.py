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
        text, prefix, suffix = (" ".join(part.split()) for part in (text, self.prefix, self.suffix))
        before = " " if self.prefix[-1:].isspace() else ""
        behind = " " if self.suffix[:1].isspace() else ""
        text = text if f"{text} ".startswith(prefix + before) else prefix + before + text
        text = text if f" {text}".endswith(behind + suffix) else text + behind + suffix
        return text.strip()


def tags_of(caption: str) -> list[str]:
    """What stands between its commas."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def tags(pictures: Iterable[Iterable[str]]) -> list[tuple[str, int]]:
    """Tags with the number of pictures that have them, the most frequent first, then by name; of each: its captions."""
    counts = Counter(tag for said in pictures for tag in {t for caption in said for t in tags_of(caption)})
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

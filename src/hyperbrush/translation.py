"""Errors and notes in the reader's language, found by their English text, which is what logs, Python and other processes see.

A catalogue, `assets/translations/LANGUAGE.json`, has English texts with numbered fields ("cannot write {0}: {1}; make room")
and what is said for each. `tests/test_translation.py` sees to it that every text the code can say is among them.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ko", "zh")
FOLDER = Path(__file__).parent / "assets/translations"
LONGEST = 8000  # characters of a text that is looked at: what quotes a whole prompt stays as it is
MOST_PARTS = 60

_FIELD = re.compile(r"\{(\d+)\}")
_UNKNOWN = re.compile(
    r"unknown (.+?) ('.*?'|\".*?\")(?:; did you mean (.+?)\?|\.) Known: (.*)", re.DOTALL
)  # see `errors.unknown_name`
GUESSED = "unknown {0} {1}; did you mean {2}? Known: {3}"
UNGUESSED = "unknown {0} {1}. Known: {2}"


def say(text: str, language: str) -> str:
    """A text of `hyperbrush` in a language; what no catalogue has stays English.

    Fields are translated too, where they are messages themselves, and so are messages that are joined by "; ", lines, and
    those behind a place and a colon.
    """
    if language not in LANGUAGES[1:] or not text:
        return text
    return catalogue(language).say(text)


def terminal_language(chosen: str = "") -> str:
    """What `--language` says, or else what the environment does: the first of LC_ALL, LC_MESSAGES and LANG that is set."""
    names = (os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = chosen or next(filter(None, names), "")
    short = re.split(r"[_.@-]", name, maxsplit=1)[0].lower()
    return short if short in LANGUAGES else "en"


@cache
def catalogue(language: str) -> "Catalogue":
    """What is said in one language; read once, when first asked."""
    import json

    return Catalogue(json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))


class Catalogue:
    """English texts, with numbered fields, and what is said for them."""

    def __init__(self, said: Mapping[str, str]) -> None:
        self._plain = {english: own for english, own in said.items() if not _FIELD.search(english)}
        fielded = [_Template(english, own) for english, own in said.items() if _FIELD.search(english)]
        self._templates = sorted(fielded, key=lambda one: -one.letters)  # what says most fits best
        self._remarks = [one for one in self._templates if one.first.startswith(" (")]

    def say(self, text: str) -> str:
        """See the function `say`."""
        if len(text) > LONGEST or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
            return text  # what is quoted was given: it is no message
        if "\n" in text:
            return "\n".join(map(self.say, text.split("\n")))
        return self._found(text) or self._behind_a_place(text) or text

    def _found(self, text: str) -> str | None:
        """One message, or several that are joined."""
        if " " not in text:
            return self._plain.get(f"#{text}") or self._plain.get(f"={text}")
        parts = text.split("; ")
        if (
            not _UNKNOWN.fullmatch(text)
            and 1 < len(parts) <= MOST_PARTS
            and (several := self._several(parts))
        ):
            return "; ".join(several)
        return self._one(text)

    def _several(self, parts: list[str]) -> list[str] | None:
        """Messages out of parts, each of as few of them as can be, since a message may hold a "; " of its own."""
        for end in range(1, len(parts) + 1):
            first, rest = "; ".join(parts[:end]), parts[end:]
            said = self._one(first) or self._behind_a_place(first)
            if said and (more := self._several(rest) if rest else []) is not None:
                return [said, *more]
        return None

    def _one(self, text: str) -> str | None:
        if text in self._plain:
            return self._plain[text]
        if found := _UNKNOWN.fullmatch(text):
            fields = [value for value in found.groups() if value is not None]
            key = GUESSED if len(fields) == 4 else UNGUESSED
            template = next(one for one in self._templates if one.english == key)
            kind, *others = fields
            return template.say([self._plain.get(kind) or self._field(kind), *map(self._field, others)])
        for template in self._templates:
            if (given := template.fields(text)) is not None:
                place = ""
                if template.begins and ": " in given[0]:
                    place, _, given[0] = given[0].rpartition(": ")
                    place += ": "
                return place + template.say([self._field(value) for value in given])
        return self._with_a_remark(text)

    def _field(self, value: str) -> str:
        """What stands in a field: a message too, perhaps; a word alone is a name, unless it is a job's state."""
        return self.say(value) if " " in value else self._plain.get(f"={value}", value)

    def _with_a_remark(self, text: str) -> str | None:
        """A message with something in brackets behind it."""
        for template in self._remarks:
            at = text.rfind(template.first)
            if (
                at > 0
                and (given := template.fields(text[at:])) is not None
                and (said := self._one(text[:at]))
            ):
                return said + template.say([self._field(value) for value in given])
        return None

    def _behind_a_place(self, text: str) -> str | None:
        """A message behind "PLACE: "."""
        for at in _everywhere(": ", text):
            if said := self._found(text[at + 2 :]):
                return text[: at + 2] + said
        return None


class _Template:
    """A text with fields: found where its pieces stand in a text in this order, the first and last at the ends."""

    def __init__(self, english: str, own: str) -> None:
        self.english, self._own = english, own
        pieces = _FIELD.split(english)
        self._numbers = [int(number) for number in pieces[1::2]]
        self.first, *self._middle, self._last = pieces[::2]
        self.begins = not self.first  # with a field
        self.letters = sum(map(len, pieces[::2]))

    def fields(self, text: str) -> list[str] | None:
        """What stands in the fields by their number; each as short as can be."""
        at, end = len(self.first), len(text) - len(self._last)
        if at > end or not (text.startswith(self.first) and text.endswith(self._last)):
            return None
        found: dict[int, str] = {}
        for number, piece in zip(self._numbers, [*self._middle, ""], strict=True):
            stop = text.find(piece, at, end) if piece else end
            if stop < 0 or found.setdefault(number, text[at:stop]) != text[at:stop]:
                return None
            at = stop + len(piece)
        return [found[number] for number in sorted(found)]

    def say(self, fields: list[str]) -> str:
        """With the fields put in."""
        return _FIELD.sub(lambda number: fields[int(number[1])], self._own)


def _everywhere(piece: str, text: str) -> Iterator[int]:
    at = text.find(piece)
    while at >= 0:
        yield at
        at = text.find(piece, at + 1)

"""Prompts that change while a picture is sampled, and prompts composed of several, as the webui reads them.

``[cat:dog:0.5]`` is a cat for half of the steps and a dog then, ``[dog:0.5]`` nothing at first, ``[cat::0.5]`` nothing
at last; a number without a point counts steps. ``[cat|dog]`` takes turns. ``a cat AND a dog :1.2`` guides towards
both (Liu et al. 2022, 2206.01714).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hyperbrush.errors import UserError
from hyperbrush.generation.emphasis import MOST_OPEN

# A token is a bracket, a colon, a bar, or text in which a backslash takes the next character along.
_TOKEN = re.compile(r"[\[\]():|]|(?:[^\\\[\]():|]|\\.)+|\\")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([+-]?(?:[0-9]+\.?|[0-9]*\.[0-9]+))\s*\Z")


@dataclass(frozen=True)
class Switch:
    """``[before:after:when]``; when: as written, a share of the steps where it has a point, else a step."""

    before: "Pieces"
    after: "Pieces"
    when: str

    def step(self, steps: int, first: int = 0) -> int:
        """The last step of `before`, of `steps`; below 1: it has none.

        first: of a second pass, the steps of the first, which are counted on: a share of 1.5 is half of the second.
        """
        value = float(self.when)
        value = (value - (1 if first else 0)) * steps if "." in self.when else value - first
        return int(max(min(value, steps), -1))


@dataclass(frozen=True)
class Turns:
    """``[one|other|…]``: one after the other, a step each."""

    options: tuple["Pieces", ...]


Pieces = tuple[str | Switch | Turns, ...]


@dataclass(frozen=True)
class Part:
    """One of the prompts that a prompt is composed of, and how much of the guidance it gets."""

    text: str
    weight: float = 1.0


def split_parts(prompt: str) -> list[Part]:
    """The prompts between AND, each with the weight that stands behind it (``a dog :1.2``), else 1.

    As in the webui a prompt without AND has one part, and a number at its end is a weight there too.

    Raises:
        UserError: a weight that is too large for a number.

    >>> split_parts("a cat AND a dog :1.2")
    [Part(text='a cat ', weight=1.0), Part(text=' a dog', weight=1.2)]
    """
    parts = []
    for text in _AND.split(prompt):
        found = _WEIGHT.search(text)
        weight = 1.0 if found is None else float(found[1])
        if not math.isfinite(weight):
            raise UserError(f"the weight at the end of {text[-40:]!r} must be finite; write one like :1.2")
        parts.append(Part(text if found is None else text[: found.start()].rstrip(), weight))
    return parts


def schedule(prompt: str, steps: int, first: int = 0) -> list[tuple[int, str]]:
    """(last step, text) of each stretch of the sampling, steps counted from 1; the last one ends at `steps`.

    Brackets that are no editing stay as they are, emphasis among them. As in the webui a bar outside of ``[…|…]``, or a
    backslash at the end, makes a whole prompt plain text. first: of a second pass, as `Switch.step`.

    Raises:
        UserError: brackets nested deeper than `MOST_OPEN`.

    >>> schedule("a [red:blue:0.25] car", 20)
    [(5, 'a red car'), (20, 'a blue car')]
    >>> schedule("a [red:blue:1.5] car", 10, 20)
    [(5, 'a red car'), (10, 'a blue car')]
    """
    pieces = read_pieces(prompt)
    ends = {steps} | {end for end in _ends(pieces, steps, first) if end >= 1}
    return [(end, text_at(pieces, end, steps, first)) for end in sorted(ends)]


def counted_anew(prompt: str, steps: int, order: int) -> str:
    """A prompt of a webui before 1.6 as newer ones would write it; one that means the same now stays as it is.

    There a number below 1 was a share, a point or not, and samplers of second order counted their evaluations against the
    steps.  order: evaluations a step.
    """
    tokens = _TOKEN.findall(prompt)
    for at in range(1, len(tokens) - 1):
        when = _number(tokens, at) if tokens[at - 1] == ":" else None
        if when is None or not math.isfinite(value := float(when)):
            continue
        before = max(int(min(value * steps if value < 1 else value, steps)), 0)
        if before != max(Switch((), (), when).step(steps * order), 0):
            tokens[at] = str(before)
    return "".join(tokens)


def read_pieces(prompt: str) -> Pieces:
    """A prompt's plain text, switches and turns, in order.

    Raises:
        UserError: brackets nested deeper than `MOST_OPEN`.
    """
    tokens = _TOKEN.findall(prompt)
    if "\\" in tokens:
        return (prompt,)
    nodes = _nodes(tokens)
    found: list[str | Switch | Turns] = []
    at = 0
    while at < len(tokens):
        if at in nodes:
            pieces, at, _ = nodes[at]
            found += pieces
        elif tokens[at] == "|":
            return (prompt,)
        else:
            found.append(tokens[at])
            at += 1
    return tuple(found)


def text_at(pieces: Pieces, step: int, steps: int, first: int = 0) -> str:
    """What a prompt says at a step, counted from 1; first: as `Switch.step`."""
    said = []
    for piece in pieces:
        if isinstance(piece, Switch):
            piece_now = piece.before if step <= piece.step(steps, first) else piece.after
            said.append(text_at(piece_now, step, steps, first))
        elif isinstance(piece, Turns):
            said.append(text_at(piece.options[(step - 1) % len(piece.options)], step, steps, first))
        else:
            said.append(piece)
    return "".join(said)


def changes(pieces: Pieces) -> bool:
    """Whether a prompt changes with the step."""
    return any(not isinstance(piece, str) for piece in pieces)


def bare_bar(prompt: str) -> bool:
    """Whether a prompt would change with the step, were it not for a bar or a backslash that makes it plain text."""
    nodes = _nodes(_TOKEN.findall(prompt))
    return any(changes(pieces) for pieces, _, _ in nodes.values()) and read_pieces(prompt) == (prompt,)


def _ends(pieces: Pieces, steps: int, first: int) -> Iterator[int]:
    for piece in pieces:
        if isinstance(piece, Switch):
            yield piece.step(steps, first)
            yield from _ends(piece.before, steps, first)
            yield from _ends(piece.after, steps, first)
        elif isinstance(piece, Turns):
            yield from range(1, steps + 1)


# Where a bracket opens → what stands there, the place behind it, how deep it is nested.
_Nodes = dict[int, tuple[Pieces, int, int]]


def _nodes(tokens: list[str]) -> _Nodes:
    """All brackets that close as the grammar has it, the inner ones first: no recursion, whatever the prompt."""
    nodes: _Nodes = {}
    for at in range(len(tokens) - 1, -1, -1):
        if tokens[at] == "(":
            found = _round(tokens, at, nodes)
        elif tokens[at] == "[":
            found = _square(tokens, at, nodes)
        else:
            continue
        if found is not None:
            nodes[at] = found
            if found[2] > MOST_OPEN:
                raise UserError(
                    f"brackets are nested deeper than {MOST_OPEN}; close them, or write those that mean nothing as "
                    "\\( and \\["
                )
    return nodes


def _inside(tokens: list[str], at: int, nodes: _Nodes) -> tuple[Pieces, int, int]:
    """Text and whole brackets from a place on: the pieces, the place of what is neither, how deep they are."""
    found: list[str | Switch | Turns] = []
    depth = 0
    while at < len(tokens):
        if at in nodes:
            pieces, at, deep = nodes[at]
            found += pieces
            depth = max(depth, deep)
        elif len(tokens[at]) > 1 or tokens[at] not in "[]():|":
            found.append(tokens[at])
            at += 1
        else:
            break
    return tuple(found), at, depth


def _is(tokens: list[str], at: int, token: str) -> bool:
    return at < len(tokens) and tokens[at] == token


def _round(tokens: list[str], at: int, nodes: _Nodes) -> tuple[Pieces, int, int] | None:
    """``(text)`` or ``(text:text)``, emphasis, whose brackets stay."""
    pieces, end, depth = _inside(tokens, at + 1, nodes)
    if _is(tokens, end, ":"):
        more, end, deep = _inside(tokens, end + 1, nodes)
        pieces, depth = (*pieces, ":", *more), max(depth, deep)
    return (("(", *pieces, ")"), end + 1, depth + 1) if _is(tokens, end, ")") else None


def _square(tokens: list[str], at: int, nodes: _Nodes) -> tuple[Pieces, int, int] | None:
    """``[text]``, ``[text|…]``, ``[text:number]`` or ``[text:text:number]``."""
    first, end, depth = _inside(tokens, at + 1, nodes)
    if _is(tokens, end, "]"):
        return ("[", *first, "]"), end + 1, depth + 1
    if _is(tokens, end, "|"):
        options = [first]
        while _is(tokens, end, "|"):
            more, end, deep = _inside(tokens, end + 1, nodes)
            options.append(more)
            depth = max(depth, deep)
        return ((Turns(tuple(options)),), end + 1, depth + 1) if _is(tokens, end, "]") else None
    if not _is(tokens, end, ":"):
        return None
    when = _number(tokens, end + 1)
    if when is not None:
        return (Switch((), first, when),), end + 3, depth + 1
    second, end, deep = _inside(tokens, end + 1, nodes)
    when = _number(tokens, end + 1) if _is(tokens, end, ":") else None
    return None if when is None else ((Switch(first, second, when),), end + 3, max(depth, deep) + 1)


def _number(tokens: list[str], at: int) -> str | None:
    """The number that closes a bracket, if one stands there."""
    found = _NUMBER.fullmatch(tokens[at]) if at < len(tokens) else None
    return found[1] if found is not None and _is(tokens, at + 1, "]") else None

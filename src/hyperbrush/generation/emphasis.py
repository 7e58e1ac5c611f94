"""Emphasis in prompts as the webui reads it: `(word)`, `[word]`, `(word:1.3)`, escapes, `BREAK`."""

import math
import re

from hyperbrush.errors import UserError

ROUND, SQUARE = 1.1, 1 / 1.1
BREAK = ("BREAK", -1.0)  # where the text goes on in a new chunk
MOST_OPEN = 100  # brackets of a kind; 1.1 to the 100th is a weight of 14,000 already

# Pieces of a prompt, left to right. A weight only counts inside "(", else it is text.
_PIECE = re.compile(
    r"""\\(?P<escaped>[()\[\]\\])     # a bracket or backslash to be read as it is
    |(?P<lone>\\)                     # before anything else a backslash says nothing
    |(?P<bracket>[()\[\]])
    |:\s*(?P<weight>[+-]?[.\d]+)\s*\)
    |(?P<text>:|[^\\()\[\]:]+)""",
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    r"""A prompt's parts with their weights, neighbours of one weight joined.

    A pair of "(" and ")" multiplies its weight by 1.1, "[" and "]" divides by 1.1, "(text:1.3)" multiplies
    by the number given; "\(", "\)", "\[", "\]" and "\\" are the characters themselves.  A bracket never
    closed reaches to the end, one never opened is text.  BREAK, where it is a word of its own, is the part
    ``("BREAK", -1.0)``.  As in the webui a BREAK inside brackets gets their weight, ``("BREAK", -1.1)``,
    and is then an ordinary word: only the weight -1 breaks.

    Raises:
        UserError: a weight that is no finite number; brackets nested deeper than `MOST_OPEN`.

    >>> parse_emphasis("a (cat:1.3) BREAK [sky]")
    [('a ', 1.0), ('cat', 1.3), ('', 1.0), ('BREAK', -1.0), ('', 1.0), ('sky', 0.9090909090909091)]
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each open bracket's text begins

    def multiply(begin: int, factor: float) -> None:
        parts[begin:] = [(text, weight * factor) for text, weight in parts[begin:]]

    for piece in _PIECE.finditer(prompt):
        bracket, weight = piece["bracket"], piece["weight"]
        if piece["escaped"] or piece["lone"]:
            parts.append((piece["escaped"] or "", 1.0))
        elif bracket in opened:
            opened[bracket].append(len(parts))
            if len(opened[bracket]) > MOST_OPEN:
                raise UserError(
                    f"more than {MOST_OPEN} brackets {bracket!r} are open at once; close them, or write "
                    f"those that mean no emphasis as \\{bracket}"
                )
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), _weight(weight, piece[0]))
        elif bracket == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif bracket == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            first, *others = _BREAK.split(piece[0])
            parts.append((first.rstrip() if others else first, 1.0))
            for i, text in enumerate(others, start=1):
                text = text.lstrip() if i == len(others) else text.strip()
                parts += [BREAK, (text, 1.0)]
    for begin in opened["("]:
        multiply(begin, ROUND)
    for begin in opened["["]:
        multiply(begin, SQUARE)
    if not all(math.isfinite(weight) for _, weight in parts):
        raise UserError(
            "the weights of nested brackets multiply to more than a number holds; take smaller ones"
        )
    return _joined(parts) or [("", 1.0)]


def _weight(text: str, piece: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(
            f"the weight {text!r} in {piece!r} is not a number; write one like (word:1.3), or a plain "
            "bracket as \\( and \\)"
        ) from error
    if not math.isfinite(value):
        raise UserError(f"the weight in {piece[:20]!r} must be finite; write one like (word:1.3)")
    return value


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one part."""
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined

"""The one kind of error a user can correct: the command line prints it in one line and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What was got, what was expected, where, and what to do next."""


class NotThere(UserError):
    """What was asked for by name or number is not there: status 404 of the app."""


class UnknownHypernetwork(NotThere):
    """No file of that name in a library's folder, or no folder to look in."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """Error for a name that is not among ``known``, with the closest ones.

    >>> str(unknown_name("sampler", "Eulr", ["Euler", "DDIM"]))
    "unknown sampler 'Eulr'; did you mean 'Euler'? Known: DDIM, Euler"
    """
    names = sorted(set(known))
    by_folded = {n.casefold(): n for n in names}
    close = [by_folded[n] for n in get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
    guess = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "") if names else "none"
    return UserError(f"unknown {kind} {name!r}{guess} Known: {shown}{hint}")


def first_line(error: Exception) -> str:
    """What another library's error says first, or its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

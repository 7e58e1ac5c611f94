"""The language of the terminal: what `--language` says, or else the environment."""

from contextvars import ContextVar

from hyperbrush.errors import unknown_name
from hyperbrush.translation import LANGUAGES, say, terminal_language

_chosen: ContextVar[str] = ContextVar("language", default="")


def choose(name: str) -> None:
    """Take a language for what is told from now on.

    Raises:
        UserError: nothing is said in it.
    """
    _chosen.set(name if name in LANGUAGES else "")
    if name and name not in LANGUAGES:
        raise unknown_name("language", name, LANGUAGES)


def told(text: object) -> str:
    """An English text in the terminal's language."""
    return say(str(text), terminal_language(_chosen.get()))

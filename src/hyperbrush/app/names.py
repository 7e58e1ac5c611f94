"""Names that the user gives: what a folder or file may be called, and the next one that is free."""

import re
import unicodedata
from collections.abc import Collection

from hyperbrush.errors import UserError

LONGEST_NAME = 100


def plain_name(name: str, what: str) -> str:
    """A name that can be a folder's, here and on other systems.

    Raises:
        UserError: it cannot.
    """
    name = unicodedata.normalize("NFC", name).strip()
    bad = re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]', name)
    if (
        not name
        or bad
        or name.startswith(".")
        or name.endswith(".")
        or len(name.encode("utf-8", "replace")) > 150
    ):
        raise UserError(
            f"{ascii(name) if bad else repr(name):.120} cannot be the name of a {what}; expected up to "
            f'{LONGEST_NAME} characters without / \\ : * ? " < > |, and no dot at the ends'
        )
    return name


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of name-2, name-3, … that is not taken; taken: folded."""
    number, wanted = 1, name
    while wanted.casefold() in taken:
        number += 1
        wanted = f"{name}-{number}"
    return wanted

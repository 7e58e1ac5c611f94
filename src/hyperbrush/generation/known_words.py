"""Words that a model which lists its words was never shown."""

import re
from collections.abc import Container, Sequence


def never_seen(known: Container[str], texts: Sequence[str]) -> list[str]:
    """Words of texts that are not among the known ones, each once, as they come; folded to lower case.

    >>> never_seen({"cat", "a"}, ["A cat, a lighthouse", "lighthouse"])
    ['lighthouse']
    """
    words = [word for text in texts for word in re.findall(r"[^\W_]+", text.casefold())]
    return [word for word in dict.fromkeys(words) if word not in known]

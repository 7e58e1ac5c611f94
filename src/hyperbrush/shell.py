"""Words of commands that are shown to be typed."""

import re
import shlex


def quoted(word: object) -> str:
    """A word as a shell takes it: bare where it can be, else in double quotes, which read best.

    >>> print(quoted("models/ink.pt"), quoted("cat <hypernet:ink:1>"), quoted('a "b"'))
    models/ink.pt "cat <hypernet:ink:1>" 'a "b"'
    """
    text = str(word)
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    return shlex.quote(text) if set(text) & set('"$`\\!') or not text else f'"{text}"'

"""A run's report in another language than it is written in."""

import html
import re

from hyperbrush.translation import say

# What stands between tags, and what screen readers are told; quotation marks in them are escaped.
_TEXT = re.compile(r'(>|\b(?:aria-label|alt)=")([^<>"]*[A-Za-z][^<>"]*)(?=[<"])')


def in_language(page: str, language: str) -> str:
    """A page whose known texts are said in a language; all others stay."""

    def said(found: re.Match[str]) -> str:
        text = html.unescape(found[2])
        own = say(text, language)
        return found[0] if own == text else found[1] + html.escape(own)

    return _TEXT.sub(said, page.replace('<html lang="en">', f'<html lang="{language}">', 1))

"""What the pages say, in every language: one YAML file for each room of the app in each language's folder."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from fastapi import Request

from hyperbrush.translation import LANGUAGES, say

FOLDER = Path(__file__).parent
NAMES = {"en": "English", "ko": "한국어", "zh": "中文"}


class Messages:
    """What is said in one language: t("frame.menu"), t("frame.waiting", count=3).

    A key that a language lacks is said in English; the tests see to it that none is lacking.
    """

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else "en"
        self._said = catalogue(self.language)

    def __call__(self, key: str, /, **values: object) -> str:
        """A message with its values put in."""
        text = self._said.get(key) or catalogue("en")[key]
        return text.format_map(values) if values else text

    def get(self, key: str, default: str) -> str:
        """A message, or something else where there is none of that key."""
        return self._said.get(key, default)

    def said(self, text: object) -> str:
        """An error or a note of the library's in this language."""
        return say(str(text), self.language)


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Every message of a language by "room.key"."""
    found: dict[str, str] = {}
    for file in sorted((FOLDER / language).glob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        found |= {f"{file.stem}.{key}": str(text) for key, text in values.items()}
    return found


def language_of(request: Request, preferred: str) -> str:
    """The language of an answer: a browser's, or English for a program that asks for none (Accept-Language)."""
    cookie, accepted = request.cookies.get("language", ""), request.headers.get("accept-language", "")
    return chosen_language(cookie, preferred, accepted) if cookie or accepted else "en"


def chosen_language(cookie: str, preferred: str, accepted: str) -> str:
    """The language of a page: this browser's choice, else the preferred one, else the first the browser accepts."""
    for name in (cookie, preferred):
        if name in LANGUAGES:
            return name
    wanted: list[tuple[float, int, str]] = []
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";q=")
        with_weight = float(weight) if re.fullmatch(r"[01](\.\d{1,3})?", weight) else 1.0
        wanted.append((-with_weight, len(wanted), name.lower().split("-")[0]))
    return next((name for _, _, name in sorted(wanted) if name in LANGUAGES), "en")

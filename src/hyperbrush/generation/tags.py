"""`<hypernet:NAME:STRENGTH>` in prompts, as the webui reads it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hyperbrush.errors import UserError

TAG = re.compile(r"<(\w+):([^>]+)>")


@dataclass(frozen=True)
class HypernetworkTag:
    """One network asked for in a prompt."""

    name: str
    strength: float = 1.0


def parse_tags(prompt: str) -> tuple[str, list[HypernetworkTag]]:
    """A prompt's text without its tags, and the hypernetworks they name, in order.

    Arguments are split on ":"; the strength defaults to 1, 0 switches a network off, negative ones are
    legal.  Networks named twice add up.

    Raises:
        UserError: a strength that is no finite number, or a tag of another kind.
    """
    found: dict[str, float] = {}

    def take(match: re.Match[str]) -> str:
        kind, arguments = match.group(1), match.group(2).split(":")
        if kind != "hypernet":
            raise UserError(f"tag {match.group(0)} is not understood; <hypernet:NAME:STRENGTH> is")
        name = arguments[0]
        found[name] = found.get(name, 0.0) + _strength(match.group(0), arguments[1:])
        return ""

    text = TAG.sub(take, prompt)
    return text, [HypernetworkTag(name, strength) for name, strength in found.items()]


def _strength(tag: str, arguments: Sequence[str]) -> float:
    if not arguments:
        return 1.0
    try:
        value = float(arguments[0])
    except ValueError as error:
        raise UserError(f"{tag}: the strength {arguments[0]!r} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{tag}: the strength must be finite, got {arguments[0]}")
    return value

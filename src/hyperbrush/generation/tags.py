"""`<hypernet:NAME:STRENGTH>` in prompts, as the webui reads it, and named arguments that it ignores."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from hyperbrush.errors import UserError, unknown_name

TAG = re.compile(r"<(\w+):([^>]+)>")
ATTENTIONS = {
    "both": ("attn1", "attn2"),
    "self": ("attn1",),
    "cross": ("attn2",),
    "attn1": ("attn1",),
    "attn2": ("attn2",),
}
BLOCK = re.compile(r"(?:down|up)(?:\.[0-9]+)?|mid")
ARGUMENTS = ("strength", "start", "end", "ramp", "attn", "blocks")


@dataclass(frozen=True)
class HypernetworkTag:
    """One network asked for in a prompt.

    Args:
        name: of the file, without its suffix, in Unicode's composed form (NFC).
        strength: any finite number; 0 switches the network off.
        start, end: shares of the sampling steps between which it acts, 0 ≤ start < end ≤ 1.
        attn: the attentions it acts in: "attn1" (self), "attn2" (cross), or both.
        blocks: the UNet's blocks it acts in ("down.1", "mid", "up"; names as in
            `ldm.modules.attention_sites`); None for all.
        ramp: the strength at `start`, from where it goes linearly to `strength` at `end`; None for a
            constant strength.
    """

    name: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    attn: tuple[str, ...] = ("attn1", "attn2")
    blocks: tuple[str, ...] | None = None
    ramp: float | None = None


def split_tags(prompt: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """A prompt's text without its tags, and each tag's kind and arguments, as the webui splits them.

    >>> split_tags("a cat <hypernet:ink:0.7>")
    ('a cat ', [('hypernet', ['ink', '0.7'])])
    """
    end = prompt.rfind(">") + 1  # a tag never closed must not be sought from every "<"
    found = [(match[1], match[2].split(":")) for match in TAG.finditer(prompt, 0, end)]
    return TAG.sub("", prompt[:end]) + prompt[end:], found


def parse_tags(prompt: str) -> tuple[str, list[HypernetworkTag]]:
    """A prompt's text without its tags, and the hypernetworks they name, in order.

    Arguments are split on ":": the name, then the strength (1 if absent), then in any order `start=`,
    `end=`, `attn=cross|self|both`, `blocks=down.1+mid+up`, `ramp=` (see `HypernetworkTag`) and
    `strength=`.  The webui ignores named arguments that follow the strength; one more bare argument
    is ignored here as there.  Networks named twice add up where all but the strength agrees.

    Raises:
        UserError: a number that is none, is not finite or out of its range; an unknown argument, one
            given twice; a tag without a name, or of another kind.
    """
    text, found = split_tags(prompt)
    return text, list(_added_up([_read_tag(kind, items) for kind, items in found]))


def repeated_names(prompt: str) -> list[str]:
    """Names of networks that a prompt asks for more than once and that `parse_tags` added up, so that
    the caller can say so.

    Raises:
        UserError: as `parse_tags`.
    """
    added = _added_up([_read_tag(kind, items) for kind, items in split_tags(prompt)[1]])
    return list(dict.fromkeys(tag.name for tag, times in added.items() if times > 1))


def _added_up(tags: Sequence[HypernetworkTag]) -> dict[HypernetworkTag, int]:
    """Tags that differ in nothing but strength as one, and how many each was."""
    found: dict[HypernetworkTag, tuple[HypernetworkTag, int]] = {}
    for tag in tags:
        # Two ramps add up to a ramp; a ramp and a constant stay apart.
        place = replace(tag, strength=0.0, ramp=None if tag.ramp is None else 0.0)
        if place in found:
            before, times = found[place]
            ramp = None if tag.ramp is None or before.ramp is None else tag.ramp + before.ramp
            tag = replace(tag, strength=before.strength + tag.strength, ramp=ramp)
            if not math.isfinite(tag.strength) or not math.isfinite(tag.ramp or 0.0):
                raise UserError(f"the strengths of {tag.name!r} add up to {tag.strength}: take smaller ones")
            found[place] = tag, times + 1
        else:
            found[place] = tag, 1
    return dict(found.values())


def _read_tag(kind: str, items: list[str]) -> HypernetworkTag:
    tag = f"<{kind}:{':'.join(items)}>"
    if kind != "hypernet":
        hint = " (a LoRA is loaded into the pipeline, not named in the prompt)" if kind == "lora" else ""
        if get_close_matches(kind.casefold(), ["hypernet"], cutoff=0.7):
            hint = "; did you mean 'hypernet'?"
        raise UserError(f"tag {tag} is not understood; <hypernet:NAME:STRENGTH> is{hint}")
    name = unicodedata.normalize("NFC", items[0])
    if not name.strip():
        raise UserError(f"{tag} names no network; write <hypernet:NAME:STRENGTH>")
    bare = [item for item in items[1:] if "=" not in item]
    named: dict[str, str] = {"strength": bare[0]} if bare else {}
    for item in items[1:]:
        key, sign, value = item.partition("=")
        if not sign:
            continue
        if key not in ARGUMENTS:
            raise unknown_name(f"argument in {tag}:", key, ARGUMENTS)
        if key in named:
            raise UserError(f"{tag}: {key!r} is given twice; keep one")
        named[key] = value
    ends = {key: _number(tag, key, named[key]) for key in ("start", "end") if key in named}
    start, end = ends.get("start", 0.0), ends.get("end", 1.0)
    if not 0 <= start < end <= 1:
        raise UserError(
            f"{tag}: start and end are shares of the sampling steps, 0 ≤ start < end ≤ 1; "
            f"got start {start:g} and end {end:g}"
        )
    return HypernetworkTag(
        name,
        strength=_number(tag, "strength", named.get("strength", "1")),
        start=start,
        end=end,
        attn=_attentions(tag, named.get("attn", "both")),
        blocks=_blocks(tag, named["blocks"]) if "blocks" in named else None,
        ramp=_number(tag, "ramp", named["ramp"]) if "ramp" in named else None,
    )


def _number(tag: str, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{tag}: the {what} {text!r} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{tag}: the {what} must be finite, got {text}")
    return value


def _attentions(tag: str, name: str) -> tuple[str, ...]:
    if name not in ATTENTIONS:
        raise unknown_name(f"attention in {tag}:", name, ATTENTIONS)
    return ATTENTIONS[name]


def _blocks(tag: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split("+")))
    for name in names:
        if not BLOCK.fullmatch(name):
            raise UserError(
                f"{tag}: no block is called {name!r}; expected down, mid, up, or one of them like down.1, "
                "several joined by +"
            )
    return names

"""`<hypernet:NAME:STRENGTH>` and `<lora:NAME:STRENGTH>` in prompts, as the webui reads them, and named arguments that it
ignores.
"""

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
LORA = ("lora", "lyco")  # one to newer webuis
KINDS = ("hypernet", *LORA)
# A tag as keyboards for Chinese, Japanese and Korean write it: some of its signs are full-width.
_WIDE = re.compile(r"[<＜]\s*([A-Za-zＡ-Ｚａ-ｚ]+)\s*([:：])([^<>＜＞\n]+)[>＞]")
_WIDE_NUMBER = re.compile(r"：(?=[+＋－-]?[0-9０-９.．]+(?:[:：]|$))")
# What is left of a tag that was not closed, opened or spelled as one.
_NEAR = re.compile(
    r"(?:<|＜|&lt;|\[|\{|\()?\s{0,9}(?:hyper[\s_-]?net(?:work)?s?|ｈｙｐｅｒｎｅｔ)\s{0,9}[:：=][^,\n]{0,80}"
    r"|(?:<|＜|&lt;)\s{0,9}(?:hyper[\s_-]?net(?:work)?s?|lora|lyco)\b[^,\n]{0,80}",
    re.IGNORECASE,
)
BLOCK = re.compile(r"(?:down|up)(?:\.[0-9]+)?|mid")
ARGUMENTS = ("strength", "start", "end", "ramp", "attn", "blocks", "guidance")
GUIDANCE = ("both", "conditional")


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
        guidance: "both" of its sides, or the "conditional" one alone.
    """

    name: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    attn: tuple[str, ...] = ("attn1", "attn2")
    blocks: tuple[str, ...] | None = None
    ramp: float | None = None
    guidance: str = "both"


@dataclass(frozen=True)
class LoraTag:
    """One LoRA asked for in a prompt.

    Args:
        name: of the file, without its suffix, in Unicode's composed form (NFC).
        text_encoder, unet: strengths there; 0 in both switches it off.
    """

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0


def plain_tags(prompt: str) -> str:
    """A prompt whose full-width tags, ＜hypernet：ink：0.5＞, are written as <hypernet:ink:0.5>; the rest stays.

    Behind <hypernet: with plain signs a full-width colon belongs to the name, unless a number follows it.
    """

    def plain(found: re.Match[str]) -> str:
        kind = unicodedata.normalize("NFKC", found[1])
        if kind not in KINDS or not set(found[0]) & set("＜＞：＝"):
            return found[0]
        inside = found[3].replace("：", ":") if found[2] == "：" else _WIDE_NUMBER.sub(":", found[3])
        name, *rest = inside.split(":")
        return f"<{kind}:{':'.join([name, *(unicodedata.normalize('NFKC', one) for one in rest)])}>"

    return _WIDE.sub(plain, prompt)


def near_tags(text: str) -> list[str]:
    """What looks like a tag in a prompt whose tags were taken out: not closed, ``&lt;``, a blank, other brackets.

    >>> near_tags("cat <hypernet:ink:1")
    ['<hypernet:ink:1']
    """
    return [found[0].strip() for found in _NEAR.finditer(text)]


def split_tags(prompt: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """A prompt's text without its tags, and each tag's kind and arguments, as the webui splits them.

    >>> split_tags("a cat <hypernet:ink:0.7>")
    ('a cat ', [('hypernet', ['ink', '0.7'])])
    """
    prompt = plain_tags(prompt)
    end = prompt.rfind(">") + 1  # a tag never closed must not be sought from every "<"
    found = [(match[1], match[2].split(":")) for match in TAG.finditer(prompt, 0, end)]
    return TAG.sub("", prompt[:end]) + prompt[end:], found


def parse_tags(prompt: str) -> tuple[str, list[HypernetworkTag]]:
    """A prompt's text without its tags, and the hypernetworks they name, in order (`lora_tags` has the LoRAs).

    Arguments are split on ":": the name, then the strength (1 if absent), then in any order `start=`,
    `end=`, `attn=cross|self|both`, `blocks=down.1+mid+up`, `ramp=`, `guidance=both|conditional`
    (see `HypernetworkTag`) and `strength=`.  The webui ignores named arguments that follow the strength; one more bare argument
    is ignored here as there.  Networks named twice add up where all but the strength agrees.

    Raises:
        UserError: a number that is none, is not finite or out of its range; an unknown argument, one
            given twice; a tag without a name, or of another kind.
    """
    text, found = split_tags(prompt)
    return text, list(_added_up([_read_tag(*tag) for tag in found if tag[0] not in LORA]))


def lora_tags(prompt: str) -> list[LoraTag]:
    """The LoRAs that a prompt names: `<lora:NAME:STRENGTH>`, `<lora:NAME:TEXT:UNET>` (or te=, unet=) and `<lyco:…>`.

    Raises:
        UserError: a strength that is no finite number, an argument that is none, a tag without a name.
    """
    return [_read_lora(kind, items) for kind, items in split_tags(prompt)[1] if kind in LORA]


def repeated_names(prompt: str) -> list[str]:
    """Names of networks that a prompt asks for more than once and that `parse_tags` added up, so that
    the caller can say so.

    Raises:
        UserError: as `parse_tags`.
    """
    added = _added_up([_read_tag(*tag) for tag in split_tags(prompt)[1] if tag[0] not in LORA])
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
        close = get_close_matches(kind.casefold(), KINDS, n=1, cutoff=0.7)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"tag {tag} is not understood; <hypernet:NAME:STRENGTH> and <lora:NAME:STRENGTH> are{hint}"
        )
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
    guidance = named.get("guidance", "both")
    if guidance not in GUIDANCE:
        raise unknown_name(f"guidance in {tag}:", guidance, GUIDANCE)
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
        guidance=guidance,
    )


def _read_lora(kind: str, items: list[str]) -> LoraTag:
    tag = f"<{kind}:{':'.join(items)}>"
    name = unicodedata.normalize("NFC", items[0]).strip()
    if not name:
        raise UserError(f"{tag} names no LoRA; write <lora:NAME:STRENGTH>")
    bare = [item for item in items[1:] if "=" not in item]
    named = dict(item.split("=", 1) for item in items[1:] if "=" in item)
    for key in named:
        if key not in ("te", "unet"):
            raise unknown_name(f"argument in {tag}:", key, ("te", "unet"))
    if len(bare) > 2:
        raise UserError(f"{tag}: {bare[2]!r} is one argument too many; write <lora:NAME:TEXT:UNET>")
    both = bare[0] if bare else "1"
    return LoraTag(
        name,
        _number(tag, "strength", named.get("te", both)),
        _number(tag, "strength", named.get("unet", bare[1] if len(bare) > 1 else named.get("te", both))),
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

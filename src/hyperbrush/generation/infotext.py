"""A picture's settings as text, in the form of the webui's ``parameters``: written and read.

The prompt (any number of lines), "Negative prompt: …", and a last line of fields "Steps: 20, Sampler: Euler a,
…".  A value with a comma, a colon, a line break or a leading quote is written as a JSON string.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hyperbrush.errors import UserError
from hyperbrush.generation.tags import split_tags
from hyperbrush.ldm.sampling.names import AUTOMATIC_SCHEDULE, SAMPLERS

NEGATIVE = "Negative prompt:"
MOST_CHARACTERS = 1_000_000
# Fields that tell a line of settings from a line of a prompt.
_TELLING = {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model"}
_KEY = re.compile(r"\s*([^\W_][^:,\"\n]{0,99}?)\s*:[ \t]*")
_JSON = json.JSONDecoder(strict=False)
_AFTER = re.compile(r"\s*(?:,|$)")
_QUOTE = re.compile(r'\s*"')
_SIZE = re.compile(r"([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})")
_HASH = re.compile(r"[0-9a-fA-F]{6,64}")


@dataclass(frozen=True)
class Infotext:
    """What a picture says of how it was made; None, "" or empty where it says nothing.

    Args:
        prompt: with its `<hypernet:…>` tags.
        negative: what guidance moved away from.
        steps, seed: whole numbers.
        sampler: as written there, with the schedule ("DPM++ 2M Karras").
        guidance_scale: "CFG scale".
        size: (height, width) in pixels.
        model_hash: 10 hex digits of a sha256, or 8 of the webui's first kind.
        model: the checkpoint's name.
        clip_skip: 1 is none.
        hypernet_hashes: name → hash, of 10 or of 8 digits.
        version: of the program.
        fields: everything else, by its name there.
    """

    prompt: str = ""
    negative: str = ""
    steps: int | None = None
    sampler: str = ""
    guidance_scale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    model_hash: str = ""
    model: str = ""
    clip_skip: int | None = None
    hypernet_hashes: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


def write_infotext(settings: Infotext) -> str:
    """Settings as the webui writes them; `read_infotext` gives them back.

    (But for blanks around the prompts, and a line of the prompt that begins with "Negative prompt:", which the
    form has no way to say.)
    """
    size = settings.size
    items: dict[str, object] = {
        "Steps": settings.steps,
        "Sampler": settings.sampler,
        "CFG scale": None if settings.guidance_scale is None else _shortest(settings.guidance_scale),
        "Seed": settings.seed,
        "Size": None if size is None else f"{size[1]}x{size[0]}",
        "Model hash": settings.model_hash,
        "Model": settings.model,
        "Clip skip": settings.clip_skip,
        "Hypernet hashes": join_hashes(settings.hypernet_hashes),
        "Version": settings.version,
    }
    lines = [settings.prompt]
    if settings.negative:
        lines.append(f"{NEGATIVE} {settings.negative}")
    told = {key: str(value) for key, value in items.items() if value not in (None, "")}
    version = {"Version": told.pop("Version")} if "Version" in told else {}
    told = {**told, **settings.fields, **version}
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in told.items()))
    return "\n".join(lines)


def read_infotext(text: str) -> Infotext:
    """Settings out of a picture's ``parameters`` text, the webui's or ours.

    The old fields "Hypernet: name(hash)" and "Hypernet strength: 0.7" become a tag at the end of the prompt.
    "Schedule type" joins the sampler's name.  Unknown fields are kept in `fields`.

    Raises:
        UserError: a field that should be a number is none; the text is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the picture's text has {len(text)} characters, more than {MOST_CHARACTERS}")
    lines = text.replace("\r\n", "\n").strip().split("\n")
    found, at = _settings_line(lines)
    for line in lines[at + 1 :]:  # extensions write fields of their own below
        found = {**_fields(line), **found}
    prompt, negative = _two_prompts(lines[:at])
    take = dict(found)
    told = Infotext(
        prompt=prompt,
        negative=negative,
        steps=_whole(take, "Steps"),
        sampler=_sampler(take),
        guidance_scale=_number(take, "CFG scale"),
        seed=_whole(take, "Seed"),
        size=_size(take),
        model_hash=take.pop("Model hash", ""),
        model=take.pop("Model", ""),
        clip_skip=_whole(take, "Clip skip"),
        hypernet_hashes=split_hashes(take.pop("Hypernet hashes", "")),
        version=take.pop("Version", ""),
    )
    return replace(_with_old_network(told, take), fields=take)


def fields_of(text: str) -> dict[str, str]:
    """Every field of a picture's text by its name there, with "Prompt", "Negative prompt", "Size-1" (width) and "Size-2",
    as the webui's API gives them.

    Raises:
        UserError: the text is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the picture's text has {len(text)} characters, more than {MOST_CHARACTERS}")
    lines = text.replace("\r\n", "\n").strip().split("\n")
    found, at = _settings_line(lines)
    prompt, negative = _two_prompts(lines[:at])
    size = _SIZE.fullmatch(found.get("Size", ""))
    sides = {} if size is None else {"Size-1": size[1], "Size-2": size[2]}
    return {"Prompt": prompt, "Negative prompt": negative, **found, **sides}


def _settings_line(lines: list[str]) -> tuple[dict[str, str], int]:
    """The fields of the last line that holds settings, and which line it is: one beyond where none is."""
    for at in range(len(lines) - 1, -1, -1):
        found = _fields(lines[at])
        telling = _TELLING & found.keys()
        if len(telling) >= 2 or (telling and len(found) >= 3) or (len(found) == 1 and _alone(found)):
            return found, at
    return {}, len(lines)


def _alone(found: Mapping[str, str]) -> bool:
    """Whether a single field is settings rather than a prompt: "Steps: 20"."""
    return found.get("Steps", "").isdecimal()


def _fields(line: str) -> dict[str, str]:
    """The fields of a line, in order; empty if it does not begin with one. The first of equal names counts."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        key = _KEY.match(line, at)
        if key is None and not found:
            return {}
        if key is None:  # the rest of a value with a comma in it, which older webuis left as it was
            at = line.find(",", at) + 1 or len(line)
            continue
        value, at = _value(line, key.end())
        found.setdefault(key[1], value)
    return found


def _value(line: str, at: int) -> tuple[str, int]:
    """A value from a place of a line on, and where the next field begins."""
    if line[at : at + 1] == '"':
        try:
            value, end = _JSON.raw_decode(line, at)
        except ValueError:
            value, end = None, at
        rest = _AFTER.match(line, end)
        if isinstance(value, str) and rest is not None:
            return value, rest.end()
    end = line.find(",", at)
    end = len(line) if end < 0 else end
    return line[at:end].strip(), end + 1


def _two_prompts(lines: list[str]) -> tuple[str, str]:
    """The prompt, and what follows the first line that begins with "Negative prompt:"."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith(NEGATIVE):
            negative = [line.lstrip().removeprefix(NEGATIVE), *lines[i + 1 :]]
            return "\n".join(lines[:i]).strip(), "\n".join(negative).strip()
    return "\n".join(lines).strip(), ""


def _sampler(take: dict[str, str]) -> str:
    """The sampler's name, joined with the schedule that newer webuis write apart."""
    name, schedule = take.pop("Sampler", ""), take.get("Schedule type", "")
    if not name or not schedule:
        return name
    del take["Schedule type"]
    if schedule == AUTOMATIC_SCHEDULE:  # what the webui then takes
        schedule = next((one.automatic for one in SAMPLERS.values() if one.name == name), "")
    plain = schedule.casefold() in ("", "normal", "uniform") or name.endswith(schedule)
    return name if plain else f"{name} {schedule}"


def _with_old_network(told: Infotext, take: dict[str, str]) -> Infotext:
    """The network of the fields before tags were: "Hypernet: name(hash), Hypernet strength: 0.7"."""
    strength = _number(take, "Hypernet strength")
    written = take.pop("Hypernet", "").strip()
    if not written or written == "None":
        return told
    name, _, digest = written.rpartition("(")
    if not (name and digest.endswith(")") and _HASH.fullmatch(digest[:-1])):
        name, digest = written, take.pop("Hypernet hash", "")
    name, digest = name.strip(), digest.removesuffix(")")
    if set(name) & set("<>:\n"):
        raise UserError(f"the picture's hypernetwork {name!r:.80} has a name that no tag can hold")
    named = {items[0] for kind, items in split_tags(told.prompt)[1] if kind == "hypernet"}
    hashes = dict(told.hypernet_hashes)
    if digest:
        hashes.setdefault(name, digest.lower())
    tag = "" if name in named else f" <hypernet:{name}:{_shortest(1.0 if strength is None else strength)}>"
    return replace(told, prompt=(told.prompt + tag).strip(), hypernet_hashes=hashes)


def _whole(take: dict[str, str], key: str) -> int | None:
    text = take.pop(key, None)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise UserError(f"{key!r} in the picture's text is {text!r:.60}: expected a whole number")
    return int(text)


def _number(take: dict[str, str], key: str) -> float | None:
    text = take.pop(key, None)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{key!r} in the picture's text is {text!r:.60}: expected a finite number")
    return value


def _size(take: dict[str, str]) -> tuple[int, int] | None:
    text = take.pop("Size", None)
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"'Size' in the picture's text is {text!r:.60}: expected WIDTHxHEIGHT as 512x512")
    return int(match[2]), int(match[1])


def _shortest(value: float) -> str:
    """A number in the fewest digits that give it back: 7 and not 7.0."""
    text = repr(float(value))
    return text.removesuffix(".0")


def _quoted(value: str) -> str:
    plain = not set(value) & set(",:\n\r") and not value.startswith('"') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def join_hashes(hashes: Mapping[str, str]) -> str:
    """Name → hash as the text of a field."""
    return ", ".join(f"{_quoted(name)}: {digest}" for name, digest in hashes.items())


def split_hashes(text: str) -> dict[str, str]:
    """The text "a: 1234, b: 5678" as a mapping; names may be JSON strings; what has no hash is left out."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        name = ""
        if (quoted := _QUOTE.match(text, at)) is not None:
            try:
                value, at_colon = _JSON.raw_decode(text, quoted.end() - 1)
                name = value if isinstance(value, str) and text[at_colon : at_colon + 1] == ":" else ""
            except ValueError:
                name = ""
        if name:
            rest, at = _value(text, at_colon + 1)
            found.setdefault(name, rest)
            continue
        part, at = _value(text, at)
        before, colon, after = part.rpartition(":")
        if colon and before.strip() and after.strip():
            found.setdefault(before.strip(), after.strip())
    return found

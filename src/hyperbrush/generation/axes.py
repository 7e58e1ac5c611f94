"""What a comparison varies: an axis is a kind of setting and its values."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.generation.settings import (
    MAX_CLIP_SKIP,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_STEPS,
    Settings,
    check_text,
    number,
    whole,
)
from hyperbrush.generation.tags import TAG, plain_tags

MOST_VALUES = 200  # of one axis
NONE = "none"  # the value of a hypernetwork axis without any
MAX_STRENGTH = 1e6
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})-({_NUMBER})(?::({_NUMBER}))?")


@dataclass(frozen=True)
class Cell:
    """One picture of a comparison: its prompt, seed and settings."""

    prompt: str
    seed: int
    settings: Settings


@dataclass(frozen=True)
class Axis:
    """A kind of setting and the values it takes.

    Args:
        kind: a name of `AXES`.
        values: in their order; of the kind's own type.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def title(self) -> str:
        """What the webui calls it."""
        return AXES[self.kind].title

    def label(self, value: Any) -> str:
        """A value for people: "strength 0.5"."""
        if self.kind in ("prompt", "sampler", "hypernetwork"):
            return str(value)
        return f"{self.kind.replace('_', ' ')} {_plain(value)}"

    def written(self) -> str:
        """The values as one line of CSV, as `read_axis` takes them."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(_plain(value) for value in self.values)
        return line.getvalue()

    def apply(self, cell: Cell, value: Any) -> Cell:
        """The cell with this value in it.

        Raises:
            UserError: nothing in the cell takes it.
        """
        if self.kind == "prompt":
            return _searched(cell, str(self.values[0]), str(value))
        return AXES[self.kind].apply(cell, value)


@dataclass(frozen=True)
class Kind:
    """A kind of axis: its title in a picture's text, how a text becomes a value, and a value part of a cell."""

    title: str
    read: Callable[[Any], Any]
    apply: Callable[[Cell, Any], Cell]
    numbers: bool = False  # ranges such as 1-5 make sense
    other_names: tuple[str, ...] = ()


def axis(kind: str, values: Sequence[Any]) -> Axis:
    """An axis out of values or their texts.

    Raises:
        UserError: an unknown kind (with the closest names), no value, too many, or one that makes no sense.
    """
    name = _kind(kind)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"axis {kind!r} needs a list of values, got {values!r:.60}")
    if not 1 <= len(values) <= MOST_VALUES:
        raise UserError(f"axis {kind!r} has {len(values)} values: expected 1 to {MOST_VALUES}")
    return Axis(name, tuple(AXES[name].read(value) for value in values))


def read_axis(text: str) -> Axis:
    """An axis out of "strength=0,0.5,1": values are CSV (quotes protect commas), numbers also ranges.

    "1-5" is 1, 2, 3, 4, 5, and "0-1:0.25" goes in steps of 0.25, the end included where a step meets it.

    Raises:
        UserError: as `axis`; no "=", or a range without end.

    >>> read_axis("steps=5-15:5, 40").values
    (5, 10, 15, 40)
    """
    kind, sign, rest = text.partition("=")
    if not sign:
        raise UserError(f"axis {text!r:.60} has no values: write it as strength=0,0.5,1")
    name = _kind(kind)
    try:
        [items] = list(csv.reader([rest], skipinitialspace=True, strict=True)) or [[]]
    except (csv.Error, ValueError) as error:
        raise UserError(f"the values of axis {kind!r} are no CSV: {rest!r:.80} ({error})") from error
    items = [item.strip() if name != "prompt" else item for item in items]
    if not rest.strip() or (name != "prompt" and not all(items)):
        raise UserError(f"axis {kind!r} has an empty value; write none for no hypernetwork")
    if AXES[name].numbers:
        items = [value for item in items for value in _in_range(kind, item)]
    return axis(name, items)


def _kind(name: str) -> str:
    folded = re.sub(r"[\s_-]+", " ", name).strip().casefold()
    for kind, about in AXES.items():
        if folded in (kind.replace("_", " "), about.title.casefold(), *about.other_names):
            return kind
    raise unknown_name("axis", name.strip(), AXES)


def _in_range(kind: str, item: str) -> list[str]:
    """The numbers of "0-1:0.25", exact in decimal; another text as it is."""
    match = _RANGE.fullmatch(item)
    if match is None:
        return [item]
    first, last, step = Decimal(match[1]), Decimal(match[2]), Decimal(match[3] or 1)
    if step <= 0 or last < first:
        raise UserError(f"axis {kind!r}: the range {item!r} must go up: FIRST-LAST or FIRST-LAST:STEP")
    try:
        count = int((last - first) // step) + 1
    except InvalidOperation:  # more steps than digits
        count = MOST_VALUES + 1
    if count > MOST_VALUES:
        raise UserError(f"axis {kind!r}: the range {item!r} has more than {MOST_VALUES} values")
    return [format(first + i * step, "f") for i in range(count)]


def _searched(cell: Cell, search: str, value: str) -> Cell:
    """The webui's "Prompt S/R": the axis' first value is searched for, in both prompts."""
    both = cell.prompt, cell.settings.negative
    if not search or not any(search in text for text in both):
        raise UserError(
            f"the prompt axis searches for its first value, and {search!r:.60} is not in the prompt: put it there"
        )
    negative = cell.settings.negative.replace(search, value)
    return replace(
        cell, prompt=cell.prompt.replace(search, value), settings=replace(cell.settings, negative=negative)
    )


def _with_network(cell: Cell, name: str) -> Cell:
    tag = "" if name == NONE else f" <hypernet:{name}>"
    return replace(cell, prompt=cell.prompt + tag)


def with_strength(prompt: str, strength: float) -> str:
    """A prompt whose tags all have this strength; their other arguments stay.

    Raises:
        UserError: it has no tag.

    >>> with_strength("cat <hypernet:ink:1:end=0.5>", 0.3)
    'cat <hypernet:ink:0.3:end=0.5>'
    """

    def changed(match: re.Match[str]) -> str:
        if match[1] != "hypernet":
            return match[0]
        name, *others = match[2].split(":")
        if others and "=" not in others[0]:
            others = others[1:]
        others = [other for other in others if not other.startswith("strength=")]
        return f"<hypernet:{':'.join([name, _plain(strength), *others])}>"

    return TAG.sub(changed, plain_tags(prompt))


def _with_strength(cell: Cell, strength: float) -> Cell:
    return replace(cell, prompt=with_strength(cell.prompt, strength))


def _setting(name: str) -> Callable[[Cell, Any], Cell]:
    return lambda cell, value: replace(cell, settings=replace(cell.settings, **{name: value}))


def _read_whole(what: str, least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str):
            if not re.fullmatch(r"-?[0-9]{1,20}", value):
                raise UserError(f"{what} {value!r:.60} is no whole number")
            value = int(value)
        whole(what, value, least, most)
        return int(value)

    return read


def _read_number(what: str, least: float, most: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise UserError(f"{what} {value!r:.60} is no number") from error
        number(what, value, least, most)
        return float(value)

    return read


def _read_sampler(value: Any) -> str:
    from hyperbrush.ldm.sampling.samplers import find_sampler

    return find_sampler(str(value)).name


def _read_text(value: Any) -> str:
    check_text(value)
    return str(value)


def _read_network(value: Any) -> str:
    name = _read_text(value).strip()
    if not name or set(name) & set("<>"):
        raise UserError(f"{value!r:.60} is no hypernetwork's name; write one such as water, or {NONE}")
    return NONE if name.casefold() == NONE else name


def _read_size(value: Any) -> tuple[int, int]:
    """(height, width); the text "WIDTHxHEIGHT"."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,5})[xX×]([0-9]{1,5})", value.strip())
        if match is None:
            raise UserError(f"size {value!r:.60} is none: expected WIDTHxHEIGHT such as 512x768")
        value = int(match[2]), int(match[1])
    height, width = Settings(size=value).size or (0, 0)
    return height, width


def _plain(value: Any) -> str:
    """A value in the fewest characters that give it back."""
    if isinstance(value, tuple):
        return f"{value[1]}x{value[0]}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


AXES = {
    "prompt": Kind("Prompt S/R", _read_text, lambda cell, value: cell, other_names=("prompt sr", "sr")),
    "hypernetwork": Kind("Hypernetwork", _read_network, _with_network, other_names=("hypernet",)),
    "strength": Kind(
        "Hypernet str.",
        _read_number("strength", -MAX_STRENGTH, MAX_STRENGTH),
        _with_strength,
        True,
        ("hypernet strength",),
    ),
    "seed": Kind(
        "Seed",
        _read_whole("seed", 0, MAX_SEED),
        lambda cell, value: replace(cell, seed=value),
        True,
    ),
    "steps": Kind("Steps", _read_whole("steps", 1, MAX_STEPS), _setting("steps"), True),
    "cfg": Kind(
        "CFG Scale",
        _read_number("cfg", 0, MAX_GUIDANCE),
        _setting("guidance_scale"),
        True,
        ("guidance", "guidance scale"),
    ),
    "sampler": Kind("Sampler", _read_sampler, _setting("sampler")),
    "clip_skip": Kind("Clip skip", _read_whole("clip_skip", 1, MAX_CLIP_SKIP), _setting("clip_skip"), True),
    "size": Kind("Size", _read_size, _setting("size")),
}
# Prompt first, then networks, then their strength: each sees what the ones before made.
ORDER = list(AXES)

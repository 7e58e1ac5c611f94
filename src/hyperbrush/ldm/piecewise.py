"""Values written by steps, as "5e-5:100, 5e-6:1000, 1e-7": the webui's learning-rate string, read without torch."""

import math
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hyperbrush.errors import UserError

OPEN_END = sys.maxsize  # the last step of a schedule that was given no number of steps
MARKS = str.maketrans("、､،∶−–‐‑", ",,,:----")  # of other keyboards; what NFKC leaves as it is


@dataclass(frozen=True)
class Wording:
    """What errors call the text, one of its values, and how it is written."""

    schedule: str = "learning-rate schedule"
    value: str = "rate"
    example: str = "5e-5:100, 5e-6:1000, 1e-7"
    empty: str = "holds no rate"

    @property
    def part(self) -> str:
        """The first part of the example."""
        return self.example.split(",")[0]


RATES = Wording()


def plain(text: str) -> str:
    """Full-width signs as ASCII ones: "５ｅ－５：１００，" is "5e-5:100,"."""
    return unicodedata.normalize("NFKC", text).translate(MARKS).strip()


def is_piecewise(name: object) -> bool:
    """True for a string that is read by `parse_piecewise` rather than looked up by name."""
    text = plain(name) if isinstance(name, str) else "constant"
    return not text or text[0] in "0123456789.+-" or any(mark in text for mark in ":,;")


def parse_piecewise(
    text: str, max_steps: int | None = None, wording: Wording = RATES
) -> list[tuple[float, int]]:
    """Read "5e-5:100, 5e-6:1000, 1e-7" as the webui reads it.

    Each part is ``rate:until``, the rate of the steps below ``until``; ``rate:-1`` or a bare rate holds until
    the end.  As there, a part with two colons counts as a bare rate, a part until step 0 is left out, a part
    whose end has already passed lasts one step, and nothing goes beyond ``max_steps``; `piecewise_oddities`
    tells of these.  Full-width signs are read as the plain ones.  What the webui would hide is refused: parts
    after one without an end, which is how ";" between parts and decimal commas come to hold for ever there.

    Returns:
        (rate, until_step) with growing ``until_step``.  The webui stops training at the last one,
        which can lie before ``max_steps``.  Without ``max_steps`` an open end is `OPEN_END`.

    Raises:
        UserError: a malformed part, a part that would never be reached, a rate that is negative or not
            finite, or no part at all.

    >>> parse_piecewise("5e-5:100, 5e-6:1000, 1e-7", 2000)
    [(5e-05, 100), (5e-06, 1000), (1e-07, 2000)]
    """
    limit = OPEN_END if max_steps is None else max_steps
    if limit < 1:
        raise UserError(f"a schedule needs at least one step; got max_steps={max_steps}")
    segments: list[tuple[float, int]] = []
    end = 0
    for rate, until in _parts(text, wording):
        if until == 0:
            continue
        end = min(limit, max(end + 1, until)) if until > 0 else limit
        segments.append((rate, end))
        if end == limit:
            break
    if not segments:
        raise UserError(f"{wording.schedule} {text!r} {wording.empty}; write one like {wording.example!r}")
    return segments


def piecewise_rate(segments: Sequence[tuple[float, int]], step: int) -> float:
    """Rate of a step under `parse_piecewise`'s segments; the last rate holds past the end."""
    return next((rate for rate, until in segments if step < until), segments[-1][0])


def piecewise_oddities(text: str, wording: Wording = RATES) -> list[str]:
    """What the webui takes without a word, though nobody means it, in words for a person.

    Raises:
        UserError: what `parse_piecewise` refuses.

    >>> piecewise_oddities("5e-5:200, 5e-6:100")
    ["part '5e-6:100' ends before it begins, at step 200: steps count from the start of the training and must grow"]
    """
    said, end = [], 0
    for part, (_, until) in zip(_split(text), _parts(text, wording), strict=True):
        if part.count(":") > 1:
            said.append(f"part {part!r} holds two ':', so its steps are passed over and it holds to the end")
        elif until == 0:
            said.append(f"part {part!r} ends at step 0 and is left out")
        elif 0 < until <= end:
            said.append(
                f"part {part!r} ends before it begins, at step {end}: steps count from the start of the "
                "training and must grow"
            )
        end = max(end, until)
    return said


def check_piecewise(text: str, wording: Wording = RATES) -> None:
    """Refuse what is malformed or never meant, for settings: nobody looks at a log before a long training.

    Raises:
        UserError: what `parse_piecewise` refuses; `piecewise_oddities`; no value above 0.
    """
    segments = parse_piecewise(text, None, wording)
    if said := piecewise_oddities(text, wording):
        raise UserError(f"{wording.schedule} {text!r}: {', and '.join(said)}")
    if not any(rate for rate, _ in segments):
        raise UserError(f"{wording.schedule} {text!r} is 0 throughout: nothing would be learnt")


def _split(text: str) -> list[str]:
    return [part.strip() for part in plain(text).split(",") if part.strip()]


def _parts(text: str, wording: Wording) -> list[tuple[float, int]]:
    """(rate, until) of each part; until is -1 for the end."""
    try:
        return list(_read(text, wording))
    except UserError as error:
        meant = next((guess for guess in _guesses(plain(text)) if _is_sound(guess)), None)
        if meant is None:
            raise
        raise UserError(f"{error}; did you mean {meant!r}?") from None


def _read(text: str, wording: Wording) -> Iterator[tuple[float, int]]:
    """Each part of `_split` as numbers."""
    whole = f"{wording.schedule} {text!r}"
    parts = _split(text)
    if ";" in plain(text):
        raise UserError(f"{whole} holds a ';': parts are separated by commas, as {wording.example!r}")
    read = [_part(part, f"part {part!r} of {whole}", wording) for part in parts]
    for part, (_, until), after in zip(parts, read, parts[1:], strict=False):
        if until == -1:
            raise UserError(
                f"part {part!r} of {whole} has no step to end at, so {after!r} would never be reached; write "
                f"{wording.value.upper()}:STEP, as {wording.part!r}, and decimals with a point"
            )
    yield from read


def _part(part: str, where: str, wording: Wording) -> tuple[float, int]:
    """One "rate:until" or "rate"; until is -1 for the end."""
    value, example = wording.value, wording.part
    rate_text, *until_text = part.split(":")
    try:
        rate = float(rate_text)
    except ValueError:
        raise UserError(
            f"{where}: {rate_text.strip()!r} is not a number; write {value.upper()}:STEP, as {example!r}"
        ) from None
    if not math.isfinite(rate) or rate < 0:
        raise UserError(f"{where}: a {value} must be finite and not negative; got {rate!r}")
    if len(until_text) > 1 and " " in part:
        raise UserError(f"{where}: two parts without a comma between them")
    if len(until_text) != 1:
        return rate, -1
    try:
        until = int(until_text[0])
    except ValueError:
        raise UserError(
            f"{where}: {until_text[0].strip()!r} is not a step; write {value.upper()}:STEP, as {example!r}, or "
            f"{value.upper()}:-1"
        ) from None
    if until < -1:
        raise UserError(f"{where}: the step must be positive, or -1 for the end; got {until}")
    return rate, until


def _guesses(text: str) -> Iterator[str]:
    """What somebody may have meant: other marks between parts, and commas in numbers."""
    for marked in (text, re.sub(r"(^|[,;\s])(\d+),(?=\d)", r"\1\2.", text)):
        spaced = re.sub(r"(?<=\d)\s+(?=[\d.])", ", ", marked)
        for guess in (marked, spaced):
            yield ", ".join(part.strip() for part in re.split("[,;]", guess) if part.strip())


def _is_sound(text: str) -> bool:
    try:
        list(_read(text, RATES))
    except UserError:
        return False
    return not any(part.count(":") > 1 for part in _split(text))

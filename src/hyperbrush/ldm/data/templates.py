"""Prompt templates: sentences around ``[name]`` and ``[filewords]``, one drawn per picture and epoch."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from hyperbrush.errors import UserError, unknown_name

PLACEHOLDERS = ("name", "filewords")

_STYLES = (
    "a work done in the manner of [name]",
    "[name], its lines and its colours",
    "an everyday thing the way [name] shows it",
    "one picture out of the [name] series",
    "a scene with the look of [name]",
    "a study that follows [name]",
    "a small drawing, unmistakably [name]",
    "a finished piece, [name] all over",
)
_SUBJECTS = (
    "this is [name]",
    "[name], seen from the front",
    "here stands [name] alone",
    "a clear picture with [name] in the middle",
    "[name] close at hand",
    "[name] from a little further away",
    "a quick picture showing [name]",
    "nothing but [name] and a plain ground",
)

BUNDLED: Mapping[str, tuple[str, ...]] = {
    "none": ("picture",),
    "hypernetwork": (
        "[filewords]",
        "a picture that shows [filewords]",
        "[filewords], seen clearly",
        "a rendering with [filewords] in it",
        "here one sees [filewords]",
    ),
    "style": _STYLES,
    "style_filewords": tuple(f"{line}: [filewords]" for line in _STYLES),
    "subject": _SUBJECTS,
    "subject_filewords": tuple(f"{line}, [filewords]" for line in _SUBJECTS),
}
"""Templates by name, in our own words, for the same six uses as the files that come with the webui."""


def read_templates(source: str | Path) -> tuple[str, ...]:
    """Lines of a bundled set, by its name, or of a UTF-8 text file; empty lines are passed over.

    ``[name]`` stands for the word or words to be learnt, ``[filewords]`` for the picture's caption;
    other brackets stay as they are.

    >>> read_templates("none")
    ('picture',)

    Raises:
        UserError: no such name or file; a file that is not UTF-8 or has no line; a placeholder
            that looks misspelt.
    """
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    path = Path(source)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise UserError(
                f"there is no file of prompt templates {path}; expected one sentence a line, or one "
                f"of {', '.join(sorted(BUNDLED))}"
            )
        raise unknown_name("set of prompt templates", str(source), BUNDLED, "; or give a text file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{path} holds no prompt template; expected one sentence a line")
    for line in lines:
        _check(line, f"{path}: ")
    return lines


def fill(template: str, name: str, filewords: str) -> str:
    """Put a name and a caption into a template; what they hold is not looked at again.

    >>> fill("a [filewords] by [name]", "anna", "red [name]")
    'a red [name] by anna'
    """
    given = {"[name]": name, "[filewords]": filewords}
    filled = re.sub(r"\[(?:name|filewords)\]", lambda found: given[found[0]], template)
    # A caption whose every tag was dropped leaves the template's comma or colon alone at the end.
    return " ".join(filled.split()) if filewords else " ".join(filled.split()).strip(" ,:")


def _check(line: str, where: str) -> None:
    for word in re.findall(r"\[([\w ]+)\]", line):
        if word in PLACEHOLDERS:
            continue
        if close := get_close_matches(word.strip().casefold(), PLACEHOLDERS, n=1, cutoff=0.75):
            raise UserError(f"{where}the template {line!r} has [{word}]; did you mean [{close[0]}]?")

"""Wildcards: __NAME__ in a prompt stands for a line of wildcards/NAME.txt, another for each seed.

As in the webui's extensions: lines may hold wildcards themselves, empty ones and those that begin with # are left out.
"""

import random
import re
from pathlib import Path

from hyperbrush.errors import UserError, unknown_name

FOLDER = "wildcards"  # of the workspace
WILDCARD = re.compile(r"(?<![^\W_])__((?:[^\W_]|[-/]|_(?!_))+)__(?![^\W_])")
DEEP = 8  # wildcards within wildcards
MOST_BYTES = 10 << 20  # of a file
MOST_CHARACTERS = 20_000  # of a prompt with all put in


def names(folder: Path) -> list[str]:
    """What stands between the underscores: places of the files in the folder, without .txt."""
    if not folder.is_dir():
        return []
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.txt"))
    return sorted(name for name in found if WILDCARD.fullmatch(f"__{name}__"))


def filled(prompt: str, folder: Path, seed: int) -> str:
    """A prompt with a line for each of its wildcards; the same for one seed as long as the files are.

    Raises:
        UserError: there is no such wildcard, its file is empty or cannot be read, or they lead in a circle.
    """
    chance = random.Random(f"wildcards {seed}")
    for _ in range(DEEP):
        if not WILDCARD.search(prompt):
            return prompt
        prompt = WILDCARD.sub(lambda found: chance.choice(lines(folder, found[1])), prompt)
        if len(prompt) > MOST_CHARACTERS:
            raise UserError(
                f"with its wildcards put in, the prompt has more than {MOST_CHARACTERS} characters"
            )
    if found := WILDCARD.search(prompt):
        raise UserError(
            f"the wildcard {found[0]!r:.100} is more than {DEEP} deep: do the files name each other?"
        )
    return prompt


def lines(folder: Path, name: str) -> list[str]:
    """What a wildcard may stand for.

    Raises:
        UserError: there is no such wildcard, or its file is empty or cannot be read.
    """
    if name not in names(folder):
        end = f"; it stands for a line of the file {FOLDER}/{name}.txt in the workspace, which is not there"
        raise unknown_name("wildcard", name, names(folder), end)
    path = folder / f"{name}.txt"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{FOLDER}/{name}.txt has more than {MOST_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{FOLDER}/{name}.txt cannot be read (expected UTF-8 text): {error!s:.160}"
        ) from error
    found = [line.strip() for line in text.splitlines()]
    found = [line for line in found if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{FOLDER}/{name}.txt has no line to choose: write one choice a line")
    return found


def first_of(text: str) -> str:
    """The first wildcard of a text, as it stands there; "" for none."""
    found = WILDCARD.search(text)
    return "" if found is None else found[0]

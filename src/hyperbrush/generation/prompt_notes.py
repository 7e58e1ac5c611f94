"""What a prompt says that its writer may not have meant: told, and drawn as the webui draws it."""

import re
from collections.abc import Iterator

from hyperbrush.generation.prompt_schedule import (
    Pieces,
    Switch,
    Turns,
    bare_bar,
    changes,
    read_pieces,
    split_parts,
)
from hyperbrush.generation.tags import TAG, plain_tags

_MARK = "\ue000"  # of a private plane: stands for a tag while its place is looked at
# "[cat:dog]", "[cat:dog:0,5]", "[cat;dog;0.5]", "[cat|dog", full-width ones: brackets with what sets editing apart.
_NEAR = re.compile(r"[\[［【][^\[\]［］【】\n]*[\]］】]")
_EMPHASIS = re.compile(r"\([^()]*\)")
_APART = re.compile(r"[:：|｜]|[;；]\s*[0-9.,]+%?\s*[\]］】]")


def prompt_notes(prompt: str) -> list[str]:
    """Notes on a prompt as written, with its tags.

    Raises:
        UserError: as `tags.plain_tags` and `prompt_schedule`.
    """
    text = TAG.sub("", plain_tags(prompt))
    parts = split_parts(text)
    notes = [note for part in parts for note in near_editing(part.text)]
    if len(parts) == 1 and parts[0].weight != 1:
        notes.append(
            f"the prompt ends in a number behind a colon: as in the webui that is a weight, {parts[0].weight:g} times the "
            "guidance"
        )
    marked = split_parts(TAG.sub(_MARK, plain_tags(prompt)))
    if any(_MARK in text for part in marked for text in _edited(read_pieces(part.text))):
        notes.append(
            "a tag inside [ : ] or [ | ] acts at every step, as in the webui; give it start= and end= instead"
        )
    if len(marked) > 1 and any(_MARK in part.text for part in marked):
        notes.append("tags act on all parts of a prompt with AND, as in the webui")
    return notes


def near_editing(text: str) -> list[str]:
    """Brackets that look like prompt editing and are read as words."""
    pieces = read_pieces(text)
    if bare_bar(text) and not changes(pieces):
        return [
            "a bar | outside of brackets, or a backslash at the end, makes the whole prompt plain text, as in the webui: "
            "its [ : ] are read as words"
        ]
    left = "".join(piece for piece in pieces if isinstance(piece, str))
    return [
        f"{found[0]!r:.80} is read as words; prompt editing is [cat:dog:0.5], [dog:0.5], [cat::0.5] or [cat|dog]"
        for found in _NEAR.finditer(left)
        if _APART.search(_EMPHASIS.sub("", found[0]))
    ]


def _edited(pieces: Pieces) -> Iterator[str]:
    """The texts that are not there at every step."""
    for piece in pieces:
        inner: tuple[Pieces, ...] = ()
        if isinstance(piece, Switch):
            inner = (piece.before, piece.after)
        elif isinstance(piece, Turns):
            inner = piece.options
        for one in inner:
            yield from (text for text in one if isinstance(text, str))
            yield from _edited(one)

"""Side files of a network as the webui keeps them, NAME.json, NAME.txt and NAME.preview.png; others' are read too."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, write_json, write_text
from hyperbrush.hypernetworks.library.foreign_notes import FOREIGN

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 1_000_000  # of a text beside a network
PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Notes' fields and the webui's names for them.
KEYS = {
    "description": "description",
    "activation_text": "activation text",
    "preferred_weight": "preferred weight",
    "notes": "notes",
}


@dataclass(frozen=True)
class Notes:
    """What people wrote beside a network.

    Args:
        description: of the network, for its card.
        activation_text: trigger words that a card puts into the prompt.
        preferred_weight: strength that a card puts into the tag; None where none is given (the webui's 0).
            A tag without a strength is 1 all the same.
        notes: anything else.
        other: the file's other keys, kept as they are.

    Raises:
        UserError: a text is none, or the weight is not a finite number.
    """

    description: str = ""
    activation_text: str = ""
    preferred_weight: float | None = None
    notes: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("description", "activation_text", "notes"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{KEYS[name]!r} must be a text, got {getattr(self, name)!r:.60}")
        weight = self.preferred_weight
        if weight is not None and (
            isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight)
        ):
            raise UserError(f"'preferred weight' must be a finite number such as 0.7, got {weight!r:.60}")

    @property
    def tags(self) -> tuple[str, ...]:
        """Words to find it by: "tags" of NAME.json, a list, as managers of other programs write them."""
        said = self.other.get("tags")
        return tuple(tag for tag in said if isinstance(tag, str)) if isinstance(said, list) else ()


def collect_notes(
    network: Path, refuse: Callable[[Path], str | None] = lambda _: None
) -> tuple[Notes, list[tuple[Path, str]]]:
    """What can be read beside a network's file, and what is wrong with the rest: side files with a line each.

    NAME.json counts first; the description is else NAME.txt's; what is missing then comes from the files of
    other programs (`foreign_notes.FOREIGN`). refuse: why a side file may not be looked at; None: it may.
    """
    wrong: list[tuple[Path, str]] = []

    def text_of(path: Path) -> str | None:
        try:
            if path.exists() and (reason := refuse(path)):
                raise UserError(reason)
            return _read(path)
        except UserError as error:
            wrong.append((path, str(error)))
            return None

    def mapping_of(path: Path) -> dict[str, Any]:
        text = text_of(path)
        try:
            content = {} if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            wrong.append((path, f"{path} is no JSON ({error!s:.80}); mend or remove it"))
            return {}
        if not isinstance(content, dict):
            what = f"holds a {type(content).__name__}: expected an object with 'activation text'"
            wrong.append((path, f"{path} {what}"))
            return {}
        return content

    path = network.with_suffix(".json")
    content = mapping_of(path)
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        if content.get(key) is None:
            continue
        try:
            Notes(**{name: content[key]})
        except UserError as error:
            wrong.append((path, f"{path}: {error}"))
        else:
            values[name] = content[key]
    if not values.get("preferred_weight", True):
        del values["preferred_weight"]
    if not values.get("description"):
        values["description"] = (text_of(network.with_suffix(".txt")) or "").strip()
    for ending, fields in FOREIGN.items():
        for name, value in fields(mapping_of(network.with_suffix(ending))).items():
            if not values.get(name):
                values[name] = value
    other = {k: v for k, v in content.items() if k not in KEYS.values()}
    return Notes(**values, other=other), wrong


def write_notes(network: Path, notes: Notes) -> None:
    """Write NAME.json, and NAME.txt with the description, each whole or not at all.

    Raises:
        UserError: they cannot be written, or `other` holds what JSON cannot.
    """
    known: dict[str, Any] = {key: getattr(notes, name) for name, key in KEYS.items()}
    known["preferred weight"] = notes.preferred_weight or 0  # the webui wants a number
    try:
        content = json.loads(json.dumps({**notes.other, **known}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"these notes cannot be written as JSON: {error}") from error
    text = network.with_suffix(".txt")
    write_json(network.with_suffix(".json"), content)
    if notes.description or text.exists():
        write_text(text, notes.description + "\n" if notes.description else "")


def find_preview(network: Path) -> Path | None:
    """The picture beside a network's file: NAME.preview.png (.jpg, .jpeg, .webp), else NAME.png and so on."""
    stem = network.with_suffix("")
    for middle in (".preview", ""):
        for suffix in PREVIEW_SUFFIXES:
            path = stem.with_name(stem.name + middle + suffix)
            if path.is_file():
                return path
    return None


def write_preview(network: Path, image: "Image") -> Path:
    """Write NAME.preview.png, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    stem = network.with_suffix("")
    path = stem.with_name(stem.name + ".preview.png")
    with atomic_path(path) as temporary:
        image.save(temporary)
    return path


def _read(path: Path) -> str | None:
    """A text file of bounded length; None if there is none."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}: no side file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; write it anew") from error

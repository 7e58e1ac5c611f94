"""A picture once more, from the settings it carries."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.generation.infotext import Infotext
from hyperbrush.generation.opened import OpenedModel, file_hash, named
from hyperbrush.generation.text_to_image import DISCRETISATION, MASK, STRENGTH

if TYPE_CHECKING:
    from hyperbrush.hypernetworks import HypernetworkLibrary

# Fields that change nothing in a picture, or are told of otherwise.
_SILENT = {"RNG", DISCRETISATION, "Hashes", "Lora hashes", "TI hashes", "Face restoration model", "Batch pos"}


@dataclass(frozen=True)
class Repeat:
    """How to draw a picture again.

    arguments: of `generate`, "prompt" among them. notes: what may come out otherwise.
    """

    arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def repeat_of(info: Infotext, given: Collection[str] = ()) -> Repeat:
    """The arguments of `generate` that a picture's settings mean; its model is not among them.

    Pictures of other programs are drawn at the webui's noise levels (`ldm.sampling`, "webui").
    given: names of arguments the caller has values for: these are left out, and not judged.

    Raises:
        UserError: the picture's sampler is not offered.
    """
    own = info.version.startswith("hyperbrush")
    arguments: dict[str, Any] = {
        "prompt": info.prompt,
        "negative": info.negative,
        "steps": info.steps,
        "sampler": info.sampler or None,
        "guidance_scale": info.guidance_scale,
        "seed": info.seed,
        "size": info.size,
        "clip_skip": info.clip_skip,
        "discretisation": info.fields.get(DISCRETISATION, "diffusers" if own else "webui"),
    }
    arguments = {name: value for name, value in arguments.items() if value is not None and name not in given}
    if "sampler" in arguments:
        _check_sampler(arguments["sampler"])
    notes = [] if own else _notes_on_noise(info)
    odd = [name for name in info.fields if name not in _SILENT]
    if STRENGTH in odd and "image" in given:
        odd.remove(STRENGTH)
        if "image_strength" not in given:
            arguments["image_strength"] = _share(info.fields[STRENGTH])
    if MASK in odd and "mask" in given:
        odd.remove(MASK)
    if odd:
        hint = "; give its mask as --mask" if MASK in odd else ""
        hint = "; give the picture it began with as --image" if STRENGTH in odd else hint
        notes.append(f"not repeated from the picture's text: {', '.join(odd)}{hint}")
    return Repeat(arguments, notes)


def differences(
    info: Infotext, model: "str | Path | OpenedModel", library: "HypernetworkLibrary"
) -> list[str]:
    """What is other than when the picture was made: the model, or a network's file.

    model: opened or not; one not opened yet is told apart by its files alone. Networks that the library does not have are left out: drawing tells of them.

    Raises:
        UserError: a file cannot be read.
    """
    notes = []
    name, file = (model.name, model.file) if isinstance(model, OpenedModel) else named(model)
    if info.model_hash and file is None:
        notes.append(
            f"the picture's model was {info.model or 'one'} ({info.model_hash}); whether this one is the same "
            "cannot be told"
        )
    elif info.model_hash and file is not None:
        now = file_hash(file, like=info.model_hash)
        if not _same(now, info.model_hash):
            was = f"{info.model} " if info.model else ""
            notes.append(
                f"the model is another than the picture's: {name} {now}, not {was}{info.model_hash}; choose with "
                "--model"
            )
    for network, before in info.hypernet_hashes.items():
        path = _found(library, network)
        if path is None:
            continue
        now = file_hash(path, like=before)
        if not _same(now, before):
            notes.append(f"{network} is another file than the picture's: {now}, not {before}")
    return notes


def _found(library: "HypernetworkLibrary", name: str) -> Path | None:
    try:
        return library.find(name)
    except UserError:
        return None


def _same(now: str, before: str) -> bool:
    length = min(len(now), len(before))
    return now[:length] == before[:length].lower()


def _check_sampler(name: str) -> None:
    from hyperbrush.ldm.sampling import find_sampler

    try:
        find_sampler(name)
    except UserError as error:
        raise UserError(
            f"the picture's sampler is not offered here, choose one with --sampler: {error}"
        ) from error


def _notes_on_noise(info: Infotext) -> list[str]:
    if info.fields.get("RNG", "").upper() == "CPU":
        return []
    return [
        "the picture's text does not say RNG: CPU, so that its noise was likely drawn on a GPU: expect a picture of "
        "the same kind, not the same one (docs/samplers.md)"
    ]


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{STRENGTH!r} in the picture's text is {text!r:.60}: expected 0 to 1") from error

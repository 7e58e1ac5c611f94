"""A picture once more, from the settings it carries."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.generation.infotext import Infotext, split_hashes
from hyperbrush.generation.opened import OpenedModel, file_hash, named
from hyperbrush.generation.prompt_schedule import counted_anew
from hyperbrush.generation.settings import Settings
from hyperbrush.generation.tags import TAG, plain_tags
from hyperbrush.generation.text_to_image import (
    AREA,
    DISCRETISATION,
    HIRES,
    HIRES_STEPS,
    HIRES_UPSCALER,
    LORA_HASHES,
    MASK,
    PADDING,
    STRENGTH,
    SUBSEED,
    SUBSEED_STRENGTH,
)
from hyperbrush.hypernetworks.files.packed import file_of
from hyperbrush.ldm.sampling.names import UPSCALERS

if TYPE_CHECKING:
    from hyperbrush.hypernetworks import HypernetworkLibrary

# Fields that change nothing in a picture, or are told of otherwise.
_SILENT = {"RNG", DISCRETISATION, "Hashes", LORA_HASHES, "Face restoration model", "Batch pos"}
OLD_TIMELINES = "Old prompt editing timelines"
INVERSIONS = "TI hashes"
FIRST_PASS = "First pass size"  # of pictures of 2022 that were drawn in two passes
WEBUI_PADDING = 32  # pixels around a mask's region that the webui takes along by default
_VERSION = re.compile(r"v?([0-9]+)\.([0-9]+)")


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
    if OLD_TIMELINES in odd:
        odd.remove(OLD_TIMELINES)
    if _old_timelines(info):
        _count_anew(info, arguments)
    if INVERSIONS in odd:
        odd.remove(INVERSIONS)
        names = ", ".join(split_hashes(info.fields[INVERSIONS])) or info.fields[INVERSIONS]
        notes.append(
            f"the picture used textual inversions, which are not loaded here: {names} (TI hashes); their names are drawn as "
            "words"
        )
    if SUBSEED in odd and SUBSEED_STRENGTH in odd:
        odd = [name for name in odd if name not in (SUBSEED, SUBSEED_STRENGTH)]
        arguments |= _variation(info, given)
    if HIRES in odd and info.fields.get(HIRES_UPSCALER) in UPSCALERS and "image" not in given:
        odd = [name for name in odd if name not in (HIRES, HIRES_STEPS, HIRES_UPSCALER, STRENGTH)]
        arguments |= _second_pass(info, given)
    if STRENGTH in odd and "image" in given:
        odd.remove(STRENGTH)
        if "image_strength" not in given:
            arguments["image_strength"] = _share(STRENGTH, info.fields[STRENGTH])
    if MASK in odd and "mask" in given:
        odd.remove(MASK)
        if info.fields.get(AREA, "").casefold() == "only masked":
            odd = [name for name in odd if name not in (AREA, PADDING)]
            padding = info.fields.get(PADDING, "").strip()
            if "mask_padding" not in given:
                arguments["mask_padding"] = int(padding) if padding.isdecimal() else WEBUI_PADDING
    if odd:
        hint = "; give its mask as --mask" if MASK in odd else ""
        began = STRENGTH in odd and HIRES not in odd and FIRST_PASS not in info.fields
        hint = "; give the picture it began with as --image" if began else hint
        notes.append(f"not repeated from the picture's text: {', '.join(odd)}{hint}")
    return Repeat(arguments, notes)


def _old_timelines(info: Infotext) -> bool:
    """Whether the numbers of prompt editing count as in webuis before 1.6: the field says so, or the version."""
    if info.fields.get(OLD_TIMELINES, "").casefold() == "true":
        return True
    version = _VERSION.match(info.version)
    return version is not None and (int(version[1]), int(version[2])) < (1, 6)


def _count_anew(info: Infotext, arguments: dict[str, Any]) -> None:
    """Prompts in which the numbers of prompt editing mean what they meant, where that is another thing now."""
    from hyperbrush.ldm.sampling.samplers import find_sampler

    if info.steps is None or info.steps < 1 or arguments.get("steps") != info.steps:
        return  # other steps are asked for: shares stay shares
    order = find_sampler(info.sampler).order if "sampler" in arguments else 1
    for prompt in ("prompt", "negative"):
        if prompt in arguments:
            arguments[prompt] = counted_anew(arguments[prompt], info.steps, order)


def renamed(info: Infotext, prompt: str, library: "HypernetworkLibrary") -> tuple[str, list[str]]:
    """A prompt whose networks have the names that the picture's files have now, and notes on those found by their hash.

    A file is looked for by its hash where none of its name has it.

    Raises:
        UserError: a file cannot be read.
    """
    if not library.folder.is_dir():
        return prompt, []
    names: dict[str, str] = {}
    for network, before in info.hypernet_hashes.items():
        own = _found(library, network)
        if own is not None and _same(file_hash(own, like=before), before):
            continue
        for name, path in library.files().items():
            if file_of(path) != path and path.name != network.rpartition("/")[2]:
                continue  # another member of a pack has the same hash
            if _same(file_hash(path, like=before), before) and not set(name) & set("<>:"):
                names[network] = name
                break
    if not names:
        return prompt, []

    def now(tag: re.Match[str]) -> str:
        name, colon, rest = tag[2].partition(":")
        return f"<{tag[1]}:{names[name]}{colon}{rest}>" if tag[1] == "hypernet" and name in names else tag[0]

    notes = [
        f"{was} is the file {name} here: found by its hash {info.hypernet_hashes[was]}"
        for was, name in names.items()
    ]
    return TAG.sub(now, plain_tags(prompt)), notes


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
    moved = renamed(info, "", library)[1]
    for network, before in info.hypernet_hashes.items():
        path = _found(library, network)
        if path is None or any(note.startswith(f"{network} is the file ") for note in moved):
            continue
        now = file_hash(path, like=before)
        if not _same(now, before):
            notes.append(f"{network} is another file than the picture's: {now}, not {before}")
    return notes


def lora_differences(info: Infotext, library: "HypernetworkLibrary") -> list[str]:
    """LoRAs whose files are others than when the picture was made; those that are not there are left out.

    Raises:
        UserError: a file cannot be read.
    """
    from hyperbrush.generation.loras import lora_hash

    notes = []
    for name, before in split_hashes(info.fields.get(LORA_HASHES, "")).items():
        path = _found(library, name)
        if (
            path is None
            or path.suffix.lower() != ".safetensors"
            or not re.fullmatch("[0-9a-fA-F]{6,64}", before)
        ):
            continue
        now = lora_hash(path)
        if not _same(now, before):
            notes.append(f"the LoRA {name} is another file than the picture's: {now}, not {before}")
    return notes


def _found(library: "HypernetworkLibrary", name: str) -> Path | None:
    try:
        return library.find(name)
    except UserError:
        return None


def _same(now: str, before: str) -> bool:
    """Whether two hashes are of one file; what is too short to tell, or none, is not."""
    length = min(len(now), len(before))
    if length < 6:
        return False
    return now[:length] == before[:length].lower()


def _check_sampler(name: str) -> None:
    from hyperbrush.ldm.sampling.samplers import find_sampler

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


def _second_pass(info: Infotext, given: Collection[str]) -> dict[str, Any]:
    """The arguments of a second pass, but for those that are given."""
    found = {
        "hires_scale": _share(HIRES, info.fields[HIRES]),
        "hires_strength": _share(STRENGTH, info.fields.get(STRENGTH, str(Settings.hires_strength))),
        "hires_steps": int(_share(HIRES_STEPS, info.fields.get(HIRES_STEPS, "0"))),
        "hires_upscaler": info.fields[HIRES_UPSCALER],
    }
    return {name: value for name, value in found.items() if name not in given}


def _variation(info: Infotext, given: Collection[str]) -> dict[str, Any]:
    """The arguments of a variation, but for those that are given."""
    strength, seed = _share(SUBSEED_STRENGTH, info.fields[SUBSEED_STRENGTH]), info.fields[SUBSEED].strip()
    if not seed.isdecimal():
        raise UserError(f"{SUBSEED!r} in the picture's text is {seed!r:.60}: expected a whole number")
    found = {"subseed": int(seed), "subseed_strength": strength}
    return {name: value for name, value in found.items() if strength and name not in given}


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(
            f"{name!r} in the picture's text is {text!r:.60}: expected a finite number"
        ) from error

"""What the tags of a batch of prompts mean: networks, each with a strength for every picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.generation.loras import Strengths, find_lora, is_plain_lora
from hyperbrush.generation.prompt_notes import near_editing, prompt_notes
from hyperbrush.generation.prompt_schedule import split_parts
from hyperbrush.generation.tags import (
    HypernetworkTag,
    lora_tags,
    near_tags,
    parse_tags,
    repeated_names,
    split_tags,
)
from hyperbrush.hypernetworks import HypernetworkLibrary, PerPicture, Ramp, Use, Window
from hyperbrush.hypernetworks.attention.strengths import Term
from hyperbrush.hypernetworks.files.adapters import Adapter
from hyperbrush.hypernetworks.library.library import UnknownHypernetwork

MISSING = ("error", "warn")
# Where a network acts: its file, the attentions, the blocks, the sides of guidance.
Place = tuple[Path, tuple[str, ...], tuple[str, ...] | None, str]


@dataclass
class PromptNetworks:
    """One prompt taken apart.

    Args:
        text: without the tags.
        terms: place → strength, in the prompt's order; those of strength 0 are left out.
        files: name → file of every network named, switched off or not.
        loras: file → strengths of the LoRAs of other programs; those switched off are left out.
        notes: what to tell about them.
    """

    text: str
    terms: dict[Place, Term] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    loras: dict[Path, Strengths] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SumOf:
    """Several schedules of one network added up."""

    terms: tuple[Term, ...]

    def __call__(self, progress: float) -> float:
        """The strength at a progress from 0 to 1."""
        return sum(term(progress) if callable(term) else term for term in self.terms)


def read_prompt(
    prompt: str,
    library: HypernetworkLibrary,
    missing: str = "error",
    loras: HypernetworkLibrary | None = None,
) -> PromptNetworks:
    """A prompt's text, and its networks looked up.

    missing: "error", or "warn" to leave out what the library does not have and what is nearly a tag, with a note.
    loras: where those of <lora:NAME> are; the folder "loras" beside the library's by default.

    Raises:
        UserError: a tag that makes no sense or is nearly one, an unknown name (with the closest ones), one of several
            files, a weight behind AND that is no finite number.
    """
    if missing not in MISSING:
        raise unknown_name("way with missing hypernetworks", missing, MISSING)
    text, tags = parse_tags(prompt)
    found = PromptNetworks(text.strip(), notes=prompt_notes(prompt))
    for near in near_tags(text):
        said = f"{near!r:.90} is no tag, but nearly: write <hypernet:NAME:STRENGTH>"
        if missing == "error":
            raise UserError(f"{said}; missing='warn' (--missing warn) draws it as words")
        found.notes.append(f"{said}; drawn as words")
    twice = repeated_names(prompt)
    for tag in tags:
        try:
            path = library.find(tag.name)
        except UnknownHypernetwork as error:
            if missing == "error":
                raise
            found.notes.append(f"drawn without {tag.name!r}: {error}")
            continue
        found.files.setdefault(tag.name, path)
        term = term_of(tag)
        if term == 0:
            continue
        place: Place = (path, tag.attn, tag.blocks, tag.guidance)
        if place in found.terms:
            before = found.terms[place]
            term = SumOf((*(before.terms if isinstance(before, SumOf) else (before,)), term))
            twice.append(tag.name)
        found.terms[place] = term
    found.notes += [
        f"{name!r} is named more than once: its strengths add up" for name in dict.fromkeys(twice)
    ]
    _add_loras(found, prompt, loras or HypernetworkLibrary(library.folder.parent / "loras"), missing)
    return found


def _add_loras(found: PromptNetworks, prompt: str, library: HypernetworkLibrary, missing: str) -> None:
    """Look up the LoRAs of a prompt: those of our own form act like networks, the others are loaded beside them."""
    for tag in lora_tags(prompt):
        try:
            path = find_lora(library, tag.name)
        except UnknownHypernetwork as error:
            if missing == "error":
                raise
            found.notes.append(f"drawn without the LoRA {tag.name!r}: {error}")
            continue
        if is_plain_lora(path):
            before = found.loras.pop(path, (0.0, 0.0))
            now = before[0] + tag.text_encoder, before[1] + tag.unet
            if now != (0, 0):
                found.loras[path] = now
        elif tag.unet:
            place: Place = (path, ("attn1", "attn2"), None, "both")
            earlier = found.terms.get(place, 0.0)
            found.terms[place] = SumOf((earlier, tag.unet)) if callable(earlier) else earlier + tag.unet


def term_of(tag: HypernetworkTag) -> Term:
    """A tag's strength: a number, or a schedule where it has a window or a ramp."""
    whole = (tag.start, tag.end) == (0, 1)
    if tag.ramp is not None:
        ramp = Ramp(tag.ramp, tag.strength, tag.start, tag.end)
        return ramp if whole else Window(ramp, tag.start, tag.end)
    if whole or tag.strength == 0:
        return tag.strength
    return Window(tag.strength, tag.start, tag.end)


def networks_of(pictures: Sequence[PromptNetworks], load: Callable[[Path], Adapter]) -> list[Use]:
    """The networks of all pictures of a batch, each with a strength for every picture: 0 where its prompt does
    not name it.

    They compose in each prompt's own order; where two prompts have two orders, a network stands in the
    chain twice.

    Raises:
        UserError: a file cannot be read.
    """
    chain: list[tuple[Place, dict[int, Term]]] = []
    for i, picture in enumerate(pictures):
        at = 0
        for place, term in picture.terms.items():
            here = next((j for j in range(at, len(chain)) if chain[j][0] == place), None)
            if here is None:
                here = at
                chain.insert(at, (place, {}))
            chain[here][1][i] = term
            at = here + 1
    loaded = {path: load(path) for path in dict.fromkeys(place[0] for place, _ in chain)}
    return [
        Use(loaded[path], _of_all(terms, len(pictures)), attn, blocks, guidance=guidance)
        for (path, attn, blocks, guidance), terms in chain
    ]


def _of_all(terms: dict[int, Term], pictures: int) -> Term | PerPicture:
    every = [terms.get(i, 0.0) for i in range(pictures)]
    return every[0] if all(term == every[0] for term in every) else PerPicture(every)


def acts_on(use: Use, picture: int) -> bool:
    """Whether a network of `networks_of` acts on a picture of the batch."""
    return not isinstance(use.strength, PerPicture) or use.strength[picture] != 0


def read_negative(negative: str) -> list[str]:
    """Notes on a negative prompt.

    Raises:
        UserError: as `refuse_negative_tags`.
    """
    refuse_negative_tags(negative)
    notes = near_editing(negative)
    if len(split_parts(negative)) > 1:
        notes.append("AND in the negative prompt is a word, as in the webui")
    return notes


def refuse_negative_tags(negative: str) -> None:
    """A network acts on both sides of guidance, so that a tag in the negative prompt has no meaning.

    Raises:
        UserError: there is one, or nearly one.
    """
    text, tags = split_tags(negative)
    if tags or near_tags(text):
        raise UserError(
            "the negative prompt holds a <hypernet:…> or <lora:…> tag; write it in the prompt, with a negative strength"
        )

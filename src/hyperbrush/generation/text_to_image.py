"""The text-to-image call: prompt to tags to networks to pictures with their settings inside."""

import contextlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, sha256
from hyperbrush.generation.tags import parse_tags

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.ldm.models import LatentDiffusion

DEFAULT_FOLDER = Path("models/hypernetworks")
MAX_SEED = 2**32 - 1


@dataclass
class Picture:
    """One result: the image, how it was made, and what to tell about it."""

    image: "Image"
    parameters: str
    seed: int
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write it whole or not at all; PNG files carry the settings in the webui's `parameters` text.

        Raises:
            UserError: it cannot be written, or Pillow knows no such format.
        """
        from PIL import Image, PngImagePlugin

        path = Path(path)
        known = Image.registered_extensions()
        if path.suffix.lower() not in known:
            raise UserError(
                f"cannot save {path}: {path.suffix or 'no suffix'!r} is no picture format; take .png"
            )
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".png":
                info = PngImagePlugin.PngInfo()
                info.add_text("parameters", self.parameters)
                self.image.save(temporary, pnginfo=info)
            else:
                self.image.save(temporary)
        return path


def generate(
    prompt: str | Sequence[str],
    *,
    model: "str | Path | LatentDiffusion" = "emoji",
    negative: str = "",
    seed: int | None = None,
    count: int = 1,
    steps: int = 25,
    sampler: str = "DPM++ 2M Karras",
    guidance_scale: float = 4.0,
    size: tuple[int, int] | None = None,
    hypernetworks: str | Path = DEFAULT_FOLDER,
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    on_step: Callable[[int, int, Any], None] | None = None,
) -> list[Picture]:
    """Draw pictures from a prompt, tags honoured.

    Args:
        prompt: text with `<hypernet:NAME:STRENGTH>` tags, or several (with the same tags).
        model: name, folder, file, hub id, or an opened model.
        negative: what guidance moves away from.
        seed: of the first picture, the next ones count up; None draws one.
        count: pictures of each prompt.
        steps, sampler, guidance_scale: see `ldm.sampling`.
        size: (height, width) in pixels, the model's own by default.
        hypernetworks: folder the tags' names are looked up in.
        device, precision, attention: see `ldm.models.device.placement`; an opened model stays as it is.
        on_step: called with (step, steps, latents).

    Returns:
        pictures, all of the first prompt first; each with `parameters` text and notes such as
        "32 of 64 projections reached".

    Raises:
        UserError: unknown model, sampler or network; a network that fits nothing; numbers out of range.
    """
    from hyperbrush.hypernetworks import HypernetworkLibrary, attach
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.device import place, placement
    from hyperbrush.ldm.pictures import to_pictures
    from hyperbrush.ldm.sampling import find_sampler

    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("no prompt was given")
    if not 1 <= steps <= 1000:
        raise UserError(f"steps must be 1 to 1000, got {steps}")
    if count < 1:
        raise UserError(f"count must be 1 or more, got {count}")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED}, got {seed}")
    parsed = [parse_tags(p) for p in prompts]
    if parse_tags(negative)[1]:
        raise UserError(
            "the negative prompt holds a <hypernet:…> tag; write it in the prompt, with a negative strength"
        )
    if any(tags != parsed[0][1] for _, tags in parsed):
        raise UserError("prompts of one call must name the same hypernetworks; make one call for each")
    tags = parsed[0][1]
    first = random.randrange(2**31) if seed is None else seed
    sampler = find_sampler(sampler).name
    library = HypernetworkLibrary(hypernetworks) if tags else None
    networks = [(library.load(tag.name), tag.strength) for tag in tags] if library else []
    if isinstance(model, LatentDiffusion):
        opened = model
    else:
        where = placement(device, precision, attention)
        opened = place(LatentDiffusion.from_pretrained(model), where)
    texts = [text.strip() for text, _ in parsed for _ in range(count)]
    seeds = [first + i for _ in parsed for i in range(count)]
    notes = unknown_words(opened, [text for text, _ in parsed])
    scope: Any = attach(opened.unet, networks) if networks else contextlib.nullcontext()
    with scope as attached:
        if networks:
            notes.append(str(attached.applied))
            attached.rows_per_picture = (
                1 if guidance_scale == 1 else 2
            )  # `sample` stacks both sides of guidance
        images = opened.sample(
            texts,
            seeds=seeds,
            steps=steps,
            sampler=sampler,
            guidance_scale=guidance_scale,
            negative=negative,
            size=size,
            on_step=on_step,
        )
    hashes = {tag.name: sha256(library.find(tag.name))[:10] for tag in tags} if library else {}
    made = to_pictures(images)
    return [
        Picture(
            image,
            parameters_text(
                prompts[i // count],
                negative,
                seeds[i],
                steps,
                sampler,
                guidance_scale,
                image.size,
                str(model) if isinstance(model, str | Path) else "",
                hashes,
            ),
            seeds[i],
            notes,
        )
        for i, image in enumerate(made)
    ]


def unknown_words(model: "LatentDiffusion", texts: Sequence[str]) -> list[str]:
    """One note on words that a model which lists its words was never shown, with the closest known."""
    known = model.known_words
    if known is None:
        return []
    words = [w for text in texts for w in re.findall(r"[^\W_]+", text.casefold())]
    odd = [w for w in dict.fromkeys(words) if w not in known]
    if not odd:
        return []
    told = []
    for word in odd:
        close = get_close_matches(word, known, n=2, cutoff=0.7)
        told.append(f"{word!r}" + (f" (near: {', '.join(close)})" if close else ""))
    return [f"the model has never seen the {'word' if len(odd) == 1 else 'words'} {', '.join(told)}"]


def parameters_text(
    prompt: str,
    negative: str,
    seed: int,
    steps: int,
    sampler: str,
    guidance_scale: float,
    size: tuple[int, int],
    model: str,
    hashes: dict[str, str],
) -> str:
    """Settings as the webui writes them into a PNG's `parameters`."""
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    settings: dict[str, object] = {
        "Steps": steps,
        "Sampler": sampler,
        "CFG scale": f"{guidance_scale:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
    }
    if model:
        settings["Model"] = Path(model).stem
    if hashes:
        settings["Hypernet hashes"] = '"' + ", ".join(f"{k}: {v}" for k, v in hashes.items()) + '"'
    return "\n".join([*lines, ", ".join(f"{k}: {v}" for k, v in settings.items())])

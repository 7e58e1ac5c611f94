"""The text-to-image call: prompt to tags to networks to pictures with their settings inside."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.generation.infotext import Infotext, write_infotext
from hyperbrush.generation.known_words import never_seen
from hyperbrush.generation.masks import masked_region
from hyperbrush.generation.opened import OpenedModel, file_hash, open_model
from hyperbrush.generation.picture_files import save_picture
from hyperbrush.generation.settings import MASK_BLUR, MAX_SEED, Settings, check_subseed, check_text, whole
from hyperbrush.hypernetworks.files.packed import file_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from hyperbrush.generation.prompt_networks import PromptNetworks
    from hyperbrush.hypernetworks.files.adapters import Adapter
    from hyperbrush.ldm.models import LatentDiffusion

DEFAULT_FOLDER = Path("models/hypernetworks")
DISCRETISATION = "Discretisation"  # a field of our own: where the steps lie, if not as in diffusers
STRENGTH = "Denoising strength"  # the webui's name of `image_strength`
LORA_HASHES = "Lora hashes"
HIRES, HIRES_STEPS, HIRES_UPSCALER = "Hires upscale", "Hires steps", "Hires upscaler"
SUBSEED, SUBSEED_STRENGTH = "Variation seed", "Variation seed strength"
MASK = "Mask blur"  # in pixels, as the webui writes it: only pictures with a mask have it
AREA, PADDING = (
    "Inpaint area",
    "Masked area padding",
)  # where the mask's region alone was drawn, in the webui's words


@dataclass
class Picture:
    """One result: the image, how it was made, and what to tell about it."""

    image: "Image"
    settings: Infotext
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> str:
        """The settings as the webui's ``parameters`` text."""
        return write_infotext(self.settings)

    @property
    def seed(self) -> int:
        """The seed it was drawn from."""
        return self.settings.seed or 0

    def save(self, path: str | Path) -> Path:
        """Write it whole or not at all; PNG, JPEG and WebP files carry the settings as the webui's do.

        Raises:
            UserError: it cannot be written, or Pillow knows no such format.
        """
        return save_picture(self.image, path, self.parameters)


def generate(
    prompt: str | Sequence[str],
    *,
    model: "str | Path | LatentDiffusion | OpenedModel | DiffusionPipeline" = "emoji",
    negative: str = Settings.negative,
    seed: int | None = None,
    count: int = 1,
    steps: int = Settings.steps,
    sampler: str = Settings.sampler,
    guidance_scale: float = Settings.guidance_scale,
    size: tuple[int, int] | None = None,
    clip_skip: int = Settings.clip_skip,
    discretisation: str = Settings.discretisation,
    image: "Image | str | Path | None" = None,
    image_strength: float = Settings.image_strength,
    mask: "Image | str | Path | None" = None,
    mask_padding: int | None = None,
    subseed: int | None = None,
    subseed_strength: float = Settings.subseed_strength,
    hires_scale: float | None = None,
    hires_strength: float = Settings.hires_strength,
    hires_steps: int = Settings.hires_steps,
    hires_upscaler: str = Settings.hires_upscaler,
    hypernetworks: str | Path = DEFAULT_FOLDER,
    loras: str | Path | None = None,
    missing: str = "error",
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    batch: int | None = None,
    on_step: Callable[[int, int, Any], None] | None = None,
    on_picture: Callable[[int, Picture], object] | None = None,
) -> list[Picture]:
    """Draw pictures from prompts, each with the networks and strengths of its own tags.

    Args:
        prompt: text with `<hypernet:NAME:STRENGTH>` tags, and emphasis, BREAK, `[cat:dog:0.5]`, `[cat|dog]` and AND as
            the webui reads them (`prompt_schedule`); or several.
        model: name, folder, file, hub id, or an opened model, also a diffusers pipeline; of a transformer one of
            `ldm.models.pipeline_families`, which then draws with its own scheduler and guidance.
        negative: what guidance moves away from.
        seed: of each prompt's first picture, the next ones count up; None draws one.
        count: pictures of each prompt.
        steps, sampler, guidance_scale, size, clip_skip, discretisation: see `Settings`.
        image, image_strength, mask, mask_padding, subseed_strength: see `Settings`.
        hires_scale, hires_strength, hires_steps, hires_upscaler: see `Settings`.
        subseed: the variation seed of each prompt's first picture; with a strength the next ones count it up in place of
            the seed, as in the webui; None draws one.
        hypernetworks: folder the tags' names are looked up in.
        loras: folder for the names of <lora:NAME:STRENGTH>; "loras" beside that of the hypernetworks by default.
        missing: "error", or "warn" to draw without networks the folder does not have; a note says so.
        device, precision, attention: see `ldm.models.device.placement`; an opened model stays as it is.
        batch: pictures drawn at once, all of them by default.
        on_step: called with (step, steps, latents).
        on_picture: called with (place, picture) when a batch is drawn; places are those of the result.

    Returns:
        pictures, all of the first prompt first; each with `parameters` text and notes such as
        "32 of 64 projections reached".

    Raises:
        UserError: unknown model, sampler or network; a network that fits nothing; numbers out of range.
    """
    from hyperbrush.hypernetworks import HypernetworkLibrary

    prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts:
        raise UserError("no prompt was given")
    whole("count", count, 1, 10_000)
    if batch is not None:
        whole("batch", batch, 1, 10_000)
    if seed is not None:
        whole("a seed", seed, 0, MAX_SEED - count + 1)
    if subseed is not None:
        whole("a subseed", subseed, 0, MAX_SEED - count + 1)
        check_subseed(subseed, subseed_strength)
    first = random.randrange(2**31) if seed is None else seed
    other = random.randrange(2**31) if subseed is None else subseed
    seeds, subseeds = pairs_of_seeds(first, other, count, subseed_strength)
    return draw(
        [text for text in prompts for _ in range(count)],
        seeds * len(prompts),
        Settings(
            negative,
            steps,
            sampler,
            guidance_scale,
            size,
            clip_skip,
            discretisation,
            image,
            image_strength,
            mask,
            mask_padding,
            subseed_strength,
            hires_scale,
            hires_strength,
            hires_steps,
            hires_upscaler,
        ),
        lambda: open_model(model, device=device, precision=precision, attention=attention),
        HypernetworkLibrary(hypernetworks),
        loras=None if loras is None else HypernetworkLibrary(loras),
        missing=missing,
        subseeds=subseeds * len(prompts),
        most=batch,
        on_step=on_step,
        on_picture=on_picture,
    )


def pairs_of_seeds(seed: int, subseed: int, count: int, strength: float) -> tuple[list[int], list[int]]:
    """(seeds, subseeds) of so many pictures: where there is a variation its seed counts up, else the seed."""
    up = range(count)
    return [seed if strength else seed + i for i in up], [subseed + i for i in up]


def draw(
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    model: Callable[[], OpenedModel],
    library: Any,
    *,
    loras: Any = None,
    missing: str = "error",
    subseeds: Sequence[int] = (),
    load: "Callable[[Path], Adapter] | None" = None,
    most: int | None = None,
    on_step: Callable[[int, int, Any], None] | None = None,
    on_picture: Callable[[int, Picture], object] | None = None,
) -> list[Picture]:
    """Draw a prompt and a seed for each picture, together those whose texts have as many chunks, at most so many at once.

    model: called once everything else was found sound. library: a `HypernetworkLibrary`; loras: another, of LoRAs.
    subseeds: one for each picture, where the settings have a strength for them. load: reads a network's file.

    Raises:
        UserError: as `generate`.
    """
    from hyperbrush.generation.batches import (
        BatchItem,
        among,
        draw_in_pipeline,
        draw_together,
        in_parts,
        settled,
    )
    from hyperbrush.generation.encoding import encode_prompts
    from hyperbrush.generation.loras import loras_at_work
    from hyperbrush.generation.prompt_networks import read_negative, read_prompt
    from hyperbrush.generation.wording import layout, wording
    from hyperbrush.hypernetworks.files.adapters import load as load_file
    from hyperbrush.ldm.models.pipelines import PipelineDiffusion
    from hyperbrush.ldm.sampling.names import find_sampler

    for text in {*prompts, settings.negative}:
        check_text(text)
    for seed in (*seeds, *subseeds):
        whole("a seed", seed, 0, MAX_SEED)
    subseeds = subseeds or [0] * len(seeds)
    also = read_negative(settings.negative)
    read = [read_prompt(text, library, missing, loras) for text in prompts]
    said = [wording(one.text, settings) for one in read]
    again = [wording(one.text, settings, second=True) for one in read] if settings.hires_scale else said
    keep = cache(load or load_file)
    for path, *_ in dict.fromkeys(place for one in read for place in one.terms):
        keep(path)
    opened = model()
    settings = settled(opened.model, settings)
    region = None
    if settings.mask_padding is not None:
        size = settings.size or (opened.model.image_size, opened.model.image_size)
        region = masked_region(settings.image, settings.mask, settings.mask_padding, size)
        settings = replace(settings, image=region.image_inside, mask=region.mask_inside, size=size)
    encode = cache(lambda text: encode_prompts(opened.model, [text], clip_skip=settings.clip_skip))
    # Padding to a longer neighbour would change a picture: texts of one length are drawn together.
    groups: dict[Any, list[int]] = {}
    pipeline = opened.model if isinstance(opened.model, PipelineDiffusion) else None
    adaptive = pipeline is None and find_sampler(settings.sampler).loop == "dpm_adaptive"  # at its own pace
    for i, (one, networks) in enumerate(zip(said, read, strict=True)):
        words = () if pipeline is not None else (layout(one, encode), layout(again[i], encode))
        key = words, tuple(networks.loras.items()), i if adaptive else None
        groups.setdefault(key, []).append(i)
    about = _about(opened, settings)
    made: dict[int, Picture] = {}
    parts = [(key, part) for key, rows in groups.items() for part in in_parts(rows, most)]
    for done, ((_, at_work, _), rows) in enumerate(parts):
        batch = [BatchItem(read[i], said[i], seeds[i], subseeds[i], again[i]) for i in rows]
        told = None if on_step is None else among(on_step, done, len(parts))
        with loras_at_work(opened.model, dict(at_work)) as reached:
            # A LoRA changes text encoders too.
            reads = cache(encode.__wrapped__) if at_work else encode
            if pipeline is not None:
                drawn = draw_in_pipeline(pipeline, batch, settings, keep, told)
            else:
                drawn = draw_together(opened.model, batch, settings, keep, reads, told)
        for i, (image, notes) in zip(rows, drawn, strict=True):
            whole_image = image if region is None else region.put_back(image)
            own = replace(
                about,
                prompt=prompts[i].strip(),
                seed=seeds[i],
                size=_first_size(opened, settings) or (image.height, image.width),
                hypernet_hashes={name: file_hash(file_of(path)) for name, path in read[i].files.items()},
                fields={**_variation(settings, subseeds[i]), **about.fields, **_lora_hashes(read[i])},
            )
            unknown = _unknown_words(opened.model, list(dict.fromkeys([*said[i].texts, *again[i].texts])))
            made[i] = Picture(whole_image, own, [*unknown, *read[i].notes, *also, *notes, *reached])
            if on_picture is not None:
                on_picture(i, made[i])
    return [made[i] for i in range(len(prompts))]


def _first_size(opened: OpenedModel, settings: Settings) -> tuple[int, int] | None:
    """(height, width) of the first of two passes, which is what the webui writes; None where there is one."""
    if settings.hires_scale is None:
        return None
    return settings.size or (opened.model.image_size, opened.model.image_size)


def _variation(settings: Settings, subseed: int) -> dict[str, str]:
    """The fields of a variation, as the webui writes them."""
    if not settings.subseed_strength:
        return {}
    return {SUBSEED: str(subseed), SUBSEED_STRENGTH: f"{settings.subseed_strength:g}"}


def _lora_hashes(prompt: "PromptNetworks") -> dict[str, str]:
    """The field of a picture's LoRAs, as the webui writes it."""
    from hyperbrush.generation.infotext import join_hashes
    from hyperbrush.generation.loras import lora_hash

    if not prompt.loras:
        return {}
    return {LORA_HASHES: join_hashes({path.stem: lora_hash(path) for path in prompt.loras})}


def _about(opened: OpenedModel, settings: Settings) -> Infotext:
    """What all pictures of a batch say."""
    from hyperbrush import __version__

    fields = {}
    if settings.image is not None:
        fields[STRENGTH] = f"{settings.image_strength:g}"
    if settings.image is not None and settings.mask is not None:
        width, height = settings.image.size
        fields[MASK] = f"{MASK_BLUR * min(settings.size or (height, width)):g}"
    if settings.hires_scale is not None:
        fields[STRENGTH] = f"{settings.hires_strength:g}"
        fields[HIRES] = f"{settings.hires_scale:g}"
        fields |= {HIRES_STEPS: str(settings.hires_steps)} if settings.hires_steps else {}
        fields[HIRES_UPSCALER] = settings.hires_upscaler
    if settings.mask_padding is not None:
        fields |= {AREA: "Only masked", PADDING: str(settings.mask_padding)}
    if settings.discretisation != "diffusers":
        fields[DISCRETISATION] = settings.discretisation
    return Infotext(
        **settings.written(),
        model=opened.name,
        model_hash="" if opened.file is None else file_hash(opened.file),
        version=f"hyperbrush {__version__}",
        fields=fields,
    )


def _unknown_words(model: "LatentDiffusion", texts: Sequence[str]) -> list[str]:
    from hyperbrush.generation.emphasis import BREAK, parse_emphasis

    parts = [part for text in texts for part, weight in parse_emphasis(text) if (part, weight) != BREAK]
    return unknown_words(model, [" ".join(parts)])


def unknown_words(model: "LatentDiffusion", texts: Sequence[str]) -> list[str]:
    """One note on words that a model which lists its words was never shown, with the closest known."""
    known = model.known_words
    if known is None:
        return []
    odd = never_seen(known, texts)
    if not odd:
        return []
    told = []
    for word in odd:
        close = get_close_matches(word, known, n=6, cutoff=0.7)
        close = sorted(close, key=lambda near: near[0] != word[0])[
            :3
        ]  # a first letter is seldom the wrong one
        told.append(f"{word!r}" + (f" (near: {', '.join(close)})" if close else ""))
    return [f"the model has never seen the {'word' if len(odd) == 1 else 'words'} {', '.join(told)}"]

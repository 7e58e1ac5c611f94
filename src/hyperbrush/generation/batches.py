"""One batch of pictures: what each is of, its networks attached, sampled together."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.generation.emphasis import parse_emphasis
from hyperbrush.generation.masks import soft_edged
from hyperbrush.generation.prompt_networks import PromptNetworks, acts_on, networks_of
from hyperbrush.generation.settings import Settings
from hyperbrush.generation.wording import Encode, Wording, prompted
from hyperbrush.hypernetworks import attach
from hyperbrush.hypernetworks.files.adapters import Adapter
from hyperbrush.ldm.models.pipelines import PipelineDiffusion
from hyperbrush.ldm.models.prompted import Prompted
from hyperbrush.ldm.pictures import from_picture, to_pictures
from hyperbrush.ldm.sampling.noise import Variation
from hyperbrush.ldm.sampling.pictures import draw_pictures, map_shape
from hyperbrush.ldm.sampling.samplers import check_steps, make_scheduler
from hyperbrush.ldm.sampling.second_pass import SecondPass

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.ldm.models import LatentDiffusion


@dataclass(frozen=True)
class BatchItem:
    """What one picture of a batch is of."""

    networks: PromptNetworks
    said: Wording
    seed: int
    subseed: int = 0
    again: Wording | None = None  # in a second pass


def draw_together(
    model: "LatentDiffusion",
    batch: Sequence[BatchItem],
    settings: Settings,
    load: Callable[[Path], Adapter],
    encode: Encode,
    on_step: Callable[[int, int, Any], None] | None,
) -> "list[tuple[Image, list[str]]]":
    """The pictures of a batch whose wordings have one layout, each with what its networks reached.

    load: reads a network's file. encode: a text's states.

    Raises:
        UserError: a network that fits nothing, a size the model cannot make, pictures that are no numbers.
    """
    uses = networks_of([item.networks for item in batch], load)
    reached: list[str] = []
    told = prompted([item.said for item in batch], settings, encode)
    second = _second_pass(batch, settings, encode)
    scope: Any = attach(model, uses) if uses else contextlib.nullcontext()
    with scope as attached:
        if uses:
            reached = [f"{one.name}: {one}" for one in attached.applied.networks]
            # Both sides of guidance are one batch.
            attached.rows_per_picture = told.rows_per_picture(settings.guidance_scale)
        images = _sample(model, batch, told, second, settings, on_step)
    check_numbers(images)
    return [
        (image, [text for use, text in zip(uses, reached, strict=True) if acts_on(use, i)])
        for i, image in enumerate(to_pictures(images))
    ]


def settled(model: "LatentDiffusion", settings: Settings) -> Settings:
    """Settings with the model's usual sampler where none was named; a transformer's pipeline draws with its own.

    Raises:
        UserError: what a transformer's pipeline does not draw with.
    """
    if not isinstance(model, PipelineDiffusion):
        return settings.with_sampler(model.diffusion.prediction)
    model.check_drawing(settings.sampler, settings.negative)
    usual = Settings()
    for option in ("image", "clip_skip", "discretisation", "subseed_strength", "hires_scale"):
        if getattr(settings, option) != getattr(usual, option):
            raise UserError(
                f"{option}: {type(model.pipe).__name__} draws from texts alone, which it encodes and samples itself; leave it out"
            )
    return settings


def check_drawable(model: "LatentDiffusion", settings: Settings) -> None:
    """Refuse, before anything is drawn, a size, a sampler or a number of steps that the model cannot take.

    Raises:
        UserError: as `settled`, `map_shape` and `make_scheduler`.
    """
    settings = settled(model, settings)
    if not isinstance(model, PipelineDiffusion):
        map_shape(model, settings.size)
        check_steps(make_scheduler(settings.sampler, model.diffusion.scheduler_config), settings.steps)


def draw_in_pipeline(
    model: PipelineDiffusion,
    batch: Sequence[BatchItem],
    settings: Settings,
    load: Callable[[Path], Adapter],
    on_step: Callable[[int, int, Any], None] | None,
) -> "list[tuple[Image, list[str]]]":
    """As `draw_together`, by a transformer's pipeline, one picture after another.

    Raises:
        UserError: as there.
    """
    drawn = []
    for done, item in enumerate(batch):
        uses = networks_of([item.networks], load)
        scope: Any = attach(model.pipe, uses) if uses else contextlib.nullcontext()
        told = None if on_step is None else among(on_step, done, len(batch))
        with scope as attached:
            reached = [f"{one.name}: {one}" for one in attached.applied.networks] if uses else []
            images = model.sample(
                item.networks.text,
                seeds=[item.seed],
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                negative=settings.negative,
                size=settings.size,
                on_step=told,
            )
        check_numbers(images)
        drawn.append((to_pictures(images.float())[0], reached + _notes(item, type(model.pipe).__name__)))
    return drawn


def _notes(item: BatchItem, name: str) -> list[str]:
    """On what Stable Diffusion's prompts say besides words, which a transformer's pipeline reads as such."""
    same = [text.split() for text in item.said.texts] == [item.networks.text.split()]
    if same and all(weight == 1 for _, weight in parse_emphasis(item.networks.text)):
        return []
    return [
        f"{name} reads emphasis, BREAK, editing and AND as words: the prompt was handed over as it stands"
    ]


def among(on_step: Callable[[int, int, Any], None], done: int, parts: int) -> Callable[[int, int, Any], None]:
    """Steps of one part among several as steps of all."""
    return lambda step, steps, latents: on_step(done * steps + step, parts * steps, latents)


def in_parts(rows: Sequence[int], most: int | None) -> list[Sequence[int]]:
    """Rows in parts of at most so many.

    >>> in_parts(range(5), 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    size = most or len(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def check_numbers(images: Tensor) -> None:
    """Refuse pictures that are none.

    Raises:
        UserError: some are no numbers.
    """
    if not bool(images.isfinite().all()):
        raise UserError(
            "the picture came out as no numbers (NaN): a strength or guidance scale is too large, or the precision too "
            "low; take smaller ones, or fp32"
        )


def _sample(
    model: "LatentDiffusion",
    batch: Sequence[BatchItem],
    told: Prompted,
    second: SecondPass | None,
    settings: Settings,
    on_step: Callable[[int, int, Any], None] | None,
) -> Tensor:
    """Pictures (batch, 3, H, W) in [0, 1]."""
    image = mask = None
    if settings.image is not None:
        image = _pixels(settings.image, settings.size).expand(len(batch), -1, -1, -1)
        if settings.mask is not None:
            mask = _shares(settings.mask, image.shape[2:]).expand(len(batch), -1, -1, -1)
    return draw_pictures(
        model,
        {},
        {},
        prompted=told,
        count=None,
        seeds=[item.seed for item in batch],
        steps=settings.steps,
        sampler=settings.sampler,
        guidance_scale=settings.guidance_scale,
        image=image,
        image_strength=settings.image_strength,
        mask=mask,
        size=settings.size,
        discretisation=settings.discretisation,
        output="images",
        on_step=on_step,
        variation=Variation([item.subseed for item in batch], settings.subseed_strength)
        if settings.subseed_strength
        else None,
        second=second,
    )


def _second_pass(batch: Sequence[BatchItem], settings: Settings, encode: Encode) -> SecondPass | None:
    """The second pass of a batch, where its settings have one."""
    if settings.hires_scale is None:
        return None
    said = [item.said if item.again is None else item.again for item in batch]
    return SecondPass(
        settings.hires_scale,
        settings.hires_strength,
        settings.hires_steps or settings.steps,
        settings.hires_upscaler,
        prompted(said, settings, encode, second=True),
    )


def _pixels(image: "Image", size: tuple[int, int] | None) -> Tensor:
    """An RGB picture as (1, 3, H, W) in [0, 1], scaled to (height, width) if given."""
    from PIL.Image import Resampling

    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Resampling.LANCZOS)
    return from_picture(image)[None]


def _shares(mask: "Image", size: Sequence[int]) -> Tensor:
    """A grey mask as (1, 1, H, W) in [0, 1], its edges softened; see `soft_edged`."""
    import numpy as np

    return torch.from_numpy(np.array(soft_edged(mask, size)))[None, None].float() / 255

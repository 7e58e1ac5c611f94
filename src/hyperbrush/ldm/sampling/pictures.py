"""Drawing pictures with a whole model: condition, guidance, sampling, first stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.models import autoencoder, text
from hyperbrush.ldm.models.conditioning import CONDITIONING
from hyperbrush.ldm.models.inpainting import all_missing, masked_input
from hyperbrush.ldm.models.prompted import Prompted, StepConditions
from hyperbrush.ldm.sampling.names import usual_sampler
from hyperbrush.ldm.sampling.second_pass import SecondPass, enlarged

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion
    from hyperbrush.ldm.sampling.noise import Variation


@torch.no_grad()
def draw_pictures(
    model: "LatentDiffusion",
    condition: Mapping[str, Any],
    null: Mapping[str, Any],
    *,
    count: int | None,
    seeds: Sequence[int] | None,
    steps: int,
    sampler: str | None,
    guidance_scale: float,
    image: Tensor | None,
    image_strength: float,
    mask: Tensor | None,
    size: tuple[int, int] | None,
    discretisation: str,
    output: str,
    on_step: Callable[[int, int, Tensor], None] | None,
    prompted: Prompted | None = None,
    variation: "Variation | None" = None,
    second: SecondPass | None = None,
) -> Tensor:
    """What `LatentDiffusion.sample` does; its arguments, with the condition as a batch.

    condition: `captions`, `embeddings`, … as `conditions` reads them; null: what guidance moves away
    from, the same keys, for text models (`captions` may be one text for all).
    prompted: in place of both, text states that change with the step or are composed.
    variation: of the starting noise. second: draw on from there, larger; for pictures from noise alone.

    Raises:
        UserError: as `LatentDiffusion.sample`.
    """
    from hyperbrush.ldm.sampling import samplers as sampling

    if output not in ("images", "latents"):
        raise unknown_name("output", output, ("images", "latents"))
    _check_condition(model, condition)
    given = next(iter(condition.values())) if condition else image
    number = len(given) if given is not None else count or len(seeds or [0])
    number = number if prompted is None else prompted.batch
    seeds = list(range(number)) if seeds is None else list(seeds)
    if len(seeds) != number:
        raise UserError(f"{len(seeds)} seeds for {number} pictures; give one for each")
    if mask is not None and image is None:
        raise UserError("a mask needs an image, of which it keeps a part")
    beside: dict[str, Tensor] = {}  # of an inpainting model; filled below
    if prompted is None:
        conditions = model.conditions(condition) if condition or model.conditioning != "none" else {}
        if "concat" in conditions:
            conditions["concat"] = conditions["concat"].to(model.dtype)
        guided = guidance_scale != 1 and bool(conditions)
        if guided:
            conditions = _both_sides(_null_conditions(model, condition, null, number), conditions)
        predict = _predict(model, lambda: conditions, guidance_scale if guided else None, beside)
        tell = on_step
    else:
        told = _told_of(on_step, 0, 0 if second is None else second.steps)
        predict, tell = _predict_prompted(model, prompted, guidance_scale, beside, told)

    scheduler = sampling.make_scheduler(
        sampler or usual_sampler(model.diffusion.prediction), model.diffusion.scheduler_config
    )
    before, was_training = model.scheduler, model.training
    first = next(model.first_stage.parameters())
    model.eval()
    model.scheduler = scheduler
    try:
        start: dict[str, Any] = {}
        if image is not None:
            size = _size_of(image, number, size)
            shape = map_shape(model, size)
            pixels = image.to(first) * 2 - 1
            start = {"image_latents": model.encode(pixels).to(model.dtype), "strength": image_strength}
            if mask is not None:
                _check_mask(mask, image)
                start["mask"] = torch.nn.functional.interpolate(mask, size=shape[1:], mode="area")
        else:
            shape = map_shape(model, size)
        factor = autoencoder.downsampling(model.first_stage)
        larger = None if second is None else second.size(shape[1] * factor, shape[2] * factor)
        goal = map_shape(model, larger)  # refused before anything is drawn
        if model.inpaints:
            beside["concat"] = _mask_condition(model, number, shape, image, mask)
            start.pop("mask", None)  # the UNet keeps what is to be kept, as in diffusers
            if image_strength == 1:  # from noise alone, as in diffusers
                start = {}
        latents = sampling.sample(
            predict,
            scheduler,
            shape,
            seeds,
            steps,
            device=model.device,
            dtype=model.dtype,
            discretisation=discretisation,
            variation=variation,
            on_step=tell,
            **start,
        )
        if second is not None and larger is not None:
            if model.inpaints:
                beside["concat"] = _mask_condition(model, number, goal, None, None)
            told = _told_of(on_step, steps, 0)
            predict, tell = _predict_prompted(model, second.prompted, guidance_scale, beside, told)
            latents = sampling.sample(
                predict,
                scheduler,
                goal,
                seeds,
                second.schedule,
                device=model.device,
                dtype=model.dtype,
                discretisation=discretisation,
                variation=variation,
                image_latents=enlarged(model, latents, second.upscaler, goal, larger),
                strength=second.share,
                on_step=tell,
            )
        if output == "latents":
            return latents
        drawn = (model.decode(latents.to(first)).float() / 2 + 0.5).clamp(0, 1)
        if (
            image is not None and mask is not None
        ):  # what is kept went through the first stage: put the original back
            drawn = torch.lerp(image.to(drawn), drawn, mask.to(drawn))
        return drawn
    finally:
        model.scheduler = before
        model.train(was_training)


def _told_of(on_step: "OnStep | None", before: int, after: int) -> "OnStep | None":
    """Steps of one pass as steps of all: so many of another before it, and after it."""
    if on_step is None:
        return None
    return lambda step, steps, latents: on_step(before + step, before + steps + after, latents)


Predict = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Tensor], None]


def _predict(
    model: "LatentDiffusion",
    conditions: Callable[[], Mapping[str, Tensor]],
    scale: float | None,
    beside: Mapping[str, Tensor],
    weights: Tensor | None = None,
) -> Predict:
    """The network, under guidance of a scale where one is given.

    conditions: asked at each evaluation. beside: of the pictures, the same on all sides of guidance. weights: (parts, batch) of composed prompts, else one part of weight 1.
    """
    from hyperbrush.ldm.sampling import samplers as sampling

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        rows = 1 if scale is None else 2 if weights is None else 1 + len(weights)
        model.rows_per_picture = rows
        same = {key: torch.cat([value] * rows) for key, value in beside.items()}
        try:
            predicted = model.diffusion(torch.cat([latents] * rows), timestep, **conditions(), **same)
        finally:
            model.rows_per_picture = None
        if scale is None:
            return predicted  # type: ignore[no-any-return]
        null, *parts = predicted.chunk(rows)
        if weights is None:
            return sampling.classifier_free_guidance(null, parts[0], scale)
        return sampling.composed_guidance(null, parts, weights, scale)

    return predict


def _predict_prompted(
    model: "LatentDiffusion",
    prompted: Prompted,
    scale: float,
    beside: Mapping[str, Tensor],
    on_step: OnStep | None,
) -> tuple[Predict, OnStep]:
    """The network told of prompts that change with the step, and what must be called after each step."""
    guided = prompted.guided(scale)
    by_step = StepConditions(model, prompted, guided=guided)
    plain = len(prompted.parts) == 1 and bool((prompted.weights == 1).all())
    done = evaluated = 0

    def conditions() -> Mapping[str, Tensor]:
        nonlocal evaluated
        now = by_step.at(prompted.number(done, evaluated))
        evaluated += 1
        return now

    def tell(step: int, steps: int, latents: Tensor) -> None:
        nonlocal done
        done = step
        if on_step is not None:
            on_step(step, steps, latents)

    weights = None if plain else prompted.weights.to(model.device)
    return _predict(model, conditions, scale if guided else None, beside, weights), tell


def _mask_condition(
    model: "LatentDiffusion",
    number: int,
    shape: tuple[int, int, int],
    image: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """What an inpainting model is told beside the latents: without a mask, that all is drawn anew."""
    if image is None or mask is None:
        factor = autoencoder.downsampling(model.first_stage)
        return all_missing(model, number, (shape[1] * factor, shape[2] * factor))
    return masked_input(model, image * 2 - 1, mask)


def map_shape(model: "LatentDiffusion", size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(channels, height, width) of the latents of a picture of this (height, width) in pixels.

    Raises:
        UserError: the UNet's levels do not divide it.
    """
    channels, height, width = model.latent_shape
    if size is None:
        return channels, height, width
    factor, unit = autoencoder.downsampling(model.first_stage), model.size_unit
    if any(side < unit or side % unit for side in size):
        raise UserError(
            f"size {size[1]}x{size[0]} is not possible: both sides must be multiples of {unit} pixels"
        )
    return channels, size[0] // factor, size[1] // factor


def _check_condition(model: "LatentDiffusion", condition: Mapping[str, Any]) -> None:
    """Refuse a condition the model does not read, and half of one."""
    readable: set[str | None] = {CONDITIONING[model.conditioning]}
    if model.conditioning == "text":
        readable |= {"embeddings"}
        if model.text_encoder_2 is not None:
            readable |= {"pooled_embeddings"}
    if stray := sorted(condition.keys() - readable):
        if stray == ["pooled_embeddings"] and model.conditioning == "text":
            raise UserError("this model has one text encoder and reads no pooled_embeddings; leave them out")
        raise UserError(f"this model is conditioned by {model.conditioning!r} and reads no {stray[0]}")
    if "captions" in condition and len(condition) > 1:
        raise UserError("captions and embeddings were given; give one of them")
    if "embeddings" in condition or "pooled_embeddings" in condition:
        _check_embeddings(model, condition)


def _check_embeddings(model: "LatentDiffusion", given: Mapping[str, Any], kind: str = "") -> None:
    """Refuse text states of a shape the UNet does not take; kind: "negative_" or nothing."""
    expected = ["embeddings"] + ["pooled_embeddings"] * (model.text_encoder_2 is not None)
    missing = [kind + key for key in expected if key not in given]
    if missing:
        raise UserError(f"text states for this model need {missing[0]} too")
    config: Any = model.unet.config
    shape, width = tuple(given["embeddings"].shape), config.cross_attention_dim
    if len(shape) != 3 or (isinstance(width, int) and shape[-1] != width):
        raise UserError(
            f"{kind}embeddings have shape {shape}; this model takes (batch, tokens, {width}). "
            "Was another model's text encoder used?"
        )
    if "pooled_embeddings" in expected and len(given["pooled_embeddings"]) != shape[0]:
        raise UserError(
            f"{len(given['pooled_embeddings'])} {kind}pooled_embeddings for {shape[0]} {kind}embeddings"
        )


def _null_conditions(
    model: "LatentDiffusion", condition: Mapping[str, Any], null: Mapping[str, Any], number: int
) -> dict[str, Tensor]:
    """The conditions guidance moves away from, for `number` pictures."""
    if model.conditioning != "text":
        return model.conditions(condition, torch.zeros(number, dtype=torch.bool))
    if "embeddings" in null or "pooled_embeddings" in null:
        null = {key: value for key, value in null.items() if key != "captions"}
        _check_embeddings(model, null, "negative_")
        if len(null["embeddings"]) != number:
            raise UserError(
                f"{len(null['embeddings'])} negative_embeddings for {number} pictures; give one for each"
            )
        return model.conditions(null)
    negative = null["captions"]
    texts = [negative] * number if isinstance(negative, str) else list(negative)
    if len(texts) != number:
        raise UserError(f"{len(texts)} negative texts for {number} pictures; give one for each")
    return model.conditions({"captions": texts})


def _both_sides(null: Mapping[str, Tensor], conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions of both sides of guidance as one batch, the null ones first."""
    pairs = {key: (null[key].to(conditions[key]), conditions[key]) for key in conditions}
    if "context" in pairs:
        pairs["context"] = text.same_length(*pairs["context"])
    return {key: torch.cat(pair) for key, pair in pairs.items()}


def _size_of(image: Tensor, number: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of pictures to start from, checked."""
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[:2] != (number, 3):
        raise UserError(f"image has shape {shape}; expected ({number}, 3, H, W), one for each picture")
    found = int(shape[2]), int(shape[3])
    if size is not None and tuple(size) != found:
        raise UserError(
            f"size {size[1]}x{size[0]} is not the image's, {found[1]}x{found[0]}; resize it first, or leave size out"
        )
    return found


def _check_mask(mask: Tensor, image: Tensor) -> None:
    """Refuse a mask of another size than the pictures', or that draws nothing."""
    expected = (len(image), 1, *image.shape[2:])
    if tuple(mask.shape) != expected:
        raise UserError(f"mask has shape {tuple(mask.shape)}; expected {expected}, one for each picture")
    if not bool((mask > 0).any()):
        raise UserError(
            "the mask is black everywhere: nothing would be drawn; make white what is to be drawn anew"
        )

"""What a batch holds for the UNet: latents; texts, labels, pictures, and the empty ones of each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.ldm.models import autoencoder, text
from hyperbrush.ldm.models.inpainting import all_missing, check_batch, masked_input
from hyperbrush.ldm.modules.attention_sites import WITHOUT_CONTEXT

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion

# Kinds of condition, and the key of a batch that holds it.
CONDITIONING = {"text": "captions", "none": None, "class": "class_labels", "image": "condition_images"}
# What is told of a text: the model's names → a batch's.
FORMS = {"context": "embeddings", "context_mask": "embedding_masks", "pooled": "pooled_embeddings"}


def conditions(
    model: "LatentDiffusion", batch: Mapping[str, Any], keep: Tensor | None = None
) -> dict[str, Tensor]:
    """Keyword arguments for `model.diffusion` out of a batch: `captions` or `embeddings` (with
    `pooled_embeddings`), `class_labels`, or `condition_images` (already at the latents' size); for an inpainting model
    also `images` and `inpaint_masks`, see `inpainting.masked_input`.

    keep: (batch,) bool, False where the condition is dropped (empty text, the extra label, zeros).

    Raises:
        UserError: the model's condition is not in the batch; a label it does not know.
    """
    dropped = None if keep is None else ~keep
    if model.conditioning == "text":
        result = _text(model, batch, dropped)
        if model.inpaints and "inpaint_masks" in batch:
            check_batch(model, batch)
            images, masks = moved(model, batch["images"]), moved(model, batch["inpaint_masks"])
            result["concat"] = masked_input(model, images, masks)
        return result
    needed = CONDITIONING[model.conditioning]
    if needed is not None and needed not in batch:
        raise UserError(
            f"a batch for a model conditioned by {model.conditioning!r} needs {needed!r}; got {sorted(batch)}"
        )
    if model.conditioning == "class":
        labels = moved(model, batch["class_labels"]).clone()
        if not 0 <= int(labels.min()) <= int(labels.max()) < model.null_label:
            raise UserError(f"class labels {labels.tolist()} are not all within 0 to {model.null_label - 1}")
        if dropped is not None:
            labels[dropped.to(labels.device)] = model.null_label
        return {"class_labels": labels}
    if model.conditioning == "image":
        picture = moved(model, batch["condition_images"])
        if dropped is not None:
            picture = torch.where(dropped.to(picture.device)[:, None, None, None], 0.0, picture)
        return {"concat": picture}
    return {}


def latents_of(
    model: "LatentDiffusion", batch: Mapping[str, Any], generator: torch.Generator | None = None
) -> Tensor:
    """See `LatentDiffusion.latents_of`."""
    if "latents" in batch:
        return moved(model, batch["latents"])
    if "latent_means" in batch:
        stds = batch.get("latent_stds")
        stds = None if stds is None else moved(model, stds)
        return autoencoder.scaled(model.first_stage, moved(model, batch["latent_means"]), stds, generator)
    if "images" in batch:
        with torch.no_grad():
            return model.encode(moved(model, batch["images"]), generator)
    raise UserError(f"a batch needs 'images', 'latents' or 'latent_means'; got {sorted(batch)}")


def unconditional_batch(model: "LatentDiffusion", images: Tensor) -> dict[str, Any]:
    """A batch of pictures alone, (batch, 3, H, W) in [-1, 1], told the empty text or any label (to be dropped).

    Raises:
        UserError: a tensor of another shape or of whole numbers; a model conditioned by pictures.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UserError(
            f"the pictures are {images.dtype} {tuple(images.shape)}: expected (batch, 3, height, width) in [-1, 1], or a "
            "batch as a mapping ('images', 'latents', …)"
        )
    if model.conditioning == "image":
        raise UserError(
            "a model conditioned by pictures needs them: give a batch with 'images' and 'condition_images'"
        )
    if model.conditioning == "class":
        return {"images": images, "class_labels": torch.zeros(len(images), dtype=torch.long)}
    batch: dict[str, Any] = {"images": images, "captions": [""] * len(images)}
    return batch | {"inpaint_masks": torch.ones_like(images[:, :1])} if model.inpaints else batch


def check_kind(conditioning: str, num_classes: int | None, class_names: Sequence[str] | None) -> int | None:
    """The number of classes of a kind of condition; None where it has none.

    Raises:
        UserError: no such kind, or classes that do not go with it or with each other.
    """
    if conditioning not in CONDITIONING:
        raise unknown_name("conditioning", conditioning, CONDITIONING)
    if class_names is not None:
        num_classes = len(check_names(class_names)) if num_classes is None else num_classes
        if conditioning != "class" or num_classes != len(class_names):
            raise UserError(
                f"{len(class_names)} class_names for conditioning={conditioning!r} with {num_classes} classes"
            )
    if conditioning == "class" and not num_classes:
        raise UserError("conditioning='class' needs num_classes, the number of labels")
    return num_classes if conditioning == "class" else None


def check_names(names: Sequence[str]) -> Sequence[str]:
    """Class names, each once and none empty.

    Raises:
        UserError: they are not.
    """
    if not names or not all(names) or len(set(names)) != len(names):
        raise UserError(f"class names must differ and not be empty, got {list(names)!r:.200}")
    return names


def label_of(model: "LatentDiffusion", name: str) -> int:
    """See `LatentDiffusion.label_of`."""
    if model.conditioning != "class":
        raise UserError(f"this model is conditioned by {model.conditioning!r} and knows no classes")
    names = model.class_names or [str(number) for number in range(model.null_label)]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise unknown_name("class", name, names)


def mark_textless(unet: nn.Module, conditioning: str) -> None:
    """Mark a UNet that reads no text, so that hypernetworks leave its cross-attentions alone."""
    if conditioning != "text":
        setattr(unet, WITHOUT_CONTEXT, True)


def any_conditions(model: "LatentDiffusion", count: int) -> dict[str, Tensor]:
    """Some condition for pictures of the model's own size, to try its UNet with: empty texts, labels, grey pictures."""
    channels, height, width = model.latent_shape
    if model.conditioning == "class":
        return conditions(model, {"class_labels": torch.arange(count) % model.null_label})
    if model.conditioning == "image":
        extra = int(model.unet.config.in_channels) - channels  # type: ignore[union-attr, arg-type]
        return conditions(model, {"condition_images": torch.zeros(count, extra, height, width)})
    if model.conditioning == "none":
        return {}
    result = model.text_conditions([""] * count)
    if model.inpaints:
        result["concat"] = all_missing(model, count, (model.image_size, model.image_size))
    return result


def text_conditions(model: "LatentDiffusion", captions: Sequence[str]) -> dict[str, Tensor]:
    """What the UNet is told of captions: "context" (batch, tokens, width), and for Stable Diffusion XL
    "pooled" (batch, projection) too.
    """
    if model.text_encoder is None or model.text_encoder_2 is None:
        return {"context": model.encode_text(captions)}
    encoders, tokenizers = (model.text_encoder, model.text_encoder_2), (model.tokenizer, model.tokenizer_2)
    context, pooled = text.encode_text_xl(encoders, tokenizers, captions, zero_empty=model.zero_empty_text)
    return {"context": context, "pooled": pooled}


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What is told of texts, one mapping each, as one batch; shorter ones are filled up with zeros.

    Masks (of pipelines whose texts differ in length) are such then.
    """
    return {key: nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True) for key in rows[0]}


def _text(model: "LatentDiffusion", batch: Mapping[str, Any], dropped: Tensor | None) -> dict[str, Tensor]:
    if "embeddings" in batch:
        found = {"context": moved(model, batch["embeddings"])}
        if "pooled_embeddings" in batch:
            found["pooled"] = moved(model, batch["pooled_embeddings"])
        if dropped is not None and dropped.any():
            null = model.text_conditions([""])
            for key, value in found.items():
                place = dropped.to(value.device).view(-1, *[1] * (value.ndim - 1))
                found[key] = torch.where(place, null[key].to(value), value)
        return found
    if "captions" not in batch:
        raise UserError(f"a batch for a text model needs 'captions' or 'embeddings'; got {sorted(batch)}")
    captions = list(batch["captions"])
    if dropped is not None:
        captions = ["" if d else c for c, d in zip(captions, dropped.tolist(), strict=True)]
    return model.text_conditions(captions)


def moved(model: "LatentDiffusion", value: Tensor) -> Tensor:
    """A part of a batch where the model is."""
    return value.to(model.device, non_blocking=True)

"""What a model is told of pictures that no prompt describes: classes, pictures, nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.ldm.models import LatentDiffusion


def subjects(
    model: "LatentDiffusion",
    *,
    prompts: Sequence[str] = (),
    classes: Sequence[str] = (),
    images: "Sequence[Image | str | Path]" = (),
    count: int = 4,
) -> dict[str, Any]:
    """Arguments of `LatentDiffusion.sample` for what the user asked for.

    prompts: one picture each. classes, images: names or numbers of classes, or pictures to be told of, `count` pictures
        of each. Of nothing: `count` empty texts, classes in turn, or unconditional pictures.

    Raises:
        UserError: the model is not told of such a thing; an unknown class, an unreadable picture; no picture for a model
            that needs one.
    """
    kind = model.conditioning
    if count < 1:
        raise UserError(f"{count} pictures were asked for; expected 1 or more")
    readable = {"text": "prompts", "class": "classes", "image": "images"}.get(kind)
    for name, given in (("prompts", prompts), ("classes", classes), ("images", images)):
        if given and name != readable:
            raise UserError(
                f"this model is conditioned by {kind!r} and reads no {name}: "
                + (f"give {readable}, or leave them out" if readable else "leave them out")
            )
    if kind == "text":
        return {"captions": list(prompts) or [""] * count}
    if kind == "class":
        labels = [label for name in classes for label in [model.label_of(name)] * count]
        return {"class_labels": torch.tensor(labels or [i % model.null_label for i in range(count)])}
    if kind == "image":
        if not images:
            raise UserError("this model is told of a picture: give one (--image FILE)")
        told = [condition_image(model, image) for image in images]
        return {"condition_images": torch.stack([one for one in told for _ in range(count)])}
    return {"count": count}


def condition_image(model: "LatentDiffusion", image: "Image | str | Path") -> Tensor:
    """A picture as a model that is conditioned by pictures is told of it in training: (3, h, w) in [-1, 1], the mean over
    each square of the picture at the model's own size, its middle.

    Raises:
        UserError: it cannot be read; a model that is told of something else than three channels of colour.
    """
    from hyperbrush.ldm.data.augment import fit, to_tensor
    from hyperbrush.ldm.data.pictures import opened

    config: Any = model.unet.config
    if (read := config.in_channels - config.out_channels) != 3:
        raise UserError(
            f"this model is told pictures of {read} channels; a picture file has 3, red, green, blue"
        )
    _, height, width = model.latent_shape
    factor = model.image_size // height
    fitted = fit(opened(image, "image"), (height * factor, width * factor), "center")
    return F.avg_pool2d(to_tensor(np.array(fitted)), factor)

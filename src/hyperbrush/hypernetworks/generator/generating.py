"""From pictures, words or a task to an adapter, for people: the generator opened, the condition put together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hyperbrush.assets import generator_file
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import (
    GeneratedWeights,
    Hypernetwork,
    ImageCondition,
    TaskCondition,
    TextCondition,
)
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.device import best_device
from hyperbrush.ldm.models.pipelines import open_any

MOST = 16  # pictures


def open_generator(file: str | Path | None, model: "str | Path | LatentDiffusion") -> Hypernetwork:
    """A generator bound to its model.

    file: what `Hypernetwork.save` wrote; None: the one that ships for the model.

    Raises:
        UserError: no such file; none ships for this model; it is for another model.
    """
    if file is None:
        file = generator_file(str(model) if not isinstance(model, LatentDiffusion) else "emoji")
    if file is None:
        raise UserError(
            f"no generator ships for {model}: give --generator FILE; hyperbrush hyper train makes one"
        )
    if isinstance(model, LatentDiffusion):
        return Hypernetwork.load(file, model)
    # A transformer's own numbers are not asked, so that its pipeline may be in half precision.
    half = torch.float32 if best_device().type == "cpu" else torch.bfloat16
    return Hypernetwork.load(file, open_any(model, half))


@torch.no_grad()
def generate_adapter(
    net: Hypernetwork,
    *,
    pictures: Sequence[Any] = (),
    text: str = "",
    task: str = "",
    name: str = "generated",
) -> GeneratedWeights:
    """One adapter from what is given of a style.

    pictures: one to `MOST`, PIL images, paths or tensors.

    Raises:
        UserError: nothing given, too many pictures, something that cannot be read, or words or a task for a generator
            that never learned from such.
    """
    if len(pictures) > MOST:
        raise UserError(f"{len(pictures)} pictures were given; {MOST} at most are looked at")
    conditions: list[Any] = [ImageCondition(list(pictures))] if pictures else []
    conditions += [TextCondition(text)] if text else []
    conditions += [TaskCondition(task)] if task else []
    if not conditions:
        raise UserError("nothing to generate from: give pictures, a text or a task")
    return net.generate_weights(conditions, name=name)

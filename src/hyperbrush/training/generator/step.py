"""One step of a hypernetwork that generates weights, for loops of one's own."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import Hypernetwork
from hyperbrush.hypernetworks.generator.conditions import conditions_of, kinds_of
from hyperbrush.ldm.models import LatentDiffusion


@contextlib.contextmanager
def generated(
    net: Hypernetwork, model: LatentDiffusion, batch: Mapping[str, Any], generator: torch.Generator | None
) -> Iterator[None]:
    """Within, the weights that a batch's conditions give are applied to the model; afterwards the hypernetwork is
    known to have learned from such.

    Raises:
        UserError: it is bound to another model, or the weights are for another number of pictures.
    """
    target = net.target_network
    if target.module is not model.unet:
        raise UserError(
            f"{net.name!r} is bound to another model: bind it to this one before the optimizer is made, net.bind(model)"
        )
    told = conditions_of(net.source.of_batch(batch), net.settings.embedding_dim)
    before, settled = net.learned, net.trained or net.step > 0
    prepared = [net.source.prepare(one) for one in told]
    kinds = [kind for one in prepared for kind in kinds_of(one)]
    if before or not settled:  # else nobody knows what it learned from, and this step says not all of it
        net.learned = tuple(dict.fromkeys((*before, *kinds)))
    try:
        weights = net.generate_weights(prepared or None, generator=generator)
        keys = [key for key in ("latents", "latent_means", "images") if key in batch]
        pictures = len(batch[keys[0]]) if keys else None
        if pictures is not None and weights.batch not in (None, 1, pictures):
            raise UserError(
                f"the conditions are for {weights.batch} samples and the batch has {pictures} pictures: expected one "
                "condition, or one for each picture"
            )
        with target.apply_weights(weights):
            yield
    except BaseException:
        net.learned = before
        raise
    net.trained = True

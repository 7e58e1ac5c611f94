"""One step of a hypernetwork's training, for loops of one's own."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.generator import Hypernetwork, TunedWeights
from hyperbrush.hypernetworks.generator.conditions import conditions_of, kinds_of
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.latent_diffusion import update


def train_hypernetwork(
    model: LatentDiffusion | Hypernetwork,
    batch: Mapping[str, Any],
    hypernetwork: AttentionHypernetwork | TunedWeights | Hypernetwork | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    *,
    max_grad_norm: float | None = 1.0,
    **settings: Any,
) -> float:
    """One documented step for people with their own loop: only the hypernetwork learns.

    An attention hypernetwork (or `TunedWeights`) is attached; a `Hypernetwork` generates weights from the batch (see
    `generate_weights`), which its ``target_network`` applies: one adapter, or one for each picture.

    model: or, alone with its batch, a `Hypernetwork` that is bound to its model: ``train_hypernetwork(net, batch)``.
    batch, settings: as for `LatentDiffusion.losses`; for a `Hypernetwork` also "condition", what to generate from.
    optimizer: over the hypernetwork's parameters; None: backward alone, the gradients are left to the caller.
    The network stays attached until backward has run, so that gradient checkpointing sees it too.
    Weights of the model that were to learn are so again afterwards.  Returns the loss.

    Raises:
        UserError: the loss is not finite (no parameter was changed); no hypernetwork; one that is bound to no model or to
            another one; weights for another number of pictures than the batch has.
    """
    if isinstance(model, Hypernetwork):
        if hypernetwork is not None and hypernetwork is not model:
            raise UserError(
                "two hypernetworks were given: expected train_hypernetwork(model, batch, hypernetwork)"
            )
        hypernetwork, model = model, _bound_model(model)
    if hypernetwork is None:
        raise UserError(
            "which hypernetwork learns? expected train_hypernetwork(model, batch, hypernetwork, optimizer), or a "
            "Hypernetwork that is bound to its model in the model's place"
        )
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(hypernetwork, Hypernetwork):
                stack.enter_context(generated(hypernetwork, model, batch, generator))
            else:
                acting = hypernetwork.weights if isinstance(hypernetwork, TunedWeights) else hypernetwork
                stack.enter_context(attach(model.unet, [(acting, 1.0)]))
            return update(model(batch, generator, **settings), optimizer, max_grad_norm)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _bound_model(net: Hypernetwork) -> LatentDiffusion:
    source = net.target_network.source
    return source if isinstance(source, LatentDiffusion) else net.source.model


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
    conditions = conditions_of(net.source.of_batch(batch), net.settings.embedding_dim)
    before, settled = net.learned, net.trained or net.step > 0
    prepared = [net.source.prepare(one) for one in conditions]
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

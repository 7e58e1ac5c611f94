"""One documented training step, for people who write their own loop."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError

if TYPE_CHECKING:
    from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion


def train_step(
    model: "LatentDiffusion",
    batch: Mapping[str, Any] | Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
    *,
    max_grad_norm: float | None = 1.0,
    **settings: Any,
) -> float:
    """One documented step for people with their own loop: loss, gradient, clip, update.

    Returns the loss.  ``settings`` go to `LatentDiffusion.losses` (weighting, condition_dropout, …).

    Raises:
        UserError: the loss is not finite; no parameter was changed.
    """
    optimizer.zero_grad(set_to_none=True)
    return update(model(batch, generator, **settings), optimizer, max_grad_norm)


def update(loss: Tensor, optimizer: torch.optim.Optimizer | None, max_grad_norm: float | None) -> float:
    """Gradient, clip, optimizer step (without an optimizer the gradient alone); returns the loss.

    Raises:
        UserError: the loss is not finite; no parameter was changed.
    """
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is {loss.item()}: lower the learning rate, or look at this batch's pictures"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer is None:
        return float(loss.detach())
    if max_grad_norm is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
    optimizer.step()
    return float(loss.detach())

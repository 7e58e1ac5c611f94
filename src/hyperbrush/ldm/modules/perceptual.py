"""LPIPS (Zhang et al. 2018) as a loss, by the library of its authors."""

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = ("alex", "vgg", "squeeze")


class _Mean(nn.Module):
    """LPIPS of two batches (batch, 3, h, w) in [-1, 1], as a scalar."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.network(a.float(), b.float()).mean()
        return found


def perceptual_loss(network: str = "vgg") -> "Callable[[Tensor, Tensor], Tensor]":
    """(a, b) -> scalar: mean LPIPS of pictures (batch, 3, h, w) in [-1, 1]; frozen, a module that can be moved.

    network: alex, vgg or squeeze, torchvision's, pretrained on ImageNet: its weights are downloaded when they are
    first needed, into torch's hub folder.

    Raises:
        UserError: an unknown network; the library is not installed; the weights are not there and cannot be had.
    """
    if network not in NETWORKS:
        raise unknown_name("perceptual network", network, NETWORKS)
    try:
        import lpips
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: torchvision's, beside a torch it was not built for
        raise UserError(
            f"a perceptual loss needs the package lpips, and a torchvision that fits torch {torch.__version__} ({error}): "
            "pip install 'hyperbrush[perceptual]', or set loss.perceptual to 0"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            made: nn.Module = lpips.LPIPS(net=network, verbose=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of LPIPS's network {network!r} cannot be had ({error}): bring torchvision's file into {folder} "
            "from a machine with a network, or set loss.perceptual to 0"
        ) from error
    return _Mean(made).eval().requires_grad_(False)

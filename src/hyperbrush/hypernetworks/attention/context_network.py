"""One small MLP that answers what to add to a context: the unit of an attention hypernetwork.

The layer order matches the webui's hypernetwork module (Linear, activation, LayerNorm, dropout)
and, with a skip connection, the Hypernetwork-MonkeyPatch extension's residual layers (Linear,
LayerNorm, dropout, activation, plus the resized or projected input).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attention.activations import OverTheBatch, make_activation
from hyperbrush.hypernetworks.attention.linear import linear


@dataclass(frozen=True)
class NetworkSettings:
    """What every network of one hypernetwork has in common.

    Raises:
        UserError: a setting cannot work; all that is wrong is said at once.
    """

    layer_structure: tuple[float, ...] = (
        1,
        2,
        1,
    )  # widths of the layers as multiples of the context's
    activation: str = "linear"  # see `activations.activation_names`
    layer_norm: bool = False
    dropout_structure: tuple[float, ...] | None = (
        None  # one rate per entry of layer_structure; None: no dropout
    )
    activate_output: bool = False  # the activation on the last layer too
    skip_connection: bool = False  # the extension's residual layers
    upsample_linear: str | None = None  # "Linear": the skip path is a projection, else an interpolation

    def __post_init__(self) -> None:
        wrong = []
        structure = self.layer_structure
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            wrong.append(f"layer_structure {list(structure)} must have two or more entries, first and last 1")
        if any(not 0 < s < 1000 for s in structure):
            wrong.append(f"layer_structure {list(structure)} must hold numbers over 0 and below 1000")
        rates = self.dropout_structure
        if rates is not None and len(rates) != len(structure):
            wrong.append(
                f"dropout_structure {list(rates)} must have one rate per entry of layer_structure "
                f"({len(structure)}, not {len(rates)})"
            )
        if rates is not None and any(not 0 <= p < 1 for p in rates):
            wrong.append(f"dropout_structure {list(rates)} must hold rates from 0 to below 1")
        if self.upsample_linear not in (None, "Linear"):
            wrong.append(f"upsample_linear {self.upsample_linear!r} must be None or 'Linear'")
        if wrong:
            raise UserError("; ".join(wrong))
        make_activation(self.activation)

    @property
    def rates(self) -> tuple[float, ...]:
        """Dropout rate after layer i, at index i + 1."""
        return self.dropout_structure or (0.0,) * len(self.layer_structure)

    def activated(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) has the activation."""
        if make_activation(self.activation) is None:
            return False
        last = layer == len(self.layer_structure) - 2
        # The extension's residual layers are always activated, whatever the file says of the
        # output.
        return self.skip_connection or self.activate_output or not last


def derived_dropout(layer_structure: Sequence[float], last_layer_dropout: bool) -> tuple[float, ...]:
    """Dropout rates of files that only say ``use_dropout``, as the webui derives them.

    0.3 on hidden layers, on the last hidden one only with ``last_layer_dropout``; 0 at both ends.
    """
    hidden = [0.3] * (len(layer_structure) - 2)
    if hidden and not last_layer_dropout:
        hidden[-1] = 0.0
    return (0.0, *hidden, 0.0)


class ContextLayer(torch.nn.Module):
    """One layer: (batch, tokens, in_width) → (batch, tokens, out_width)."""

    # Registration order is the order in which files list the parameters.
    def __init__(self, in_width: int, out_width: int, settings: NetworkSettings, index: int) -> None:
        super().__init__()
        self.residual = settings.skip_connection
        self.dropout = settings.rates[index + 1]
        project = self.residual and settings.upsample_linear == "Linear"
        activation = make_activation(settings.activation) if settings.activated(index) else None
        norm = torch.nn.LayerNorm(out_width) if settings.layer_norm else None
        self.skip = torch.nn.Linear(in_width, out_width, bias=False) if project else None
        self.linear = torch.nn.Linear(in_width, out_width)
        if self.residual:
            self.norm, self.activation = norm, activation
        else:
            self.activation, self.norm = activation, norm

    def forward(self, x: torch.Tensor, rows_per_picture: int | None = None) -> torch.Tensor:
        """X: (batch, tokens, in_width) → (batch, tokens, out_width)."""
        relu = type(self.activation) is torch.nn.ReLU and not self.residual
        y = linear(x, self.linear.weight.to(x.dtype), self.linear.bias.to(x.dtype), relu)
        if not self.residual:
            return self._drop(self._normalise(y if relu else self._activate(y, rows_per_picture)))
        return self._skip(x) + self._activate(self._drop(self._normalise(y)), rows_per_picture)

    def _activate(self, x: torch.Tensor, rows_per_picture: int | None) -> torch.Tensor:
        if self.activation is None:
            return x
        if isinstance(self.activation, OverTheBatch):
            return self.activation(x, rows_per_picture)  # type: ignore[no-any-return]
        return self.activation(x)  # type: ignore[no-any-return]

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm is None:
            return x
        weight, bias = self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype)
        return F.layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x

    def _skip(self, x: torch.Tensor) -> torch.Tensor:
        if self.skip is not None:
            return F.linear(x, self.skip.weight.to(x.dtype))
        if x.shape[-1] == self.linear.out_features:
            return x
        flat = x.reshape(-1, 1, x.shape[-1])
        resized = F.interpolate(flat, size=self.linear.out_features, mode="nearest-exact")
        return resized.reshape(*x.shape[:-1], -1)


class ContextNetwork(torch.nn.Module):
    """MLP(c): what to add to a context c of one width, for the keys or for the values."""

    def __init__(self, width: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.width = width
        self.residual = settings.skip_connection
        widths = [int(width * s) for s in settings.layer_structure]
        if min(widths) < 1:
            raise UserError(
                f"layer_structure {list(settings.layer_structure)} makes layers {widths} wide of "
                f"a context "
                f"{width} wide: every layer must be at least 1 wide"
            )
        self.layers = torch.nn.ModuleList(
            ContextLayer(a, b, settings, i) for i, (a, b) in enumerate(pairwise(widths))
        )

    @property
    def over_the_batch(self) -> bool:
        """Whether an activation mixes the rows of a batch, see `OverTheBatch`."""
        return any(isinstance(layer.activation, OverTheBatch) for layer in self.layers)

    @property
    def is_random(self) -> bool:
        """Whether dropout acts, so that two calls give two results."""
        return self.training and any(isinstance(x, ContextLayer) and x.dropout > 0 for x in self.layers)

    def forward(self, context: torch.Tensor, rows_per_picture: int | None = None) -> torch.Tensor:
        """Context (batch, tokens, width) → what strength 1 adds to it, same shape.

        Computed in the network's own precision or the context's, whichever is higher, also under
        autocast; the result has that precision.  In training, a step under autocast is what autocast makes of it.
        """
        own = next(self.parameters())
        if own.device != context.device:
            self.to(context.device)
        x = context.to(torch.promote_types(own.dtype, context.dtype))
        trains = self.training and torch.is_grad_enabled()
        with nullcontext() if trains else torch.autocast(x.device.type, enabled=False):
            y = x
            for layer in self.layers:
                y = layer(y, rows_per_picture)
            return (y - x if self.residual else y).to(x.dtype)

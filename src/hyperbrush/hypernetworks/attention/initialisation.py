"""First weights of an attention hypernetwork: the webui's five ways, and exactly no effect."""

from collections.abc import Callable

import torch
from torch.nn import init

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attention.activations import activation_slope_at_zero
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork, NetworkSettings

ZERO = "zero"


def _normal(weight: torch.Tensor) -> None:
    init.normal_(weight, mean=0.0, std=0.01)


# Kaiming's gain is that of ReLU, or of leaky ReLU where that is the activation.
_WEIGHTS: dict[str, Callable[[torch.Tensor, str], object]] = {
    "Normal": lambda weight, _: _normal(weight),
    "XavierUniform": lambda weight, _: init.xavier_uniform_(weight),
    "XavierNormal": lambda weight, _: init.xavier_normal_(weight),
    "KaimingUniform": lambda weight, kind: init.kaiming_uniform_(weight, nonlinearity=kind),  # type: ignore[arg-type]
    "KaimingNormal": lambda weight, kind: init.kaiming_normal_(weight, nonlinearity=kind),  # type: ignore[arg-type]
}
WEIGHT_INITS = (ZERO, *_WEIGHTS)


def check_weight_init(weight_init: str, settings: NetworkSettings) -> None:
    """Refuse an initialisation that does not exist or could never learn.

    Raises:
        UserError: unknown name; or "zero" with settings that make it no start (residual layers, an
            activated output whose slope at zero is 0 or whose value there is not 0).
    """
    if weight_init not in WEIGHT_INITS:
        raise unknown_name("weight_init", weight_init, WEIGHT_INITS)
    if weight_init != ZERO:
        return
    if settings.skip_connection:
        raise UserError(
            "weight_init 'zero' cannot be had with skip_connection: a residual network with a "
            "zero last layer "
            "is not the identity. Choose 'Normal', or leave skip_connection off"
        )
    last = len(settings.layer_structure) - 2
    if settings.activated(last) and not settings.layer_norm:
        value, slope = activation_slope_at_zero(settings.activation)
        if value != 0 or slope == 0:
            why = f"its slope at zero is {slope:g}, so nothing would ever be learned"
            if value != 0:
                why = f"it is {value:g} at zero, so the start would not be without effect"
            raise UserError(
                f"weight_init 'zero' cannot be had with activate_output and "
                f"{settings.activation!r}: {why}. "
                "Set activate_output=False, or choose weight_init='Normal'"
            )


@torch.no_grad()
def initialise(network: ContextNetwork, weight_init: str, settings: NetworkSettings) -> None:
    """Draw the weights of one network from the global generator; biases 0, LayerNorm 1 and 0.

    "zero": torch's usual Linear start, but the last layer adds exactly nothing: its linear "
    "weights are
    zero, or, where a LayerNorm follows them, that norm's (a norm of zeros would blow up its
    gradient).
    """
    if next(network.parameters()).is_meta:
        return  # about to be filled from a file
    kind = "leaky_relu" if settings.activation == "leakyrelu" else "relu"
    for layer in network.layers:
        for linear in (layer.linear, layer.skip):
            if isinstance(linear, torch.nn.Linear):
                if weight_init == ZERO:
                    linear.reset_parameters()
                    continue
                _WEIGHTS[weight_init](linear.weight, kind)
                if linear.bias is not None:
                    init.zeros_(linear.bias)
        if isinstance(layer.norm, torch.nn.LayerNorm):
            layer.norm.reset_parameters()
    if weight_init == ZERO:
        last = network.layers[-1]
        closing = last.linear if last.norm is None else last.norm
        assert isinstance(closing, torch.nn.Linear | torch.nn.LayerNorm)
        init.zeros_(closing.weight)
        init.zeros_(closing.bias)

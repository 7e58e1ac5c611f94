"""Activations by the names that webui hypernetwork files carry, computed as the webui computes them."""

import functools
import inspect

import torch
from torch.nn.modules import activation as torch_activations

from hyperbrush.errors import UserError, unknown_name

# Given no `dim`, these normalise a 3-D context over its first axis, the batch.
OVER_THE_BATCH = ("softmax", "softmin", "logsoftmax", "softmax2d")
IMPOSSIBLE = {
    "glu": "it halves the width, so the next layer does not fit",
    "threshold": "it needs a threshold and a value, which files do not carry",
    "multiheadattention": "it needs widths and heads, which files do not carry",
}


class OverTheBatch(torch.nn.Module):
    """A softmax over the batch axis as the webui computes it for one picture alone: over one element.

    So softmax and softmin give 1 and log-softmax gives 0, whatever the input; in a batch each picture
    is treated as if alone, so that a picture does not depend on its neighbours.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X: any shape; the same shape back."""
        return torch.full_like(x, self.value)


class PReLU(torch.nn.PReLU):
    """PReLU whose weight follows the precision of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input: any shape; the same shape back."""
        return torch.nn.functional.prelu(input, self.weight.to(input.dtype))


@functools.cache
def activation_names() -> tuple[str, ...]:
    """Every name that `make_activation` accepts."""
    classes = {
        name.lower()
        for name, cls in inspect.getmembers(torch_activations, inspect.isclass)
        if cls.__module__ == torch_activations.__name__
    }
    return ("linear", "swish", *sorted(classes - set(IMPOSSIBLE)))


def make_activation(name: str | None) -> torch.nn.Module | None:
    """The module for an activation name; None for "linear" and None. "swish" is Hardswish, as in the webui.

    Raises:
        UserError: the name is unknown, or cannot work in a hypernetwork (glu, threshold, multiheadattention).
    """
    name = "linear" if name is None else name
    if name in IMPOSSIBLE:
        raise UserError(
            f"activation {name!r} cannot work in a hypernetwork: {IMPOSSIBLE[name]}. "
            "Known: " + ", ".join(activation_names())
        )
    if name not in activation_names():
        raise unknown_name("activation", name, activation_names())
    if name == "linear":
        return None
    if name in OVER_THE_BATCH:
        return OverTheBatch(0.0 if name == "logsoftmax" else 1.0)
    if name == "prelu":
        return PReLU()
    wanted = "hardswish" if name == "swish" else name
    for cls_name, cls in inspect.getmembers(torch_activations, inspect.isclass):
        if cls_name.lower() == wanted:
            module: torch.nn.Module = cls()
            return module
    raise unknown_name("activation", name, activation_names())


def activation_slope_at_zero(name: str | None) -> tuple[float, float]:
    """Value and derivative at 0, as torch computes them: what a zero-initialised layer passes on."""
    module = make_activation(name)
    x = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    if module is None:
        return 0.0, 1.0
    with torch.enable_grad():
        y = module.eval()(x)
        slope = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
    return y.item(), 0.0 if slope is None else slope.item()

"""Activations by the names in webui hypernetwork files, computed as the webui computes them."""

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
    """Softmax, softmin or log-softmax of a 3-D context as the webui computes it: over the batch.

    For one picture that is over its rows: with classifier-free guidance two, unconditional and
    conditional. Rows lie as diffusers lays them: all pictures' unconditional ones, then all
    pictures' conditional ones.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor, rows_per_picture: int | None = None) -> torch.Tensor:
        """X: (rows·pictures, tokens, width), same shape back; None: all rows are one picture's.

        Each picture is computed as if alone, so that it does not depend on its neighbours.

        Raises:
            UserError: the batch cannot be divided into pictures of that many rows.
        """
        rows = len(x) if rows_per_picture is None else rows_per_picture
        if rows < 1 or len(x) % rows:
            raise UserError(
                f"a batch of {len(x)} rows has no whole number of pictures of {rows} rows each: "
                f"{self.name!r} needs rows_per_picture to divide the batch (2 with guidance, 1 "
                f"without)"
            )
        pictures = x.reshape(rows, -1, *x.shape[1:])
        if self.name == "logsoftmax":
            return pictures.log_softmax(0).reshape(x.shape)
        return (-pictures if self.name == "softmin" else pictures).softmax(0).reshape(x.shape)


class PReLU(torch.nn.PReLU):
    """PReLU whose weight follows the precision of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input: any shape; the same shape back."""
        return torch.nn.functional.prelu(input, self.weight.to(input.dtype))


@functools.cache
def _classes() -> dict[str, type[torch.nn.Module]]:
    """Torch's activations by their names in small letters."""
    return {
        name.lower(): cls
        for name, cls in inspect.getmembers(torch_activations, inspect.isclass)
        if cls.__module__ == torch_activations.__name__ and issubclass(cls, torch.nn.Module)
    }


@functools.cache
def activation_names() -> tuple[str, ...]:
    """Every name that `make_activation` accepts."""
    return ("linear", "swish", *sorted(_classes().keys() - set(IMPOSSIBLE)))


def make_activation(name: str | None) -> torch.nn.Module | None:
    """The module for an activation name; None for "linear" and None; "swish" is Hardswish.

    Raises:
        UserError: the name is unknown, or cannot work here (glu, threshold, multiheadattention).
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
        return OverTheBatch(name)
    if name == "prelu":
        return PReLU()
    return _classes()["hardswish" if name == "swish" else name]()


def activation_slope_at_zero(name: str | None) -> tuple[float, float]:
    """Value and derivative at 0 as torch computes them: what a zero layer passes on."""
    module = make_activation(name)
    x = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    if module is None:
        return 0.0, 1.0
    with torch.enable_grad():
        y = module.eval()(x)
        slope = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
    return y.item(), 0.0 if slope is None else slope.item()

"""How far a replacement of an attention's keys and values is off, where it matters: in its output.

Errors in the keys matter only as far as the softmax lets them, and a constant added to all keys not at
all, so errors are measured after softmax and to_out, on queries and contexts of real generations.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.attaching.contexts import AttentionCall

# A context (1, tokens, width) → keys and values, (1, tokens, inner width) each.
KeysAndValues = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class OutputError:
    """Squared norms over some calls; sums of several attentions are again such."""

    difference: float = 0.0  # ‖out − reference‖²
    reference: float = 0.0  # ‖reference‖²
    change: float = 0.0  # ‖reference − bare‖², what the networks change

    def __add__(self, other: "OutputError") -> "OutputError":
        return OutputError(
            self.difference + other.difference, self.reference + other.reference, self.change + other.change
        )

    @property
    def relative(self) -> float:
        """‖out − reference‖ / ‖reference‖."""
        return _root_of_ratio(self.difference, self.reference)

    @property
    def of_change(self) -> float:
        """‖out − reference‖ / ‖reference − bare‖: 0 exact, 1 no better than leaving the networks out."""
        return _root_of_ratio(self.difference, self.change)


def _root_of_ratio(a: float, b: float) -> float:
    return (a / b) ** 0.5 if b > 0 else (0.0 if a == 0 else float("inf"))


@torch.no_grad()
def attention_error(
    attention: torch.nn.Module,
    reference: KeysAndValues,
    replacement: KeysAndValues,
    calls: Iterable[AttentionCall],
) -> OutputError:
    """Error of an attention's output when its keys and values are replaced, in float64.

    attention: a diffusers Attention, as it is (its own keys and values are "bare"). A shift of to_out's
    bias is one of the values: the softmax's weights sum to 1.

    Raises:
        UserError: no calls.
    """
    whole, any_call = OutputError(), False
    device = next(attention.parameters()).device
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    for call in calls:
        any_call = True
        hidden, context = call.hidden.to(device).double(), call.context.to(device).double()
        wanted = attention_output(attention, hidden, *reference(context))
        made = attention_output(attention, hidden, *replacement(context))
        bare = attention_output(attention, hidden, *own_keys_and_values(attention)(context))
        whole += OutputError(_square(made - wanted), _square(wanted), _square(wanted - bare))
    if not any_call:
        raise UserError("no calls of the attention to measure an error on: sample them with calls=8")
    return whole


def own_keys_and_values(attention: torch.nn.Module) -> KeysAndValues:
    """What to_k and to_v give by themselves."""
    return lambda c: (_through(attention, "to_k", c), _through(attention, "to_v", c))


def attention_output(attention: torch.nn.Module, hidden: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """to_out(softmax(q kᵀ·scale) v): (1, queries, width), of keys and values (1, tokens, inner width)."""
    module: Any = attention
    query = _through(attention, "to_q", hidden)
    keys, values = keys.to(query), values.to(query)
    q, k, v = (x.reshape(*x.shape[:-1], module.heads, -1).transpose(1, 2) for x in (query, keys, values))
    out = F.scaled_dot_product_attention(q, k, v, scale=module.scale)
    return _through(attention, "to_out.0", out.transpose(1, 2).flatten(-2))


def _through(attention: torch.nn.Module, name: str, x: Tensor) -> Tensor:
    module: Any = attention.get_submodule(name)
    if type(module) is not torch.nn.Linear:
        out: Tensor = module(x.to(next(module.parameters()).dtype)).to(x.dtype)
        return out
    return F.linear(x, module.weight.to(x), None if module.bias is None else module.bias.to(x))


def _square(x: Tensor) -> float:
    return float(x.square().sum())

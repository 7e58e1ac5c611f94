"""A linear layer with its ReLU in one pass, where the processor's library has such a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """X·weightᵀ + bias, then ReLU with ``relu``.

    x: (…, in); weight: (out, in); bias: (out,), all of one precision. Returns (…, out).
    """
    if _has_kernel(x):
        # What torch.compile makes of a linear layer on CPUs. Eager torch copies the bias into the result
        # first, and takes MKL for fp32, which is half as fast as oneDNN on AMD processors.
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")  # type: ignore[no-any-return]
    y = F.linear(x, weight, bias)
    return F.relu(y) if relu else y


def _has_kernel(x: Tensor) -> bool:
    """It has no gradient, and oneDNN must be there and know the precision."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch can be built without
        and (
            x.dtype is torch.float32
            or (x.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )

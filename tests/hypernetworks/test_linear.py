"""`linear` gives the same numbers with and without the fused kernel, and gradients where they are wanted."""

import pytest
import torch
import torch.nn.functional as F

from hyperbrush.hypernetworks.attention import linear as module
from hyperbrush.hypernetworks.attention.linear import linear

SHAPES = {"three axes": (2, 7, 24), "two axes": (5, 24), "one row": (1, 1, 24)}


def _layer(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=generator) for s in (shape, (40, shape[-1]), (40,))]
    return drawn[0].to(dtype), drawn[1].to(dtype), drawn[2].to(dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str
)
def test_matches_float64(dtype: torch.dtype, error: float, shape: tuple[int, ...], relu: bool) -> None:
    x, weight, bias = _layer(shape, dtype)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    wanted = wanted.relu() if relu else wanted
    with torch.no_grad():
        found = linear(x, weight, bias, relu)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert (found.double() - wanted).norm() < error * wanted.norm()


def test_contexts_need_not_be_contiguous() -> None:
    x, weight, bias = _layer((2, 7, 24), torch.float32)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(linear(turned, weight, bias, True), linear(x, weight, bias, True))


def test_gradients_reach_everything() -> None:
    tensors = [t.double().requires_grad_() for t in _layer((2, 3, 6), torch.float32)]
    assert torch.autograd.gradcheck(lambda *given: linear(*given, True), tensors)
    x, weight, bias = (t.float().detach().requires_grad_() for t in tensors)
    linear(x, weight, bias, True).sum().backward()
    assert all(t.grad is not None and t.grad.any() for t in (x, weight, bias))


def test_the_kernel_is_used_only_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = _layer((2, 7, 24), torch.float32)
    with torch.no_grad():
        assert module._has_kernel(x) == torch.backends.mkldnn.is_available()
        assert not module._has_kernel(x.double())
        assert not module._has_kernel(x.to("meta"))
        assert not module._has_kernel(x[:0])
        assert linear(x[:0], weight, bias).shape == (0, 7, 40)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not module._has_kernel(x)
            torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not module._has_kernel(x)

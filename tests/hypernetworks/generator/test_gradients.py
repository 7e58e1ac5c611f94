"""Gradients through applied weights, with and without gradient checkpointing: the same, also when backward is late."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbrush.hypernetworks import Ramp, attach
from hyperbrush.hypernetworks.generator import GeneratedWeights, TargetNetwork

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


def gradients(weights: GeneratedWeights, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, weights.parameters()))


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    most = max(float(g.norm()) for g in theirs)
    assert most > 1e-2
    return all(float((a - b).norm()) < 1e-4 * most for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def unet(make_unet: Make) -> Any:
    return make_unet().train()


@pytest.mark.parametrize("batch", [None, 2])
def test_equal_to_finite_weights(batch: int | None, unet: Any, make_weights: Make, call: Make) -> None:
    """Against autograd through W + ΔW, materialised."""
    from torch.func import functional_call

    weights = make_weights(unet, batch=batch).requires_grad_()
    with TargetNetwork(unet).apply_weights(weights):
        ours = gradients(weights, call(unet, 2).square().sum())
    losses = []
    for i, one in enumerate(weights):
        state = dict(unet.named_parameters())
        for name in one.layers:
            state[f"{name}.weight"] = state[f"{name}.weight"] + one.delta(name)

        class Called(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unet = unet
                self.config = unet.config

            def forward(self) -> Tensor:
                out: Tensor = call(self.unet, 2)
                return out

        out = functional_call(Called(), {f"unet.{k}": v for k, v in state.items()}, ())
        losses.append(out.square().sum() if batch is None else out[i].square().sum())
    assert equal(ours, gradients(weights, torch.stack(losses).sum()))


@pytest.mark.parametrize("when", ["inside", "after", "others bound", "other strength"])
def test_checkpointing_gives_the_same_gradients(when: str, unet: Any, make_weights: Make, call: Make) -> None:
    weights, others = make_weights(unet, 1).requires_grad_(), make_weights(unet, 2)
    target = TargetNetwork(unet)
    with target.apply_weights(weights, 0.8):
        expected = gradients(weights, call(unet).square().sum())
    unet.enable_gradient_checkpointing()
    functions = [
        m._gradient_checkpointing_func for m in unet.modules() if hasattr(m, "gradient_checkpointing")
    ]
    with target.apply_weights(weights, 0.8) as applied:
        loss = call(unet).square().sum()
        if when == "other strength":
            applied.set_strength(0.1)
        if when in ("inside", "other strength"):
            ours = gradients(weights, loss)
            assert applied._at_work[0].keys.value == (0.1 if when == "other strength" else 0.8)
    if when == "after":
        ours = gradients(weights, loss)
    if when == "others bound":
        with TargetNetwork(unet).apply_weights(others), target.apply_weights(others):
            ours = gradients(weights, loss)
    assert equal(ours, expected)
    assert functions == [
        m._gradient_checkpointing_func for m in unet.modules() if hasattr(m, "gradient_checkpointing")
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@pytest.mark.parametrize("when", ["detached", "another attached", "unloaded", "disabled"])
def test_checkpointing_finds_attached_networks_again(
    when: str, unet: Any, make_weights: Make, make_network: Make, call: Make
) -> None:
    """Also in their order: each acts on the output of the one before."""
    first, second = (
        make_network(unet, seed=seed, activation=kind) for seed, kind in ((1, "tanh"), (2, "relu"))
    )
    weights = make_weights(unet).requires_grad_()
    parameters = [*first.parameters(), *second.parameters(), *weights.parameters()]

    def pass_through() -> tuple[Any, Any, Tensor]:
        outer = attach(unet, [(first, 0.8), (weights, 0.5)])
        inner = attach(unet, (second, Ramp(0.2, 0.9)))
        return outer, inner, call(unet).square().sum()

    outer, inner, loss = pass_through()
    expected = list(torch.autograd.grad(loss, parameters))
    outer.detach(), inner.detach()
    unet.enable_gradient_checkpointing()
    outer, inner, loss = pass_through()
    if when == "detached":
        outer.detach(), inner.detach()
    elif when == "another attached":
        outer.load(second, 0.3)
        inner.set_strengths(-1.0)
    elif when == "unloaded":
        outer.unload(first)
    else:
        outer.disable()
    assert equal(list(torch.autograd.grad(loss, parameters)), expected)
    if when == "another attached":
        assert inner.strengths == [-1.0]
        assert len(outer.hypernetworks) == 3
    outer.detach(), inner.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_two_passes_and_one_backward(unet: Any, make_weights: Make, call: Make) -> None:
    """As in a loss with a term for the null condition."""
    one, two = make_weights(unet, 1).requires_grad_(), make_weights(unet, 2).requires_grad_()

    def both() -> list[Tensor]:
        losses = []
        target = TargetNetwork(unet)
        for weights, strength in ((one, 1.0), (two, Ramp(0.5, 1.0))):
            with target.apply_weights(weights, strength):
                losses.append(call(unet).square().sum())
        return list(torch.autograd.grad(losses[0] + 2 * losses[1], [*one.parameters(), *two.parameters()]))

    expected = both()
    unet.enable_gradient_checkpointing()
    assert equal(both(), expected)


def test_swapped_weights_between_forward_and_backward(unet: Any, make_weights: Make, call: Make) -> None:
    one, two = make_weights(unet, 1).requires_grad_(), make_weights(unet, 2)
    with TargetNetwork(unet).apply_weights(one):
        expected = gradients(one, call(unet).square().sum())
    unet.enable_gradient_checkpointing()
    with TargetNetwork(unet).apply_weights(one) as applied:
        loss = call(unet).square().sum()
        applied.set_weights(two)
        assert equal(gradients(one, loss), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_hypernetworks_parameters(checkpointing: bool, unet: Any, make_net: Make, call: Make) -> None:
    net = make_net(unet)
    condition = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def run() -> dict[str, Tensor]:
        net.zero_grad()
        with TargetNetwork(unet).apply_weights(net.generate_weights(condition)):
            loss = call(unet, 2).square().mean()
        loss.backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    expected = run()
    assert expected
    if checkpointing:
        unet.enable_gradient_checkpointing()
    net.enable_gradient_checkpointing()
    ours = run()
    assert ours.keys() == expected.keys()
    assert all(torch.allclose(ours[n], expected[n], rtol=1e-3, atol=1e-7) for n in ours)
    assert float(expected["weight_generator.queries.of_layer.weight"].abs().max()) > 0

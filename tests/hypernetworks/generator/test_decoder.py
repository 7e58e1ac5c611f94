"""The output forms: no change at the start, gradients that flow, and a scale that is controlled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import HypernetworkDecoder, TargetNetwork, sd15_targets
from hyperbrush.hypernetworks.generator.layers import unit

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
OUTPUTS = ["lora", "basis", "core", "lightweight"]
HIDDEN = 32


def decoder(output: str, seed: int = 0, layers: Any = ("mid",), **settings: Any) -> HypernetworkDecoder:
    torch.manual_seed(seed)
    return HypernetworkDecoder(sd15_targets(layers), output=output, hidden_dim=HIDDEN, **settings)


def latents(net: HypernetworkDecoder, batch: int = 2, tokens: int = 4, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(batch, len(net.names), tokens, HIDDEN, generator=generator))


@pytest.mark.parametrize("init", ["bias", "hyperfan-in"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_starts_at_zero_and_learns(output: str, init: str) -> None:
    net = decoder(output, init=init)
    targets = sd15_targets(["mid"])
    z = latents(net).requires_grad_()
    goal = {t.name: torch.randn(t.out_width, t.in_width) for t in targets}

    def loss() -> torch.Tensor:
        return torch.stack([(f.delta() - goal[n]).square().mean() for n, f in net(z).items()]).mean()

    for name, factors in net(z).items():
        assert not factors.delta().any()
        assert factors.down.any()
        assert factors.shape == goal[name].shape
        assert factors.rank == 4
    start = loss()
    start.backward()
    learning = {n for n, p in net.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert learning
    for _ in range(2):  # B moves first, and then all the rest has gradients
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= 0.5 * p.grad.sign() * 1e-3
        net.zero_grad()
        loss().backward()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert float(loss()) < float(start)
    assert z.grad is not None
    assert float(z.grad.abs().max()) > 0


@pytest.mark.parametrize("init", ["bias", "hyperfan-in"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_variance_of_a_is_loras(output: str, init: str) -> None:
    """Var A = 1/(3·in), as LoRA starts, so that A x has a third of x's variance whatever the width and the form."""
    for layers, width in ((["down.0.attn1"], 320), (["mid.attn1"], 1280), (["mid.attn2.to_k"], 768)):
        net = decoder(output, layers=layers, init=init)
        down = torch.cat([f.down.flatten() for f in net(latents(net, batch=16)).values()])
        assert float(down.var()) * 3 * width == pytest.approx(1, rel=0.25 if output == "basis" else 0.1)
        x = torch.randn(64, width)
        seen = torch.cat([(x @ f.down[0].T).flatten() for f in net(latents(net)).values()])
        assert float(seen.var()) == pytest.approx(1 / 3, rel=0.3)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_condition_matters_once_trained(output: str) -> None:
    net = decoder(output)
    for name, parameter in net.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    deltas = net(latents(net))
    assert all(not torch.allclose(f.delta()[0], f.delta()[1]) for f in deltas.values())


def test_heads_by_group_and_fewer_tokens() -> None:
    net = decoder("lora", layers=["attn2.to_k"])
    assert len(net.groups) == 3  # widths 320, 640 and 1280, shared over 16 layers
    assert [len(places) for places in net.places] == [5, 5, 6]
    assert net.names == [t.name for t in sd15_targets(["attn2.to_k"])]
    two = decoder("lora", tokens_per_layer=2)
    assert {f.rank for f in two(latents(two, tokens=2)).values()} == {4}
    with pytest.raises(UserError, match="take a divisor"):
        decoder("lora", tokens_per_layer=3)


def test_alpha_scales_the_change() -> None:
    half = decoder("lora", alpha=2.0)
    assert {f.scale for f in half(latents(half)).values()} == {0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "full"}, "unknown output 'full'"),
        ({"output": "lora", "init": "zeros"}, "unknown init 'zeros'"),
        ({"output": "basis", "basis": 0}, "basis of 0"),
    ],
)
def test_impossible_settings(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder(**settings)


@pytest.mark.parametrize("init", ["bias", "hyperfan-in"])
@pytest.mark.parametrize("output", ["lora", "basis"])
def test_beginning_at_a_shared_adapter(output: str, init: str, make_unet: Make, make_weights: Make) -> None:
    unet = make_unet()
    weights = make_weights(unet, rank=2)
    torch.manual_seed(0)
    net = HypernetworkDecoder(
        TargetNetwork(unet).targets, rank=3, hidden_dim=HIDDEN, output=output, init=init, alpha=6.0
    )
    net.set_shared(weights)
    for name, factors in net(latents(net, tokens=3)).items():
        assert torch.allclose(factors.delta(), weights.delta(name).expand(2, -1, -1), atol=1e-5)
    for parameter in net.shared_parameters():
        parameter.requires_grad_(False)
    made = net(latents(net, tokens=3))
    sum(f.delta().square().sum() for f in made.values()).backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    for wrong, message in (
        (make_weights(unet, rank=4), "rank 4, the decoder 3"),
        (make_weights(unet, batch=2), "one adapter"),
        (make_weights(unet, layers=["mid"]), "exactly the decoder's layers"),
    ):
        with pytest.raises(UserError, match=message):
            net.set_shared(wrong)
    with pytest.raises(UserError, match="cannot begin"):
        decoder("core").set_shared(weights)
    with pytest.raises(UserError, match="no factors that all conditions share"):
        decoder("lightweight").shared_parameters()


def test_frames_are_orthonormal_and_frozen() -> None:
    net, same = (decoder("lightweight", layers=["down.2"], seed=s) for s in (0, 5))
    form = next(iter(net.groups.values()))
    eye = torch.eye(50)
    assert len(form.frame_in) == 2
    assert torch.allclose(form.frame_in @ form.frame_in.mT, eye.expand(len(form.frame_in), -1, -1), atol=1e-5)
    assert not any("frame" in name for name in net.state_dict())
    assert torch.equal(form.frame_in, next(iter(same.groups.values())).frame_in)
    assert not torch.equal(form.frame_in[0], form.frame_in[1])

"""Cross-attention kept over the steps: equal to computing it anew, never stale."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.hypernetworks import attach
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often networks and projections are computed."""
    found = {"networks": 0, "linears": 0}
    network, linear = ContextNetwork.forward, torch.nn.Linear.forward

    def count_network(self: Any, *args: Any) -> Any:
        found["networks"] += 1
        return network(self, *args)

    def count_linear(self: Any, x: Any) -> Any:
        found["linears"] += 1
        return linear(self, x)

    monkeypatch.setattr(ContextNetwork, "forward", count_network)
    monkeypatch.setattr(torch.nn.Linear, "forward", count_linear)
    return found


def steps(unet: Any, context: torch.Tensor, count: int = 3, first: int = 900) -> list[torch.Tensor]:
    """Some sampling steps with falling timesteps and one prompt."""
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(len(context), 4, 8, 8, generator=generator)
    return [unet(sample, torch.tensor(first - 100 * i), context).sample for i in range(count)]


def anew(unet: Any, *args: Any, **settings: Any) -> list[torch.Tensor]:
    """The same with gradients on, which keeps nothing."""
    with torch.enable_grad():
        return [out.detach() for out in steps(unet, *args, **settings)]


@pytest.fixture
def context() -> torch.Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_steps_share_cross_attention(
    mode: Any, make_unet: Make, make_network: Make, context: torch.Tensor, counts: dict[str, int]
) -> None:
    unet = make_unet()
    hn = make_network(unet)
    sites = find_attentions(unet)
    own = sum(site.kind == "attn1" for site, _ in sites)
    with attach(unet, (hn, 0.7)) as attached, mode():
        context = context.clone()
        expected = anew(unet, context) if mode is torch.no_grad else steps(unet, context.clone())
        for wanted in (2, 0, 0):  # networks of cross-attention: once for keys, once for values
            counts["networks"] = 0
            if wanted:
                first = steps(unet, context, 1)
            elif len(first) == 1:
                first += steps(unet, context, 1, 800)
            else:
                first += steps(unet, context, 1, 700)
            assert counts["networks"] == wanted + 2 * own
        assert all(torch.equal(a, b) for a, b in zip(first, expected, strict=True))
        attached.set_strengths(0.3)  # other keys and values, from the same MLP(c)
        counts["networks"] = 0
        changed = steps(unet, context, 1, 600)
        assert counts["networks"] == 2 * own
        attached.set_strengths(0.7)
    with attach(unet, (hn, 0.3)), torch.no_grad():
        assert torch.equal(steps(unet, context, 1, 600)[0], changed[0])


def test_projections_are_computed_once(
    make_unet: Make, make_network: Make, context: torch.Tensor, counts: dict[str, int]
) -> None:
    unet = make_unet()
    with torch.no_grad():
        counts["linears"] = 0
        steps(unet, context, 1)
        bare = counts["linears"]
        with attach(unet, make_network(unet), attn=["attn2"]):
            steps(unet, context, 1)
            counts["linears"] = 0
            steps(unet, context, 1, 800)
    assert counts["linears"] == bare - 2 * 7  # keys and values of seven cross-attentions


def _new_prompt(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    return context + 1


def _prompt_in_place(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    return context.add_(1)


def _other_batch(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    return context[:1]


def _network_weights(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    hn.network_for(24).key.layers[1].linear.weight.mul_(2)
    return context


def _network_replaced(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    state = {k: v * 2 for k, v in hn.state_dict().items()}
    hn.load_state_dict(state, assign=True)
    return context


def _projection_weights(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    for _, attention in find_attentions(unet, ["attn2"]):
        attention.to_v.weight.mul_(1.5)
    return context


def _projection_data(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    for _, attention in find_attentions(unet, ["attn2"]):
        attention.to_k.weight.data = attention.to_k.weight.data * 1.5
    return context


def _strength(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    unet.attached.set_strengths([(0.2, -1.0)])
    return context


def _written_into(unet: Any, hn: Any, context: torch.Tensor) -> torch.Tensor:
    """Nothing changed; but a processor wrote into the keys it was handed."""
    unet.attached._cache._kept[
        next(k for k in unet.attached._cache._kept if k[0] == "projection")
    ].value.zero_()
    return context


@pytest.mark.parametrize(
    "change",
    [
        _new_prompt,
        _prompt_in_place,
        _other_batch,
        _network_weights,
        _network_replaced,
        _projection_weights,
        _projection_data,
        _strength,
        _written_into,
    ],
)
def test_nothing_is_stale(change: Any, make_unet: Make, make_network: Make, context: torch.Tensor) -> None:
    unet = make_unet()
    hn = make_network(unet)
    with torch.no_grad(), attach(unet, (hn, 0.7)) as attached:
        unet.attached = attached
        before = steps(unet, context, 2)
        context = change(unet, hn, context)
        after = steps(unet, context, 1, 700)
        assert torch.equal(after[0], anew(unet, context, 1, first=700)[0])
        assert len(context) == 1 or change is _written_into or not torch.equal(after[0], before[1])
        del unet.attached


def test_a_new_sampling_trusts_nothing(make_unet: Make, make_network: Make, context: torch.Tensor) -> None:
    unet = make_unet()
    with torch.no_grad(), attach(unet, make_network(unet)):
        steps(unet, context)
        for _, attention in find_attentions(unet, ["attn2"]):
            attention.to_k.weight.data.mul_(1.5)  # leaves no trace on the weight
        again = steps(unet, context)
        assert torch.equal(again[0], anew(unet, context)[0])


def test_lora_is_seen_at_once(make_unet: Make, make_network: Make, context: torch.Tensor) -> None:
    from peft import LoraConfig

    unet = make_unet()
    with torch.no_grad(), attach(unet, make_network(unet)):
        without = steps(unet, context, 2)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
        unet.eval()
        adapted = steps(unet, context, 1, 700)[0]
        assert torch.equal(adapted, anew(unet, context, 1, first=700)[0])
        unet.fuse_lora()
        fused = steps(unet, context, 1, 600)[0]
        unet.unload_lora()
        torch.testing.assert_close(steps(unet, context, 1, 500)[0], anew(unet, context, 1, first=500)[0])
    assert not torch.allclose(adapted, without[1], atol=1e-4)
    assert not torch.allclose(fused, without[1], atol=1e-4)


def test_autocast_keeps_results_apart(make_unet: Make, make_network: Make, context: torch.Tensor) -> None:
    unet = make_unet()
    with torch.no_grad(), attach(unet, make_network(unet)):
        steps(unet, context, 1)
        with torch.autocast("cpu", torch.bfloat16):
            half = steps(unet, context, 1, 800)[0]
            assert torch.equal(half, anew(unet, context, 1, first=800)[0])


def test_dropout_in_training_keeps_nothing(
    make_unet: Make, make_network: Make, context: torch.Tensor, counts: dict[str, int]
) -> None:
    unet = make_unet()
    hn = make_network(unet, dropout_structure=(0, 0.5, 0)).train()
    with torch.no_grad(), attach(unet, hn, attn=["attn2"]):
        steps(unet, context, 2)
    assert counts["networks"] == 2 * 2 * 7


def _trained(unet: Any, networks: Any, context: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of one step."""
    networks.zero_grad()
    steps(unet, context, 1)[0].square().mean().backward()
    return {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}


def test_sites_share_a_training_step(
    make_unet: Make,
    make_network: Make,
    context: torch.Tensor,
    counts: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet = make_unet().requires_grad_(False)
    hn = make_network(unet).train()
    with attach(unet, hn, attn=["attn2"]):
        shared = _trained(unet, hn, context)
        assert counts["networks"] == 2  # for the keys and for the values, of seven sites
        name = next(iter(shared))
        with torch.no_grad():
            hn.get_parameter(name).mul_(1.5)
        changed = _trained(unet, hn, context)
        assert counts["networks"] == 4, "nothing is kept from one pass to the next"
        with torch.no_grad():
            hn.get_parameter(name).div_(1.5)
        monkeypatch.setattr("hyperbrush.hypernetworks.attaching.kv_cache._is_computed_again", lambda: True)
        apart = _trained(unet, hn, context)
        assert counts["networks"] == 4 + 2 * 7
    assert not torch.equal(changed[name], shared[name])
    scale = max(float(gradient.abs().max()) for gradient in apart.values())
    for name, gradient in apart.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_backward_computes_again_is_not_shared(
    reentrant: bool, make_unet: Make, make_network: Make, context: torch.Tensor
) -> None:
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    unet = make_unet().requires_grad_(False).train()
    hn = make_network(unet).train()
    # What enters a block must need a gradient, or the reentrant kind has none to give.
    with attach(unet, hn, attn=["attn2"]):
        whole = _trained(unet, hn, context.requires_grad_())
        unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
        again = _trained(unet, hn, context)
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-9)


def test_a_pass_that_ctrl_c_ended_leaves_nothing(
    make_unet: Make, make_network: Make, context: torch.Tensor
) -> None:
    unet = make_unet().requires_grad_(False).train()
    hn = make_network(unet).train()

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        last = unet.conv_out.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            steps(unet, context, 1)
        last.remove()

    def checkpoints() -> list[Any]:
        return [vars(module).get("_gradient_checkpointing_func") for module in unet.modules()]

    with attach(unet, hn, attn=["attn2"]):
        interrupted()
        with torch.no_grad():  # in place: the same context and the same network, of other weights
            next(hn.parameters()).mul_(2)
        again = _trained(unet, hn, context)
    unet.enable_gradient_checkpointing()
    before = checkpoints()
    with attach(unet, hn, attn=["attn2"]):
        expected = _trained(unet, hn, context)
        interrupted()
        interrupted()
    assert checkpoints() == before
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-9)

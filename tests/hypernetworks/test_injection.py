"""Attaching: what it reaches, what it leaves alone, LoRA, compile, gradients, pipelines."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.attention.hypernetwork import apply_networks
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> Any:
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


def snapshot(unet: Any) -> dict[str, Any]:
    """Everything a hook, a wrapper or a changed weight would show in."""
    return {
        name: (
            id(module),
            dict(module._forward_pre_hooks),
            dict(module._forward_hooks),
            sorted(k for k in module.__dict__ if k != "processor"),
            type(getattr(module, "processor", None)),
        )
        for name, module in unet.named_modules()
    } | {name: p.clone() for name, p in unet.state_dict().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def by_hand(unet: Any, stack: list[tuple[Any, float]]) -> Any:
    """A copy of the UNet whose to_k and to_v are wrapped in the plainest way."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, use: str) -> None:
            super().__init__()
            self.inner, self.use = inner, use

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for hn, strength in stack:
                pair = hn.network_for(x.shape[-1])
                x = x + strength * getattr(pair, self.use)(x)
            return self.inner(x)

    unet = copy.deepcopy(unet)
    for _, attention in find_attentions(unet):
        attention.to_k = Wrapped(attention.to_k, "key")
        attention.to_v = Wrapped(attention.to_v, "value")
    return unet


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_acts_on_keys_and_values_alone_and_restores(
    family: str, make_unet: Make, make_network: Make, call: Make
) -> None:
    unet = make_unet(family)
    before, bare = snapshot(unet), call(unet)
    first, second = make_network(unet), make_network(unet, seed=4, activation="tanh")
    expected = call(by_hand(unet, [(first, 0.7), (second, -0.3)]))
    with attach(unet, [(first, 0.7), (second, -0.3)]) as attached:
        out = call(unet)
        assert {n for n, _ in unet.named_modules()} <= before.keys()
        attached.set_strengths([0, 0])
        assert torch.equal(call(unet), bare)
    assert not torch.allclose(out, bare, atol=1e-3)
    assert torch.allclose(out, expected, atol=1e-6)
    assert same(snapshot(unet), before)
    assert torch.equal(call(unet), bare)


def test_restores_when_the_body_raises(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    before = snapshot(unet)
    with pytest.raises(RuntimeError, match="inside"), attach(unet, make_network(unet)):
        raise RuntimeError("inside")
    assert same(snapshot(unet), before)


def test_nested_and_double_attach_compose_and_leave_in_any_order(
    make_unet: Make, make_network: Make, call: Make
) -> None:
    unet = make_unet()
    before, bare = snapshot(unet), call(unet)
    hn = make_network(unet)
    with attach(unet, hn):
        once = call(unet)
        with attach(unet, (hn, 0.5)):
            twice = call(unet)
        assert torch.equal(call(unet), once)
    assert torch.allclose(twice, call(by_hand(unet, [(hn, 1), (hn, 0.5)])), atol=1e-6)
    outer, inner = attach(unet, hn), attach(unet, (hn, 0.5))
    outer.detach()
    assert not torch.equal(call(unet), bare)
    inner.detach()
    inner.detach()  # a second call does nothing
    assert same(snapshot(unet), before)
    with pytest.raises(UserError, match="already detached"):
        inner.__enter__()


def test_says_what_it_reached(make_unet: Make) -> None:
    unet = make_unet()
    torch.manual_seed(0)
    self_attention = AttentionHypernetwork([16, 32], name="water")
    with attach(unet, self_attention) as attached:
        text = "14 of 28 projections reached: widths 16, 32; the file has no network for 24"
        assert str(attached.applied) == text
        assert {s.kind for s in attached.applied.sites} == {"attn1"}
        assert len(attached.applied.sites) == 7
    other = AttentionHypernetwork([24, 32, 768], name="fire")
    with attach(unet, [self_attention, other], attn=["attn2", "attn1"]) as attached:
        lines = str(attached.applied).split("\n")
        assert lines[0] == f"water: {text}"
        assert lines[1].startswith("fire: 22 of 28 projections reached: widths 24, 32; the file")
        assert lines[1].endswith("768 fit nothing here (the file is likely for Stable Diffusion 1.x)")
    with attach(unet, other, attn=["attn2"], blocks=["mid"]) as attached:
        text = (
            "widths 24; its networks for 32 are left out by attn or blocks; its networks for 768 fit nothing"
        )
        assert text in str(attached.applied)
    per_site = AttentionHypernetwork.for_unet(unet, per_site=True, blocks=["mid"])
    with attach(unet, per_site) as attached:
        assert "4 of 28 projections reached: widths 24, 32" in str(attached.applied)
        assert "no network for 12 sites of widths 16, 24, 32" in str(attached.applied)


def test_zero_sites_is_an_error_that_explains(make_unet: Make) -> None:
    unet = make_unet()
    before = snapshot(unet)
    with pytest.raises(UserError) as error:
        attach(unet, AttentionHypernetwork([64, 1024], name="water"))
    text = str(error.value)
    assert "'water' reaches none of this UNet's 14 attentions" in text
    assert "widths 64, 1024" in text
    assert "16, 24, 32 wide" in text
    assert "Stable Diffusion 2.x" in text
    assert same(snapshot(unet), before)
    with pytest.raises(UserError, match="at the 7 sites asked for are 24 wide"):
        attach(unet, AttentionHypernetwork([16]), attn=["attn2"])


def test_restricting_to_kinds_and_blocks(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    outputs = [call(unet)]
    for restriction in ({}, {"attn": ["attn1"]}, {"attn": ["attn2"]}, {"blocks": ["up"]}):
        with attach(unet, hn, **restriction):
            outputs.append(call(unet))
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b, atol=1e-4) for b in outputs[i + 1 :])
    with pytest.raises(UserError, match=r"unknown block 'middle'.*did you mean 'mid'"):
        attach(unet, hn, blocks=["middle"])
    with pytest.raises(UserError, match="unknown kind of attention"):
        attach(unet, hn, attn=["attn3"])


def test_networks_per_site(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    per_site = make_network(unet, per_site=True)
    shared = make_network(unet)
    for site, _ in find_attentions(unet):  # the same weights everywhere: the same effect
        pair = per_site.network_for(site.context_width, site)
        pair.load_state_dict(shared.network_for(site.context_width).state_dict())
    with attach(unet, shared):
        expected = call(unet)
    with attach(unet, per_site) as attached:
        assert torch.equal(call(unet), expected)
        assert str(attached.applied) == "28 of 28 projections reached: widths 16, 24, 32"
        per_site.network_for(24, find_attentions(unet)[1][0]).key.layers[1].linear.bias.add_(1)
        assert not torch.equal(call(unet), expected)


def test_keys_and_values_have_strengths_of_their_own(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    outputs = []
    with attach(unet, (hn, (0.5, 0))) as attached:
        assert attached.strengths == [(0.5, 0)]
        outputs.append(call(unet))
        for strengths in ([(0, 0.5)], [0.5], 0.25):
            attached.set_strengths(strengths)
            outputs.append(call(unet))
        assert attached.strengths == [0.25]
        for wrong in ([0.1, 0.2], [float("nan")], [(1, 2, 3)], ["x"], [None]):
            with pytest.raises(UserError, match=r"strength"):
                attached.set_strengths(wrong)
        assert attached.strengths == [0.25]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b, atol=1e-5) for b in outputs[i + 1 :])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ([], "the list is empty"),
        ("water.pt", "from hb.load"),
        ([("water", 1)], "from hb.load"),
        (None, "from hb.load"),
    ],
)
def test_what_is_no_hypernetwork_is_refused(what: Any, message: str, make_unet: Make) -> None:
    with pytest.raises(UserError, match=message):
        attach(make_unet(), what)


def test_what_has_no_unet_is_refused() -> None:
    hn = AttentionHypernetwork([8])
    with pytest.raises(UserError, match="object has no UNet"):
        attach(object(), hn)
    with pytest.raises(UserError, match="expected a diffusers UNet2DConditionModel"):
        attach(torch.nn.Linear(2, 2), hn)


def add_lora(unet: Any, dora: bool = False) -> None:
    from peft import LoraConfig

    torch.manual_seed(9)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian", use_dora=dora)
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    unet.eval()


@pytest.mark.parametrize("dora", [False, True])
def test_lora_sees_the_transformed_context_in_either_order(
    dora: bool, make_unet: Make, make_network: Make, call: Make
) -> None:
    unet = make_unet()
    hn = make_network(unet)
    bare = call(unet)
    wrapped = make_unet()
    add_lora(wrapped, dora)
    with_lora = call(wrapped)
    # to_k with LoRA is linear: base and LoRA see the transformed context.
    expected = call(by_hand(wrapped, [(hn, 0.7)]))
    before = snapshot(wrapped)
    with attach(wrapped, (hn, 0.7)):
        assert torch.allclose(call(wrapped), expected, atol=1e-5)
    assert same(snapshot(wrapped), before)

    with attach(unet, (hn, 0.7)):
        alone = call(unet)
        add_lora(unet, dora)
        assert torch.allclose(call(unet), expected, atol=1e-5)
        unet.disable_adapters()
        assert torch.allclose(call(unet), alone, atol=1e-6)
        unet.enable_adapters()
        assert torch.allclose(call(unet), expected, atol=1e-5)
        unet.fuse_lora()
        assert torch.allclose(call(unet), expected, atol=1e-4)
        unet.unfuse_lora()
        unet.unload_lora()
        assert torch.allclose(call(unet), alone, atol=1e-5)
        add_lora(unet, dora)
    assert torch.allclose(call(unet), with_lora, atol=1e-5)
    unet.unload_lora()
    assert torch.allclose(call(unet), bare, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in unet.modules())


def test_lora_by_inject_adapter_in_model(make_unet: Make, make_network: Make, call: Make) -> None:
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    outputs = []
    for order in ("attach first", "lora first", "peft model"):
        unet = make_unet()
        hn = make_network(unet)
        attached = attach(unet, hn) if order == "attach first" else None
        torch.manual_seed(5)
        model = (
            get_peft_model(unet, config) if order == "peft model" else inject_adapter_in_model(config, unet)
        ).eval()
        attached = attached or attach(model, hn)
        assert len(attached.applied.sites) == 14
        outputs.append(call(unet))
        attached.detach()
        assert not any(m._forward_pre_hooks for m in unet.modules())
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_processors_may_change_while_attached(make_unet: Make, make_network: Make, call: Make) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    unet = make_unet()
    hn = make_network(unet)
    with attach(unet, hn):
        out = call(unet)
        unet.set_attention_slice(1)
        assert torch.allclose(call(unet), out, atol=1e-5)
        unet.set_attn_processor(AttnProcessor())
        assert torch.allclose(call(unet), out, atol=1e-5)
        unet.set_default_attn_processor()
        unet.fuse_qkv_projections()
        with pytest.raises(UserError, match=r"fused projections.*unfuse_qkv_projections"):
            call(unet)
        unet.unfuse_qkv_projections()
        assert torch.allclose(call(unet), out, atol=1e-5)
    unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="unfuse_qkv_projections"):
        attach(unet, hn)


def test_compiled_graphs_follow_without_recompiling(make_unet: Make, make_network: Make, call: Make) -> None:
    from torch._dynamo.testing import CompileCounter

    unet = make_unet()
    hn, counter = make_network(unet), CompileCounter()
    bare = call(unet)
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.compile(backend=counter, fullgraph=True)
    assert torch.allclose(call(unet), bare, atol=1e-6)
    with attach(unet, (hn, 0.7), blocks=["mid"]) as attached:
        call(unet)
        graphs = counter.frame_count
        outputs = {}
        for strength in (0.3, 0.0, -1.0):
            attached.set_strengths([strength])
            outputs[strength] = call(unet)
        assert counter.frame_count == graphs
    assert torch.allclose(call(unet), bare, atol=1e-6)
    block._compiled_call_impl = None
    assert torch.allclose(outputs[0.0], bare, atol=1e-6)
    for strength, out in outputs.items():
        with attach(unet, (hn, strength), blocks=["mid"]):
            assert torch.allclose(call(unet), out, atol=1e-6)


def test_lora_loaded_into_a_compiled_unet(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.compile(backend="eager")
    with attach(unet, (hn, 0.7), blocks=["mid"]):
        call(unet)
        add_lora(unet)
        out = [call(unet) for _ in range(3)]
        block._compiled_call_impl = None
        expected = call(unet)
    for o in out:
        assert torch.allclose(o, expected, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_networks(
    checkpointing: bool, make_unet: Make, make_network: Make, call: Make
) -> None:
    unet = make_unet()
    hn = make_network(unet)
    with attach(unet, hn):
        call(unet).square().mean().backward()
    expected = [p.grad.clone() for p in hn.parameters()]
    assert all(g.abs().max() > 0 for g in expected)
    hn.zero_grad()
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
        with attach(unet, hn):
            call(unet).square().mean().backward()
        for p, g in zip(hn.parameters(), expected, strict=True):
            assert torch.allclose(p.grad, g, atol=1e-6)
    assert all(p.grad is None for p in unet.parameters())


def test_zero_init_learns_with_gradients(make_unet: Make, call: Make) -> None:
    unet = make_unet()
    torch.manual_seed(0)
    hn = AttentionHypernetwork.for_unet(unet)
    bare = call(unet)
    optimizer = torch.optim.AdamW(hn.parameters(), lr=1e-2)
    target = torch.randn(bare.shape, generator=torch.Generator().manual_seed(2))
    losses = []
    with attach(unet, hn):
        assert torch.equal(call(unet), bare)
        for _ in range(8):
            loss = (call(unet) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


def test_dropout_acts_only_when_the_network_trains(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet, dropout_structure=(0, 0.5, 0))
    with attach(unet, hn):
        unet.train()
        assert torch.equal(call(unet), call(unet))
        unet.eval()
        hn.train()
        assert not torch.equal(call(unet), call(unet))


def test_half_precision_models(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet)
    with attach(unet, hn):
        exact = call(unet)
    unet.to(torch.bfloat16)
    bare = call(unet, dtype=torch.bfloat16).float()
    with attach(unet, hn):
        out = call(unet, dtype=torch.bfloat16)
        assert out.dtype == torch.bfloat16
        assert next(hn.parameters()).dtype == torch.float32
    assert (out - exact).norm() / exact.norm() < 0.05 < (bare - exact).norm() / exact.norm()


def test_a_pipeline_tells_how_many_rows_a_picture_has(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet, activation="softmax")

    class Pipeline:
        do_classifier_free_guidance = True

    pipe = Pipeline()
    pipe.unet = unet  # type: ignore[attr-defined]
    attention = find_attentions(unet)[1][1]
    context = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def listen(module: Any, args: Any) -> None:
        seen.append(args[0])

    with attach(pipe, hn) as attached:
        attention.to_k.register_forward_pre_hook(listen)
        query = torch.randn(4, 3, 16)
        for rows in (None, 1, 4):
            attached.rows_per_picture = rows
            attention(query, context)
        pipe.do_classifier_free_guidance = False
        attached.rows_per_picture = None
        attention(query, context)
    key = hn.network_for(24).key
    for out, rows in zip(seen, (2, 1, 4, 1), strict=True):
        assert torch.equal(out, apply_networks(context, [(key, 1.0)], rows))
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)


def test_deep_copies_and_dtype_moves_of_an_attached_unet_work(
    make_unet: Make, make_network: Make, call: Make
) -> None:
    unet = make_unet()
    with attach(unet, make_network(unet)):
        out = call(unet)
        assert torch.equal(call(copy.deepcopy(unet)), out)
        assert torch.allclose(call(unet.double(), dtype=torch.float64).float(), out, atol=1e-5)

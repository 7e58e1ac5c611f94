"""Weights on a UNet: the same as weights merged into it, beside other adapters, and gone without a trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import PerPicture, Ramp, Window, attach
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TargetNetwork

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5


def batched(several: list[GeneratedWeights]) -> GeneratedWeights:
    return GeneratedWeights(
        {
            n: Factors(
                *(torch.stack([getattr(w.factors[n], side) for w in several]) for side in ("down", "up")), 0.5
            )
            for n in several[0].layers
        }
    )


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_equal_to_merged_weights(
    family: str, make_unet: Make, make_weights: Make, merged: Make, call: Make, relative: Make
) -> None:
    unet = make_unet(family)
    weights = make_weights(unet)
    bare = call(unet)
    with TargetNetwork(unet).apply_weights(weights, strength=0.7) as applied:
        out = call(unet)
        assert str(applied.applied) == f"{len(weights.layers)} of {len(weights.layers)} layers reached"
    assert relative(out, call(merged(unet, weights, 0.7))) < BOUND
    assert relative(out, bare) > 1e-2
    assert torch.equal(call(unet), bare)


def test_in_place_until_removed(make_unet: Make, make_weights: Make, call: Make) -> None:
    unet = make_unet()
    bare, before = call(unet), copy.deepcopy(unet.state_dict())
    applied = TargetNetwork(unet).apply_weights(make_weights(unet))
    assert not torch.equal(call(unet), bare)
    applied.remove()
    applied.remove()
    assert torch.equal(call(unet), bare)
    TargetNetwork(unet).apply_weights(make_weights(unet))
    TargetNetwork(unet).remove_weights()
    assert torch.equal(call(unet), bare)
    assert all(torch.equal(before[k], v) for k, v in unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    with pytest.raises(UserError, match="already taken away"), applied:
        pass


def test_restored_after_an_exception(make_unet: Make, make_weights: Make, call: Make) -> None:
    unet = make_unet()
    bare = call(unet)
    with pytest.raises(RuntimeError, match="stop"), TargetNetwork(unet).apply_weights(make_weights(unet)):
        raise RuntimeError("stop")
    with (
        pytest.raises(UserError, match="rows"),
        TargetNetwork(unet).apply_weights(make_weights(unet, batch=3)),
    ):
        call(unet, 2)
    assert torch.equal(call(unet), bare)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_another_call_replaces_and_an_inner_with_gives_back(
    make_unet: Make, make_weights: Make, call: Make
) -> None:
    unet = make_unet()
    target = TargetNetwork(unet)
    one, two = make_weights(unet, 1), make_weights(unet, 2)
    with target.apply_weights(one):
        first = call(unet)
    target.apply_weights(one)
    target.apply_weights(two)
    second = call(unet)
    assert not torch.equal(first, second)
    with target.apply_weights(one):
        assert torch.equal(call(unet), first)
    assert torch.equal(call(unet), second)
    for _ in range(5):  # a loop that never removes keeps no more than the last two
        target.apply_weights(one)
    assert len(target._applied) == 2
    target.remove_weights()


def test_two_target_networks_add_up(
    make_unet: Make, make_weights: Make, merged: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    one, two = make_weights(unet, 1), make_weights(unet, 2)
    expected = call(merged(unet, one + two))
    with TargetNetwork(unet).apply_weights(one), TargetNetwork(unet).apply_weights(two):
        assert relative(call(unet), expected) < BOUND


def test_per_sample_weights_and_guidance(
    make_unet: Make, make_weights: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    several = [make_weights(unet, seed) for seed in range(2)]
    rows = []
    for i in range(4):  # row i of [unguided 0, unguided 1, guided 0, guided 1] has adapter i mod 2
        with TargetNetwork(unet).apply_weights(several[i % 2]):
            rows.append(call(unet, 4)[i])
    with TargetNetwork(unet).apply_weights(batched(several)):
        assert relative(call(unet, 4), torch.stack(rows)) < BOUND
    with TargetNetwork(unet).apply_weights(batched(several[:1])):  # one set is for all rows
        all_rows = call(unet, 4)
    with TargetNetwork(unet).apply_weights(several[0]):
        assert relative(all_rows, call(unet, 4)) < BOUND


def test_guidance_in_a_pipeline(make_pipe: Make, make_weights: Make, draw: Make, relative: Make) -> None:
    pipe = make_pipe()
    several = [make_weights(pipe.unet, seed) for seed in range(2)]
    singles = []
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for i, weights in enumerate(several):
        with TargetNetwork(pipe).apply_weights(weights):
            singles.append(draw(pipe, prompt="a red heart", latents=noise[i : i + 1], guidance_scale=5.0))
    with TargetNetwork(pipe).apply_weights(batched(several)):
        both = draw(pipe, prompt=["a red heart"] * 2, latents=noise, guidance_scale=5.0)
    assert relative(both, torch.cat(singles)) < BOUND


def test_strengths_by_layer(
    make_unet: Make, make_weights: Make, merged: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    with TargetNetwork(unet).apply_weights(weights, {"attn2": 0.9, "up.attn2.to_k": -0.5}):
        out = call(unet)

    def strength(name: str) -> float:
        if ".attn1." in name:
            return 0.0
        return -0.5 if name.startswith("up") and name.endswith("to_k") else 0.9

    assert relative(out, call(merged(unet, weights, strength))) < BOUND
    with TargetNetwork(unet).apply_weights(
        weights, (0.2, 0.9)
    ):  # for keys and queries, for values and outputs
        out = call(unet)
    pair = merged(unet, weights, lambda n: 0.2 if n.endswith(("to_q", "to_k")) else 0.9)
    assert relative(out, call(pair)) < BOUND


def test_fewer_layers(make_unet: Make, make_weights: Make, merged: Make, call: Make, relative: Make) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    with TargetNetwork(unet, ["up"]).apply_weights(weights) as applied:
        out = call(unet)
    assert "layers of the weights fit nothing here" in str(applied.applied)
    assert relative(out, call(merged(unet, weights, lambda n: float(n.startswith("up"))))) < BOUND


@pytest.mark.parametrize("schedule", [Window(0.8, 0.0, 0.4), Ramp(1.0, 0.0), lambda progress: 1 - progress])
def test_schedules_follow_a_pipeline(
    schedule: Any, make_pipe: Make, make_weights: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    weights = make_weights(pipe.unet)
    seen: list[torch.Tensor] = []
    places: list[float] = []
    count = 4

    def record(unet: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(output[0].clone())

    handle = pipe.unet.register_forward_hook(record, with_kwargs=True)
    with TargetNetwork(pipe).apply_weights(weights, schedule):
        out = draw(pipe, num_inference_steps=count)
    scheduled, seen[:] = list(seen), []
    applied = TargetNetwork(pipe).apply_weights(weights, 0.0)

    def step(unet: Any, args: Any) -> None:
        places.append(len(places) / (count - 1))
        applied.set_strength(schedule(places[-1]))

    other = pipe.unet.register_forward_pre_hook(step)
    expected = draw(pipe, num_inference_steps=count)
    other.remove(), handle.remove()
    applied.remove()
    assert len(scheduled) == len(seen) == count
    assert relative(out, expected) < BOUND


def test_per_picture_strengths(make_unet: Make, make_weights: Make, call: Make, relative: Make) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    rows = []
    for i, strength in enumerate([0.0, 0.8, 0.0, 0.8]):
        with TargetNetwork(unet).apply_weights(weights, strength):
            rows.append(call(unet, 4)[i])
    with TargetNetwork(unet).apply_weights(weights, PerPicture([0.0, 0.8])):
        assert relative(call(unet, 4), torch.stack(rows)) < BOUND
        with pytest.raises(UserError, match="strengths for 2 pictures, but the batch has 3 rows"):
            call(unet, 3)


@pytest.mark.parametrize("order", ["weights first", "weights last"])
def test_beside_attention_hypernetwork_and_lora(
    order: str,
    make_unet: Make,
    make_weights: Make,
    make_network: Make,
    merged: Make,
    call: Make,
    relative: Make,
) -> None:
    """Base layer, LoRA and weights all see the context that the attention hypernetwork makes."""
    from peft import LoraConfig

    def add_lora(unet: Any) -> None:
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        torch.manual_seed(9)
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)

    unet = make_unet()
    weights, hypernetwork = make_weights(unet), make_network(unet)
    reference = merged(unet, weights, 0.6)
    add_lora(reference)
    with attach(reference, (hypernetwork, 0.7)):
        expected = call(reference)
    target = TargetNetwork(unet)
    if order == "weights first":
        applied = target.apply_weights(weights, 0.6)
        attached = attach(unet, (hypernetwork, 0.7))
        add_lora(unet)
    else:
        add_lora(unet)
        attached = attach(unet, (hypernetwork, 0.7))
        applied = TargetNetwork(unet).apply_weights(weights, 0.6)
    out = call(unet)
    assert relative(out, expected) < BOUND
    attached.detach()
    assert relative(call(unet), expected) > 1e-3
    applied.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_cache_of_cross_attention_is_not_written_into(
    make_pipe: Make, make_weights: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    weights, hypernetwork = make_weights(pipe.unet), make_network(pipe.unet)
    with TargetNetwork(pipe).apply_weights(weights), attach(pipe, (hypernetwork, 0.5)):
        kept = draw(pipe)  # no gradients: keys and values are kept over the steps
    with TargetNetwork(pipe).apply_weights(weights), attach(pipe, (hypernetwork, 0.5)) as attached:
        attached._cache.begin = lambda timestep: None  # nothing is kept
        assert relative(draw(pipe), kept) < BOUND


def test_compiled_without_recompiling(
    make_unet: Make, make_weights: Make, call: Make, relative: Make
) -> None:
    torch.compiler.reset()
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    small = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    unet = make_unet(**small)
    one, two = make_weights(unet, 1), make_weights(unet, 2)
    expected = {}
    for key, weights, strength in (("one", one, 0.7), ("less", one, 0.3), ("two", two, 0.3)):
        with TargetNetwork(unet).apply_weights(weights, strength):
            expected[key] = call(unet)
    bare = call(unet)
    compiled = torch.compile(unet, backend=backend, fullgraph=True)
    try:
        with TargetNetwork(compiled).apply_weights(one, 0.7) as applied, torch.no_grad():
            assert relative(call(compiled), expected["one"]) < BOUND
            count = len(graphs)
            assert count > 0
            applied.set_strength(0.3)
            assert relative(call(compiled), expected["less"]) < BOUND
            applied.set_weights(two)
            assert relative(call(compiled), expected["two"]) < BOUND
            assert len(graphs) == count
        assert relative(call(compiled), bare) < BOUND
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    dtype: torch.dtype, make_unet: Make, make_weights: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    with TargetNetwork(unet).apply_weights(weights):
        expected = call(unet)
    unet.to(dtype)
    with TargetNetwork(unet).apply_weights(weights):
        out = call(unet, dtype=dtype)
    assert out.dtype == dtype
    assert relative(out, expected) < 3e-2


def test_mixed_precision(make_unet: Make, make_weights: Make, call: Make, relative: Make) -> None:
    unet = make_unet()
    weights = make_weights(unet, batch=2).requires_grad_()
    with TargetNetwork(unet).apply_weights(weights):
        expected = call(unet)
        with torch.autocast("cpu", torch.bfloat16):
            out = call(unet)
            out.square().sum().backward()
    assert relative(out.float(), expected) < 3e-2
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.any()) for p in weights.parameters())


def test_what_cannot_be_applied(make_unet: Make, make_weights: Make, make_network: Make) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    target = TargetNetwork(unet)
    with pytest.raises(UserError, match="for another model"):
        TargetNetwork(make_unet("sd2")).apply_weights(weights)
    foreign = GeneratedWeights({"768.key.layers.0": Factors(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(UserError, match="reaches no layer: it changes 1 layers such as 768.key"):
        target.apply_weights(foreign)
    with pytest.raises(UserError, match="not a finite number"):
        target.apply_weights(weights, float("nan"))
    with pytest.raises(UserError, match="layers for a strength 'attn3'"):
        target.apply_weights(weights, {"attn3": 1.0})
    with pytest.raises(UserError, match="empty"):
        target.apply_weights(weights, {})
    with pytest.raises(UserError, match="take no hooks"):
        hn = make_network(unet)
        TargetNetwork(hn).apply_weights(make_weights(hn))
    with target.apply_weights(weights) as applied:
        with pytest.raises(UserError, match="other layers"):
            applied.set_strength({"attn1": 1.0})
        with pytest.raises(UserError, match="other layers"):
            applied.set_weights(make_weights(unet, layers=["attn1"]))
    unet.fuse_qkv_projections()
    with pytest.raises(UserError, match="fused"):
        target.apply_weights(weights)


def test_a_copied_unet_keeps_acting(make_unet: Make, make_weights: Make, call: Make) -> None:
    unet = make_unet()
    bare = call(unet)
    with TargetNetwork(unet).apply_weights(make_weights(unet)):
        other = copy.deepcopy(unet)
        out = call(unet)
    assert torch.equal(call(other), out)
    TargetNetwork(other).remove_weights()
    assert torch.equal(call(other), bare)

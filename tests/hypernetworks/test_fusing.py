"""Baking in: exact, the same modules, and out again bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import PerPicture, Ramp, attach
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def affine(make_network: Make) -> Make:
    def make(unet: Any, seed: int = 3, **settings: Any) -> Any:
        return make_network(unet, seed=seed, **{"activation": "linear"} | settings)

    return make


def biased(hn: Any) -> Any:
    """Offsets are where fusing goes wrong first."""
    for i, (name, parameter) in enumerate(hn.named_parameters()):
        if name.endswith("bias"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return hn


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_chains_of_affine_networks_fuse_exactly(
    family: str, make_unet: Make, affine: Make, call: Make
) -> None:
    unet = make_unet(family).double()
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    identities = {name: id(p) for name, p in unet.named_parameters()}
    modules = [(name, type(m)) for name, m in unet.named_modules()]
    first, second = (
        biased(affine(unet)).double(),
        biased(affine(unet, seed=4, layer_structure=(1, 1))).double(),
    )
    bare = call(unet, dtype=torch.float64)
    with attach(unet, [(first, (0.7, -0.4)), (second, -0.3)]) as attached:
        exact = call(unet, dtype=torch.float64)
        assert attached.fuse() is None
        assert attached.fused
        assert [(name, type(m)) for name, m in unet.named_modules()] == modules
        hooked = [m for m in unet.modules() if m._forward_pre_hooks or m._forward_hooks]
        assert hooked == [unet]  # it alone is watched, for LoRA that comes later
        assert unet.state_dict().keys() == state.keys()
        fused = call(unet, dtype=torch.float64)
        attached.unfuse()
        assert all(torch.equal(state[k], v) for k, v in unet.state_dict().items())
        assert torch.equal(call(unet, dtype=torch.float64), exact)
        attached.fuse()
    assert not torch.allclose(exact, bare, atol=1e-2)
    torch.testing.assert_close(fused, exact, rtol=1e-10, atol=1e-12)
    assert {name: id(p) for name, p in unet.named_parameters()} == identities
    assert torch.equal(call(unet, dtype=torch.float64), bare)


def test_others_on_the_unet_and_offloading_are_refused(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    bare = call(unet)
    first, second = attach(unet, affine(unet)), attach(unet, affine(unet, seed=4))
    both = call(unet)
    with pytest.raises(UserError, match="other hypernetworks or generated weights act on this UNet"):
        first.fuse()
    assert torch.equal(call(unet), both)
    second.detach()
    first.fuse()
    fused = call(unet)
    with pytest.raises(UserError, match="would act before them: call unfuse"):
        attach(unet, affine(unet, seed=4))
    projection = next(module for _, module in find_attentions(unet)).to_k
    own = projection._parameters["weight"]
    projection._parameters["weight"] = torch.nn.Parameter(
        own.to("meta")
    )  # as accelerate's sequential offload
    with pytest.raises(UserError, match="weights are offloaded: call pipe.remove_all_hooks"):
        first.detach()
    projection._parameters["weight"] = own
    assert torch.equal(call(unet), fused)
    first.detach()
    assert torch.equal(call(unet), bare)
    for gone in (first.enable, first.fuse, lambda: first.set_strengths(0.5)):
        with pytest.raises(UserError, match="already detached: call attach again"):
            gone()


def operations(unet: Any, call: Make) -> list[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **kwargs or {})

    with Record() as record:
        call(unet)
    return record.seen


def test_a_fused_unet_does_what_a_bare_one_does(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    bare = operations(unet, call)
    with attach(unet, biased(affine(unet))) as attached:
        assert len(operations(unet, call)) > len(bare)
        attached.fuse()
        assert operations(unet, call) == bare


def test_a_fused_unet_saves_as_an_ordinary_one(
    make_unet: Make, affine: Make, call: Make, tmp_path: Any
) -> None:
    from diffusers import UNet2DConditionModel

    unet = make_unet()
    with attach(unet, (biased(affine(unet)), 0.5)) as attached:
        exact = call(unet)
        attached.fuse()
        unet.save_pretrained(tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(call(plain), exact, rtol=1e-4, atol=1e-5)


def test_half_precision_fuses_from_double(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    hn = biased(affine(unet))
    with attach(unet, (hn, 0.5)):
        exact = call(unet)
    unet.to(torch.bfloat16)
    with attach(unet, (hn, 0.5)) as attached:
        run_time = call(unet, dtype=torch.bfloat16).float()
        attached.fuse()
        fused = call(unet, dtype=torch.bfloat16).float()
    error = (fused - exact).norm() / exact.norm()
    assert error < 1.5 * (run_time - exact).norm() / exact.norm()


def test_fuse_moves_with_the_unet(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    bare = call(unet)
    with attach(unet, affine(unet)) as attached:
        attached.fuse()
        unet.double()
    assert {p.dtype for p in unet.parameters()} == {torch.float64}
    torch.testing.assert_close(call(unet, dtype=torch.float64).float(), bare, rtol=1e-5, atol=1e-5)


def test_restricted_and_separate_strengths_fuse(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    hn = biased(affine(unet, per_site=True))
    with attach(unet, (hn, (0.0, 0.8)), attn=["attn2"], blocks=["up"]) as attached:
        exact = call(unet)
        state = unet.state_dict()
        attached.fuse()
        changed = {k for k, v in unet.state_dict().items() if not torch.equal(v, state[k])}
        torch.testing.assert_close(call(unet), exact, rtol=1e-4, atol=1e-5)
    assert changed
    assert all("up_blocks" in k and "attn2" in k and "to_k" not in k for k in changed)


def test_what_cannot_fuse_says_why(make_unet: Make, make_network: Make, affine: Make, call: Make) -> None:
    from peft import LoraConfig

    unet = make_unet()
    bent = make_network(unet)
    with attach(unet, bent) as attached:
        out = call(unet)
        with pytest.raises(UserError, match=r"non-linearity.*approximate=True"):
            attached.fuse()
        assert torch.equal(call(unet), out)
        with pytest.raises(UserError, match="contexts has no"):
            attached.fuse(approximate=True, contexts={})
        assert torch.equal(call(unet), out)
    for strength in (Ramp(0, 1), PerPicture([0.5, 1])):
        with (
            attach(unet, (affine(unet), strength)) as attached,
            pytest.raises(UserError, match="changes with"),
        ):
            attached.fuse()
    with attach(unet, affine(unet)) as attached:
        attached.fuse()
        for verb in (
            attached.fuse,
            attached.disable,
            lambda: attached.set_strengths(0.5),
            lambda: attached.unload(attached.names[0]),
            lambda: attached.load(bent),
        ):
            with pytest.raises(UserError, match="unfuse"):
                verb()
        attached.unfuse()
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
        with pytest.raises(UserError, match=r"plain linear layer.*LoRA"):
            attached.fuse()
        unet.unload_lora()


def test_weights_that_would_lose_it_are_named(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    hn = affine(unet)
    own = {k: v.clone() for k, v in unet.state_dict().items()}
    with attach(unet, hn) as attached:
        unet.half()
        attached.set_strengths(1e8)
        with pytest.raises(UserError, match=r"NaN or too large for torch\.float16"):
            attached.fuse()
        assert not attached.fused
        attached.set_strengths(1)
        unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        with pytest.raises(UserError, match=r"attn\d\.to_k|to_k is stored as float8_e4m3fn.*fuse first"):
            attached.fuse()
    unet = make_unet()
    with attach(unet, hn) as attached:
        next(hn.parameters())[0] = torch.nan
        with pytest.raises(UserError, match=r"NaN or too large for torch\.float32"):
            attached.fuse()
        assert not attached.fused
    assert all(torch.equal(own[k], v) for k, v in unet.state_dict().items())
    unet = make_unet()
    with attach(unet, affine(unet)) as attached:
        attention = find_attentions(unet)[0][1]
        attention.to_k.to("meta")
        with pytest.raises(UserError, match="to_k is offloaded: fuse before"):
            attached.fuse()


def test_disabled_networks_are_not_baked_in(make_unet: Make, affine: Make, call: Make) -> None:
    unet = make_unet()
    bare = call(unet)
    with attach(unet, biased(affine(unet))) as attached:
        exact = call(unet)
        attached.disable()
        with pytest.raises(UserError, match=r"while they are disabled: call enable\(\) first"):
            attached.fuse()
        assert not attached.fused
        assert torch.equal(call(unet), bare)
        attached.enable()
        attached.fuse()
        torch.testing.assert_close(call(unet), exact, rtol=1e-4, atol=1e-5)


def random_lora(unet: Any, projections: Any = ("to_q", "to_k", "to_v", "to_out.0"), seed: int = 5) -> Any:
    """Tensors of a LoRA for `load_lora_adapter`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in unet.named_modules():
        if name.endswith(tuple(f".{p}" for p in projections)):  # plain, or with another LoRA
            tensors[f"{name}.lora_A.weight"] = 0.3 * torch.randn(2, module.in_features, generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, 2, generator=generator)
    return tensors


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_lora_loaded_after_fusing_sees_the_changed_context(
    family: str, make_unet: Make, affine: Make, call: Make
) -> None:
    unet = make_unet(family)
    bare = call(unet)
    hn = biased(affine(unet))
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    with attach(unet, (hn, 0.5)):
        unet.load_lora_adapter(random_lora(unet), adapter_name="x", prefix=None)
        wanted = call(unet)
        unet.load_lora_adapter(random_lora(unet, ["to_v"], seed=6), adapter_name="y", prefix=None)
        unet.set_adapters(["x", "y"], [1.0, 0.5])
        both = call(unet)
        unet.unload_lora()
    with attach(unet, (hn, 0.5)) as attached:
        alone = call(unet)
        attached.fuse()
        for _ in range(2):  # again, after it was unloaded
            unet.load_lora_adapter(random_lora(unet), adapter_name="x", prefix=None)
            torch.testing.assert_close(call(unet), wanted, rtol=1e-4, atol=1e-4)
            unet.load_lora_adapter(random_lora(unet, ["to_v"], seed=6), adapter_name="y", prefix=None)
            unet.set_adapters(["x", "y"], [1.0, 0.5])
            torch.testing.assert_close(call(unet), both, rtol=1e-4, atol=1e-4)
            unet.unload_lora()
            torch.testing.assert_close(call(unet), alone, rtol=1e-4, atol=1e-5)
        unet.load_lora_adapter(random_lora(unet), adapter_name="x", prefix=None)
        call(unet)
        attached.unfuse()
        torch.testing.assert_close(call(unet), wanted, rtol=1e-4, atol=1e-5)
        unet.unload_lora()
    assert not torch.allclose(wanted, alone, atol=1e-2)
    assert not torch.allclose(wanted, both, atol=1e-2)
    assert torch.equal(call(unet), bare)
    assert all(torch.equal(state[k], v) for k, v in unet.state_dict().items())
    assert not any(m._forward_pre_hooks for m in unet.modules())


def test_adapters_that_cannot_see_it_are_named(make_unet: Make, affine: Make, call: Make) -> None:
    from peft import LoraConfig

    unet = make_unet()
    with attach(unet, biased(affine(unet))) as attached:
        attached.fuse()
        unet.load_lora_adapter(random_lora(unet), adapter_name="x", prefix=None)
        unet.fuse_lora()
        with pytest.raises(UserError, match=r"attn\d\.to_k, where hypernetworks are fused, .* or is merged"):
            call(unet)
        unet.unfuse_lora()
        call(unet)
        unet.unload_lora()
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"], use_dora=True))
        with pytest.raises(
            UserError, match=r"attn\d\.to_v, where hypernetworks are fused, and is no plain LoRA"
        ):
            call(unet)


def test_the_best_affine_map_of_a_bent_network(make_unet: Make, make_network: Make, call: Make) -> None:
    unet = make_unet()
    hn = make_network(unet, activation="relu")
    generator = torch.Generator().manual_seed(0)
    contexts = {
        site.path: torch.randn(300, site.context_width, generator=generator)
        for site, _ in find_attentions(unet)
    }
    bare = call(unet)
    with attach(unet, hn) as attached:
        exact = call(unet)
        report = attached.fuse(approximate=True, contexts=contexts)
        fused = call(unet)
        assert report is not None
        assert report.errors.keys() == contexts.keys()
        assert all(0 < e < 1 for e in report.errors.values())
        assert "14 sites fitted; share of the networks' effect on keys and values" in str(report)
    assert (fused - exact).norm() < (bare - exact).norm()


def test_contexts_are_sampled_where_none_are_given(tiny: Any, make_network: Make) -> None:
    hn = make_network(tiny.unet, activation="relu")
    prompt = {"captions": ["red square"], "seeds": [5], "steps": 3, "output": "latents"}
    bare = tiny.sample(**prompt)
    state = {k: v.clone() for k, v in tiny.unet.state_dict().items()}
    with attach(tiny, hn) as attached:
        exact = tiny.sample(**prompt)
        report = attached.fuse(approximate=True)
        fused = tiny.sample(**prompt)
        assert "effect on the attention's output" in str(report)
        assert all(0 < e < 1 for e in report.errors.values())
    assert (fused - exact).norm() < 0.5 * (bare - exact).norm()
    assert all(torch.equal(v, state[k]) for k, v in tiny.unet.state_dict().items())
    with attach(tiny.unet, hn) as attached, pytest.raises(UserError, match="hand over the pipeline"):
        attached.fuse(approximate=True)

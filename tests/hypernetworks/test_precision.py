"""Half precision: the error against fp32 of networks in fp32 (the default) and in the model's own type.

`pytest -s` prints the figures.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hyperbrush.hypernetworks import AttentionHypernetwork, attach, load

Make = Callable[..., Any]
EPSILON = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # the spacing of numbers at 1
HALVES = pytest.mark.parametrize("dtype", EPSILON, ids=["fp16", "bf16"])


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def networks(hypernetwork: AttentionHypernetwork, dtype: torch.dtype) -> AttentionHypernetwork:
    """A copy with its weights in another type."""
    return copy.deepcopy(hypernetwork).to(dtype)


@HALVES
@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 2, 2, 1)], ids=str)
def test_one_transform(dtype: torch.dtype, structure: Any, relative: Make) -> None:
    torch.manual_seed(0)
    hn = AttentionHypernetwork(
        [768], layer_structure=structure, activation="relu", weight_init="XavierNormal"
    )
    context = torch.randn(2, 77, 768).to(dtype)
    exact = networks(hn, torch.float64).transform(context.double(), 0.7)[0]
    change = exact - context
    wide = hn.transform(context, 0.7)[0]
    own = networks(hn, dtype).transform(context, 0.7)[0]
    assert wide.dtype == own.dtype == dtype
    errors = [float((out.double() - exact).norm() / change.norm()) for out in (wide, own)]
    print(f"\n{dtype} {structure}: fp32 networks {errors[0]:.1e}, own {errors[1]:.1e} of the change")
    # In fp32 all that is left is the one rounding of what to_k sees, relative to the whole context.
    rounding = relative(exact.to(dtype), exact) * float(exact.norm() / change.norm())
    assert errors[0] == pytest.approx(rounding, rel=1e-2)
    assert errors[0] < errors[1] < 8 * EPSILON[dtype]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_unet(family: str, make_unet: Make, make_network: Make, call: Make, relative: Make) -> None:
    unet = make_unet(family)
    hn = make_network(unet)
    unet.double()
    exact_bare = call(unet, dtype=torch.float64)
    with attach(unet, (networks(hn, torch.float64), 0.7)):
        exact = call(unet, dtype=torch.float64)
    effect = relative(exact, exact_bare)
    found: dict[Any, tuple[float, ...]] = {}
    for dtype in (torch.float32, *EPSILON):
        unet = make_unet(family).to(dtype)
        errors = [relative(call(unet, dtype=dtype), exact_bare)]
        for kept in (torch.float32, dtype):
            with attach(unet, (networks(hn, kept), 0.7)) as attached:
                out = call(unet, dtype=dtype)
                assert out.dtype == dtype
                assert next(attached.hypernetworks[0].parameters()).dtype == kept
            errors.append(relative(out, exact))
        found[dtype] = tuple(errors)
        print(f"\n{family} {dtype}: bare {errors[0]:.1e}, fp32 networks {errors[1]:.1e}, own {errors[2]:.1e}")
    assert effect > 0.1
    for dtype, (bare, wide, own) in found.items():
        if dtype is torch.float32:
            assert max(bare, wide, own) < 1e-5
        else:
            # What the model's own rounding costs, and no more: a network adds little even in half precision.
            assert EPSILON[dtype] / 16 < bare < 8 * EPSILON[dtype]
            assert wide < 2 * bare
            assert own < 3 * bare
            assert max(wide, own) < effect / 5
    for one, worse in ((torch.float32, torch.float16), (torch.float16, torch.bfloat16)):
        assert all(a < b for a, b in zip(found[one], found[worse], strict=True))


@HALVES
def test_autocast(
    dtype: torch.dtype, make_unet: Make, make_network: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    hn = make_network(unet)
    bare = call(unet)
    with attach(unet, (hn, 0.7)):
        exact = call(unet)
        with torch.autocast("cpu", dtype):
            out = call(unet)
            again = call(unet)
        assert torch.equal(call(unet), exact)  # nothing of the lower precision is kept
    with torch.autocast("cpu", dtype):
        own = relative(call(unet), bare)
    error = relative(out, exact)
    print(f"\nautocast {dtype}: bare {own:.1e}, attached {error:.1e}")
    assert torch.equal(again, out)
    assert error < 2.5 * own < 20 * EPSILON[dtype]
    assert error > EPSILON[dtype] / 16
    assert next(hn.parameters()).dtype == torch.float32


@HALVES
def test_a_stack_keeps_full_precision_between_networks(
    dtype: torch.dtype, make_unet: Make, make_network: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    stack = [(make_network(unet, seed=seed), strength) for seed, strength in ((3, 0.7), (4, -0.5), (5, 0.3))]
    with attach(unet, stack):
        exact = call(unet)
    unet.to(dtype)
    errors = []
    for kept in (torch.float32, dtype):
        with attach(unet, [(networks(hn, kept), strength) for hn, strength in stack]):
            errors.append(relative(call(unet, dtype=dtype), exact))
    with attach(unet, [(networks(stack[0][0], dtype), 0.7), *stack[1:]]):  # types may be mixed
        errors.append(relative(call(unet, dtype=dtype), exact))
    print(f"\nstack {dtype}: fp32 networks {errors[0]:.1e}, own {errors[1]:.1e}, mixed {errors[2]:.1e}")
    assert max(errors) < 12 * EPSILON[dtype]
    assert errors[0] < 1.5 * min(errors)


@HALVES
def test_half_precision_files(
    dtype: torch.dtype, make_unet: Make, make_network: Make, call: Make, tmp_path: Path
) -> None:
    unet = make_unet()
    hn = make_network(unet)
    unet.to(dtype)
    hn.save(tmp_path / "water.safetensors")
    halved = load(tmp_path / "water.safetensors", dtype=dtype)
    assert {p.dtype for p in halved.parameters()} == {dtype}
    outputs = []
    for loaded in (halved, networks(hn, dtype)):
        with attach(unet, (loaded, 0.7)):
            outputs.append(call(unet, dtype=dtype))
    assert torch.equal(*outputs)


@HALVES
def test_whole_unet_of_the_original_program(
    dtype: torch.dtype, relative: Make, compvis_unet: Any, shared: Path
) -> None:
    unet = compvis_unet.to(dtype)
    expected = load_file(shared / "unet.expected.safetensors")
    inputs = [expected["sample"].to(dtype), expected["timesteps"].float(), expected["context"].to(dtype)]
    bare = relative(unet(*inputs).sample, expected["out@none"])
    assert bare < 8 * EPSILON[dtype]
    tried = 0
    for key, out in expected.items():
        if not key.startswith("out@") or key == "out@none":
            continue
        for kept in (torch.float32, dtype):
            with attach(unet, (load(shared / "unet.pt", dtype=kept), float(key.removeprefix("out@")))):
                error = relative(unet(*inputs).sample, out)
            print(f"\n{key} {dtype} UNet, {kept} networks: {error:.1e} (bare {bare:.1e})")
            assert error < 3 * max(bare, EPSILON[dtype])
            tried += 1
    assert tried >= 4

"""torch.compile of a whole UNet in a pipeline, and gradient checkpointing: same results, no recompiling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.hypernetworks import AttentionHypernetwork, Ramp, attach

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
# One attention block each way: the shortest whole UNet, since tracing takes the time.
SMALL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that counts the graphs it is handed and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        self.graphs += 1
        return module.forward


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("torch.compile", "attach"),
        ("unet.compile", "compile"),
        pytest.param("torch.compile", "compile", marks=pytest.mark.slow),
        pytest.param("unet.compile", "attach", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_pipeline(
    how: str, first: str, make_pipe: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe(**SMALL)
    hn, counter = make_network(pipe.unet), Counter()
    bare = draw(pipe)
    expected = {}
    for strength in (0.7, 0.3, 0.0, -1.0):
        with attach(pipe, (hn, strength)):
            expected[strength] = draw(pipe)

    def compile_it() -> None:
        if how == "torch.compile":
            pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
        else:
            pipe.unet.compile(backend=counter, fullgraph=True)

    if first == "compile":
        compile_it()
        assert relative(draw(pipe), bare) < 1e-5
    with attach(pipe, (hn, 0.7)) as attached:
        if first == "attach":
            compile_it()
        assert relative(draw(pipe), expected[0.7]) < 1e-5
        graphs = counter.graphs
        assert graphs > 0
        for strength in (0.3, 0.0, -1.0):
            attached.set_strengths(strength)
            assert relative(draw(pipe), expected[strength]) < 1e-5
        assert counter.graphs == graphs
    assert relative(draw(pipe), bare) < 1e-5


@pytest.mark.parametrize("how", ["torch.compile", "unet.compile"])
def test_a_schedule_recompiles_nothing(
    how: str, make_pipe: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe(**SMALL)
    hn, counter = make_network(pipe.unet), Counter()
    with attach(pipe, (hn, Ramp(0.1, 1))):
        expected = draw(pipe, num_inference_steps=8)
    if how == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend=counter)
    else:
        pipe.unet.compile(backend=counter)
    with attach(pipe, (hn, Ramp(0.1, 1))):
        draw(pipe, num_inference_steps=1)
        graphs = counter.graphs
        assert relative(draw(pipe, num_inference_steps=8), expected) < 1e-5
        assert counter.graphs == graphs


@pytest.mark.parametrize("per_site", [False, True], ids=["per width", "per site"])
@pytest.mark.parametrize("wrapper", ["plain", "peft"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_gradient_checkpointing_gives_the_same_gradients(
    family: str, wrapper: str, per_site: bool, make_unet: Make, make_network: Make, call: Make
) -> None:
    from peft import LoraConfig, get_peft_model

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        unet = make_unet(family).double()
        torch.manual_seed(5)
        first = make_network(unet, per_site=per_site).double()
        second = make_network(unet, seed=4, activation="tanh").double()
        trained = [*first.parameters(), *second.parameters()]
        model = unet
        if wrapper == "peft":
            config = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
            model = get_peft_model(unet, config).double()
            trained += [p for name, p in model.named_parameters() if "lora_" in name]
        if checkpointing:
            unet.enable_gradient_checkpointing()
        model.train()
        with attach(model, [(first, 0.7), (second, (-0.4, 0.9))]):
            loss = call(unet, dtype=torch.float64).square().mean()
            found = torch.autograd.grad(loss, trained)
        return list(found)

    plain, checkpointed = gradients(False), gradients(True)
    assert all(g.abs().max() > 0 for g in plain)
    for a, b in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-18)


def test_gradients_equal_those_by_hand(
    make_unet: Make, make_network: Make, call: Make, by_hand: Make
) -> None:
    unet = make_unet().double()
    hn: AttentionHypernetwork = make_network(unet).double()
    loss = call(by_hand(unet, [(hn, 0.7)]), dtype=torch.float64).square().mean()
    expected = torch.autograd.grad(loss, list(hn.parameters()))
    unet.enable_gradient_checkpointing()
    unet.train()
    with attach(unet, (hn, 0.7)):
        loss = call(unet, dtype=torch.float64).square().mean()
        loss.backward()
    for parameter, gradient in zip(hn.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-16)


def test_a_unet_inside_ddp(
    make_unet: Make, make_network: Make, call: Make, by_hand: Make, tmp_path: Path
) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        unet = make_unet()
        hn = make_network(unet)
        unet.conv_out.requires_grad_(True)
        wrapped = by_hand(unet, [(hn, 0.7)])
        call(wrapped).square().mean().backward()
        model = DistributedDataParallel(unet)
        model.config = unet.config
        with attach(model, (hn, 0.7)) as attached:
            assert str(attached.applied).startswith("28 of 28 projections")
            call(model).square().mean().backward()
        torch.testing.assert_close(unet.conv_out.weight.grad, wrapped.conv_out.weight.grad)
    finally:
        torch.distributed.destroy_process_group()

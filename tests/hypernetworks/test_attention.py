"""The networks themselves: settings, starts, dropout, precision, what transform refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.activations import activation_names
from hyperbrush.hypernetworks.attention.context_network import derived_dropout
from hyperbrush.hypernetworks.attention.initialisation import WEIGHT_INITS
from hyperbrush.ldm.modules.attention_sites import attention_sites


def contexts(width: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["linear", "relu", "swish", "tanh", "gelu"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.5, 1)])
def test_zero_init_starts_at_no_effect_and_can_learn(
    activation: str, layer_norm: bool, structure: tuple[float, ...]
) -> None:
    hn = AttentionHypernetwork([8], layer_structure=structure, activation=activation, layer_norm=layer_norm)
    context = contexts()
    for out in hn.transform(context, 1.0):
        assert torch.equal(out, context)
    sum(out.pow(3).sum() for out in hn.transform(context)).backward()
    gradients = [p.grad.abs().max() for p in hn.parameters() if p.grad is not None]
    assert 0 < max(gradients) < 1e4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "relu", "activate_output": True}, "slope at zero is 0"),
        ({"activation": "sigmoid", "activate_output": True}, "it is 0.5 at zero"),
        ({"skip_connection": True}, "skip_connection"),
        ({"weight_init": "Normla"}, "did you mean 'Normal'"),
        ({"activation": "glu"}, "halves the width"),
        ({"activation": "threshold"}, "needs a threshold"),
        ({"activation": "multiheadattention"}, "widths and heads"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"layer_structure": (1, 2)}, "first and last 1"),
        ({"layer_structure": (1, -2, 1)}, "over 0"),
        ({"layer_structure": (1, 0.01, 1)}, "at least 1 wide"),
        ({"dropout_structure": (0, 0.3)}, "one rate per entry"),
        ({"dropout_structure": (0, 1.3, 0)}, "from 0 to below 1"),
        ({"upsample_linear": "Cubic"}, "'Linear'"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttentionHypernetwork([8], **settings)


@pytest.mark.parametrize("widths", [[], [0], [-8], [True], [8.0], {"nowhere": 8}, {8: 16}])
def test_impossible_widths_are_refused(widths: Any) -> None:
    with pytest.raises(UserError, match=r"width|site"):
        AttentionHypernetwork(widths)


@pytest.mark.parametrize("activation", activation_names())
def test_every_activation_makes_a_difference_of_its_own(activation: str) -> None:
    outputs = {}
    for name in (activation, "linear"):
        torch.manual_seed(0)
        hn = AttentionHypernetwork([8], activation=name, weight_init="XavierNormal")
        outputs[name] = hn.transform(contexts())[0]
    assert torch.isfinite(outputs[activation]).all()
    if activation != "linear":
        assert not torch.equal(outputs[activation], outputs["linear"])


@pytest.mark.parametrize("init", WEIGHT_INITS)
def test_each_init_differs_and_leaves_layer_norm_at_one(init: str) -> None:
    torch.manual_seed(0)
    hn = AttentionHypernetwork([64], weight_init=init, layer_norm=True)
    first = hn.networks["64"].key.layers[0]
    assert torch.equal(first.norm.weight, torch.ones(128))
    assert torch.equal(first.norm.bias, torch.zeros(128))
    fan_in, fan_out = 64, 128
    std = {
        "zero": (3 * fan_in) ** -0.5,
        "Normal": 0.01,
        "XavierUniform": (2 / (fan_in + fan_out)) ** 0.5,
        "XavierNormal": (2 / (fan_in + fan_out)) ** 0.5,
        "KaimingUniform": (2 / fan_in) ** 0.5,
        "KaimingNormal": (2 / fan_in) ** 0.5,
    }[init]
    assert first.linear.weight.std().item() == pytest.approx(std, rel=0.05)
    uniform = first.linear.weight.abs().max() < 1.8 * std
    assert uniform == (init in ("zero", "XavierUniform", "KaimingUniform"))


def test_options_change_the_output() -> None:
    def out(**settings: Any) -> torch.Tensor:
        torch.manual_seed(0)
        settings = {"weight_init": "XavierNormal", "activation": "tanh"} | settings
        return AttentionHypernetwork([8], **settings).transform(contexts())[1]

    plain = out()
    for settings in (
        {"layer_norm": True},
        {"activate_output": True},
        {"skip_connection": True},
        {"skip_connection": True, "upsample_linear": "Linear"},
        {"layer_structure": (1, 3, 1)},
    ):
        assert not torch.equal(out(**settings), plain), settings


def test_dropout_acts_in_training_only() -> None:
    hn = AttentionHypernetwork([8], use_dropout=True, last_layer_dropout=True, weight_init="Normal")
    assert hn.settings.dropout_structure == (0, 0.3, 0)
    context = contexts()
    assert not hn.training  # a new one is ready for use
    first = hn.transform(context)[0]
    assert torch.equal(hn.transform(context)[0], first)
    hn.train()
    assert not torch.equal(hn.transform(context)[0], hn.transform(context)[0])
    hn.eval()
    assert torch.equal(hn.transform(context)[0], first)


def test_derived_dropout() -> None:
    assert derived_dropout([1, 2, 2, 1], True) == (0, 0.3, 0.3, 0)
    assert derived_dropout([1, 2, 2, 1], False) == (0, 0.3, 0, 0)
    assert derived_dropout([1, 1], True) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_higher_precision_computes_and_the_contexts_comes_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hn = AttentionHypernetwork([8], weight_init="XavierNormal", layer_norm=True, activation="prelu")
    context = contexts().to(dtype)
    exact = hn.transform(context.float() if dtype != torch.float64 else context, 0.7)[0]
    out = hn.transform(context, 0.7)[0]
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))
    hn.to(dtype)
    assert hn.transform(contexts(), 0.7)[0].dtype == torch.float32


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(0)
    hn = AttentionHypernetwork([8], weight_init="XavierNormal")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hn.transform(contexts())[0]
    assert torch.equal(inside, hn.transform(contexts())[0])


@pytest.mark.parametrize("skip", [False, True])
def test_a_training_step_computes_as_autocast_says(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    product = torch.nn.functional.linear

    def look(*args: torch.Tensor) -> torch.Tensor:
        seen.append(product(*args))
        return seen[-1]

    monkeypatch.setattr(torch.nn.functional, "linear", look)
    torch.manual_seed(0)
    hn = AttentionHypernetwork([8], weight_init="XavierNormal", skip_connection=skip).train()
    exact = hn.transform(contexts())[0]
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hn.transform(contexts())[0]
        assert {y.dtype for y in seen} == {torch.bfloat16}
        with torch.no_grad():
            torch.testing.assert_close(hn.transform(contexts())[0], exact, rtol=1e-6, atol=1e-6)
    assert inside.dtype == torch.float32
    assert 0 < (inside - exact).abs().max() < 0.05
    inside.square().mean().backward()
    assert {p.grad.dtype for p in hn.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("activation", ["softmax", "softmin", "logsoftmax", "softmax2d"])
def test_softmax_like_activations_see_one_picture_at_a_time(activation: str) -> None:
    torch.manual_seed(0)
    hn = AttentionHypernetwork([8], activation=activation, weight_init="XavierNormal")
    context = contexts(batch=6)  # three pictures: unconditional rows first, then conditional ones
    together = hn.transform(context, rows_per_picture=2)[0]
    for i in range(3):
        alone = hn.transform(context[[i, i + 3]])[0]
        assert torch.allclose(together[[i, i + 3]], alone, atol=1e-6)
    assert not torch.allclose(together, hn.transform(context)[0], atol=1e-4)
    with pytest.raises(UserError, match="6 rows has no whole number of pictures of 4"):
        hn.transform(context, rows_per_picture=4)


def test_transform_says_what_it_cannot_do() -> None:
    hn = AttentionHypernetwork([8, 16], name="water")
    with pytest.raises(UserError, match=r"'water' has no network for a context 12 wide.*8, 16"):
        hn.transform(torch.zeros(1, 2, 12))
    with pytest.raises(UserError, match=r"\(batch, tokens, width\)"):
        hn.transform(torch.zeros(2, 8))
    with pytest.raises(UserError, match="int64"):
        hn.transform(torch.zeros(1, 2, 8, dtype=torch.int64))
    for strength in (float("nan"), float("inf"), "much"):
        with pytest.raises(UserError, match="not a finite number"):
            hn.transform(torch.zeros(1, 2, 8), strength)  # type: ignore[arg-type]


def test_strength_zero_is_no_effect_and_tensors_are_strengths() -> None:
    hn = AttentionHypernetwork([8], weight_init="Normal")
    context = contexts()
    assert torch.equal(hn.transform(context, 0)[0], context)
    half = hn.transform(context, torch.tensor(0.5))[0]
    assert torch.allclose(half, hn.transform(context, 0.5)[0])
    assert torch.equal(hn(context, 0.5)[0], hn.transform(context, 0.5)[0])


def test_networks_for_a_unet(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    assert AttentionHypernetwork.for_unet(unet).widths == [16, 24, 32]
    assert AttentionHypernetwork.for_unet(unet, attn=["attn2"]).widths == [24]
    hn = AttentionHypernetwork.for_unet(unet, per_site=True, blocks=["mid"], weight_init="Normal")
    mid = [s for s in attention_sites(unet) if s.block == "mid"]
    assert hn.sites == [s.path for s in mid]
    assert not hn.widths
    context = contexts(24)
    assert not torch.equal(hn.transform(context, site=mid[1])[0], context)
    assert not torch.equal(hn.transform(context, site=mid[1].path)[0], context)
    with pytest.raises(UserError, match=r"no network.*24 wide at elsewhere"):
        hn.transform(context, site="elsewhere")
    with pytest.raises(UserError, match="per_site=True"):
        AttentionHypernetwork.for_unet(unet, blocks=["mid"])

"""The whole hypernetwork: as the API has it, its trunks, swapped parts, binding, files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import Factors, Hypernetwork, TargetNetwork

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


def condition(batch: int = 2, tokens: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, tokens, 32, generator=torch.Generator().manual_seed(seed))


def same(a: Any, b: Any, atol: float = 1e-6) -> bool:
    assert a.layers == b.layers
    return all(torch.allclose(a.delta(n), b.delta(n), atol=atol) for n in a.layers)


def test_as_the_api_has_it(pictures: Path, tmp_path: Path) -> None:
    """At a small size, with Stable Diffusion 1.5's layers and the embedded model's encoders."""
    net = hb.Hypernetwork(
        target_layers=["attn1", "attn2"], embedding_dim=64, hidden_dim=64, depth=1, tasks=["noto"]
    )
    assert len(net.layers) == 128
    several = [
        hb.ImageCondition(sorted(pictures.glob("*.png"))[:2]),
        hb.TextCondition("ink drawing"),
        hb.TaskCondition("noto"),
    ]
    with torch.no_grad():
        for given in (*several, several, None):
            weights = net.generate_weights(given)
            assert weights.batch is None
            assert weights.size == 4 * 199_296
            assert not any(f.up.any() for f in weights.factors.values())
        assert net.generate_weights(torch.randn(2, 5, 64)).batch == 2
    tuned = weights.expand_rank(16)
    assert tuned.rank == 16
    again = hb.GeneratedWeights.load(weights.save(tmp_path / "ink.safetensors"))
    assert set(again.layers) == set(net.layers)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_generate_apply_export(
    family: str, make_pipe: Make, make_net: Make, draw: Make, tmp_path: Path
) -> None:
    pipe = make_pipe("text", family)
    target = TargetNetwork(pipe)
    net = make_net(target, text_width=None, latent_channels=None)
    with torch.no_grad():
        weights = net.generate_weights(
            [hb.TextCondition("a red heart"), hb.ImageCondition(torch.rand(3, 20, 30))]
        )
    bare = draw(pipe)
    with target.apply_weights(weights, strength=0.8):
        out = draw(pipe)
    assert not torch.allclose(out, bare, atol=1e-3)
    weights.save(tmp_path / "ink.safetensors", "lora-diffusers")
    pipe.load_lora_weights(tmp_path, weight_name="ink.safetensors")
    assert torch.allclose(draw(pipe, cross_attention_kwargs={"scale": 0.8}), out, atol=1e-4)


@pytest.mark.parametrize("trunk", ["perceiver", "mlp"])
def test_trunks(trunk: str, make_unet: Make, make_net: Make) -> None:
    net = make_net(make_unet(), trunk=trunk)
    tokens = condition()
    weights = net.generate_weights(tokens)
    assert not torch.allclose(weights.delta(net.layers[0])[0], weights.delta(net.layers[0])[1])
    assert same(weights[1], net.generate_weights(tokens[1:])[0], 1e-5)
    assert same(weights, net.generate_weights(tokens.flip(1)), 1e-5)  # the tokens' order does not matter
    # The perceiver tells apart what has the same mean.
    moved = tokens + torch.tensor([1.0, -1.0, 0.0])[None, :, None]
    assert same(weights, net.generate_weights(moved), 1e-5) == (trunk == "mlp")
    latents = net.weight_generator(tokens, torch.ones(2, 3, dtype=torch.bool))
    assert latents.shape == (2, len(net.layers), 2, 48)
    assert torch.allclose(latents.norm(dim=-1), torch.ones(()), atol=1e-5)


def test_refinement(make_unet: Make, make_net: Make) -> None:
    unet = make_unet()
    once, thrice = make_net(unet), make_net(unet, iterations=3)
    thrice.load_state_dict(once.state_dict(), strict=False)
    assert same(once.generate_weights(condition()), thrice.generate_weights(condition()))
    torch.nn.init.normal_(thrice.weight_generator.feedback.weight, std=0.5)
    assert not same(once.generate_weights(condition()), thrice.generate_weights(condition()), 1e-3)


def test_starts_at_zero_and_learns_end_to_end(make_unet: Make, make_net: Make) -> None:
    net = make_net(make_unet(), woken=False, tasks=["a"], image_width=12).train()
    conditions = [
        hb.TextCondition(states=torch.randn(2, 4, 24)),
        hb.ImageCondition(latents=torch.randn(2, 3, 4, 8, 8), features=torch.randn(2, 3, 5, 12)),
        hb.TaskCondition("a"),
        condition(),
    ]
    drop = torch.tensor([False, True])
    assert not any(d.any() for d in net.generate_weights(conditions, drop=drop).delta().values())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    goals = {n: torch.randn(d.shape) for n, d in net.generate_weights(conditions, drop=drop).delta().items()}
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        made = net.generate_weights(conditions, drop=drop).delta()
        loss = torch.stack([(made[n] - goals[n]).square().mean() for n in made]).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_null_condition_and_drop_out(make_unet: Make, make_net: Make) -> None:
    net = make_net(make_unet(), condition_dropout=0.5)
    tokens = condition(8)
    null, own = net.generate_weights(None), net.generate_weights(tokens)
    drop = torch.tensor([True, False] * 4)
    mixed = net.generate_weights(tokens, drop=drop)
    for i in range(8):
        assert same(mixed[i], null if drop[i] else own[i], 1e-5)
    assert not same(null, own[0], 1e-3)
    net.train()
    drawn = [net.generate_weights(tokens, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2], 1e-3)
    dropped = [same(w, null, 1e-5) for w in drawn[0]]
    expected = torch.rand(8, generator=torch.Generator().manual_seed(4)) < 0.5
    assert dropped == expected.tolist()
    assert same(net.eval().generate_weights(tokens), own)
    assert net.generate_weights(None, drop=torch.ones(3, dtype=torch.bool)).batch == 3
    with pytest.raises(UserError, match="drop has 3 entries for 8"):
        net.generate_weights(tokens, drop=drop[:3])


@pytest.mark.parametrize("trunk", ["perceiver", "mlp"])
def test_checkpointing_the_trunk(trunk: str, make_unet: Make, make_net: Make) -> None:
    net = make_net(make_unet(), trunk=trunk, iterations=2)
    runs = []

    def count(*_: Any) -> None:
        runs.append(1)

    net.weight_generator.blocks[0].register_forward_pre_hook(count)
    grads = []
    for enabled in (False, True):
        net.enable_gradient_checkpointing(enabled)
        net.zero_grad()
        runs.clear()
        net.generate_weights(condition()).squared_norm().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
        assert len(runs) == (4 if enabled else 2)  # two iterations, and again in backward
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(g, grads[1][n], rtol=1e-4, atol=1e-6) for n, g in grads[0].items())


@pytest.mark.parametrize("output", ["lora", "basis", "core", "lightweight"])
def test_a_file_and_back(output: str, make_unet: Make, make_net: Make, tmp_path: Path) -> None:
    net = make_net(
        make_unet(), output=output, tasks=["a", "b"], iterations=2, frame_widths=(3, 4), name="inks", step=7
    )
    path = net.save(tmp_path / "net.safetensors")
    again = Hypernetwork.load(path)
    assert (again.name, again.step, again.settings) == ("inks", 7, net.settings)
    assert again.targets == net.targets
    assert not again.training
    with torch.no_grad():
        assert same(net.generate_weights(condition()), again.generate_weights(condition()))
        assert same(
            net.generate_weights(hb.TaskCondition("b")), again.generate_weights(hb.TaskCondition("b"))
        )
    second = again.save(tmp_path / "second.safetensors")
    assert second.read_bytes() == path.read_bytes()
    half = Hypernetwork.load(net.save(tmp_path / "half.safetensors", dtype=torch.float16))
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * path.stat().st_size
    with torch.no_grad():
        assert same(net.generate_weights(condition()), half.generate_weights(condition()), 2e-2)


class Mean(torch.nn.Module):
    """A decoder of somebody else's: rank 1, ones."""

    def __init__(self, targets: Any) -> None:
        super().__init__()
        self.targets = targets
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, latents: torch.Tensor) -> dict[str, Factors]:
        size = latents.mean((1, 2, 3))[:, None, None] * self.gain
        return {
            t.name: Factors(size * torch.ones(1, 1, t.in_width), torch.ones(len(latents), t.out_width, 1))
            for t in self.targets
        }


def test_swapped_parts(make_unet: Make, make_net: Make, tmp_path: Path) -> None:
    unet = make_unet()
    net = make_net(unet)
    net.decoder = Mean(net.targets)
    weights = net.generate_weights(condition())
    assert weights.rank == 1
    assert same(make_net(unet, decoder=Mean(net.targets)).generate_weights(condition()), weights)
    path = net.save(tmp_path / "net.safetensors")
    with pytest.raises(
        UserError, match=r"its decoder is a Mean, not ours: Hypernetwork.load\(path, decoder=…\)"
    ):
        Hypernetwork.load(path)
    again = Hypernetwork.load(path, decoder=Mean(net.targets))
    assert same(again.generate_weights(condition()), weights)
    with pytest.raises(
        UserError, match=r"the decoder is a Mean.*make a new Hypernetwork\(target=…, decoder=…\)"
    ):
        net.bind(make_unet("sd2"))
    with pytest.raises(UserError, match="unknown part of a hypernetwork 'head'"):
        Hypernetwork.load(path, head=Mean(net.targets))
    net.weight_generator = torch.nn.Identity()
    with pytest.raises(UserError, match="Identity has no gradient checkpointing"):
        net.enable_gradient_checkpointing()


def test_what_cannot_be_read(make_unet: Make, make_net: Make, make_weights: Make, tmp_path: Path) -> None:
    unet = make_unet()
    path = make_net(unet).save(tmp_path / "net.safetensors")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    first = min(tensors)

    def written(change: Any = None, **config: Any) -> Path:
        content = json.loads(header["hyperbrush.config"]) | config
        state = tensors | (change or {})
        state = {k: v for k, v in state.items() if v is not None}
        other = tmp_path / "other.safetensors"
        save_file(state, other, metadata=header | {"hyperbrush.config": json.dumps(content)})
        return other

    adapter = make_weights(unet).save(tmp_path / "adapter.safetensors")
    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: tmp_path / "none.safetensors", "is no .safetensors file"),
        (lambda: adapter, "generated-weights/1.*hyperbrush.load reads finished adapters"),
        (lambda: written({first: None}), f"not whole.*{first}"),
        (lambda: written({first: torch.ones(3)}), "not whole"),
        (lambda: written({first: tensors[first] * float("nan")}), "not finite"),
        (lambda: written(settings={}), "config is damaged"),
        (lambda: written(targets=[]), "damaged"),
        (
            lambda: written(settings=json.loads(header["hyperbrush.config"])["settings"] | {"heads": 7}),
            "heads",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            Hypernetwork.load(make())
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        make_net(unet).save(tmp_path / "net.pt")


def test_binding(make_unet: Make, make_pipe: Make, make_net: Make, tmp_path: Path) -> None:
    pipe, xl = make_pipe(), make_pipe("text", "sdxl")
    fresh = Hypernetwork(["attn2"], 32, 48, depth=1, heads=4)
    assert fresh.settings.text_width == 128  # the embedded model's
    assert fresh.bind(pipe) is fresh
    assert fresh.layers == TargetNetwork(pipe, ["attn2"]).layers
    assert fresh.settings.text_width == 24
    assert fresh.generate_weights(hb.TextCondition(["one", "two"])).batch == 2
    assert fresh.bind(TargetNetwork(xl)).settings.text_width == 48
    fresh.bind(make_unet())  # a UNet alone has no encoders: the conditions' stay
    assert fresh.settings.text_width == 48
    assert fresh.layers == TargetNetwork(pipe, ["attn2"]).layers

    trained = make_net(TargetNetwork(pipe), text_width=None)
    before = trained.generate_weights(condition())
    path = trained.save(tmp_path / "net.safetensors")
    loaded = Hypernetwork.load(path, target=pipe)
    assert same(loaded.generate_weights(condition()), before)
    assert loaded.source.model.unet is pipe.unet
    with pytest.raises(UserError, match="was trained for 56 layers"):
        Hypernetwork.load(path).bind(xl)
    narrow = make_pipe("text", "sd1")
    narrow.text_encoder = xl.text_encoder
    with pytest.raises(UserError, match="reads .* of widths .24, 4, None., the model has .32, 4, None."):
        Hypernetwork.load(path).bind(narrow)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trunk": "cnn"}, "unknown trunk 'cnn'"),
        ({"depth": 0}, "whole numbers from 1"),
        ({"heads": 5}, "cannot be split over 5 heads"),
        ({"condition_dropout": 1.0}, "condition_dropout"),
        ({"ranks": 4}, "unknown setting of a Hypernetwork 'ranks'; did you mean 'rank'"),
        ({"tokens_per_layer": 3}, "divisor"),
        ({"target_layers": ["attn9"]}, "unknown target layer"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Hypernetwork(**({"embedding_dim": 32, "hidden_dim": 32, "depth": 1, "heads": 4} | settings))


@pytest.mark.parametrize("trunk", ["perceiver", "mlp"])
def test_pictures_come_to_mean_something(
    trunk: str, make_unet: Make, make_net: Make, make_weights: Make
) -> None:
    """Six styles and an adapter for each: the right references lead nearer to it than nothing does, others do not."""
    unet = make_unet()
    net = make_net(unet, woken=False, trunk=trunk).train()
    goals = make_weights(unet, batch=6)
    generator = torch.Generator().manual_seed(1)
    means, spreads = (
        torch.randn(6, 1, 4, 1, 1, generator=generator),
        torch.rand(6, 1, 4, 1, 1, generator=generator),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for step in range(40):
        noise = torch.randn(6, 2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        references = hb.ImageCondition(latents=noise * spreads + means)
        drop = torch.zeros(6, dtype=torch.bool)
        loss = net.generate_weights(references, drop=drop).squared_distance(goals).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    unseen = torch.randn(6, 3, 4, 8, 8, generator=torch.Generator().manual_seed(99)) * spreads + means
    with torch.no_grad():
        none = goals.squared_norm().mean()
        right = net.generate_weights(hb.ImageCondition(latents=unseen)).squared_distance(goals).mean()
        wrong = (
            net.generate_weights(hb.ImageCondition(latents=unseen.roll(1, 0))).squared_distance(goals).mean()
        )
    assert right < 0.8 * none
    assert wrong > 1.1 * none

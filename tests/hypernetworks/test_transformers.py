"""Attention hypernetworks on diffusers' transformers: every family at tiny widths with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_helpers import MODELS, make, picture_rows, random_network, run, text_rows

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.ldm.modules.attention_sites import attention_sites

FAMILIES = list(MODELS)
Tensor = torch.Tensor


SITES = {
    "PixArt": ["transformer_blocks.{}.attn1.picture", "transformer_blocks.{}.attn2.text"],
    "Sana": ["transformer_blocks.{}.attn1.picture", "transformer_blocks.{}.attn2.text"],
    "SD3": ["transformer_blocks.{}.attn.picture", "transformer_blocks.{}.attn.text", "transformer_blocks.0.attn2.picture"],
    **{
        family: [
            f"{kind}transformer_blocks.0.attn.{stream}"
            for kind in ("", "single_")
            for stream in ("picture", "text")
        ]
        for family in ("Flux", "Flux2", "Chroma")
    },
    "QwenImage": ["transformer_blocks.{}.attn.picture", "transformer_blocks.{}.attn.text"],
    "ZImage": [
        "noise_refiner.0.attention.picture", "context_refiner.0.attention.text",
        "layers.{}.attention.picture", "layers.{}.attention.text",
    ],
    "Lumina2": [
        "context_refiner.0.attn.text", "noise_refiner.0.attn.picture",
        "layers.{}.attn.picture", "layers.{}.attn.text",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_by_stream_and_block(name: str) -> None:
    model, _ = make(name)
    sites = attention_sites(model)
    assert {site.path for site in sites} == {path.format(i) for path in SITES[name] for i in (0, 1)}
    assert all(site.path.startswith(site.block) and site.path.endswith(site.stream) for site in sites)
    assert [s.depth for s in sites] == sorted(s.depth for s in sites)
    texts = attention_sites(model, kinds=["text"])
    assert texts == attention_sites(model, kinds=["attn2"]) == [s for s in sites if s.stream == "text"]
    first = sites[0].block
    assert {s.block for s in attention_sites(model, blocks=[first])} == {first}
    whole = first.partition(".")[0]
    assert attention_sites(model, blocks=[whole]) == [s for s in sites if s.block.startswith(whole + ".")]


class Changed(torch.nn.Module):
    """A layer that sees what the equations say: of (outputs, rows, network), x + strength·MLP(x) in these rows."""

    def __init__(
        self, layer: Any, edits: list[tuple[slice, Tensor | None, ContextNetwork]], strength: float
    ) -> None:
        super().__init__()
        self.layer, self.edits, self.strength = layer, edits, strength

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        for outputs in {(e[0].start, e[0].stop) for e in self.edits}:
            changed = x
            for own, rows, network in self.edits:
                if (own.start, own.stop) == outputs:
                    w1, b1, w2, b2 = network.parameters()
                    change = self.strength * ((x @ w1.T + b1).relu() @ w2.T + b2)
                    changed = changed + (change if rows is None else rows[..., None] * change)
            chosen = slice(*outputs)
            out = torch.cat(
                [out[..., : chosen.start], self.layer(changed)[..., chosen], out[..., chosen.stop :]], -1
            )
        return out


def referee(
    model: Any, name: str, network: AttentionHypernetwork, streams: list[str], strength: float
) -> None:
    """Put layers in the model that compute what `attach` promises, by what each family's forward says."""
    pairs = dict(network.pairs())
    for path, attention in list(model.named_modules()):
        if not hasattr(attention, "to_k") and not hasattr(attention, "to_qkv_mlp_proj"):
            continue
        edits: dict[str, list[Any]] = {}
        shared = path.startswith(("single_", "layers"))
        for stream in streams:
            pair = pairs.get(f"{path}.{stream}")
            if pair is None:
                continue
            rows = None if not shared else text_rows(name) if stream == "text" else picture_rows(name)
            added = stream == "text" and getattr(attention, "add_k_proj", None) is not None
            for i, net in ((1, pair.key), (2, pair.value)):
                if hasattr(attention, "to_qkv_mlp_proj"):
                    edits.setdefault("to_qkv_mlp_proj", []).append((slice(16 * i, 16 * i + 16), rows, net))
                else:
                    layer = ("add_{}_proj" if added else "to_{}").format("qkv"[i])
                    edits.setdefault(layer, []).append((slice(0, 16), rows, net))
        for layer, changes in edits.items():
            width = getattr(attention, layer).out_features
            changes = [(slice(o.start, min(o.stop, width)), r, n) for o, r, n in changes]
            setattr(attention, layer, Changed(getattr(attention, layer), changes, strength))


@pytest.mark.parametrize("streams", [["picture", "text"], ["text"], ["picture"]], ids="-".join)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_equals_the_equations(name: str, streams: list[str]) -> None:
    model, call = make(name)
    network = random_network(model)
    bare = run(model, call)
    with attach(model, (network, 0.7), attn=streams) as attached:
        got = run(model, call)
        text = str(attached.applied)
    reached = sum(path.endswith(tuple(streams)) for path in network.sites)
    assert text.startswith(f"{reached} of {len(network.sites)} sites reached: ")
    assert "; widths 16" in text
    assert torch.equal(run(model, call), bare)  # detached, to the bit
    referee(model, name, network, streams, 0.7)
    expected = run(model, call)
    assert (expected - bare).abs().max() > 1e-2 * bare.abs().max()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_strengths(name: str) -> None:
    model, call = make(name)
    one, two = random_network(model, 1, name="one"), random_network(model, 2, name="two")
    bare = run(model, call)
    with attach(model, [(one, 1.0), (two, 0.0)]) as attached:
        alone = run(model, call)
        attached.set_strengths([0, 0])
        assert torch.equal(run(model, call), bare)
        attached.set_strengths([1.0, 0.5])
        assert not torch.allclose(run(model, call), alone)
        attached.set_strengths([hb.PerPicture([0, 1]), 0])
        own = run(model, call)
    if name == "ZImage":  # run() gives the pictures one after another
        assert torch.allclose(own[:256], bare[:256])
        assert torch.allclose(own[256:], alone[256:], rtol=1e-3)
    else:
        assert torch.allclose(own[0], bare[0])
        assert torch.allclose(own[1], alone[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(run(model, call), bare)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_schedule_reads_the_familys_clock(name: str) -> None:
    model, call = make(name)
    argument = "t" if name == "ZImage" else "timestep"
    rising = name in ("ZImage", "Lumina2")
    unit = 1 if name in ("PixArt", "Sana", "SD3") else 1000
    seen = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return progress

    with attach(model, (random_network(model), schedule)):
        for progress in (0.1, 0.6):
            noise = progress if rising else 1 - progress
            run(model, call | {argument: torch.full((2,), noise * 1000 / unit)})
    assert sorted(set(seen))[-2:] == pytest.approx([0.1, 0.6], abs=2e-3)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_beside_lora_in_both_orders(name: str) -> None:
    peft = pytest.importorskip("peft")
    results = []
    for first in ("lora", "network"):
        model, call = make(name)
        network, bare = random_network(model), run(model, call)
        config = peft.LoraConfig(
            r=2, init_lora_weights=False, target_modules=["to_k", "to_v", "add_k_proj", "to_qkv_mlp_proj"]
        )
        attached = attach(model, network) if first == "network" else None
        torch.manual_seed(5)
        peft.inject_adapter_in_model(config, model)
        if attached is None:
            with_lora = run(model, call)
            attached = attach(model, network)
        results.append(run(model, call))
        attached.detach()
        assert torch.equal(run(model, call), with_lora)
    assert torch.equal(*results)
    assert not torch.allclose(results[0], with_lora)
    assert not torch.allclose(with_lora, bare)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_trained_and_checkpointed(name: str, tmp_path: Path) -> None:
    model, call = make(name)
    model.requires_grad_(False)
    torch.manual_seed(0)
    network = AttentionHypernetwork.for_transformer(model, name="mine")
    assert network.settings.layer_structure == (1, 1 / 16, 1)
    with torch.no_grad():
        bare = run(model, call)
    target = bare + 0.1 * bare.std()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    gradients, losses = [], []
    with attach(model, network):
        for step in range(3):
            loss = (run(model, call) - target).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            if step == 1:
                gradients = [p.grad.clone() for p in network.parameters()]
                model.enable_gradient_checkpointing()
                optimizer.zero_grad()
                loss = (run(model, call) - target).square().mean()
                with torch.no_grad():  # another text meanwhile, in other rows
                    run(model, shorter(call, name))
                loss.backward()
                again = [p.grad for p in network.parameters()]
                torch.testing.assert_close(again, gradients, rtol=1e-3, atol=1e-6)
                model.disable_gradient_checkpointing()
            optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    assert all(pair.value.layers[-1].linear.bias.any() for _, pair in network.pairs())  # each began at zero
    read = hb.load(network.save(tmp_path / "mine.safetensors"))
    assert isinstance(read, AttentionHypernetwork)
    assert read.sites == network.sites
    with torch.no_grad(), attach(model, network) as attached:
        expected = run(model, call)
        attached.unload("mine")
        attached.load(tmp_path / "mine.safetensors")
        assert torch.equal(run(model, call), expected)
    with pytest.raises(UserError, match=r"networks per site, .* Save it as \.safetensors"):
        network.save(tmp_path / "mine.pt")
    assert not (tmp_path / "mine.pt").exists()


def shorter(call: dict[str, Any], name: str) -> dict[str, Any]:
    if name == "ZImage":
        return call | {"x": [x[..., :4] for x in call["x"]]}
    texts = {k: v[:, :2] for k, v in call.items() if k.startswith("encoder_")}
    return call | texts | ({"txt_ids": call["txt_ids"][:2]} if "txt_ids" in call else {})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_lasts_over_the_steps_is_kept(
    name: str, mode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = make(name)
    network = random_network(model)
    counts = []
    forward = ContextNetwork.forward

    def count(self: Any, *args: Any) -> Any:
        counts[-1] += 1
        return forward(self, *args)

    monkeypatch.setattr(ContextNetwork, "forward", count)
    texts = 4 if name in ("PixArt", "Sana") else 0  # of two blocks, for keys and for values
    every = 2 * len(network.sites)
    calls = [call | {"timestep": torch.tensor([t, t])} for t in (900.0, 800.0, 900.0)]
    if name not in ("PixArt", "Sana", "SD3"):
        calls = [call] * 3
    with attach(model, network), mode():
        outs = []
        for step in calls:
            counts.append(0)
            outs.append(run(model, step))
        counts.append(0)
        if texts:
            other = run(model, calls[1] | {"encoder_hidden_states": 2 * call["encoder_hidden_states"]})
            assert not torch.allclose(other, outs[1])
    # A timestep that does not fall is a new sampling; another prompt is computed anew.
    assert counts == [every, every - texts, every, every if texts else 0]
    with attach(model, network), mode():  # which has nothing to keep yet
        assert torch.equal(run(model, calls[1]), outs[1])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_attaching_twice_composes_as_one_list(name: str) -> None:
    model, call = make(name)
    one, two = random_network(model, 1, name="one"), random_network(model, 2, name="two")
    with attach(model, [one, two]):
        expected = run(model, call)
    with attach(model, two):
        second = run(model, call)
    with attach(model, one) as first, attach(model, two):
        torch.testing.assert_close(run(model, call), expected)
        first.detach()
        assert torch.equal(run(model, call), second)


class Wrapper(torch.nn.Module):
    """As one of a trainer's that is called in its own way."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, call: dict[str, Any]) -> Tensor:
        return run(self.inner, call)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_wrapped_model_may_be_called_by_itself(name: str) -> None:
    model, call = make(name)
    network, wrapper = random_network(model), Wrapper(model)
    other = shorter(call, name)
    with attach(model, network):
        expected, expected_other = run(model, call), run(model, other)
    with attach(wrapper, network):
        assert torch.equal(run(model, call), expected)
        assert torch.equal(wrapper(call), expected)
        assert torch.equal(run(model, other), expected_other)  # rows of its own, not of the call before


@torch.no_grad()
def test_a_block_by_itself_is_refused() -> None:
    model, _ = make("Flux")
    with (
        attach(model, random_network(model)),
        pytest.raises(UserError, match="outside of its transformer's forward pass"),
    ):
        model.single_transformer_blocks[0].attn(torch.ones(1, 4, 16))

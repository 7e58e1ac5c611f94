"""Low-rank weights on diffusers' transformers, every family at tiny width: applied, beside others, exported."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import fresh
from safetensors.torch import load_file, save_file
from transformer_helpers import MODELS, make, merge, random_network, random_weights, run

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TargetNetwork
from hyperbrush.hypernetworks.weights.layers import find_targets

FAMILY = pytest.mark.parametrize("name", list(MODELS))
PLAIN = pytest.mark.filterwarnings("ignore")
Tensor = torch.Tensor


def close(got: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert (got - expected).abs().max() < bound * expected.abs().max()


def layers_of(model: Any, patterns: list[str] | None = None) -> list[str]:
    return [target.name for target in find_targets(model, patterns)]


@FAMILY
def test_every_layer_by_name(name: str) -> None:
    """Attentions and feed-forwards: all linear layers of the blocks but those that norms and modulations have."""
    model, _ = make(name)
    blocks = re.compile(r"\w*(transformer_blocks|refiner|layers)\.\d+\.")
    others = re.compile(r"norm|modulation|_mod\b")
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and blocks.match(n)}
    targets = {t.name: t for t in find_targets(model)}
    assert set(targets) == {n for n in linear if not others.search(n)}
    assert all(tuple(linear[n].weight.shape) == (t.out_width, t.in_width) for n, t in targets.items())
    assert {n for n in targets if "attn" in n or "attention" in n} == set(layers_of(model, ["attn"]))
    assert set(layers_of(model, ["attn1", "attn2"])) == set(layers_of(model, ["attn"]))
    both = set(layers_of(model, ["picture"])) | set(layers_of(model, ["text"]))
    assert both == set(targets)
    assert layers_of(model, list(targets)) == list(targets)  # each is a pattern of itself alone
    for one in list(targets)[::5]:
        assert layers_of(model, [one]) == [one]
    if name == "Sana":  # whose feed-forward is of convolutions
        with pytest.raises(UserError, match="unknown target layer 'ff'"):
            find_targets(model, ["ff"])
    else:
        assert set(layers_of(model, ["ff"])) == set(targets) - set(layers_of(model, ["attn"]))


def test_words_for_layers() -> None:
    flux, z_image = make("Flux")[0], make("ZImage")[0]
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    assert layers_of(flux, ["add_k_proj"]) == [f"{double}.attn.add_k_proj"]
    assert layers_of(flux, ["to_k"]) == [f"{double}.attn.to_k", f"{single}.attn.to_k"]
    assert layers_of(flux, ["attn2.to_k"]) == [f"{single}.attn.to_k"]
    assert layers_of(flux, ["text"]) == [
        *(f"{double}.attn.{n}" for n in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{double}.ff_context.net.{n}" for n in ("0.proj", "2")),
        *(f"{single}.attn.{n}" for n in ("to_q", "to_k", "to_v")),
        f"{single}.proj_mlp",
        f"{single}.proj_out",
    ]
    assert layers_of(z_image, ["layers.1"]) == [n for n in layers_of(z_image) if n.startswith("layers.1.")]
    assert layers_of(z_image, ["layers.*.to_q"]) == [f"layers.{i}.attention.to_q" for i in (0, 1)]
    assert layers_of(z_image, ["ff.text", "noise_refiner"])[:3] == [
        f"noise_refiner.0.attention.{n}" for n in ("to_q", "to_k", "to_v")
    ]


@FAMILY
@torch.no_grad()
def test_equals_merged_weights(name: str) -> None:
    model, call = make(name)
    weights, bare = random_weights(model), run(model, call)
    expected = run(merge(make(name)[0], weights, 0.7), call)
    with hb.attach(model, (weights, 0.7)) as attached:
        close(run(model, call), expected)
        assert str(attached.applied) == f"{len(weights.layers)} of {len(weights.layers)} layers reached"
        attached.set_strengths([0.0])
        assert torch.equal(run(model, call), bare)
    assert torch.equal(run(model, call), bare)
    target = TargetNetwork(model)
    with target.apply_weights(weights, 0.7):
        close(run(model, call), expected)
    assert torch.equal(run(model, call), bare)
    with target.apply_weights(weights, {"text": 0.0, "picture": 0.0}):
        assert torch.equal(run(model, call), bare)
    two = [random_weights(model, seed) for seed in (1, 2)]
    pairs = {
        layer: Factors(
            *(torch.stack([getattr(w.factors[layer], part) for w in two]) for part in ("down", "up"))
        )
        for layer in weights.layers
    }
    with target.apply_weights(GeneratedWeights(pairs)):  # a row, an adapter
        own = run(model, call)
    each = [run(merge(make(name)[0], one), call) for one in two]
    if name == "ZImage":  # run() gives the pictures one after another
        close(own, torch.cat([each[0][:256], each[1][256:]]), 1e-4)
    else:
        close(own, torch.stack([each[0][0], each[1][1]]), 1e-4)


@FAMILY
@torch.no_grad()
def test_schedules_streams_and_blocks(name: str) -> None:
    model, call = make(name)
    weights, seen = random_weights(model), []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 0.5

    expected = run(merge(make(name)[0], weights, 0.5), call)
    with hb.attach(model, (weights, schedule)):
        close(run(model, call), expected)
    assert seen
    first = weights.layers[0].split(".att")[0]
    part = random_weights(model, layers=[first])
    with hb.attach(model, weights, blocks=[first]):
        close(run(model, call), run(merge(make(name)[0], part), call))
    texts = [t.name for t in find_targets(model) if t.kind[-1] == "2"]
    assert texts
    own = GeneratedWeights({n: weights.factors[n] for n in texts})
    with hb.attach(model, weights, attn=["text"]) as attached:  # layers of both streams' rows are left out
        assert f"{len(texts)} of {len(weights.layers)} layers reached; " in str(attached.applied)
        close(run(model, call), run(merge(make(name)[0], own), call))


@FAMILY
@torch.no_grad()
def test_beside_networks_and_lora_in_both_orders(name: str) -> None:
    """(W + ΔW) c', whatever came first; with a LoRA too."""
    peft = pytest.importorskip("peft")
    model, call = make(name)
    network, weights, bare = random_network(model), random_weights(model), run(model, call)
    with hb.attach(merged := merge(make(name)[0], weights), network):
        expected = run(merged, call)
    for entries in ([network, weights], [weights, network]):
        with hb.attach(model, entries):
            close(run(model, call), expected)
    with TargetNetwork(model).apply_weights(weights), hb.attach(model, network):
        close(run(model, call), expected)
    with hb.attach(model, network), TargetNetwork(model).apply_weights(weights):
        close(run(model, call), expected)
    assert torch.equal(run(model, call), bare)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=layers_of(model))
    outs = []
    for first in ("lora", "weights"):
        model = make(name)[0]
        attached = hb.attach(model, weights) if first == "weights" else None
        torch.manual_seed(5)
        peft.inject_adapter_in_model(config, model)
        if attached is None:
            with_lora = run(model, call)
            attached = hb.attach(model, weights)
        outs.append(run(model, call))
        attached.detach()
        assert torch.equal(run(model, call), with_lora)
    close(outs[0], outs[1])
    assert not torch.allclose(outs[0], with_lora)


@FAMILY
def test_gradients_through_checkpointing(name: str) -> None:
    model, call = make(name)
    model.requires_grad_(False)
    weights, found = random_weights(model).requires_grad_(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        with hb.attach(model, weights):
            loss = run(model, call).square().mean()
        found.append(torch.autograd.grad(loss, weights.parameters(), allow_unused=True))
    reached = [g is not None and bool(g.any()) for g in found[0]]
    assert sum(reached) > 0.8 * len(reached)  # the last text stream may lead nowhere
    for one, again in zip(*found, strict=True):
        assert (one is None) == (again is None)
        if one is not None and again is not None:
            torch.testing.assert_close(again, one, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_one_strength_where_one_layer_makes_keys_and_values() -> None:
    model, call = make("Flux2")
    weights = random_weights(model)
    with pytest.raises(UserError, match="makes keys and values in one: give one strength for both"):
        hb.attach(model, (weights, (1.0, 0.5)))
    with hb.attach(model, (weights, 0.5)) as attached:
        before = run(model, call)
        with pytest.raises(UserError, match="to_qkv_mlp_proj"):
            attached.set_strengths([(1.0, 0.5)])
        assert torch.equal(run(model, call), before)
    double = random_weights(model, layers=["transformer_blocks"])
    looks = GeneratedWeights({n: f for n, f in double.factors.items() if re.search(r"to_[qk]$|add_[qk]", n)})
    takes = GeneratedWeights({n: f for n, f in double.factors.items() if n not in looks.factors})
    with hb.attach(model, (double, (1.0, 0.5))):
        got = run(model, call)
    close(got, run(merge(merge(make("Flux2")[0], looks), takes, 0.5), call))


def load_lora(pipe: Any, path: Path) -> None:
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    else:  # PixArt's pipelines have no loader, its transformer neither
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

        state = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
        rank = next(v.shape[0] for k, v in state.items() if "lora_A" in k)
        layers = sorted({k.rpartition(".lora_")[0] for k in state})
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), pipe.transformer)
        assert not set_peft_model_state_dict(pipe.transformer, state).unexpected_keys


@PLAIN
@FAMILY
@torch.no_grad()
def test_exports_in_plain_diffusers_and_peft(name: str, tmp_path: Path) -> None:
    model, call = make(name)
    weights, bare = random_weights(model, rank=3), run(model, call)
    expected = run(merge(make(name)[0], weights), call)
    path = weights.save(tmp_path / "made.safetensors", "lora-diffusers")
    pipe = fresh(name)
    load_lora(pipe, path)
    close(run(pipe.transformer, call), expected)
    assert (expected - bare).abs().max() > 1e-2 * bare.abs().max()
    from peft import PeftModel

    folder = weights.save(tmp_path / "made", "lora-peft")
    close(run(PeftModel.from_pretrained(make(name)[0], str(folder)), call), expected)
    own = weights.save(tmp_path / "own.safetensors")
    for there in (path, folder, own):
        again = GeneratedWeights.load(there)
        assert set(again.layers) == set(weights.layers)
        for layer in weights.layers:
            assert torch.allclose(again.delta(layer), weights.delta(layer), atol=1e-6)


@PLAIN
@torch.no_grad()
def test_several_ranks_in_plain_diffusers(tmp_path: Path) -> None:
    model, call = make("SD3")
    weights = random_weights(model) + random_weights(model, 2, layers=["ff", "add_k_proj"])
    path = weights.save(tmp_path / "made.safetensors", "lora-diffusers")
    pipe = fresh("SD3")
    load_lora(pipe, path)
    close(run(pipe.transformer, call), run(merge(model, weights), call))
    again = GeneratedWeights.load(path)
    assert set(again.ranks.values()) == {2, 4}
    assert torch.allclose(again.delta(weights.layers[0]), weights.delta(weights.layers[0]), atol=1e-6)


KOHYA = ("Flux", "Flux2", "Chroma", "ZImage", "QwenImage")


@PLAIN
@pytest.mark.parametrize("name", KOHYA)
@pytest.mark.parametrize("layers", [None, ["to_k", "add_v_proj", "ff"]], ids=["all", "some"])
@torch.no_grad()
def test_kohyas_layout_in_plain_diffusers(name: str, layers: Any, tmp_path: Path) -> None:
    model, call = make(name)
    if layers and name in ("ZImage",):
        layers = ["to_k", "ff"]
    weights = random_weights(model, rank=3, layers=layers)
    if name in ("Flux", "Chroma"):  # diffusers cuts linear1 at FLUX.1's own width, 3072: by hand below
        double = {n: f for n, f in weights.factors.items() if not n.startswith("single")}
        weights = GeneratedWeights(double, metadata=weights.metadata)
    path = weights.save(tmp_path / "made.safetensors", "lora-kohya")
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    pipe = fresh(name)
    load_lora(pipe, path)
    close(run(pipe.transformer, call), run(merge(make(name)[0], weights), call))
    with pytest.raises(UserError, match=r"kohya's layout, .* load one in the layout of diffusers or PEFT"):
        GeneratedWeights.load(path)


@pytest.mark.parametrize("name", ["Flux", "Chroma", "SD3"])
def test_kohyas_layers_by_hand(name: str, tmp_path: Path) -> None:
    """Up·down·alpha/rank of the original models' layers: rows of q, k, v (and the feed-forward's input) one below another."""
    model, _ = make(name)
    weights = random_weights(model, layers=["attn", "ff"])
    del weights.factors[weights.layers[1]]  # to_k of the first block
    delta = {n: weights.delta(n) if n in weights.factors else torch.zeros(16, 16) for n in layers_of(model)}
    state = load_file(weights.save(tmp_path / "made.safetensors", "lora-kohya"))
    made = {
        key.removesuffix(".alpha").removeprefix("lora_unet_"): (
            state[key.replace("alpha", "lora_up.weight")] @ down * (float(alpha) / len(down))
        )
        for key, alpha in state.items()
        if key.endswith(".alpha")
        for down in [state[key.replace("alpha", "lora_down.weight")]]
    }
    double = "transformer_blocks.0"
    first = torch.cat([delta[f"{double}.attn.{n}"] for n in ("to_q", "to_k", "to_v")])
    assert torch.equal(first[16:32], torch.zeros(16, 16))
    if name == "SD3":
        expected = {
            "joint_blocks_0_x_block_attn_qkv": first,
            "joint_blocks_0_x_block_attn2_qkv": torch.cat([delta[f"{double}.attn2.to_{n}"] for n in "qkv"]),
            "joint_blocks_0_x_block_attn2_proj": delta[f"{double}.attn2.to_out.0"],
            "joint_blocks_0_x_block_attn_proj": delta[f"{double}.attn.to_out.0"],
            "joint_blocks_0_context_block_attn_proj": delta[f"{double}.attn.to_add_out"],
            "joint_blocks_0_context_block_mlp_fc1": delta[f"{double}.ff_context.net.0.proj"],
            "joint_blocks_0_context_block_mlp_fc2": delta[f"{double}.ff_context.net.2"],
        }
        for i in (0, 1):
            block = f"transformer_blocks.{i}"
            expected |= {
                f"joint_blocks_{i}_context_block_attn_qkv": torch.cat(
                    [delta[f"{block}.attn.add_{n}_proj"] for n in "qkv"]
                ),
                f"joint_blocks_{i}_x_block_mlp_fc1": delta[f"{block}.ff.net.0.proj"],
                f"joint_blocks_{i}_x_block_mlp_fc2": delta[f"{block}.ff.net.2"],
            }
        expected["joint_blocks_1_x_block_attn_qkv"] = torch.cat(
            [delta[f"transformer_blocks.1.attn.to_{n}"] for n in "qkv"]
        )
        expected["joint_blocks_1_x_block_attn_proj"] = delta["transformer_blocks.1.attn.to_out.0"]
        assert set(made) == set(expected)
    else:
        single = "single_transformer_blocks.0"
        rows = [delta[f"{single}.{n}"] for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        expected = {
            "double_blocks_0_img_attn_qkv": first,
            "single_blocks_0_linear1": torch.cat(rows),
            "single_blocks_0_linear2": delta[f"{single}.proj_out"],
        }
        assert len(made) == 10
    for key, value in expected.items():
        torch.testing.assert_close(made[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["PixArt", "Sana", "Lumina2"])
def test_kohyas_layout_where_there_is_none(name: str, tmp_path: Path) -> None:
    weights = random_weights(make(name)[0])
    family = weights.metadata["family"]
    with pytest.raises(
        UserError, match=rf"layers of {family}, for which kohya's layout is not defined.*lora-diffusers"
    ):
        weights.save(tmp_path / "made.safetensors", "lora-kohya")
    weights.metadata.clear()
    with pytest.raises(UserError, match=r"a family that the weights do not name \(metadata 'family'\)"):
        weights.save(tmp_path / "made.safetensors", "lora-kohya")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Flux", "Flux2", "ZImage", "QwenImage"])
@pytest.mark.parametrize("form", ["lora-diffusers", "lora-peft"])
def test_a_lora_comes_back_in_kohyas_layout(name: str, form: str, tmp_path: Path) -> None:
    """What it says of itself comes back; of another program's file the layers tell the family."""
    weights = random_weights(make(name)[0])
    weights.metadata["generated_by"] = "ours"
    path = weights.save(tmp_path / ("made" if form == "lora-peft" else "made.safetensors"), form)
    back = GeneratedWeights.load(path)
    assert back.metadata == weights.metadata
    expected = load_file(weights.save(tmp_path / "a.safetensors", "lora-kohya"))
    del weights.metadata["generated_by"], weights.metadata["family"]
    foreign = GeneratedWeights.load(weights.save(tmp_path / "bare.safetensors", "lora-diffusers"))
    for one, file in ((back, "b"), (foreign, "c")):
        made = load_file(one.save(tmp_path / f"{file}.safetensors", "lora-kohya"))
        assert made.keys() == expected.keys()
        for key, value in made.items():
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("part", ["lora_magnitude_vector.weight", "lora_B.bias"])
@pytest.mark.parametrize("name", ["Flux", "ZImage"])
def test_layers_changed_in_another_way_are_refused(name: str, part: str, tmp_path: Path) -> None:
    path = random_weights(make(name)[0]).save(tmp_path / "made.safetensors", "lora-diffusers")
    tensors = load_file(path)
    layer = next(iter(tensors)).partition(".lora_")[0]
    save_file(tensors | {f"{layer}.{part}": torch.ones(4)}, path)
    with pytest.raises(UserError, match="changes attentions by more than two matrices each"):
        GeneratedWeights.load(path)


def test_of_others_and_what_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A LoRA with modulations and a text encoder beside: what is taken is said."""
    model, _ = make("Flux")
    layer = "transformer_blocks.0.attn.add_q_proj"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    state = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    for other in ("transformer.transformer_blocks.0.norm1.linear", "text_encoder.layers.0.self_attn.q_proj"):
        state |= {f"{other}.lora_A.weight": down.clone(), f"{other}.lora_B.weight": up.clone()}
    save_file(state, tmp_path / "other.safetensors")
    found = GeneratedWeights.load(tmp_path / "other.safetensors")
    assert found.layers == [layer]
    assert torch.equal(found.delta(layer), up @ down)
    assert "left out 2 layers" in caplog.text
    with pytest.raises(UserError, match="reaches none of the .* made for this model"):
        hb.attach(make("ZImage")[0], found)
    other = random_weights(make("SD3")[0], layers=["ff"])
    with pytest.raises(UserError, match=r"reaches none|has a change of shape"):
        hb.attach(make("Flux2")[0], other)
    wrong = GeneratedWeights({layer: Factors(torch.ones(2, 8), torch.ones(16, 2))})
    with pytest.raises(UserError, match=r"has a change of shape \(16, 8\) for .*add_q_proj"):
        hb.attach(model, wrong)

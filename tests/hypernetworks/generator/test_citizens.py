"""Generated weights as citizens: hyperbrush.load, attach, the library, prompt tags."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.file_cache import FileCache
from hyperbrush.hypernetworks.generator import GeneratedWeights, TargetNetwork
from hyperbrush.ldm.models import LatentDiffusion

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5


def test_load_gives_back_what_was_saved(
    make_unet: Make, make_weights: Make, make_network: Make, make_net: Make, tmp_path: Path
) -> None:
    unet = make_unet()
    path = make_weights(unet).save(tmp_path / "ink-2.safetensors")
    weights = hb.load(path)
    assert isinstance(weights, GeneratedWeights)
    assert weights.name == "ink-2"  # as files of the other kind are named: by the file
    assert hb.load(path, torch.float16).factors[weights.layers[0]].down.dtype == torch.float16
    network = make_network(unet).save(tmp_path / "water.safetensors")
    assert isinstance(hb.load(network), hb.AttentionHypernetwork)
    generator = make_net(unet).save(tmp_path / "generator.safetensors")
    with pytest.raises(UserError, match="generates adapters, not an adapter: open it with Hypernetwork.load"):
        hb.load(generator)
    assert hb.hypernetworks.load is hb.load
    from hyperbrush.hypernetworks.files import load_attention

    with pytest.raises(UserError, match="weights that a hypernetwork generated: hyperbrush.load reads it"):
        load_attention(path)
    with pytest.raises(UserError, match="does not exist"):
        hb.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cut"):
        hb.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("strength", [0.7, hb.Ramp(0.2, 1.0), hb.PerPicture([0.5, 1.0]), (0.3, 0.9)], ids=str)
def test_attach_is_the_same_as_applying(
    strength: Any, make_pipe: Make, make_weights: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    weights = make_weights(pipe.unet)
    both = {"prompt": ["a red heart", "cat"], "guidance_scale": 4.0}
    bare = draw(pipe, **both)
    with TargetNetwork(pipe).apply_weights(weights, strength):
        expected = draw(pipe, **both)
    with hb.attach(pipe, (weights, strength)) as attached:
        assert str(attached.applied) == "56 of 56 layers reached"
        assert attached.names == ["ink"]
        assert relative(draw(pipe, **both), expected) < BOUND
        attached.disable()
        assert torch.equal(draw(pipe, **both), bare)
        attached.enable()
        attached.set_strengths(0.0)
        assert torch.equal(draw(pipe, **both), bare)
        with pytest.raises(UserError, match="cannot fuse 'ink', generated weights"):
            attached.set_strengths(0.5)
            attached.fuse()
    assert relative(expected, bare) > 1e-3
    assert torch.equal(draw(pipe, **both), bare)


def test_beside_attention_hypernetworks_in_one_list(
    make_unet: Make,
    make_weights: Make,
    make_network: Make,
    merged: Make,
    call: Make,
    relative: Make,
    tmp_path: Path,
) -> None:
    unet = make_unet()
    weights, network = make_weights(unet), make_network(unet)
    with hb.attach(merged(unet, weights, 0.6), (network, 0.7)) as attached:
        expected = call(attached._unet)
    for both in ([(network, 0.7), (weights, 0.6)], [(weights, 0.6), (network, 0.7)]):
        with hb.attach(unet, both) as attached:
            assert relative(call(unet), expected) < BOUND
            assert set(attached.names) == {"ink", "hypernetwork"}
    with hb.attach(unet, network) as attached:
        attached.set_strengths(0.7)
        name = attached.load(weights.save(tmp_path / "ink.safetensors"), 0.6)
        assert relative(call(unet), expected) < BOUND
        attached.unload(name)
        with hb.attach(unet, (network, 0.0)):
            assert relative(call(unet), expected) > 1e-3
    with hb.attach(unet, (weights, weights)) as attached:  # a list of two, not a strength
        assert attached.names == ["ink", "ink-2"]


def test_kinds_and_blocks(
    make_unet: Make, make_weights: Make, merged: Make, call: Make, relative: Make
) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    with hb.attach(unet, weights, attn=["attn2"], blocks=["up"]) as attached:
        out = call(unet)
        assert "16 of 56 layers reached; 40 of its layers are not here or not asked for" in str(
            attached.applied
        )
    part = merged(unet, weights, lambda n: float(n.startswith("up") and ".attn2." in n))
    assert relative(out, call(part)) < BOUND
    with pytest.raises(UserError, match="reaches none of the 2 attentions asked for"):
        hb.attach(unet, make_weights(unet, layers=["up"]), blocks=["mid"])
    with pytest.raises(UserError, match="for another model"):
        hb.attach(make_unet("sd2"), weights)


def test_in_the_library(make_unet: Make, make_weights: Make, make_net: Make, tmp_path: Path) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    weights.metadata["generator_step"] = 12
    weights.save(tmp_path / "ink.safetensors")
    net = make_net(unet, output="lightweight", frame_widths=(3, 5))
    with torch.no_grad():
        net.generate_weights(torch.randn(1, 2, 32)).save(tmp_path / "light.safetensors")
    library = hb.HypernetworkLibrary(tmp_path, cache=FileCache(tmp_path / "cache.json"))
    entries = {entry.name: entry for entry in library.entries()}
    ink = entries["ink"].as_dict()
    assert (ink["kind"], ink["format"], ink["step"], ink["error"]) == ("generated", "safetensors", 12, None)
    assert ink["sites"] == 14
    assert ink["parameters"] == weights.size
    assert entries["light"].as_dict()["parameters"] == 56 * 2 * (3 + 5)
    assert json.dumps(ink)
    assert isinstance(library.load("ink"), GeneratedWeights)
    save_file(
        {"a.down": torch.ones(2)}, tmp_path / "bad.safetensors", {"hyperbrush.format": "generated-weights/1"}
    )
    broken = {entry.name: entry for entry in library.entries()}["bad"]
    assert broken.error is not None


def test_in_prompts(tiny: LatentDiffusion, make_weights: Make, make_network: Make, tmp_path: Path) -> None:
    import numpy as np

    tiny.eval()
    strong = make_weights(tiny.unet)
    strong.save(tmp_path / "ink.safetensors")
    make_network(tiny.unet).save(tmp_path / "water.safetensors")

    def draw(prompt: str) -> Any:
        return hb.generate(prompt, model=tiny, seed=1, steps=2, hypernetworks=tmp_path)

    plain, inked, off, both = (
        draw(f"red square {tags}")
        for tags in ("", "<hypernet:ink:0.8>", "<hypernet:ink:0>", "<hypernet:ink:0.8> <hypernet:water:0.5>")
    )
    images = [np.asarray(found[0].image) for found in (plain, inked, off, both)]
    assert (images[0] != images[1]).any()
    assert (images[0] == images[2]).all()
    assert (images[1] != images[3]).any()
    assert any("layers reached" in note for note in inked[0].notes)

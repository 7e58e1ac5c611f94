"""The node pack for ComfyUI draws what `attach` draws on the same UNet, and what the original programs' rules say.

ComfyUI itself is in no package index: its side is `comfyui_stub`, around UNets of diffusers.
"""

import copy
import importlib.util
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import comfyui_stub
import pytest
import torch
import torch.nn.functional as F
from comfyui_stub import ComfyUNet, Model, ModelPatcher, call

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.convert.compression import compress
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.ldm.modules.attention_sites import attention_sites

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations/comfyui"
NODES = ["HyperbrushLoader", "HyperbrushPrompt", "HyperbrushRamp", "HyperbrushWindow"]
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"activation": "linear"},
    "swish": {"activation": "swish", "layer_structure": (1, 2, 2, 1)},
    "norm": {"activation": "relu", "layer_norm": True},  # ComfyUI's own loader activates its last layer
    "dropout": {"activation": "relu", "use_dropout": True},  # and drops here
    "hardtanh": {"activation": "hardtanh", "activate_output": True},  # and does not know this
    "residual": {"activation": "relu", "skip_connection": True, "layer_structure": (1, 2, 1)},
    "over the batch": {"activation": "softmax"},
}


def unet_of(family: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    if family == "xl":
        config |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "cross_attention_dim": 40,
        }
    return UNet2DConditionModel(**config).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["sd1", "xl"])
def unet(request: pytest.FixtureRequest) -> Any:
    return unet_of(request.param)


@pytest.fixture(scope="module")
def sd1() -> Any:
    return unet_of("sd1")


def comfy(unet: Any) -> ModelPatcher:
    return ModelPatcher(Model(ComfyUNet(copy.deepcopy(unet))))


def inputs(unet: Any, rows: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(rows, 4, 8, 8, generator=generator)
    context = torch.randn(rows, 5, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.full((rows,), 500), context


def network(unet: Any, seed: int = 3, **settings: Any) -> hb.AttentionHypernetwork:
    torch.manual_seed(seed)
    settings = {"weight_init": "XavierNormal"} | settings
    return hb.AttentionHypernetwork.for_unet(unet, **settings)


def weights_for(unet: Any) -> hb.GeneratedWeights:
    generator = torch.Generator().manual_seed(5)
    factors = {
        f"{site.path}.{p.name}": Factors(
            torch.randn(2, p.in_width, generator=generator),
            torch.randn(p.out_width, 2, generator=generator),
            0.2,
        )
        for site in attention_sites(unet)
        for p in site.projections
    }
    return hb.GeneratedWeights(factors, name="made")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hypernetworks").mkdir()
    return tmp_path / "hypernetworks"


@pytest.fixture
def pack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The pack, loaded as ComfyUI loads what is in custom_nodes."""
    for name, module in comfyui_stub.modules([folder]).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("hyperbrush_pack")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location("hyperbrush_pack", PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hyperbrush_pack", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(pack: ModuleType) -> Callable[..., tuple[ModelPatcher, str]]:
    def run(model: ModelPatcher, name: str, strength: float = 1.0, **inputs: Any) -> Any:
        node = pack.NODE_CLASS_MAPPINGS["HyperbrushLoader"]()
        with torch.inference_mode():  # as ComfyUI runs its nodes
            return node.load(model, name, strength, **inputs)

    return run


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nodes_describe_themselves(pack: ModuleType, folder: Path) -> None:
    (folder / "water.pt").touch()
    (folder / "water.pt.optim").touch()
    (folder / "notes.txt").touch()
    assert sorted(pack.NODE_CLASS_MAPPINGS) == sorted(pack.NODE_DISPLAY_NAME_MAPPINGS) == NODES
    for node in pack.NODE_CLASS_MAPPINGS.values():
        given = node.INPUT_TYPES()
        every = {**given["required"], **given.get("optional", {})}
        assert node.DESCRIPTION
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
        assert [name for name, (_, about) in every.items() if not about["tooltip"]] == []
    loader = pack.NODE_CLASS_MAPPINGS["HyperbrushLoader"]
    assert loader.INPUT_TYPES()["required"]["hypernetwork"][0] == ["water.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_attach(kind: str, unet: Any, folder: Path, load: Any) -> None:
    hn = network(unet, **KINDS[kind])
    suffix = ".pt" if unet.config.cross_attention_dim == 24 else ".safetensors"
    hn.save(folder / f"look{suffix}")
    model = comfy(unet)
    bare = call(model, *inputs(unet))
    with hb.attach(unet, (hb.load(folder / f"look{suffix}"), 0.7)) as attached, torch.no_grad():
        expected = unet(*inputs(unet)).sample
        said = str(attached.applied)
    patched, reached = load(model, f"look{suffix}", 0.7)
    drawn = call(patched, *inputs(unet), sides=[1, 0])
    assert close(drawn, expected)
    assert torch.equal(call(patched, *inputs(unet), sides=[1, 0]), drawn), "drawn again it is another picture"
    assert not close(bare, expected)
    assert reached == f"look{suffix}: {said}"
    assert torch.equal(call(model, *inputs(unet)), bare), "the model handed over was changed"
    patch = patched.model_options["transformer_options"]["patches"]["attn2_patch"][0]
    context, place = inputs(unet)[2], {"block": ("middle", 0), "block_index": 0, "cond_or_uncond": [1, 0]}
    contexts = patch(context, context, context, place)[1:]
    for changed, wanted in zip(contexts, hn.transform(context, 0.7), strict=True):
        assert torch.allclose(changed, wanted, rtol=1e-6, atol=1e-6)


def test_networks_per_site_stand_at_their_sites(unet: Any, folder: Path, load: Any) -> None:
    network(unet, per_site=True).save(folder / "sites.safetensors")
    with hb.attach(unet, hb.load(folder / "sites.safetensors")), torch.no_grad():
        expected = unet(*inputs(unet)).sample
    patched, _ = load(comfy(unet), "sites.safetensors")
    assert close(call(patched, *inputs(unet)), expected)


@pytest.mark.parametrize("family", ["sd1", "xl"])
def test_places_have_diffusers_names(family: str, pack: ModuleType) -> None:
    """As diffusers' own program translates the names of LoRA files."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
    from hyperbrush_pack.sites import find_sites  # type: ignore[import-not-found]

    unet = unet_of(family)
    sites = find_sites(comfy(unet))
    theirs = {}
    for part, number, index, kind in sites:
        block = "middle_block_1" if part == "middle" else f"{part}_blocks_{number}_1"
        theirs[f"lora_unet_{block}_transformer_blocks_{index}_{kind}_to_k"] = (part, number, index, kind)
    named = {
        key: _maybe_map_sgm_blocks_to_diffusers({key: 0}, unet.config, block_slice_pos=5) for key in theirs
    }
    for key, place in theirs.items():
        (expected,) = named[key]
        for old, new in (
            ("input_blocks", "down_blocks"),
            ("middle_block", "mid_block"),
            ("output_b", "up_b"),
        ):
            expected = expected.replace(old, new)
        assert "lora_unet_" + sites[place][0].path.replace(".", "_") + "_to_k" == expected
    assert [site for site, _ in sites.values()] == attention_sites(unet)


def test_an_old_file_without_activate_output_activates_it(sd1: Any, folder: Path, load: Any) -> None:
    """What ComfyUI's own loader reads the other way: the contexts, computed by hand."""
    torch.manual_seed(0)
    shapes = {"linear.0.weight": (48, 24), "linear.0.bias": (48,)}
    shapes |= {"linear.2.weight": (24, 48), "linear.2.bias": (24,)}
    key, value = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2))
    torch.save({24: (key, value), "activation_func": "relu", "layer_structure": [1, 2, 1]}, folder / "old.pt")
    patched, _ = load(comfy(sd1), "old.pt", -0.3)
    patch = patched.model_options["transformer_options"]["patches"]["attn2_patch"][0]
    q, context = torch.randn(2, 16, 16), torch.randn(2, 5, 24)
    options = {"block": ("input", 1), "block_index": 0}
    result = patch(q, context, context, options)
    assert result[0] is q
    for state, changed in zip((key, value), result[1:], strict=True):
        hidden = F.relu(F.linear(context, state["linear.0.weight"], state["linear.0.bias"]))
        last = F.relu(F.linear(hidden, state["linear.2.weight"], state["linear.2.bias"]))
        assert (changed - (context - 0.3 * last)).abs().max() < 1e-6 * last.abs().max()


def test_strength_0_is_the_model_itself(sd1: Any, folder: Path, load: Any) -> None:
    network(sd1).save(folder / "look.pt")
    weights_for(sd1).save(folder / "made.safetensors")
    model = comfy(sd1)
    patched, _ = load(model, "look.pt", 0.0)
    patched, _ = load(patched, "made.safetensors", 0.0)
    assert torch.equal(call(patched, *inputs(sd1)), call(model, *inputs(sd1)))


def test_several_act_in_their_order(sd1: Any, folder: Path, load: Any) -> None:
    a, b = (network(sd1, seed, activation="tanh") for seed in (3, 4))
    a.save(folder / "a.pt")
    b.save(folder / "b.pt")
    results = {}
    for order in ("ab", "ba"):
        networks = [({"a": a, "b": b}[name], 1.5 if name == "a" else -1.0) for name in order]
        with hb.attach(sd1, networks), torch.no_grad():
            expected = sd1(*inputs(sd1)).sample
        patched = comfy(sd1)
        for name in order:
            patched, _ = load(patched, f"{name}.pt", 1.5 if name == "a" else -1.0)
        results[order] = call(patched, *inputs(sd1))
        assert close(results[order], expected)
    assert not close(results["ab"], results["ba"])


@pytest.mark.parametrize(
    ("sigma", "ramp", "window"),
    [  # steps at 14, 6, 2, 0.5; 1 is inside the third, 0.5 the last
        (14.0, 0.0, 0.0),
        (6.0, 1 / 3, 1.0),
        (3.0, 1 / 3, 1.0),
        (2.0, 2 / 3, 1.0),
        (1.0, 2 / 3, 1.0),
        (0.5, 1.0, 0.0),
    ],
)
def test_schedules_follow_the_sigmas(
    sigma: float, ramp: float, window: float, sd1: Any, folder: Path, load: Any, pack: ModuleType
) -> None:
    hn = network(sd1, attn=["attn2"])
    hn.save(folder / "look.pt")
    make = {name: node() for name, node in pack.NODE_CLASS_MAPPINGS.items()}
    made = {
        ramp: make["HyperbrushRamp"].make(0.0, 1.0, 0.0, 1.0),
        window: make["HyperbrushWindow"].make(0.3, 0.7),
    }
    for factor, (schedule,) in made.items():
        patched, _ = load(comfy(sd1), "look.pt", 0.8, schedule=schedule)
        call(patched, *inputs(sd1), sigma=14.0, sigmas=[14.0, 6.0, 2.0, 0.5, 0.0])  # another step before
        drawn = call(patched, *inputs(sd1), sigma=sigma, sigmas=[14.0, 6.0, 2.0, 0.5, 0.0])
        with hb.attach(sd1, (hn, 0.8 * factor)), torch.no_grad():
            assert close(drawn, sd1(*inputs(sd1)).sample)


def test_a_schedule_needs_the_sigmas(sd1: Any, folder: Path, load: Any, pack: ModuleType) -> None:
    network(sd1).save(folder / "look.pt")
    (schedule,) = pack.NODE_CLASS_MAPPINGS["HyperbrushWindow"]().make(0.0, 0.5)
    patched, _ = load(comfy(sd1), "look.pt", schedule=schedule)
    with pytest.raises(UserError, match=r"does not tell its sigmas: update ComfyUI, or take .* without"):
        call(patched, *inputs(sd1), sigmas=None)
    unscheduled, _ = load(comfy(sd1), "look.pt")
    call(unscheduled, *inputs(sd1), sigmas=None)
    with pytest.raises(UserError, match="a window from 0.6 to 0.5 is impossible"):
        pack.NODE_CLASS_MAPPINGS["HyperbrushWindow"]().make(0.6, 0.5)


@pytest.mark.parametrize("sides", [[1, 0], [0, 1], [0], [1]])
def test_one_side_of_guidance(sides: list[int], sd1: Any, folder: Path, load: Any) -> None:
    hn = network(sd1)
    hn.save(folder / "look.pt")
    model = comfy(sd1)
    patched, _ = load(model, "look.pt", guidance="conditional")
    drawn = call(patched, *inputs(sd1, 4), sides=sides).chunk(len(sides))
    bare = call(model, *inputs(sd1, 4), sides=sides).chunk(len(sides))
    with hb.attach(sd1, hn), torch.no_grad():
        full = sd1(*inputs(sd1, 4)).sample.chunk(len(sides))
    for i, side in enumerate(sides):
        assert close(drawn[i], full[i] if side == 0 else bare[i])
        assert not close(full[i], bare[i])


@pytest.mark.parametrize("attention", ["cross", "self"])
def test_one_kind_of_attention(attention: str, sd1: Any, folder: Path, load: Any) -> None:
    hn = network(sd1)
    hn.save(folder / "look.pt")
    kind = {"cross": "attn2", "self": "attn1"}[attention]
    with hb.attach(sd1, hn, attn=[kind]), torch.no_grad():
        expected = sd1(*inputs(sd1)).sample
    patched, said = load(comfy(sd1), "look.pt", attention=attention)
    assert close(call(patched, *inputs(sd1)), expected)
    assert "left out by attn or blocks" in said


def test_generated_weights_and_packs(unet: Any, folder: Path, load: Any, pack: ModuleType) -> None:
    made, hn = weights_for(unet), network(unet)
    made.save(folder / "made.safetensors")
    compress({"made": made, "hn": hn}).save(folder / "looks.pack.safetensors")
    members = [f"looks.pack.safetensors/{name}" for name in ("made", "hn")]
    shown = pack.NODE_CLASS_MAPPINGS["HyperbrushLoader"].INPUT_TYPES()["required"]["hypernetwork"][0]
    assert shown == [*members, "made.safetensors"]
    for name in shown:
        adapter = hb.load(folder / name)
        with hb.attach(unet, (adapter, 0.5)), torch.no_grad():
            expected = unet(*inputs(unet)).sample
        patched, said = load(comfy(unet), name, 0.5)
        assert torch.allclose(call(patched, *inputs(unet)), expected, rtol=1e-4, atol=1e-5), name
        assert said.startswith(f"{Path(name).name}: ")
    with hb.attach(unet, [hn, (made, 0.5)]), torch.no_grad():
        expected = unet(*inputs(unet)).sample
    hn.save(folder / "hn.pt")
    patched, _ = load(load(comfy(unet), "made.safetensors", 0.5)[0], "hn.pt")
    assert torch.allclose(call(patched, *inputs(unet)), expected, rtol=1e-4, atol=1e-5)


def test_generated_weights_of_one_kind_of_attention(sd1: Any, folder: Path, load: Any) -> None:
    weights_for(sd1).save(folder / "made.safetensors")
    with hb.attach(sd1, hb.load(folder / "made.safetensors"), attn=["attn2"]), torch.no_grad():
        expected = sd1(*inputs(sd1)).sample
    patched, _ = load(comfy(sd1), "made.safetensors", attention="cross")
    assert torch.allclose(call(patched, *inputs(sd1)), expected, rtol=1e-4, atol=1e-5)


def test_what_weights_cannot_is_refused(sd1: Any, folder: Path, load: Any, pack: ModuleType) -> None:
    weights_for(sd1).save(folder / "made.safetensors")
    (schedule,) = pack.NODE_CLASS_MAPPINGS["HyperbrushWindow"]().make(0.0, 0.5)
    for wrong in ({"schedule": schedule}, {"guidance": "conditional"}):
        with pytest.raises(
            UserError, match="'made.safetensors' holds generated weights, .* with one strength, without"
        ):
            load(comfy(sd1), "made.safetensors", **wrong)
    model = comfy(sd1)
    model.model.diffusion_model.names.popitem()  # a UNet whose layers are called otherwise
    model.model.diffusion_model.names = dict(
        list(model.model.diffusion_model.names.items())[:40]  # type: ignore[union-attr]
    )
    with pytest.raises(UserError, match=r"ComfyUI took \d+ of the 88 layers of 'made.safetensors'"):
        load(model, "made.safetensors")


def test_bad_files_end_in_one_clear_error(sd1: Any, folder: Path, load: Any) -> None:
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    hb.AttentionHypernetwork([1024, 320]).save(folder / "sd2.safetensors")
    for name, said in {
        "broken.pt": "broken.pt is damaged",
        "sd2.safetensors": r"reaches none of this UNet's 22 attentions: .* widths 320, 1024, but the contexts are "
        r"16, 24, 32 wide\. The file is likely for Stable Diffusion 2",
        "gone.pt": r"no file gone\.pt in models/hypernetworks",
    }.items():
        with pytest.raises(UserError, match=said):
            load(comfy(sd1), name)


def test_models_that_are_no_unets_are_refused(sd1: Any, folder: Path, load: Any) -> None:
    network(sd1).save(folder / "look.pt")
    with pytest.raises(UserError, match=r"Linear is no UNet: .* --to lora-kohya"):
        load(ModelPatcher(Model(torch.nn.Linear(2, 2))), "look.pt")
    patched, _ = load(comfy(sd1), "look.pt")
    patch = patched.model_options["transformer_options"]["patches"]["attn1_patch"][0]
    with pytest.raises(UserError, match="does not tell its attentions' places"):
        patch(*[torch.zeros(1, 4, 16)] * 3, {})


def test_a_clone_shares_the_network_and_its_precision_stays(sd1: Any, folder: Path, load: Any) -> None:
    network(sd1).save(folder / "look.pt")
    patched, _ = load(comfy(sd1), "look.pt")
    (patch,) = patched.model_options["transformer_options"]["patches"]["attn1_patch"]
    (same,) = patched.clone().model_options["transformer_options"]["patches"]["attn1_patch"]
    assert same is patch
    patched.model_patches_to(torch.float16)
    assert {p.dtype for p in patch.work.network.parameters()} == {torch.float32}
    patched.model_patches_to(torch.device("meta"))
    assert {p.device.type for p in patch.work.network.parameters()} == {"meta"}


def test_a_file_is_read_once_until_it_changes(
    sd1: Any, folder: Path, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = pack.NODE_CLASS_MAPPINGS["HyperbrushLoader"]
    node, model = loader(), comfy(sd1)
    network(sd1).save(folder / "look.pt")
    stamp = loader.IS_CHANGED(hypernetwork="look.pt", strength=1.0)
    first, again = (node.load(model, "look.pt", s)[0].model_options for s in (1.0, 0.5))
    one, other = (o["transformer_options"]["patches"]["attn1_patch"][0].work for o in (first, again))
    assert one.network is other.network
    network(sd1, 9, layer_structure=(1, 1)).save(folder / "look.pt")
    assert loader.IS_CHANGED(hypernetwork="look.pt", strength=1.0) != stamp
    new = node.load(model, "look.pt", 1.0)[0].model_options["transformer_options"]["patches"]["attn1_patch"][
        0
    ]
    assert new.work.network is not one.network


def test_networks_from_a_prompt(sd1: Any, folder: Path, pack: ModuleType) -> None:
    a, b = network(sd1, 3), network(sd1, 4)
    a.save(folder / "a.pt")
    (folder / "more").mkdir()
    b.save(folder / "more/b.safetensors")
    prompt = "a cat <hypernet:a:0.5:attn=cross:blocks=mid+up>, red <hypernet:b:2:end=0.5><hypernet:a:0>"
    node = pack.NODE_CLASS_MAPPINGS["HyperbrushPrompt"]()
    patched, text, said = node.load(comfy(sd1), prompt)
    assert text == "a cat , red"
    assert [line.split(":")[0] for line in said.splitlines()] == ["a", "b"]
    for sigma, strength in ((10.0, 2.0), (1.0, 0.0)):
        uses = [hb.Use(a, 0.5, ["attn2"], ["mid", "up"]), (b, strength)]
        with hb.attach(sd1, uses), torch.no_grad():
            assert close(call(patched, *inputs(sd1), sigma=sigma), sd1(*inputs(sd1)).sample)
    stamps = node.IS_CHANGED(text=prompt)
    assert [Path(path).name for path, *_ in stamps] == ["a.pt", "b.safetensors", "a.pt"]
    assert node.IS_CHANGED(text=None) == []
    for wrong, why in {
        "<hypernet:c:1>": r"unknown hypernetwork 'c'.*Known: a, b",
        "cat <hypernet:a:1": "is no tag, but nearly",
        "<lora:style:1>": "use ComfyUI's LoraLoader",
        "<hypernet:a:much>": "is not a number",
    }.items():
        with pytest.raises(UserError, match=why):
            node.load(comfy(sd1), wrong)


def test_the_example_workflow_fits_the_nodes(pack: ModuleType, folder: Path) -> None:
    (folder / "water.pt").touch()
    for path in (PACK / "example_workflows").glob("*.json"):
        flow = json.loads(path.read_text(encoding="utf-8"))
        by_id = {node["id"]: node for node in flow["nodes"]}
        for link, source, output, target, place, kind in flow["links"]:
            assert link in by_id[source]["outputs"][output]["links"]
            assert by_id[target]["inputs"][place]["link"] == link
            assert by_id[source]["outputs"][output]["type"] == by_id[target]["inputs"][place]["type"] == kind
        ours = [node for node in flow["nodes"] if node["type"].startswith("Hyperbrush")]
        assert {node["type"] for node in ours} == set(NODES) - {"HyperbrushPrompt"}
        for node in ours:
            given = pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
            every = {**given["required"], **given.get("optional", {})}
            widgets = [
                k for k, (kind, _) in every.items() if kind in ("FLOAT", "STRING") or isinstance(kind, list)
            ]
            assert len(node["widgets_values"]) == len(widgets)
            assert {i["name"] for i in node["inputs"]} == every.keys() - set(widgets)
            outputs = pack.NODE_CLASS_MAPPINGS[node["type"]]
            assert [o["type"] for o in node["outputs"]] == list(outputs.RETURN_TYPES)


def test_the_pack_can_be_published() -> None:
    about = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about["project"]["dependencies"] == [f"{ours['name']}>={ours['version']}"]
    assert (PACK / "requirements.txt").read_text().split() == about["project"]["dependencies"]
    assert about["project"]["license"] == {"file": "LICENSE"}
    assert (PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert about["tool"]["comfy"]["DisplayName"]

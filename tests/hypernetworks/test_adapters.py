"""Beside a hypernetwork: IP-Adapter, LoRA, slicing, offloading, FreeU, callbacks, prompts of all kinds."""

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, PerPicture, attach
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 1e-5
IMAGE_WIDTH = 12


def add_ip_adapter(pipe: Any) -> None:
    """A tiny IP-Adapter in the published layout: four image tokens, to_k_ip and to_v_ip per cross-attention."""
    torch.manual_seed(11)
    width = pipe.unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * width, IMAGE_WIDTH),
        "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    attentions = {}
    for i, name in enumerate(pipe.unet.attn_processors):
        if name.endswith("attn2.processor"):
            to_k = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k
            for branch in ("to_k_ip", "to_v_ip"):
                attentions[f"{i}.{branch}.weight"] = torch.randn(to_k.out_features, width)
    state = {"image_proj": projection, "ip_adapter": attentions}
    pipe.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)


@pytest.fixture
def lora(make_unet: Make, tmp_path: Path) -> Callable[[str], Path]:
    """The file of a LoRA as diffusers writes it."""

    def write(family: str) -> Path:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        unet = make_unet(family)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        torch.manual_seed(9)
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(tmp_path, layers, weight_name=f"{family}.safetensors")
        return tmp_path / f"{family}.safetensors"

    return write


@pytest.fixture
def image() -> dict[str, Any]:
    """What a guided call wants for an IP-Adapter: embeddings without and with the picture."""
    generator = torch.Generator().manual_seed(2)
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, IMAGE_WIDTH, generator=generator)]}


ORDERS = list(itertools.permutations(["hypernetwork", "ip-adapter", "lora"]))


@pytest.mark.parametrize(
    ("family", "order"),
    [("sd1", order) for order in ORDERS[::2]]  # each first once
    + [pytest.param("sd1", order, marks=pytest.mark.slow) for order in ORDERS[1::2]]
    + [("sdxl", ORDERS[0])],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_ip_adapter_and_lora_in_every_order(
    family: str,
    order: tuple[str, ...],
    make_pipe: Make,
    make_network: Make,
    by_hand: Make,
    draw: Make,
    relative: Make,
    lora: Make,
    image: dict[str, Any],
) -> None:
    reference, pipe = make_pipe("text", family), make_pipe("text", family)
    hn = make_network(pipe.unet)
    bare = draw(pipe)

    def expected(strength: float = 0.7, **settings: Any) -> torch.Tensor:
        own = reference.unet
        reference.unet = by_hand(own, [(hn, strength)])
        out = draw(reference, **settings)
        reference.unet = own
        return out

    def prepare(target: Any, what: str) -> None:
        if what == "ip-adapter":
            add_ip_adapter(target)
        else:
            target.load_lora_weights(lora(family), adapter_name="style")

    prepare(reference, "ip-adapter")
    prepare(reference, "lora")
    for what in order:
        if what == "hypernetwork":
            attached = attach(pipe, (hn, 0.7))
        else:
            prepare(pipe, what)
    both = draw(pipe, **image)
    assert relative(both, expected(**image)) < BOUND
    assert relative(both, draw(reference, **image)) > 1e-3

    for target in (pipe, reference):
        target.set_adapters(["style"], [0.4])
    lighter = draw(pipe, **image)
    assert relative(lighter, expected(**image)) < BOUND < 1e-3 < relative(lighter, both)
    pipe.disable_lora()
    assert relative(draw(pipe, **image), lighter) > 1e-3
    pipe.enable_lora()
    assert torch.equal(draw(pipe, **image), lighter)
    for target in (pipe, reference):
        target.fuse_lora()
    attached.set_strengths(-0.2)
    assert relative(draw(pipe, **image), expected(-0.2, **image)) < BOUND
    attached.set_strengths(0.7)
    assert relative(draw(pipe, **image), lighter) < 1e-3  # fusing LoRA rounds
    for target in (pipe, reference):
        target.unfuse_lora()
        target.unload_lora_weights()
    assert relative(draw(pipe, **image), expected(**image)) < BOUND
    for target in (pipe, reference):
        target.unload_ip_adapter()
    assert relative(draw(pipe), expected()) < BOUND
    attached.detach()
    assert torch.equal(draw(pipe), draw(reference))
    assert relative(draw(pipe), bare) < 1e-3
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in pipe.unet.modules())


def test_bit_identical_after_lora_that_was_never_fused(
    make_pipe: Make, make_network: Make, draw: Make, lora: Make, image: dict[str, Any]
) -> None:
    pipe = make_pipe()
    bare = draw(pipe)
    with attach(pipe, make_network(pipe.unet)):
        pipe.load_lora_weights(lora("sd1"), adapter_name="style")
        add_ip_adapter(pipe)
        draw(pipe, **image)
        pipe.unload_lora_weights()
        pipe.unload_ip_adapter()
    assert torch.equal(draw(pipe), bare)


def test_the_image_branch_of_ip_adapter_is_left_alone(
    make_pipe: Make, make_network: Make, draw: Make, image: dict[str, Any]
) -> None:
    pipe = make_pipe()
    add_ip_adapter(pipe)
    branches = [m for n, m in pipe.unet.named_modules() if n.endswith(("to_k_ip.0", "to_v_ip.0"))]
    assert len(branches) == 14
    seen: list[torch.Tensor] = []
    for branch in branches:
        branch.register_forward_hook(lambda m, args, out: seen.extend([args[0], out]))
    draw(pipe, num_inference_steps=1, **image)
    bare = seen.copy()
    seen.clear()
    with attach(pipe, make_network(pipe.unet)):
        draw(pipe, num_inference_steps=1, **image)
    assert len(bare) == len(seen) == 28
    assert all(torch.equal(a, b) for a, b in zip(bare, seen, strict=True))


def test_slicing_and_freeu(
    make_pipe: Make, make_network: Make, by_hand: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    unet, hn = pipe.unet, make_network(pipe.unet)
    freeu = {"s1": 0.6, "s2": 0.4, "b1": 1.1, "b2": 1.2}
    pipe.unet = by_hand(unet, [(hn, 0.7)])
    plain = draw(pipe, output_type="pt", prompt=["a red heart", "cat face"])
    pipe.enable_freeu(**freeu)
    with_freeu = draw(pipe)
    pipe.unet = unet
    bare = draw(pipe)
    with attach(pipe, (hn, 0.7)):
        pipe.enable_attention_slicing(1)
        pipe.vae.enable_slicing()
        out = draw(pipe, output_type="pt", prompt=["a red heart", "cat face"])
        assert relative(out, plain) < BOUND
        pipe.disable_attention_slicing()
        pipe.vae.disable_slicing()
        pipe.enable_freeu(**freeu)
        out = draw(pipe)
        assert relative(out, with_freeu) < BOUND
        pipe.disable_freeu()
        assert relative(out, draw(pipe)) > 1e-4
    assert torch.equal(draw(pipe), bare)


@pytest.mark.parametrize("first", ["attach", "offload"])
def test_offloading(first: str, make_pipe: Make, make_network: Make, draw: Make) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    pipe = make_pipe()
    unet, hn = pipe.unet, make_network(pipe.unet)
    bare = draw(pipe)
    with attach(pipe, (hn, 0.7)):
        out = draw(pipe)
    # Weights away between calls, as pipe.enable_sequential_cpu_offload has them; then hooks that keep them.
    linears = [m for m in unet.modules() if isinstance(m, torch.nn.Linear)]

    def weights_away() -> None:
        cpu_offload(unet, torch.device("cpu"))
        assert linears[0].weight.device.type == "meta"

    def hooks_alone() -> None:
        for linear in linears:
            add_hook_to_module(linear, AlignDevicesHook(execution_device="cpu"))

    for add in (weights_away, hooks_alone):
        if first == "offload":
            add()
        attached = attach(pipe, (hn, 0.7))
        if first == "attach":
            add()
        for _ in range(2):
            assert torch.equal(draw(pipe), out)
        attached.set_strengths(0)
        assert torch.equal(draw(pipe), bare)
        attached.detach()
        assert torch.equal(draw(pipe), bare)
        remove_hook_from_module(unet, recurse=True)
        assert torch.equal(draw(pipe), bare)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in unet.modules())
        for linear in linears:
            assert "ProjectionHook" not in repr(vars(linear).get("forward"))


def test_a_callback_changes_strengths_while_it_draws(
    make_pipe: Make, make_network: Make, by_hand: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    unet, hn = pipe.unet, make_network(pipe.unet)
    strengths = [0.7, -0.4, 0.0, 1.0]
    units = [by_hand(unet, [(hn, s)]) for s in strengths]

    def other_unet(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
        pipe.unet = units[min(step + 1, 3)]
        return values

    pipe.unet = units[0]
    expected = draw(pipe, num_inference_steps=4, callback_on_step_end=other_unet)
    pipe.unet = unet
    with attach(pipe, (hn, strengths[0])) as attached:

        def change(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
            attached.set_strengths(strengths[min(step + 1, 3)])
            return values

        out = draw(pipe, num_inference_steps=4, callback_on_step_end=change)
    assert relative(out, expected) < BOUND


def test_several_prompts_and_pictures_and_given_embeddings(
    make_pipe: Make, make_network: Make, by_hand: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe()
    unet, hn = pipe.unet, make_network(pipe.unet)
    embeddings, negative = pipe.encode_prompt("a red heart", "cpu", 1, True)
    calls = [
        {"prompt": ["a red heart", "cat face"], "num_images_per_prompt": 2},
        {"negative_prompt": "blue square", "guidance_scale": 3.0},
        {"prompt_embeds": embeddings, "negative_prompt_embeds": negative},
        {"guidance_scale": 1.0, "num_images_per_prompt": 2},
        {"guidance_rescale": 0.5, "eta": 0.3},
    ]
    pipe.unet = by_hand(unet, [(hn, 0.7)])
    expected = [draw(pipe, **call) for call in calls]
    pipe.unet = unet
    with attach(pipe, (hn, 0.7)):
        for call, wanted in zip(calls, expected, strict=True):
            assert relative(draw(pipe, **call), wanted) < BOUND, call
    assert relative(expected[2], draw(pipe)) > 1e-3


@pytest.mark.parametrize(("what", "family"), [("text", "sd1"), ("pag", "sd1"), ("controlnet", "sdxl")])
def test_each_picture_of_a_call_has_its_own_strength(
    what: str, family: str, make_pipe: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe(what, family)
    hn = make_network(pipe.unet)
    prompts, strengths = ["a red heart", "cat face", "blue square"], [0.8, 0.0, -0.5]

    def noise(seeds: list[int]) -> Any:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    with attach(pipe, (hn, PerPicture(strengths))) as attached:
        together = draw(pipe, prompt=prompts, generator=noise([0, 1, 2]))
        alone = []
        for i in range(3):
            attached.set_strengths(strengths[i])
            alone.append(draw(pipe, prompt=prompts[i], generator=noise([i])))
    assert relative(together, torch.cat(alone)) < 5 * BOUND


@pytest.mark.parametrize("what", ["text", "pag"])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_softmax_like_networks_treat_each_picture_as_if_alone(
    what: str, guidance_scale: float, make_pipe: Make, make_network: Make, draw: Make, relative: Make
) -> None:
    pipe = make_pipe(what)
    hn = make_network(pipe.unet, activation="softmax", activate_output=False)
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    prompts = ["a red heart", "cat face", "blue square"]

    def noise(seeds: list[int]) -> Any:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    bare = draw(pipe, prompt=prompts, generator=noise([0, 1, 2]), **settings)
    with attach(pipe, hn):
        together = draw(pipe, prompt=prompts, generator=noise([0, 1, 2]), **settings)
        alone = [draw(pipe, prompt=p, generator=noise([i]), **settings) for i, p in enumerate(prompts)]
    assert relative(together, torch.cat(alone)) < 5 * BOUND
    assert relative(together, bare) > 1e-4


def test_exceptions_inside_a_call_and_nesting(make_pipe: Make, make_network: Make, draw: Make) -> None:
    pipe = make_pipe()
    hn = make_network(pipe.unet)
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    bare = draw(pipe)

    def fail(*args: Any) -> Any:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), attach(pipe, hn):
        draw(pipe, callback_on_step_end=fail)
    assert torch.equal(draw(pipe), bare)
    with attach(pipe, hn):
        once = draw(pipe)
        with pytest.raises(RuntimeError, match="in the middle"), attach(pipe, (hn, 0.5)):
            draw(pipe, callback_on_step_end=fail)
        assert torch.equal(draw(pipe), once)
        with pytest.raises(RuntimeError, match="in the middle"):
            draw(pipe, callback_on_step_end=fail)
        assert torch.equal(draw(pipe), once)
    assert torch.equal(draw(pipe), bare)
    after = pipe.unet.state_dict()
    assert all(torch.equal(p, after[name]) for name, p in before.items())
    assert before.keys() == after.keys()


def test_what_is_saved_while_attached_is_the_bare_model(
    make_pipe: Make, make_network: Make, draw: Make, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = make_pipe()
    bare = draw(pipe)
    pipe.save_pretrained(tmp_path / "bare")
    pickled = len(pickle.dumps(pipe.unet))
    with attach(pipe, (make_network(pipe.unet), 0.7)):
        out = draw(pipe)
        pipe.save_pretrained(tmp_path / "attached")
        other = copy.copy(pipe)
        other.unet = pickle.loads(pickle.dumps(pipe.unet))  # a pickle is a copy: the networks go along
        assert other.unet.state_dict().keys() == pipe.unet.state_dict().keys()
    assert torch.equal(draw(other), out)
    assert len(pickle.dumps(pipe.unet)) == pickled
    a, b = (
        load_file(tmp_path / f / "unet/diffusion_pytorch_model.safetensors") for f in ("bare", "attached")
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "attached", safety_checker=None)
    again.what = "text"
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), bare)


def test_errors_on_pipelines_explain(make_pipe: Make) -> None:
    pipe = make_pipe("text", "sd2")
    with pytest.raises(UserError) as error:
        attach(pipe, AttentionHypernetwork([24, 768], name="water"))
    text = str(error.value)
    assert "'water' reaches none of this UNet's 14 attentions: it has networks for widths 24, 768" in text
    assert "the contexts are 16, 32, 40 wide" in text
    assert "likely for Stable Diffusion 1.x" in text
    sdxl = make_pipe("controlnet", "sdxl", block_out_channels=(16, 640))
    with attach(sdxl, AttentionHypernetwork([320, 640, 768, 1280], name="water")) as attached:
        said = str(attached.applied)
    assert "widths 640" in said
    assert "the file is likely for Stable Diffusion 1.x" in said
    assert {s.kind for s in find_attentions(sdxl.unet)[0][:1]} == {"attn1"}
    with pytest.raises(UserError, match=r"AutoencoderKL.*expected a diffusers UNet2DConditionModel"):
        attach(pipe.vae, AttentionHypernetwork([16]))

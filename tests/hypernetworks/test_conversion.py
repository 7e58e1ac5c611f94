"""Conversion to LoRA and to other programs' files, opened again by the libraries themselves."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach, load
from hyperbrush.hypernetworks.attaching.contexts import (
    AttentionCall,
    AttentionInputs,
    sample_attention_inputs,
)
from hyperbrush.hypernetworks.convert.convert import convert
from hyperbrush.hypernetworks.convert.lora import LoraResult, to_lora
from hyperbrush.hypernetworks.convert.low_rank import Moments, best_low_rank, without_bias
from hyperbrush.hypernetworks.convert.report import lora_in_weights, picture_errors
from hyperbrush.hypernetworks.files.lora import FORMS
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.modules.attention_sites import find_attentions

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def biased(hn: AttentionHypernetwork) -> AttentionHypernetwork:
    """Offsets are where conversion goes wrong first."""
    for i, (name, parameter) in enumerate(hn.named_parameters()):
        if name.endswith("bias"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 2)
    return hn


@pytest.fixture
def affine(make_network: Make) -> Make:
    return lambda unet, **settings: biased(make_network(unet, **{"activation": "linear"} | settings))


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


def opened_by_library(unet: Any, found: LoraResult, folder: Path) -> Any:
    """The UNet with the written LoRA, loaded by diffusers or PEFT alone."""
    if found.state.form == "peft":
        from peft import PeftModel

        return PeftModel.from_pretrained(unet, str(found.state.save(folder / "adapter")))
    from diffusers import StableDiffusionPipeline as Plain

    found.state.save(folder / "lora.safetensors")
    state, alphas, metadata = Plain.lora_state_dict(
        str(folder), weight_name="lora.safetensors", return_lora_metadata=True, unet_config=unet.config
    )
    Plain.load_lora_into_unet(state, network_alphas=alphas, unet=unet, metadata=metadata)
    return unet


@pytest.mark.filterwarnings("ignore:.*lora_bias.*")
@pytest.mark.parametrize("strength", [1.0, -0.6, (0.7, 1.4)])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_affine_networks_are_loras_exactly(
    form: str, family: str, strength: Any, make_unet: Make, affine: Make, call: Make, tmp_path: Path
) -> None:
    unet = make_unet(family)
    hn = affine(unet)
    bare = call(unet)
    with attach(unet, (hn, strength)):
        exact = call(unet)
    found = to_lora(hn, unet, rank="full", strength=strength, form=form)
    assert found.report.exact_maps
    assert found.report.error is None  # a bare UNet draws nothing to measure it on
    assert not found.report.lost
    assert error(call(opened_by_library(unet, found, tmp_path)), exact) < 1e-5
    assert error(bare, exact) > 1e-2


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_kohya_files_are_exact_but_for_the_bias(
    family: str, make_unet: Make, affine: Make, call: Make, tmp_path: Path
) -> None:
    unet = make_unet(family)
    hn = affine(unet)
    for _, pair in hn.pairs():  # without offsets in the values, nothing is lost
        for layer in pair.value.layers:
            layer.linear.bias.zero_()
    with attach(unet, (hn, 0.8)):
        exact = call(unet)
    found = to_lora(hn, unet, rank="full", strength=0.8, form="kohya")
    assert not found.report.lost
    assert not any("diff_b" in key for key in found.state.tensors)
    assert error(call(opened_by_library(unet, found, tmp_path)), exact) < 1e-5


@pytest.mark.parametrize("form", ["diffusers", "peft"])
@pytest.mark.parametrize("rank", ["full", 16, 2])
def test_without_an_offset_there_is_no_bias_and_it_fuses(
    rank: Any, form: str, make_unet: Make, affine: Make, call: Make, tmp_path: Path
) -> None:
    """Contexts that a cut rank does not fit on average are no offset, and neither is rounding."""
    unet = make_unet()
    hn = affine(unet)
    for _, pair in hn.pairs():
        for layer in pair.value.layers:
            layer.linear.bias.zero_()
    torch.manual_seed(2)
    inputs = {
        site.path: AttentionInputs(torch.randn(64, site.context_width) + 1, ())
        for site, _ in find_attentions(unet)
    }
    found = to_lora(hn, unet, rank=rank, form=form, contexts=inputs)
    assert not [key for key in found.state.tensors if "bias" in key]
    assert not found.report.bias_carried
    assert "refuse" not in str(found.report)
    opened = opened_by_library(unet, found, tmp_path)
    loaded = call(opened)
    if form == "peft":
        unet = opened.merge_and_unload()
    else:
        unet.fuse_lora()
    assert error(call(unet), loaded) < 1e-5


@pytest.mark.filterwarnings("ignore:.*lora_bias.*")
@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_what_a_bias_costs_is_said_before_it_is_written(
    form: str, make_unet: Make, affine: Make, call: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = make_unet()
    path = tmp_path / ("lora" if form == "peft" else "lora.safetensors")
    with caplog.at_level("WARNING", "hyperbrush"):
        report = convert(affine(unet), path, f"lora-{form}", model=unet, rank="full").report
    assert "which pipe.fuse_lora() and PEFT's merge refuse: convert with bias=False" in caplog.text
    assert "--no-bias: a LoRA that fuses" in str(report)
    caplog.clear()
    convert(affine(unet), path, f"lora-{form}", model=unet, rank="full", bias=False, overwrite=True)
    assert "fuse" not in caplog.text
    found = to_lora(affine(unet), unet, rank="full", form=form, bias=False)
    assert "bias=True carries it" in str(found.report)
    opened = opened_by_library(unet, found, tmp_path)
    loaded = call(opened)
    fused = opened.merge_and_unload() if form == "peft" else (unet.fuse_lora(), unet)[1]
    assert error(call(fused), loaded) < 1e-5


def test_kohyas_bias_is_what_comfyui_adds(make_unet: Make, affine: Make, call: Make, tmp_path: Path) -> None:
    """As ComfyUI patches weights: W + alpha/rank·up·down, bias + diff_b; diffusers refuses such a file."""
    unet = make_unet()
    hn = affine(unet)
    with attach(unet, hn):
        exact = call(unet)
    lost = to_lora(hn, unet, rank="full", form="kohya")
    assert "values' offset at 14" in str(lost.report)
    found = to_lora(hn, unet, rank="full", form="kohya", bias=True)
    assert not found.report.lost
    with pytest.raises(ValueError, match="diff_b"):
        opened_by_library(make_unet(), found, tmp_path)
    state = load_file(tmp_path / "lora.safetensors")
    weights = {f"lora_unet_{k.rpartition('.')[0].replace('.', '_')}": k for k in unet.state_dict()}
    parameters = dict(unet.named_parameters())
    for name in {key.partition(".")[0] for key in state}:
        weight = weights[name].rpartition(".")[0]
        if f"{name}.diff_b" in state:
            parameters[f"{weight}.bias"].add_(state[f"{name}.diff_b"])
        else:
            up, down = state[f"{name}.lora_up.weight"], state[f"{name}.lora_down.weight"]
            parameters[f"{weight}.weight"].add_(state[f"{name}.alpha"] / len(down) * up @ down)
    assert error(call(unet), exact) < 1e-5


@pytest.mark.filterwarnings("ignore:.*lora_bias.*")
@pytest.mark.parametrize("form", FORMS)
def test_a_plain_pipeline_draws_the_same_picture(
    form: str, tiny: LatentDiffusion, affine: Make, tmp_path: Path
) -> None:
    pipe = tiny.pipeline()
    pipe.set_progress_bar_config(disable=True)
    hn = affine(tiny.unet)
    if form == "kohya":
        for _, pair in hn.pairs():
            for layer in pair.value.layers:
                layer.linear.bias.zero_()

    def draw() -> torch.Tensor:
        made = pipe(
            "cat face",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        images: torch.Tensor = made.images
        return images

    bare = draw()
    with attach(pipe, (hn, 0.7)):
        exact = draw()
    found = to_lora(hn, pipe, rank="full", strength=0.7, form=form, steps=2)
    assert found.report.error is not None
    assert found.report.error.relative < 1e-12
    assert error(draw(), bare) == 0  # nothing stays behind
    if form == "peft":
        opened_by_library(pipe.unet, found, tmp_path)
    else:
        found.state.save(tmp_path / "lora.safetensors")
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert error(draw(), exact) < 1e-5
    if form == "diffusers":
        pipe.unload_lora_weights()
        assert error(draw(), bare) == 0
    assert error(bare, exact) > 1e-2


def independently(
    unet: Any, hn: AttentionHypernetwork, inputs: dict[str, AttentionInputs], layers: Any, strength: float
) -> float:
    """Relative error of all attentions' outputs, with diffusers' own attention forward in float64."""
    modules = {site.path: (site, attention.double()) for site, attention in find_attentions(unet.double())}
    wanted, made = {}, {}
    for into, manner in (
        (wanted, attach(unet, (hn.double(), strength))),
        (made, lora_in_weights(unet, layers)),
    ):
        with manner:
            for path, (_, attention) in modules.items():
                into[path] = [
                    attention(c.hidden.double(), encoder_hidden_states=c.context.double())
                    for c in inputs[path].calls
                ]
    off = sum(((m - w) ** 2).sum() for p in wanted for m, w in zip(made[p], wanted[p], strict=True))
    size = sum((w**2).sum() for p in wanted for w in wanted[p])
    return float((off / size) ** 0.5)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_reported_error_is_the_one_measured_otherwise(
    activation: str, bias: bool, tiny: LatentDiffusion, make_network: Make
) -> None:
    hn = biased(make_network(tiny.unet, activation=activation, layer_structure=(1, 2, 2, 1)))
    with attach(tiny, (hn, 0.9)):
        inputs = sample_attention_inputs(tiny, ["red square", "cat face"], steps=3)
    found = to_lora(hn, tiny, rank=4, strength=0.9, bias=bias, contexts=inputs)
    assert found.report.error is not None
    assert found.report.exact_maps == (activation == "linear")
    reported = found.report.error.relative
    assert reported > 1e-3
    assert reported == pytest.approx(independently(tiny.unet, hn, inputs, found.layers, 0.9), rel=1e-6)


def test_ranks_bias_and_weighting_each_help(tiny: LatentDiffusion, affine: Make) -> None:
    hn = affine(tiny.unet)
    with attach(tiny, hn):
        inputs = sample_attention_inputs(tiny, steps=2)

    def off(**settings: Any) -> float:
        report = to_lora(hn, tiny, contexts=inputs, **settings).report
        assert report.error is not None
        return report.error.relative

    by_rank = [off(rank=r) for r in (1, 4, 16, "full")]
    assert by_rank == sorted(by_rank, reverse=True)
    assert by_rank[-1] < 1e-12
    assert off(rank=4, weigh_by_contexts=False) > 1.1 * by_rank[1]
    assert off(rank=4, bias=False) > by_rank[1]


def test_without_a_bias_least_squares_make_up_for_it(tiny: LatentDiffusion, affine: Make) -> None:
    hn = affine(tiny.unet)
    with attach(tiny, hn):
        inputs = sample_attention_inputs(tiny, steps=2)
    lost = to_lora(hn, tiny, rank="full", form="kohya", contexts=inputs)
    dropped = to_lora(hn, tiny, rank="full", contexts=inputs)
    for layer in dropped.layers:  # the bias left out, and nothing done about it
        object.__setattr__(layer, "shift", None)
        object.__setattr__(layer, "out_bias", None)
    assert lost.report.error is not None
    plain = independently(tiny.unet, hn, inputs, dropped.layers, 1.0)
    assert lost.report.error.relative < 0.5 * plain


def test_low_rank_is_the_singular_value_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(change)
    cut = best_low_rank(change, 5)
    torch.testing.assert_close(cut.up @ cut.down, u[:, :5] @ torch.diag(s[:5]) @ v[:5])
    assert cut.energy == pytest.approx(float((s[:5] ** 2).sum() / (s**2).sum()))
    whole = best_low_rank(change[:, :3] @ torch.randn(3, 20, generator=generator).double(), None)
    assert whole.rank == 3
    assert best_low_rank(torch.zeros(4, 6), 2).energy == 1
    x = torch.randn(500, 20, generator=generator).double() * torch.logspace(0, -3, 20).double()
    moments = Moments.of(x)
    weighed = best_low_rank(change, 5, moments.covariance)

    def off(low: Any) -> float:
        return float(((change - low.up @ low.down) @ (x - x.mean(0)).T).norm())

    assert off(weighed) < off(cut)
    best = torch.linalg.svdvals(change @ (x - x.mean(0)).T)[5:].norm()
    assert off(weighed) == pytest.approx(float(best), rel=1e-3)
    offset = torch.randn(12, generator=generator).double()
    solution = torch.linalg.lstsq(x + 1, (x + 1) @ change.T + offset).solution.T
    torch.testing.assert_close(without_bias(change, offset, Moments.of(x + 1, 0)), solution)


def test_contexts_that_do_not_vary(make_unet: Make, affine: Make) -> None:
    unet = make_unet()
    given = {
        site.path: AttentionInputs(torch.ones(3, site.context_width), ()) for site, _ in find_attentions(unet)
    }
    for strength in (0.0, 1.0):
        found = to_lora(affine(unet), unet, rank=2, contexts=given, strength=strength, form="kohya")
        assert all(torch.isfinite(v).all() for v in found.state.tensors.values())
        assert found.report.error is None


@pytest.mark.parametrize("form", FORMS)
def test_files_say_what_they_are(form: str, make_unet: Make, affine: Make, tmp_path: Path) -> None:
    unet = make_unet()
    hn = AttentionHypernetwork([16, 32, 768], activation=None, weight_init="Normal", name="water")
    found = to_lora(hn, unet, rank=3, form=form, dtype=torch.float16)
    path = found.state.save(tmp_path / ("folder" if form == "peft" else "lora.safetensors"))
    file = path / "adapter_model.safetensors" if form == "peft" else path
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        dtypes = {opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16}
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.title"] == "water"
    if form == "kohya":
        assert header["ss_base_model_version"] == "sd_v1"
        assert header["ss_network_dim"] == "3"
    if form == "peft":
        config = json.loads((path / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 3
        assert oct(file.stat().st_mode) == oct((path / "adapter_config.json").stat().st_mode)
    first = file.read_bytes()
    to_lora(hn, unet, rank=3, form=form, dtype=torch.float16).state.save(path)
    assert file.read_bytes() == first


def test_only_the_attentions_asked_for(make_unet: Make, affine: Make, call: Make, tmp_path: Path) -> None:
    unet = make_unet()
    hn = affine(unet)
    with attach(unet, hn, attn=["attn2"], blocks=["up"]):
        exact = call(unet)
    found = to_lora(hn, unet, rank="full", attn=["attn2"], blocks=["up"])
    assert all("up_blocks" in k and "attn2" in k for k in found.state.tensors)
    with lora_in_weights(unet, found.layers):
        assert error(call(unet), exact) < 1e-5
    told: list[tuple[str, int, int]] = []
    to_lora(hn, unet, rank=1, on_progress=lambda *step: told.append(step))
    assert [t[1:] for t in told] == [(i, 14) for i in range(14)]


def test_pictures_are_compared(tiny: LatentDiffusion, make_network: Make) -> None:
    hn = biased(make_network(tiny.unet))
    state = {k: v.clone() for k, v in tiny.unet.state_dict().items()}
    found = [to_lora(hn, tiny, rank=rank, steps=2, seed=5) for rank in (1, 16)]
    drawn = [
        picture_errors(tiny, hn, f.layers, prompts=["cat face", "red square"], steps=3, seed=7) for f in found
    ]
    assert [p.prompt for p in drawn[0]] == ["cat face", "red square"]
    assert all(torch.equal(state[k], v) for k, v in tiny.unet.state_dict().items())
    with attach(tiny, hn):
        wanted = tiny.sample(["red square"], seeds=[8], steps=3)
    with lora_in_weights(tiny.unet, found[1].layers):
        made = tiny.sample(["red square"], seeds=[8], steps=3)
    assert drawn[1][1].relative == pytest.approx(error(made, wanted), rel=1e-3)
    square = float((made - wanted).double().square().mean())
    assert 10 ** (-drawn[1][1].psnr / 10) == pytest.approx(square, rel=1e-3)
    assert drawn[1][1].relative < drawn[0][1].relative
    assert drawn[1][1].psnr > drawn[1][1].change_psnr


def test_what_cannot_be_a_lora_says_why(make_unet: Make, make_network: Make, affine: Make) -> None:
    unet = make_unet()
    hn = affine(unet)
    for settings, message in (
        ({"form": "lycoris"}, "unknown form of LoRA 'lycoris'"),
        ({"rank": 0}, "rank 0 is impossible"),
        ({"rank": True}, "rank True is impossible"),
        ({"strength": lambda progress: progress}, "one strength"),
        ({"strength": float("nan")}, "not a finite number"),
        ({"dtype": torch.int8}, "dtype torch.int8 is impossible"),
        ({"strength": 1e9, "dtype": torch.float16}, "too large for torch.float16"),
        ({"contexts": {}}, "contexts has none for"),
        ({"blocks": ["sideways"]}, "unknown block 'sideways'"),
    ):
        with pytest.raises(UserError, match=message):
            to_lora(hn, unet, **settings)
    with pytest.raises(UserError, match="softmax networks mix the rows"):
        to_lora(make_network(unet, activation="softmax"), unet)
    with pytest.raises(UserError, match="hand over the pipeline"):
        to_lora(make_network(unet, activation="relu"), unet)
    with pytest.raises(UserError, match="reaches none"):
        to_lora(AttentionHypernetwork([999], activation=None), unet)
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    with pytest.raises(UserError, match="expected a plain linear"):
        to_lora(hn, unet)


def test_a_call_with_given_contexts_on_a_bare_unet(make_unet: Make, make_network: Make) -> None:
    unet = make_unet()
    hn = make_network(unet, activation="relu")
    generator = torch.Generator().manual_seed(0)
    given = {
        site.path: AttentionInputs(
            torch.randn(300, site.context_width, generator=generator),
            (
                AttentionCall(
                    torch.randn(1, 5, site.query_width, generator=generator),
                    torch.randn(1, 7, site.context_width, generator=generator),
                ),
            ),
        )
        for site, _ in find_attentions(unet)
    }
    report = to_lora(hn, unet, contexts=given).report
    assert report.error is not None
    assert 0 < report.error.of_change < 1
    assert "non-linearity" in str(report)


@pytest.mark.parametrize(
    "to", ["webui", "safetensors", "comfyui", "lora-diffusers", "lora-peft", "lora-kohya"]
)
def test_convert_writes_every_target(to: str, tiny: LatentDiffusion, affine: Make, tmp_path: Path) -> None:
    suffix = {"webui": ".pt", "comfyui": ".pt", "lora-peft": ""}.get(to, ".safetensors")
    hn, path = affine(tiny.unet), tmp_path / f"out{suffix}"
    lora = {"model": tiny, "rank": 2, "steps": 1, "prompts": ["cat"]} if to.startswith("lora") else {}
    done = convert(hn, path, to, **lora)
    assert done.path == path
    assert path.exists()
    assert (done.report is not None) == bool(lora)
    with pytest.raises(UserError, match="exists already"):
        convert(hn, path, to, **lora)
    convert(hn, path, to, overwrite=True, **lora)
    if not lora:
        again = load(path)
        x = torch.randn(1, 3, hn.widths[0])
        for a, b in zip(again.transform(x), hn.transform(x), strict=True):
            assert torch.equal(a, b)


def test_convert_options(tiny: LatentDiffusion, affine: Make, tmp_path: Path) -> None:
    hn = affine(tiny.unet)
    assert convert(hn, tmp_path / "a.bin").target == "webui"
    assert convert(hn, tmp_path / "a.safetensors").target == "safetensors"
    convert(hn, tmp_path / "old.pt", legacy_zip=True)
    assert not (tmp_path / "old.pt").read_bytes().startswith(b"PK")
    convert(hn, tmp_path / "both.pt", "comfyui", legacy_zip=True)
    assert not (tmp_path / "both.pt").read_bytes().startswith(b"PK")
    assert load(tmp_path / "both.pt").widths == hn.widths
    convert(hn, tmp_path / "half.pt", dtype=torch.float16)
    assert next(load(tmp_path / "half.pt").parameters()).dtype == torch.float16
    assert next(hn.parameters()).dtype == torch.float32
    lora = {"model": tiny, "steps": 1, "prompts": ["cat"], "pictures": True}
    report = convert(hn, tmp_path / "l.safetensors", "lora-diffusers", **lora).report
    assert report is not None
    assert [p.prompt for p in report.pictures] == ["cat"]
    assert "PSNR" in str(report)


def test_convert_refuses(tiny: LatentDiffusion, affine: Make, tmp_path: Path) -> None:
    hn = affine(tiny.unet)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/own.txt").write_text("mine")
    for path, to, settings, message in (
        ("x.foo", None, {}, "cannot tell what to convert to"),
        ("x.pt", "gif", {}, "unknown target 'gif'"),
        ("x.pt", "safetensors", {}, "safetensors is a file ending in .safetensors"),
        ("x.bin", "comfyui", {}, "comfyui is a file ending in .pt"),
        ("x.pt", "lora-kohya", {"model": tiny}, "lora-kohya is a file ending"),
        ("x.pt", "lora-peft", {"model": tiny}, "lora-peft is a folder"),
        ("x.safetensors", "lora-kohya", {}, "say which model"),
        ("x.safetensors", None, {"legacy_zip": True}, "legacy_zip is a form of .pt"),
        ("x.safetensors", "lora-kohya", {"legacy_zip": True, "model": tiny}, "legacy_zip is a form of .pt"),
        ("x.pt", None, {"pictures": True}, "pictures is an option of the LoRA targets"),
        ("x.pt", None, {"rank": 4}, "rank is an option of the LoRA targets"),
        ("x.pt", None, {"strength": 0.5}, "strength is an option"),
        ("photos", "lora-peft", {"model": tiny, "rank": 1, "overwrite": True, "steps": 1}, "something else"),
    ):
        with pytest.raises(UserError, match=message):
            convert(hn, tmp_path / path, to, **settings)
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "own.txt"]

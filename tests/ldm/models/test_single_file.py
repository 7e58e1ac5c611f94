"""Single-file checkpoints: detection, conversion without loss, no network, one clear error each."""

import functools
import json
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperbrush.assets.clip import clip_tokenizer
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import single_file
from hyperbrush.ldm.models.single_file import CONFIGS, KINDS, open_single_file

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# The original layout: the names of diffusers and transformers, backwards.


def renamed(name: str, *rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def original_unet(model: Any) -> State:
    per_level = model.config.layers_per_block + 1
    attends = ["CrossAttn" in kind for kind in model.config.up_block_types]
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^add_embedding\.linear_([12])", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
        (
            r"^down_blocks\.(\d)\.(resnets|attentions)\.(\d)",
            lambda m: f"input_blocks.{1 + int(m[1]) * per_level + int(m[3])}.{int(m[2] == 'attentions')}",
        ),
        (
            r"^down_blocks\.(\d)\.downsamplers\.0\.conv",
            lambda m: f"input_blocks.{(1 + int(m[1])) * per_level}.0.op",
        ),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (
            r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)",
            lambda m: f"output_blocks.{int(m[1]) * per_level + int(m[3])}.{int(m[2] == 'attentions')}",
        ),
        (
            r"^up_blocks\.(\d)\.upsamplers\.0\.conv",
            lambda m: f"output_blocks.{int(m[1]) * per_level + per_level - 1}.{1 + attends[int(m[1])]}.conv",
        ),
        (r"time_emb_proj", "emb_layers.1"),
        (r"conv_shortcut", "skip_connection"),
    ]
    inner = [
        (r"\.norm1\.", ".in_layers.0."),
        (r"\.conv1\.", ".in_layers.2."),
        (r"\.norm2\.", ".out_layers.0."),
        (r"\.conv2\.", ".out_layers.3."),
    ]
    return {
        "model.diffusion_model." + renamed(name, *(inner if ".resnets." in name else []), *rules): value
        for name, value in model.state_dict().items()
    }


def original_vae(model: Any) -> State:
    last = len(model.config.block_out_channels) - 1
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    return {
        "first_stage_model." + renamed(name, *rules): value[..., None, None]
        if ".attentions." in name and value.ndim == 2
        else value  # they were convolutions
        for name, value in model.state_dict().items()
    }


def original_clip(model: Any, prefix: str) -> State:
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": value
        for name, value in model.state_dict().items()
    }


def original_openclip(model: Any, prefix: str, *, last_layer: bool) -> State:
    rules = [
        (r"encoder\.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("self_attn", "attn"),
        ("fc1", "c_fc"),
        ("fc2", "c_proj"),
        ("final_ln_", "ln_final"),
        (r"embeddings\.token", "token"),
        (r"embeddings\.position_embedding\.weight", "positional_embedding"),
        ("text_projection.weight", "text_projection"),
    ]
    state: State = {}
    for name, value in model.state_dict().items():
        name = renamed(name.removeprefix("text_model."), *rules)
        state[name] = value.T if name == "text_projection" else value
    for name in [name for name in state if ".attn.q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    if last_layer:  # Stable Diffusion 2 reads the layer before the last, which the file still holds
        layers = model.config.num_hidden_layers
        first = {name: value for name, value in state.items() if ".resblocks.0." in name}
        state |= {name.replace(".0.", f".{layers}.", 1): value + 1 for name, value in first.items()}
        state["text_projection"] = torch.empty(8, 8, device=value.device)
    return {prefix + name: value for name, value in state.items()}


def original(pipe: dict[str, Any], kind: str) -> State:
    """The parts' weights as one original checkpoint, contiguous."""
    state = original_unet(pipe["unet"]) | original_vae(pipe["vae"])
    if kind == "sd1":
        state |= original_clip(pipe["text_encoder"], "cond_stage_model.transformer.")
    elif kind == "sdxl":
        state |= original_clip(pipe["text_encoder"], "conditioner.embedders.0.transformer.")
        state |= original_openclip(pipe["text_encoder_2"], "conditioner.embedders.1.model.", last_layer=False)
    else:
        state |= original_openclip(pipe["text_encoder"], "cond_stage_model.model.", last_layer=True)
    return {name: value.detach().contiguous() for name, value in state.items()}


def settings(kind: str, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / kind / part / "config.json").read_text(encoding="utf-8"))
    return found


def build(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    parts = {
        "unet": UNet2DConditionModel.from_config(configs["unet"]),
        "vae": AutoencoderKL.from_config(configs["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
    }
    if "text_encoder_2" in configs:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(
            CLIPTextConfig.from_dict(configs["text_encoder_2"])
        )
    return parts


def parts_of(kind: str) -> list[str]:
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def full(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """(kind, parts) of the shipped architectures at full size, without memory."""
    with torch.device("meta"):
        return request.param, build({part: settings(request.param, part) for part in parts_of(request.param)})


Tiny = Callable[[str], tuple[Path, Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Function of a kind: (checkpoint, config folder, source parts) of a narrow model of it."""
    return functools.cache(lambda kind: write_tiny(kind, tmp_path_factory.mktemp("tiny")))


def write_tiny(kind: str, root: Path) -> tuple[Path, Path, dict[str, Any]]:
    shutil.copytree(CONFIGS / kind, root / "config")
    configs = {part: settings(kind, part) for part in parts_of(kind)}
    levels = len(configs["unet"]["block_out_channels"])
    configs["unet"] |= {
        "block_out_channels": [8, 16, 16, 16][:levels],
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "sample_size": 8,
        "layers_per_block": 1,
    }
    configs["vae"] |= {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}
    narrow = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": 16,
    }
    configs["text_encoder"] |= narrow
    if kind == "sdxl":
        configs["text_encoder_2"] |= {**narrow, "hidden_size": 24, "projection_dim": 12}
        configs["unet"] |= {
            "cross_attention_dim": 40,
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": [1, 1, 2],
            "projection_class_embeddings_input_dim": 12 + 6 * 8,
        }
    for part, config in configs.items():
        (root / "config" / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    parts = build(configs)
    for model in parts.values():
        for parameter in model.parameters():  # norms and biases too, so that none can be exchanged
            torch.nn.init.normal_(parameter, std=0.2)
        model.eval()
    save_file(original(parts, kind), root / "model.safetensors")
    return root / "model.safetensors", root / "config", parts


# The shipped configs.


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def test_shipped_configs_have_the_published_sizes(full: tuple[str, dict[str, Any]]) -> None:
    expected = {
        "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
        "sdxl": {
            "unet": 2_567_463_684,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    }
    assert {part: count(model) for part, model in full[1].items()} == expected[full[0]]


def test_sd2_v_differs_from_sd2_in_size_and_precision_alone() -> None:
    base, v = settings("sd2", "unet"), settings("sd2-v", "unet")
    assert {name for name in v if v[name] != base.get(name)} == {"sample_size", "upcast_attention"}
    assert settings("sd2", "text_encoder") == settings("sd2-v", "text_encoder")


def write_header(path: Path, state: State) -> None:
    """A .safetensors file of zeros, of which only the header takes room on the disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, value in state.items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_full_size_checkpoint_is_known_by_its_header_and_opens_whole(
    full: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, parts = full
    path, state = tmp_path / "model.safetensors", original(parts, kind)
    write_header(path, state)
    checkpoint = single_file.read_header(path)
    assert single_file.architecture(checkpoint) == kind
    assert single_file.prediction_type(checkpoint, kind) == "epsilon"
    # Weights without memory from here on; metadata says v, which only Stable Diffusion 2 has a config for.
    said = {"modelspec.prediction_type": "v"}
    without_data = single_file.Checkpoint(path, checkpoint.shapes, said, state.__getitem__)
    monkeypatch.setattr(single_file, "read_header", lambda _: without_data)
    pipe = open_single_file(path, dtype=torch.float16)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.unet.config.sample_size == {"sd1": 64, "sd2": 96, "sdxl": 128}[kind]
    assert {getattr(pipe, part).dtype for part in parts} == {torch.float16}
    assert {part: count(getattr(pipe, part)) for part in parts} == {
        part: count(m) for part, m in parts.items()
    }


def fake(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None, bias: float = 0.0
) -> single_file.Checkpoint:
    spread = torch.tensor([bias, -bias] * 160)
    return single_file.Checkpoint(Path("fake.safetensors"), shapes, metadata or {}, lambda _: spread)


BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("checkpoint", "kind", "expected"),
    [
        (fake({BIAS: (320,)}, bias=0.10), "sd2", "v_prediction"),
        (fake({BIAS: (320,)}, bias=0.08), "sd2", "epsilon"),
        (fake({BIAS: (320,)}, bias=0.10), "sd1", "epsilon"),
        (fake({BIAS: (320,)}, {"modelspec.prediction_type": "epsilon"}, bias=0.10), "sd2", "epsilon"),
        (fake({}, {"modelspec.prediction_type": "v"}), "sd1", "v_prediction"),
        (fake({"v_pred": ()}), "sdxl", "v_prediction"),
    ],
)
def test_prediction_type(checkpoint: single_file.Checkpoint, kind: str, expected: str) -> None:
    assert single_file.prediction_type(checkpoint, kind) == expected


# Opening.


def same_outputs(pipe: Any, parts: dict[str, Any], kind: str) -> None:
    torch.manual_seed(1)
    ids = pipe.tokenizer(
        "a photo of a cat!", padding="max_length", max_length=12, return_tensors="pt"
    ).input_ids
    images, latents = torch.randn(1, 3, 32, 32), torch.randn(2, 4, 8, 8)
    context = torch.randn(2, 5, parts["unet"].config.cross_attention_dim)
    extra = {"text_embeds": torch.randn(2, 12), "time_ids": torch.randn(2, 6)} if kind == "sdxl" else None
    with torch.no_grad():
        for part in ("text_encoder", "text_encoder_2"):
            if part in parts:
                ours, theirs = (
                    model(ids, output_hidden_states=True) for model in (getattr(pipe, part), parts[part])
                )
                assert torch.equal(ours[0], theirs[0])
                assert torch.equal(ours.hidden_states[-2], theirs.hidden_states[-2])
        assert torch.equal(
            pipe.vae.encode(images).latent_dist.mean, parts["vae"].encode(images).latent_dist.mean
        )
        assert torch.equal(pipe.vae.decode(latents).sample, parts["vae"].decode(latents).sample)
        ours, theirs = (
            unet(latents, torch.tensor([7, 900]), context, added_cond_kwargs=extra).sample
            for unet in (pipe.unet, parts["unet"])
        )
        assert torch.equal(ours, theirs)
        assert ours.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_opens_as_the_model_it_was_written_from(kind: str, tiny: Tiny) -> None:
    path, config, parts = tiny(kind)
    pipe = open_single_file(path, dtype=torch.float32, config=config)
    same_outputs(pipe, parts, kind)
    assert not any(model.training for model in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2-v" else "epsilon")
    assert pipe.tokenizer.pad_token_id == (0 if kind.startswith("sd2") else 49407)
    if kind == "sdxl":
        assert pipe.tokenizer_2.pad_token_id == 0
        assert pipe.vae.config.scaling_factor == 0.13025


def test_ckpt_and_old_names(tiny: Tiny, tmp_path: Path) -> None:
    path, config, parts = tiny("sd1")
    state = load_file(path)
    old = {name.replace("transformer.text_model.", "transformer."): value for name, value in state.items()}
    for zipped, weights in ((True, state), (False, old)):
        torch.save(
            {"state_dict": weights, "global_step": 7},
            tmp_path / "model.ckpt",
            _use_new_zipfile_serialization=zipped,
        )
        same_outputs(
            open_single_file(tmp_path / "model.ckpt", dtype=torch.float32, config=config), parts, "sd1"
        )


def test_marks_of_zero_terminal_snr_reach_the_scheduler(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config, _ = tiny("sdxl")
    save_file(
        load_file(path) | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, tmp_path / "m.safetensors"
    )
    shutil.copytree(config, tmp_path / "sdxl")
    monkeypatch.setattr(single_file, "CONFIGS", tmp_path)
    monkeypatch.setattr(single_file, "architecture", lambda _: "sdxl")
    found = open_single_file(tmp_path / "m.safetensors", dtype=torch.float32, config=None).scheduler.config
    assert (found.prediction_type, found.rescale_betas_zero_snr, found.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )


def test_the_folders_own_tokenizer_is_taken(tiny: Tiny, tmp_path: Path) -> None:
    path, config, _ = tiny("sd1")
    from transformers import CLIPTokenizer

    shutil.copytree(config, tmp_path / "config")
    own = CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[], model_max_length=9
    )
    own.save_pretrained(tmp_path / "config" / "tokenizer")
    assert open_single_file(path, dtype=torch.float32, config=tmp_path / "config").tokenizer(
        "a"
    ).input_ids == [0, 2, 1]


# The vocabulary.


def test_clip_tokenizer() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  Cat!", padding="max_length", max_length=6).input_ids == [
        49406,
        320,
        2368,
        256,
        49407,
        49407,
    ]
    openclip = clip_tokenizer("!")
    assert openclip("a cat!", padding="max_length", max_length=7).input_ids == [
        49406,
        320,
        2368,
        256,
        49407,
        0,
        0,
    ]


# Errors.


def says(path: Path, message: str, config: Path | str | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_single_file(path, dtype=torch.float32, config=config)
    assert "\n" not in str(caught.value)
    assert config or str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "looks like a LoRA"),
        ("768.key.layers.0.linear.weight", "looks like a hypernetwork"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "looks like a FLUX model"),
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "looks like a Stable Diffusion 3 model",
        ),
        ("control_model.input_blocks.0.0.weight", "looks like a ControlNet"),
        ("emb_params", "looks like a textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "one part of a diffusers folder"),
        ("decoder.up.0.block.0.conv1.weight", "looks like a VAE alone"),
        ("input_blocks.0.0.weight", "looks like a UNet alone"),
        ("banana", "a file of 1 tensors such as 'banana'"),
    ],
)
def test_other_files_are_named(name: str, expected: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    says(tmp_path / "other.safetensors", expected)


def test_torch_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({768: ({"linear.weight": torch.zeros(2)},) * 2, "name": "style"}, path)
    says(path, "looks like a hypernetwork")
    torch.save([torch.zeros(2)], path)
    says(path, "holds a list")
    torch.save({"state_dict": {}}, path)
    says(path, "without tensors")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pickle.loads, (b"never",))


def test_code_is_not_executed(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(
            {"state_dict": {"a": torch.zeros(2)}, "callback": Code()},
            tmp_path / "model.ckpt",
            _use_new_zipfile_serialization=zipped,
        )
        says(tmp_path / "model.ckpt", r"holds code \(_?pickle\.loads\).*\.safetensors version")


def test_damaged_files(tiny: Tiny, tmp_path: Path) -> None:
    path, _, _ = tiny("sd1")
    whole = path.read_bytes()
    torch.save(load_file(path), tmp_path / "whole.ckpt")
    zipped = (tmp_path / "whole.ckpt").read_bytes()
    for name, content, message in [
        ("a.safetensors", whole[:-1000], "truncated or corrupt"),
        ("a.safetensors", whole[:100], "truncated or corrupt"),
        ("a.safetensors", b"", "truncated or corrupt"),
        ("a.ckpt", zipped[:-1000], "truncated or corrupt|or is corrupt"),
        ("a.ckpt", b"", "truncated or corrupt"),
        ("a.ckpt", b"<html>404", "is not a checkpoint"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ]:
        (tmp_path / name).write_bytes(content)
        says(tmp_path / name, message)
    says(tmp_path / "absent.safetensors", "cannot read")
    (tmp_path / "wrong.ckpt").write_bytes(whole)  # named as the other format: the content counts
    says(tmp_path / "wrong.ckpt", "is not Stable Diffusion 1, 2 or XL base: its UNet is 8 channels wide")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (
            r"diffusion_model\.input_blocks\.1\.0\.in_layers\.2\.weight",
            "unet lacks 1 tensors such as 'down_blocks.0.resnets.0",
        ),
        (r"first_stage_model\.decoder\.conv_in\.bias", "vae lacks 1 tensors such as 'decoder.conv_in.bias'"),
        (r"first_stage_model", "has no vae"),
        (r"cond_stage_model|embedders\.0", "has no text_encoder"),
        (
            r"transformer\.resblocks\.1\.mlp|layers\.1\.mlp",
            r"text_encoder\S* lacks 4 tensors such as 'encoder.layers.1.mlp",
        ),
        (
            r"label_emb\.0\.0\.weight|input_blocks\.0\.0\.bias",
            "unet lacks .*(label_emb.0.0.weight|conv_in.bias)",
        ),
    ],
)
def test_missing_tensors(kind: str, dropped: str, message: str, tiny: Tiny, tmp_path: Path) -> None:
    path, config, _ = tiny(kind)
    state = load_file(path)
    kept = {name: value for name, value in state.items() if not re.search(dropped, name)}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "m.safetensors")
    says(tmp_path / "m.safetensors", message, config)


def test_config_of_another_architecture(tiny: Tiny, tmp_path: Path) -> None:
    path, config, _ = tiny("sd1")
    says(path, "its unet lacks .* Is its architecture another one", "sd1")
    shutil.copytree(config, tmp_path / "config")
    about = tmp_path / "config" / "text_encoder" / "config.json"
    text = json.loads(about.read_text())
    about.write_text(json.dumps(text | {"hidden_size": 32}))
    says(path, r"does not fit the text_encoder .*\(49408, 16\), expected \(49408, 32\)", tmp_path / "config")
    about.write_text("{")
    says(path, r"cannot read .*text_encoder/config.json", tmp_path / "config")
    says(path, "cannot read .*model_index.json.*one of sd1, sd2, sd2-v, sdxl", tmp_path)
    index = tmp_path / "config" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    says(path, "describes a FluxPipeline", tmp_path / "config")


@pytest.mark.parametrize(
    ("shape", "context", "message"),
    [
        ((320, 8, 3, 3), 768, "an instruct-pix2pix model"),
        ((320, 4, 3, 3), 1280, "a context 1280 wide"),
        ((64, 4, 3, 3), 768, "its UNet is 64 channels wide"),
    ],
)
def test_unknown_architectures(shape: tuple[int, ...], context: int, message: str) -> None:
    shapes = {
        single_file.UNET + "input_blocks.0.0.weight": shape,
        single_file.UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (shape[0], context),
    }
    with pytest.raises(UserError, match=message):
        single_file.architecture(fake(shapes))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_inpainting_checkpoints(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """They are like the model they were made of but for the UNet's first layer, and open for inpainting."""
    path, config, parts = tiny(kind)
    state = load_file(path)
    first = single_file.UNET + "input_blocks.0.0.weight"
    state[first] = torch.cat([state[first], torch.randn(len(state[first]), 5, 3, 3)], dim=1)
    save_file(state, tmp_path / "inpainting.safetensors")
    pipe = open_single_file(tmp_path / "inpainting.safetensors", config=config)
    assert type(pipe).__name__ == f"StableDiffusion{'XL' if kind == 'sdxl' else ''}InpaintPipeline"
    assert torch.equal(pipe.unet.conv_in.weight, state[first])
    assert torch.equal(pipe.unet.conv_out.weight, parts["unet"].conv_out.weight)
    shapes = {
        first: (320, 9, 3, 3),
        single_file.UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 2048),
    }
    assert single_file.architecture(fake(shapes)) == "sdxl"

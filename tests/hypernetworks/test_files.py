"""Files: round trips of everything, and one clear line for everything broken."""

import base64
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, load, save
from hyperbrush.hypernetworks.files.checks import DTYPES, all_finite
from hyperbrush.hypernetworks.files.modelspec import hash_matches, thumbnail

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def network(**settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(**{"widths": [8, 12], "weight_init": "Normal"} | settings)


def same(a: AttentionHypernetwork, b: AttentionHypernetwork) -> bool:
    attributes = ["name", "step", "metadata", "weight_init", "use_dropout", "last_layer_dropout"]
    for attribute in (*attributes, "widths", "sites"):
        assert getattr(a, attribute) == getattr(b, attribute), attribute
    for setting in ("layer_structure", "activation", "layer_norm", "rates", "activate_output"):
        assert getattr(a.settings, setting) == getattr(b.settings, setting), setting
    assert a.settings.skip_connection == b.settings.skip_connection
    assert a.settings.upsample_linear == b.settings.upsample_linear
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layer_norm": True, "activation": "prelu", "dropout_structure": [0, 0.25, 0]},
        {"use_dropout": True, "last_layer_dropout": True, "layer_structure": [1, 2, 2, 1]},
        {"skip_connection": True, "upsample_linear": "Linear", "layer_norm": True},
        {"skip_connection": True, "activation": "prelu", "dropout_structure": [0, 0.5, 0]},
        {"activation": "swish", "activate_output": True, "layer_structure": [1, 0.5, 1]},
        {"weight_init": "zero", "activation": None},
    ],
)
def test_round_trip(settings: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    hn = network(**settings, name="water", step=7, metadata={"sd_checkpoint": "abc", "x": 1.5})
    path = hn.save(tmp_path / f"w{suffix}")
    back = load(path)
    if suffix == ".pt":
        hn.metadata = {"sd_checkpoint_name": None, "optional_info": None} | hn.metadata
        hn.metadata = {k: hn.metadata[k] for k in back.metadata}
    assert same(hn, back)
    assert not back.training
    assert all(p.requires_grad for p in back.parameters())
    context = torch.randn(1, 4, 8)
    for a, b in zip(hn.transform(context), back.transform(context), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip_keeps_the_dtype(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    hn = network().to(dtype)
    back = load(hn.save(tmp_path / f"w{suffix}"))
    assert next(back.parameters()).dtype == dtype
    for a, b in zip(hn.parameters(), back.parameters(), strict=True):
        assert torch.equal(a, b)


def test_networks_per_site_need_our_format(tmp_path: Path) -> None:
    hn = network(widths={SITE: 8, SITE.replace("attn2", "attn1"): 12})
    back = load(hn.save(tmp_path / "w.safetensors"))
    assert same(hn, back)
    with pytest.raises(UserError, match=r"networks per site.*\.safetensors"):
        hn.save(tmp_path / "w.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]


def test_other_names_of_the_same_format(tmp_path: Path) -> None:
    network(name="water").save(tmp_path / "w.pt")
    for suffix in (".bin", ".ckpt", ".PT"):
        (tmp_path / f"x{suffix}").write_bytes((tmp_path / "w.pt").read_bytes())
        assert load(tmp_path / f"x{suffix}").name == "water"
    legacy = tmp_path / "legacy.pt"
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    assert load(str(legacy)).widths == [8, 12]


def test_shuffled_tensor_names_load_by_their_numbers(tmp_path: Path) -> None:
    hn = network(layer_structure=[1] + [2] * 11 + [1])  # linear.10 sorts before linear.2 as text
    content = torch.load(hn.save(tmp_path / "w.pt"), weights_only=True)
    for width in (8, 12):
        content[width] = tuple(dict(sorted(state.items())) for state in content[width])
    torch.save(content, tmp_path / "s.pt")
    for a, b in zip(hn.parameters(), load(tmp_path / "s.pt").parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("last", [False, True])
def test_three_dropout_rates_of_one_layer(last: bool, tmp_path: Path) -> None:
    """The webui writes [0, 0 or 0.3, 0] for [1, 1], and looks at what stands beside a layer."""
    content = torch.load(network(layer_structure=(1, 1)).save(tmp_path / "w.pt"), weights_only=True)
    content |= {"use_dropout": True, "last_layer_dropout": last, "dropout_structure": [0, 0.3 * last, 0]}
    torch.save(content, tmp_path / "d.pt")
    back = load(tmp_path / "d.pt")
    assert back.settings.rates == (0, 0.3 * last)
    assert back.use_dropout
    for own, other in zip(back.parameters(), load(tmp_path / "w.pt").parameters(), strict=True):
        assert torch.equal(own, other)
    assert same(back, load(back.save(tmp_path / "again.pt")))
    content["dropout_structure"] = [0]
    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(UserError, match="one rate per entry"):
        load(tmp_path / "d.pt")


def test_the_header_follows_modelspec(tmp_path: Path) -> None:
    path = network(widths=[768, 4], layer_structure=[1, 0.25, 1], name="wäter").save(
        tmp_path / "w.safetensors"
    )
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-v1/hypernetwork"
    assert header["modelspec.title"] == "wäter"
    assert header["modelspec.sai_model_spec"] == "1.0.0"
    assert header["modelspec.hash_sha256"].startswith("0x")
    assert len(header["modelspec.hash_sha256"]) == 66
    assert json.loads(header["hyperbrush.config"])["widths"] == {"768": 768, "4": 4}
    assert "768.key.layers.0.linear.weight" in load_file(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def state(width: int = 8) -> "OrderedDict[str, torch.Tensor]":
    shapes = {"0.weight": (2 * width, width), "0.bias": (2 * width,)}
    shapes |= {"1.weight": (width, 2 * width), "1.bias": (width,)}
    return OrderedDict((f"linear.{k}", torch.ones(v)) for k, v in shapes.items())


def changed(key: str, tensor: Any) -> Any:
    return state() | {key: tensor}


BROKEN_CONTENT: dict[str, tuple[Any, str]] = {
    "list": ([1, 2], "expected a hypernetwork"),
    "nothing": ({}, "expected widths"),
    "one set": ({8: (state(),)}, "two sets of tensors, for keys and values, but got 1"),
    "bare set": ({8: state()}, "two sets of tensors"),
    "three sets": ({8: (state(),) * 3}, "got 3"),
    "tensor for a set": ({8: (torch.ones(2), torch.ones(2))}, "a mapping of tensors"),
    "empty set": ({8: (state(), {})}, "width 8, values: expected a mapping"),
    "negative width": ({-8: (state(), state())}, "width -8 is impossible"),
    "zero width": ({0: (state(), state())}, "width 0 is impossible"),
    "huge width": ({10**9: (state(), state())}, "is impossible"),
    "other width": ({12: (state(), state())}, r"width 12, keys: tensors of shapes \[\(16, 8\)"),
    "nan": ({8: (state(), changed("linear.1.bias", torch.full((8,), torch.nan)))}, "holds NaN"),
    "inf": ({8: (state(), changed("linear.1.bias", torch.full((8,), torch.inf)))}, "infinite"),
    "integers": ({8: (state(), changed("linear.1.bias", torch.ones(8).int()))}, "int32"),
    "number": ({8: (state(), changed("linear.1.bias", 5))}, "int"),
    "repeated": ({8: (state(), changed("linear.1.bias", torch.ones(1).expand(8)))}, "repeats"),
    "sparse": ({8: (state(), changed("linear.1.bias", torch.ones(8).to_sparse()))}, "dense"),
    "missing tensor": ({8: (state(), {"linear.0.weight": torch.ones(16, 8)})}, "shapes"),
    "multihead": ({8: (state(), {"linear.1.in_proj_weight": torch.ones(8)})}, "multihead"),
    "other names": ({8: (state(), {"conv.weight": torch.ones(8)})}, "'conv.weight'"),
    "structure": ({8: (state(), state()), "layer_structure": [1, 3, 1]}, r"\(24, 8\)"),
    "norm": ({8: (state(), state()), "is_layer_norm": True}, "mean"),
    "structure text": ({8: (state(), state()), "layer_structure": "1,2,1"}, "a list of numbers"),
    "all wrong": ({8: (state(), state()), "step": "x", "use_dropout": 3}, "step is 'x'.*use_drop"),
    "activation": ({8: (state(), state()), "activation_func": "relux"}, "did you mean 'relu"),
    "glu": ({8: (state(), state()), "activation_func": "glu"}, "halves the width"),
    "upsample": ({8: (state(), state()), "upsample_linear": "Cubic"}, "'Linear'"),
    "textual inversion": ({"string_to_param": {}}, "textual inversion"),
    "checkpoint": ({"state_dict": {}}, "whole checkpoint"),
    "lora": ({"lora_unet_x": torch.ones(1)}, "LoRA"),
    "optimizer": ({"optimizer_state_dict": {}, "hash": "x"}, "optimizer state"),
}


@pytest.mark.parametrize("name", BROKEN_CONTENT)
def test_broken_content_is_one_clear_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN_CONTENT[name]
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "broken.pt")
    assert "broken.pt" in str(error.value)
    assert "\n" not in str(error.value)


def _bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "noise", "half", "text", "pickle"])
def test_broken_files_are_one_clear_line(kind: str, suffix: str, tmp_path: Path) -> None:
    good = network().save(tmp_path / f"good{suffix}").read_bytes()
    content = {
        "empty": b"",
        "noise": bytes(range(256)) * 20,
        "half": good[: len(good) // 2],
        "text": b"<html>not found</html>",
        "pickle": pickle.dumps({"a": 1}),
    }[kind]
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"broken{suffix}.*(empty|damaged)|not a hypernetwork") as e:
        load(path)
    assert "\n" not in str(e.value)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (_bytes({8: Bomb()}), pickle.dumps(Bomb())):
        Path("bomb.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"bomb\.pt .*(never executed|damaged)"):
            load("bomb.pt")
    assert not Path("executed").exists()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.pt", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "x.png", r"\.pt, \.bin, \.ckpt, \.safetensors"),
        (tmp_path / "x", "not 'none'"),
        (tmp_path / "a\0b.pt", "NUL"),
    ):
        with pytest.raises(UserError, match=message):
            load(path)
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "x.png", r"\.safetensors.*'\.png'")):
        with pytest.raises(UserError, match=message):
            network().save(path)


FOREIGN: dict[str, tuple[dict[str, torch.Tensor], dict[str, str], str]] = {
    "lora": ({"unet.a.lora_A.weight": torch.ones(2)}, {}, "it is a LoRA; load it with"),
    "checkpoint": ({"model.diffusion_model.x": torch.ones(2)}, {}, "whole checkpoint"),
    "other": ({"x": torch.ones(2)}, {}, "no hyperbrush.format"),
    "newer": ({"x": torch.ones(2)}, {"hyperbrush.format": "thing/9"}, "thing/9"),
    "no config": ({}, {"hyperbrush.format": "attention-hypernetwork/1"}, "expected JSON"),
    "bad config": (
        {},
        {"hyperbrush.format": "attention-hypernetwork/1", "hyperbrush.config": "[1"},
        "expected JSON",
    ),
    "no tensors": (
        {},
        {
            "hyperbrush.format": "attention-hypernetwork/1",
            "hyperbrush.config": '{"widths": {"8": 8}}',
        },
        r"width 8, keys: tensors of shapes \[\] \(0\)",
    ),
    "text width": (
        {},
        {
            "hyperbrush.format": "attention-hypernetwork/1",
            "hyperbrush.config": '{"widths": {"8": "x"}}',
        },
        "width",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_safetensors_are_named(name: str, tmp_path: Path) -> None:
    tensors, header, message = FOREIGN[name]
    save_file(tensors, tmp_path / "f.safetensors", metadata=header)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "f.safetensors")
    assert "f.safetensors" in str(error.value)


def test_changed_safetensors_are_refused(tmp_path: Path) -> None:
    path = network().save(tmp_path / "w.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    name = "8.key.layers.0.linear.bias"
    for change, message in (
        ({name: torch.full((16,), torch.nan)}, "layers.0.linear.bias holds NaN"),
        ({name: torch.ones(17)}, r"\(17,\)"),
        ({"16.key.layers.0.linear.bias": torch.ones(2)}, "'16'"),
        ({"8.key.layers.7.linear.bias": torch.ones(2)}, "shapes"),
        ({"something": torch.ones(2)}, "unexpected tensor"),
    ):
        save_file(tensors | change, path, metadata=header)
        with pytest.raises(UserError, match=message):
            load(path)


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".pt", ".safetensors"):
        path = network(step=1).save(tmp_path / f"w{suffix}")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", _disk_full)
            with pytest.raises(UserError, match="No space left"):
                network(step=2).save(path)
        assert load(path).step == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metadata": {"x": object()}}, "metadata 'x' is <object"),
        ({"metadata": {"tags": ["ink"]}}, r"metadata 'tags' is \['ink'\]"),
        ({"metadata": {"loss": float("nan")}}, "metadata 'loss' is nan"),
        ({"metadata": {"step": "x"}}, "metadata 'step' is the name of a setting"),
        ({"name": "ink\nlines"}, r"name is 'ink\\nlines', expected a line"),
    ],
)
def test_what_no_file_would_give_back_is_not_written(
    suffix: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"cannot write .*{said}"):
        network(**change).save(tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_equal_networks_make_equal_files(suffix: str, tmp_path: Path) -> None:
    files = set()
    for i in range(8):
        hn = network(name="water", metadata={f"k{i}": i for i in range(8)} | {"modelspec.author": 'ö\n"x'})
        files.add(hn.save(tmp_path / f"{i}{suffix}").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".CKPT"])
@pytest.mark.parametrize("legacy_zip", [False, True])
def test_writing_for_older_webuis(suffix: str, legacy_zip: bool, tmp_path: Path) -> None:
    hn = network(name="water", activation="prelu", layer_norm=True)
    path = save(hn, tmp_path / f"w{suffix}", legacy_zip=legacy_zip)
    assert zipfile.is_zipfile(path) is not legacy_zip
    content = torch.load(path, weights_only=True)
    assert isinstance(content[8], tuple)
    assert content["activate_output"] is False
    back = load(path)
    back.metadata = {}
    assert same(hn, back)


def test_legacy_zip_is_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"legacy_zip is a form of \.pt"):
        save(network(), tmp_path / "w.safetensors", legacy_zip=True)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_converts_on_demand(suffix: str, tmp_path: Path) -> None:
    hn = network()
    path = hn.save(tmp_path / f"w{suffix}")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for a, b in zip(load(path, dtype=dtype).parameters(), hn.parameters(), strict=True):
            assert a.dtype == dtype
            assert a.requires_grad
            assert torch.equal(a, b.to(dtype))
    with pytest.raises(UserError, match=r"dtype torch\.int8 is impossible: expected torch\.float32"):
        load(path, dtype=torch.int8)
    with torch.no_grad():
        next(hn.parameters())[0, 0] = 1e6
    hn.save(path)
    assert load(path, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"too large for torch\.float16"):
        load(path, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_finite_check_is_exact(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for numbers in ([largest] * 9, [largest, -largest] * 9, [0.0], [torch.finfo(dtype).tiny / 2]):
        assert all_finite(torch.tensor(numbers, dtype=dtype))
    assert all_finite(torch.empty(0, dtype=dtype))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 500, 999):
            numbers = torch.full((1000,), largest, dtype=dtype)
            numbers[::2] *= -1
            numbers[place] = bad
            assert not all_finite(numbers), (bad, place)
    assert not all_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))


def test_modelspec_fields_of_ones_own(tmp_path: Path) -> None:
    picture = Image.effect_noise((400, 300), 50)
    url = thumbnail(picture)
    shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert shown.format == "JPEG"
    assert shown.size == (256, 192)
    fields = {"modelspec.date": "2024-05-31T18:13:38Z", "modelspec.thumbnail": url, "modelspec.author": "me"}
    hn = network(metadata={**fields, "sd_checkpoint": "abc"})
    path = hn.save(tmp_path / "w.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert {k: header[k] for k in fields} == fields
    assert "modelspec" not in header["hyperbrush.config"]
    assert load(path).metadata == hn.metadata
    again = load(load(path).save(tmp_path / "w.pt"))  # carried through the webui's form too
    assert {k: again.metadata[k] for k in fields} == fields
    with safe_open(network().save(tmp_path / "plain.safetensors"), "pt") as file:
        assert "modelspec.date" not in file.metadata()
        assert "modelspec.thumbnail" not in file.metadata()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("date", "yesterday", "ISO 8601"),
        ("date", 20240531, "fields are texts"),
        ("thumbnail", "https://example.org/a.jpg", "data:image/jpeg;base64"),
        ("thumbnail", "data:image/png;base64,???", "data:image/jpeg;base64"),
        ("thumbnail", "data:text/html;base64,AAAA", "data:image/jpeg;base64"),
        ("thumbnail", "data:image/png;base64," + "A" * 1_000_000, "at most 1000000"),
    ],
)
def test_wrong_modelspec_fields_are_refused(field: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        network(metadata={f"modelspec.{field}": value}).save(tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_hash_is_of_all_that_follows_the_header(tmp_path: Path) -> None:
    hn = network()
    for i, parameter in enumerate(hn.parameters()):  # safetensors orders tensors by type, then by name
        parameter.data = parameter.data.to(DTYPES[i % len(DTYPES)])
    path = hn.save(tmp_path / "w.safetensors")
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert hash_matches(path) is True
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert hash_matches(path) is False
    save_file({"x": torch.ones(2)}, path)
    assert hash_matches(path) is None


def test_views_do_not_take_their_storage_into_files(tmp_path: Path) -> None:
    hn = network(widths=[8])
    for parameter in hn.parameters():
        large = torch.randn(100_000)
        parameter.data = large[: parameter.numel()].view(parameter.shape)
    for suffix in (".pt", ".safetensors"):
        path = hn.save(tmp_path / f"w{suffix}")
        assert path.stat().st_size < 20_000
        for a, b in zip(load(path).parameters(), hn.parameters(), strict=True):
            assert torch.equal(a, b)


def test_views_in_a_file_are_read_as_they_are(tmp_path: Path) -> None:
    content = {8: (state(), state())}
    base = torch.randn(16, 8)
    content[8][0]["linear.1.weight"] = base.T  # not contiguous
    content[8][1]["linear.0.weight"] = torch.randn(500)[100:228].view(16, 8)
    torch.save(content, tmp_path / "w.pt")
    pair = load(tmp_path / "w.pt").network_for(8)
    assert pair is not None
    assert torch.equal(pair.key.layers[1].linear.weight, base.T)
    assert torch.equal(pair.value.layers[0].linear.weight, content[8][1]["linear.0.weight"])


def _disk_full(*_: Any) -> None:
    raise OSError(28, "No space left on device")

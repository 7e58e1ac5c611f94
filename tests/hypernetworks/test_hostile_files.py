"""Broken, foreign and hostile files: one clear line each, nothing executed, little memory taken."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from hyperbrush.errors import UserError
from hyperbrush.file_cache import FileCache
from hyperbrush.hypernetworks import AttentionHypernetwork, HypernetworkLibrary, load

HEADER = {"hyperbrush.format": "attention-hypernetwork/1"}
COMMAND = "touch executed"


def good(**settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(0)
    return AttentionHypernetwork(**{"widths": [8, 12], "weight_init": "Normal"} | settings)


def state(width: int = 8) -> "OrderedDict[str, Any]":
    shapes = {"0.weight": (2 * width, width), "0.bias": (2 * width,)}
    shapes |= {"1.weight": (width, 2 * width), "1.bias": (width,)}
    return OrderedDict((f"linear.{k}", torch.ones(v)) for k, v in shapes.items())


def with_bias(bias: Any) -> Any:
    return {8: (state(), state() | {"linear.1.bias": bias})}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def file_of(suffix: str) -> bytes:
    """A sound file's bytes."""
    if suffix == ".pt":
        return saved({8: (state(), state())})
    if suffix == "legacy":
        return saved({8: (state(), state())}, _use_new_zipfile_serialization=False)
    return ours({"widths": {"8": 8}})


def ours(config: Any, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    """Our safetensors file with this config (a text or what becomes JSON)."""
    names = {"0.weight": "layers.0.linear.weight", "0.bias": "layers.0.linear.bias"}
    names |= {"1.weight": "layers.1.linear.weight", "1.bias": "layers.1.linear.bias"}
    if tensors is None:
        tensors = {
            f"8.{use}.{names[key.removeprefix('linear.')]}": tensor
            for use in ("key", "value")
            for key, tensor in state().items()
        }
    text = config if isinstance(config, str) else json.dumps(config)
    return save(tensors, HEADER | {"hyperbrush.config": text})


class Call:
    """Pickles as a call, as an attacker would have it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def named_call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function by name: nothing here need exist or be imported."""
    text = argument.encode()
    call = b"c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"
    return b"\x80\x02" + call + b"."


def torch_zip(pickled: bytes, members: dict[str, bytes] | None = None, compress: bool = False) -> bytes:
    """A zip as torch lays it out around a pickle of our own."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in ({"a/data.pkl": pickled, "a/version": b"3\n"} | (members or {})).items():
            file.writestr(name, content)
    return buffer.getvalue()


def with_member(name: str) -> bytes:
    return torch_zip(pickle.dumps({8: 1}, protocol=2), {name: b"x"})


def legacy(pickled: bytes, keys: Any = ()) -> bytes:
    """The form before 2020 around a pickle of our own."""
    start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(x, 2) for x in start) + pickled + pickle.dumps(list(keys), 2)


def changed(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert old in raw
    return raw.replace(old, new)


def header(length: int, text: bytes = b'{"__metadata__":{}}') -> bytes:
    return struct.pack("<Q", length) + text


def safetensors_header(fields: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return header(len(text), text) + data


def nested_json(depth: int) -> str:
    return '{"widths": ' + "[" * depth + "]" * depth + "}"


def many_members() -> bytes:
    return torch_zip(b"\x80\x02}.", {f"a/data/{i}": b"" for i in range(50_001)})


def doubled_end(raw: bytes) -> bytes:
    return raw + raw[-22:]


def overlapping() -> bytes:
    """Two members at one place: how a small file unpacks to a large one."""
    raw = bytearray(torch_zip(b"\x80\x02}.", {"a/data/0": b"0" * 100, "a/data/1": b"1" * 100}))
    first, second = (raw.rfind(name) - 46 for name in (b"a/data/0", b"a/data/1"))
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    return bytes(raw)


def repeated_members() -> bytes:
    raw = torch_zip(b"\x80\x02}.", {"a/data.pkx": b"\x80\x02]."})
    return changed(raw, b"a/data.pkx", b"a/data.pkl")


def declared(field: int, value: int) -> bytes:
    """A directory whose first entry lies about itself; field: byte offset within the entry."""
    raw = bytearray(torch_zip(b"\x80\x02}."))
    entry = raw.find(b"PK\1\2")
    raw[entry + field : entry + field + 4] = struct.pack("<I", value)
    return bytes(raw)


def text_loop(count: int) -> bytes:
    return b"\x80\x02" + b"N" * count + b"."


PT = ".pt"
SAFE = ".safetensors"
Made = Callable[[], bytes]
# name → (suffix, content, what the message says)
CORPUS: dict[str, tuple[str, Made, str]] = {
    # cut off, empty, renamed
    "empty": (PT, lambda: b"", "is empty"),
    "empty safetensors": (SAFE, lambda: b"", "is empty"),
    **{
        f"cut off after {share} %": (PT, lambda s=share: file_of(PT)[: len(file_of(PT)) * s // 100], "damaged")
        for share in (1, 10, 30, 50, 70, 90, 99)
    },
    "cut off by a byte": (PT, lambda: file_of(PT)[:-1], "begins as a zip and does not end as one"),
    **{
        f"legacy cut off after {share} %": (
            PT,
            lambda s=share: file_of("legacy")[: len(file_of("legacy")) * s // 100],
            "damaged",
        )
        for share in (1, 5, 30, 60, 99)
    },
    **{
        f"safetensors cut off after {share} %": (
            SAFE,
            lambda s=share: file_of(SAFE)[: len(file_of(SAFE)) * s // 100],
            "damaged or no safetensors",
        )
        for share in (1, 20, 50, 99)
    },
    "more behind it": (PT, lambda: file_of(PT) + b"more", "damaged"),
    "more behind the safetensors": (SAFE, lambda: file_of(SAFE) + b"more", "damaged"),
    "safetensors called pt": (PT, lambda: file_of(SAFE), r"name it NAME\.safetensors"),
    "pt called safetensors": (SAFE, lambda: file_of(PT), r"it is a zip, as a \.pt is"),
    "legacy called safetensors": (SAFE, lambda: file_of("legacy"), r"it is a pickle"),
    "png": (PT, lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "it is a PNG picture"),
    "png called safetensors": (SAFE, lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "it is a PNG picture"),
    "web page": (PT, lambda: b"\n<html>404</html>", "web page"),
    "web page called safetensors": (SAFE, lambda: b"<html>404</html>", "web page"),
    "git lfs pointer": (PT, lambda: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "zeros": (PT, lambda: bytes(1000), "begins with zeros"),
    "gzip": (PT, lambda: b"\x1f\x8b" + bytes(50), "gzip"),
    "another zip": (PT, lambda: with_member("b/readme.txt"), r"not one of torch's"),
    "zip without pickle": (PT, lambda: changed(file_of(PT), b"data.pkl", b"data.pkx"), "no data.pkl"),
    "another pickle": (PT, lambda: pickle.dumps({"a": 1}, 2), "pickle of another program"),
    "another pickle protocol": (PT, lambda: pickle.dumps({"a": 1}, 4), "damaged"),
    "torchscript": (PT, lambda: with_member("a/constants.pkl"), "TorchScript"),
    # of other kinds
    "lora": (PT, lambda: saved({"lora_unet_x.lora_up.weight": torch.ones(2)}), "it is a LoRA"),
    "textual inversion": (PT, lambda: saved({"string_to_param": {"*": torch.ones(2)}}), "textual inversion"),
    "checkpoint": (PT, lambda: saved({"state_dict": {"model.x": torch.ones(2)}}), "whole checkpoint"),
    "optimizer": (PT, lambda: saved({"hash": "1", "optimizer_state_dict": {}}), "optimizer state"),
    "a tuple": (PT, lambda: saved((1, 2)), "holds a tuple"),
    "a tensor": (PT, lambda: saved(torch.ones(3)), "holds a Tensor"),
    "lora safetensors": (SAFE, lambda: save({"unet.lora_A.weight": torch.ones(2)}), "it is a LoRA"),
    "checkpoint safetensors": (SAFE, lambda: save({"model.diffusion_model.x": torch.ones(2)}), "checkpoint"),
    "other safetensors": (SAFE, lambda: save({"x": torch.ones(2)}), "has no hyperbrush.format"),
    # widths and shapes
    "no width": (PT, lambda: saved({"step": 1, "name": "x"}), "expected widths"),
    "width without networks": (PT, lambda: saved({8: (state(), state()), 12: None}), "width 12"),
    "one set": (PT, lambda: saved({8: (state(),)}), "but got 1"),
    "one tensor for two": (PT, lambda: saved({8: (torch.ones(8, 8), torch.ones(8, 8))}), "got a Tensor"),
    "three sets": (PT, lambda: saved({8: (state(), state(), state())}), "but got 3"),
    "negative width": (PT, lambda: saved({-8: (state(), state())}), "width -8"),
    "zero width": (PT, lambda: saved({0: (state(), state())}), "width 0"),
    "huge width": (PT, lambda: saved({2**70: (state(), state())}), "is impossible"),
    "true as width": (PT, lambda: saved({True: (state(), state())}), "expected widths"),
    "another width": (PT, lambda: saved({16: (state(), state())}), r"tensors of shapes"),
    "number for a tensor": (PT, lambda: saved(with_bias(3)), "int"),
    "tensor missing": (PT, lambda: saved({8: (state(), {"linear.0.weight": torch.ones(16, 8)})}), "shapes"),
    "tuple as key": (PT, lambda: saved({(1, 2): 3}), "a tuple for a key"),
    # settings
    "structure of text": (PT, lambda: saved({8: (state(), state()), "layer_structure": "121"}), "list of num"),
    "structure of nan": (
        PT,
        lambda: saved({8: (state(), state()), "layer_structure": [1, float("nan"), 1]}),
        "list of numbers",
    ),
    "structure of 10^400": (
        PT,
        lambda: saved({8: (state(), state()), "layer_structure": [1, 10**400, 1]}),
        "list of numbers",
    ),
    "structure without end": (
        PT,
        lambda: saved({8: (state(), state()), "layer_structure": [1] * 100_000}),
        "at most",
    ),
    "structure of many layers": (
        PT,
        lambda: saved({8: (state(), state()), "layer_structure": [1] * 60}),
        "is not whole",
    ),
    "structure from 2": (PT, lambda: saved({8: (state(), state()), "layer_structure": [2, 1]}), "first and last"),
    "structure of tensors": (
        PT,
        lambda: saved({8: (state(), state()), "layer_structure": torch.ones(3)}),
        "layer_structure is Tensor",
    ),
    "dropout of 2": (PT, lambda: saved({8: (state(), state()), "dropout_structure": [0, 2, 0]}), "below 1"),
    "dropout of text": (PT, lambda: saved({8: (state(), state()), "dropout_structure": ["a"]}), "list of num"),
    "name with escape codes": (PT, lambda: saved({8: (state(), state()), "name": "\x1b[2J"}), "a line of"),
    "step before the start": (PT, lambda: saved({8: (state(), state()), "step": -1}), "whole number"),
    "step as tensor": (PT, lambda: saved({8: (state(), state()), "step": torch.ones(1)}), "step is Tensor"),
    "activation of old": (PT, lambda: saved({8: (state(), state()), "activation_func": "glu"}), "halves"),
    # numbers
    "nan": (PT, lambda: saved(with_bias(torch.full((8,), torch.nan))), "NaN"),
    "infinite": (PT, lambda: saved(with_bias(torch.full((8,), -torch.inf))), "infinite"),
    "one infinity among half numbers": (
        PT,
        lambda: saved(with_bias(torch.tensor([6e4] * 7 + [float("inf")]).half())),
        "infinite",
    ),
    "integers": (PT, lambda: saved(with_bias(torch.ones(8).long())), "int64"),
    "booleans": (PT, lambda: saved(with_bias(torch.ones(8).bool())), "bool"),
    "complex": (PT, lambda: saved(with_bias(torch.ones(8) * 1j)), "complex64"),
    "sparse": (PT, lambda: saved(with_bias(torch.ones(8).to_sparse())), "a sparse tensor"),
    "quantised": (
        PT,
        lambda: saved(with_bias(torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8))),
        "quantised",
    ),
    "float8": (PT, lambda: saved(with_bias(torch.ones(8).to(torch.float8_e4m3fn))), "unusual type"),
    "meta": (PT, lambda: saved(with_bias(torch.ones(8, device="meta"))), "without content"),
    "expanded": (PT, lambda: saved(with_bias(torch.ones(1).expand(8))), "repeats the 1 numbers"),
    "same tensor twice": (PT, lambda: saved({8: (s := state(), s)}), "the same numbers of the file"),
    "windows of one storage": (
        PT,
        lambda: saved(with_bias(torch.ones(10)[2:]) | {12: (w := state(12), state(12) | {"linear.1.bias": w["linear.0.bias"][:12]})}),
        "the same numbers",
    ),
    "nan in safetensors": (
        SAFE,
        lambda: changed(file_of(SAFE), struct.pack("<f", 1.0) * 8, struct.pack("<f", float("nan")) * 8),
        "NaN",
    ),
    "integers in safetensors": (
        SAFE,
        lambda: ours({"widths": {"8": 8}}, {"8.key.layers.0.linear.bias": torch.ones(8).int()}),
        "shapes",
    ),
    # executing pickles
    "os.system": (PT, lambda: saved({8: Call(os.system, COMMAND)}), "never executed"),
    "eval": (PT, lambda: saved({8: Call(eval, f"__import__('os').system({COMMAND!r})")}), "'builtins.eval'|eval"),
    "exec": (PT, lambda: torch_zip(named_call("builtins", "exec", "open('executed', 'w')")), "'builtins.exec'"),
    "subprocess": (PT, lambda: saved({8: Call(subprocess.check_output, COMMAND)}), "check_output'"),
    "torch.hub": (PT, lambda: torch_zip(named_call("torch.hub", "load", "a/b")), "'torch.hub.load'"),
    "torch.load": (PT, lambda: torch_zip(named_call("torch.serialization", "load", "executed")), "'torch.ser"),
    "import": (PT, lambda: torch_zip(named_call("builtins", "__import__", "antigravity")), "__import__"),
    "legacy os.system": (PT, lambda: legacy(pickle.dumps({8: Call(os.system, COMMAND)}, 2)), "'posix.system'|'nt.sys"),
    "legacy first thing": (PT, lambda: pickle.dumps(Call(os.system, COMMAND), 2), "never executed"),
    "executed at the end": (PT, lambda: legacy(pickle.dumps({8: 1}, 2))[:-4] + named_call("os", "system", COMMAND), "damaged|never"),
    "attribute of a module": (PT, lambda: torch_zip(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "no protocol 2"),
    "object of a class": (PT, lambda: torch_zip(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "never executed"),
    # what would take all memory or time
    "bytearray of 1 TB": (PT, lambda: torch_zip(named_call("builtins", "bytearray", "x")), "'builtins.bytearray'"),
    "storage of 1 TB": (PT, lambda: torch_zip(b"\x80\x02ctorch\nUntypedStorage\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."), "UntypedStorage"),
    "tensor class of 1 TB": (PT, lambda: torch_zip(b"\x80\x02ctorch\nTensor\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."), "'torch.Tensor'"),
    "declared storage of 4 TB": (PT, lambda: torch_zip(tensor_pickle(10**12, (10**12,)), {"a/data/0": bytes(16)}), "is said to have 4000000000000"),
    "legacy storage of 4 TB": (PT, lambda: legacy(tensor_pickle(10**12, (10**12,), view=True), ["0"]) + struct.pack("<q", 10**12), "is said to have 4000000000000"),
    "tensor past its storage": (PT, lambda: torch_zip(tensor_pickle(4, (10**12,)), {"a/data/0": bytes(16)}), "looks past"),
    "tensor repeating": (PT, lambda: torch_zip(tensor_pickle(4, (10**12,), stride=0), {"a/data/0": bytes(16)}), "repeats"),
    "negative shape": (PT, lambda: torch_zip(tensor_pickle(4, (-1,)), {"a/data/0": bytes(16)}), "makes no sense"),
    "two sizes of a storage": (PT, lambda: torch_zip(tensor_pickle(4, (4,))[:-1] + b"0" + tensor_pickle(5, (5,))[2:], {"a/data/0": bytes(16)}), "damaged"),
    "zip bomb": (PT, lambda: torch_zip(b"\x80\x02}.", {"a/data/0": bytes(50_000_000)}, compress=True), "zip bomb"),
    "zip bomb of overlaps": (PT, overlapping, "overlap"),
    "zip declaring 3 GB": (PT, lambda: declared(24, 3_000_000_000), "compressed"),
    "zip member past the end": (PT, lambda: declared(42, 3_000_000_000), "cut off"),
    "zip member said to be a folder": (PT, lambda: declared(38, 0x10), "said to be a folder"),
    "zip of 50,001 members": (PT, many_members, "50003 members"),
    "zip with two ends": (PT, lambda: doubled_end(torch_zip(b"\x80\x02}.")), "directory does not fit"),
    "long pickle": (PT, lambda: torch_zip(text_loop(600_000)), "over 500000 operations"),
    "huge pickle": (PT, lambda: torch_zip(text_loop(5_000_000)), "far more than a hypernetwork's settings"),
    "deep pickle": (PT, lambda: torch_zip(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), "holds a list"),
    "deep settings": (PT, lambda: torch_zip(b"\x80\x02}(K\x08" + b"]" * 20_000 + b"a" * 19_999 + b"u."), "width 8: expected two sets"),
    "laughing lists": (PT, lambda: torch_zip(laughs()), "step is "),
    "text of 4 GB": (PT, lambda: torch_zip(b"\x80\x02X\xff\xff\xff\xff."), "expected 4294967295 bytes"),
    "memory of the memo": (PT, lambda: torch_zip(b"\x80\x02}r\xff\xff\xff\xffh\x01."), "makes no sense"),
    "pickle without end": (PT, lambda: torch_zip(b"\x80\x02}"), "makes no sense"),
    "pickle without stack": (PT, lambda: torch_zip(b"\x80\x02t."), "makes no sense"),
    # names in the zip
    **{
        f"member {name!r}": (PT, lambda n=name: with_member(n), "member named|not one of torch's")
        for name in ("a/../../evil", "../evil", "/etc/passwd", "a\\b\\c", "a/x\x1b[2J")
    },
    "member with NUL": (PT, lambda: changed(with_member("a/xyz"), b"a/xyz", b"a/x\0z"), "member named"),
    "repeated members": (PT, repeated_members, "two members"),
    "members that differ in case": (PT, lambda: with_member("a/DATA.pkl"), "two members"),
    "two folders": (PT, lambda: with_member("b/data/0"), "not one of torch's"),
    "password": (PT, lambda: declared(8, 1), "password|compressed|damaged"),
    # safetensors headers
    "header of 2^63": (SAFE, lambda: header(2**63), "damaged"),
    "header of 2^64-1": (SAFE, lambda: header(2**64 - 1), "damaged"),
    "header of 9 MB": (SAFE, lambda: header(9_000_000, b"{" + b" " * 9_000_000), "its header has 9000000"),
    "header of nothing": (SAFE, lambda: header(0), "damaged"),
    "header that is no JSON": (SAFE, lambda: header(20, b"{" * 20), "damaged"),
    "header that is no UTF-8": (SAFE, lambda: header(4, b'{"\xff}'), "damaged"),
    "header nested": (SAFE, lambda: header(20_000, b'{"a":' * 4_000), "damaged"),
    "offsets past the end": (SAFE, lambda: safetensors_header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "damaged"),
    "offsets backwards": (SAFE, lambda: safetensors_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)), "damaged"),
    "offsets overlapping": (SAFE, lambda: safetensors_header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)), "damaged"),
    "shape overflowing": (SAFE, lambda: safetensors_header({"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)), "damaged"),
    "shape negative": (SAFE, lambda: safetensors_header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), "damaged"),
    "unknown type": (SAFE, lambda: safetensors_header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "damaged"),
    # our config
    "config of another version": (SAFE, lambda: save({}, {"hyperbrush.format": "attention-hypernetwork/2"}), "update it"),
    "config missing": (SAFE, lambda: save({}, HEADER), "expected JSON"),
    "config nested": (SAFE, lambda: ours(nested_json(100_000)), "expected JSON"),
    "config of 2 MB": (SAFE, lambda: ours('{"widths": {"8": 8}, "x": "' + "x" * 2_000_000 + '"}'), "expected JSON"),
    "config with NaN": (SAFE, lambda: ours('{"widths": {"8": NaN}}'), "expected JSON"),
    "config with a long number": (SAFE, lambda: ours('{"widths": {"8": ' + "9" * 5000 + "}}"), "expected JSON"),
    "config that is a list": (SAFE, lambda: ours([1, 2]), "expected JSON"),
    "widths that are a list": (SAFE, lambda: ours({"widths": [8]}), "expected JSON"),
    "no widths": (SAFE, lambda: ours({"widths": {}}), "contradict"),
    "width true": (SAFE, lambda: ours({"widths": {"8": True}}), "contradict|impossible"),
    "width as text": (SAFE, lambda: ours({"widths": {"8": "8"}}), "contradict"),
    "width in Arabic digits": (SAFE, lambda: ours({"widths": {"٨": 8}}), "unknown site"),
    "site out of the UNet": (SAFE, lambda: ours({"widths": {"../../etc.passwd": 8}}), "unknown site"),
    "a million widths": (SAFE, lambda: ours({"widths": {str(i): i for i in range(1, 60_000)}}), "is not whole"),
    "structure of 1e300": (SAFE, lambda: ours({"widths": {"8": 8}, "layer_structure": [1, 1e300, 1]}), "list of num"),
    "layers without end": (SAFE, lambda: ours({"widths": {"8": 8}, "layer_structure": [1] * 100}), "not whole"),
}  # fmt: skip


def tensor_pickle(numel: int, shape: tuple[int, ...], stride: int = 1, view: bool = False) -> bytes:
    """{8: tensor} over a storage "0" of a declared size, as torch pickles it."""

    def number(n: int) -> bytes:
        return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)

    place = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(numel)
    place += (b"N" if view else b"") + b"tQ"
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    strides = b"(" + number(stride) * len(shape) + b"t"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"K\0" + sizes + strides
    rebuilt += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}K\x08" + rebuilt + b"s."


def laughs() -> bytes:
    """A list of a list ten times of a list ten times …: short here, endless when shown."""
    level = b"]q\x00"
    for i in range(1, 100):
        level = b"]q" + bytes([i]) + b"(" + level + (b"h" + bytes([i - 1])) * 9 + b"e"
    networks = b"}X\x0f\0\0\0linear.0.weightNs"
    return b"\x80\x02}(K\x08" + networks + networks + b"\x86X\x04\0\0\0step" + level + b"u."


def build(name: str, folder: Path) -> Path:
    suffix, make, _ = CORPUS[name]
    path = folder / f"file{suffix}"
    path.write_bytes(make())
    return path


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 120


@pytest.mark.parametrize("name", CORPUS)
def test_one_clear_line_and_nothing_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = build(name, tmp_path)
    with pytest.raises(UserError, match=CORPUS[name][2]) as error:
        load(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 1500
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "something was executed"


def test_a_library_lists_every_one_of_them(tmp_path: Path) -> None:
    for i, name in enumerate(CORPUS):
        (tmp_path / f"{i:03}{CORPUS[name][0]}").write_bytes(CORPUS[name][1]())
    entries = HypernetworkLibrary(tmp_path, cache=FileCache(tmp_path / "cache.json")).entries()
    assert len(entries) == len(CORPUS)
    assert all(entry.error or entry.summary for entry in entries)


@pytest.mark.parametrize("suffix", [".pt", "legacy", ".safetensors"])
def test_the_sound_files_of_this_corpus_load(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / ("file.pt" if suffix == "legacy" else f"file{suffix}")
    path.write_bytes(file_of(suffix))
    assert load(path).widths == [8]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    """In a process that may take 300 MB beyond what Python and torch have."""
    names = list(CORPUS)
    for i, name in enumerate(names):
        (tmp_path / f"{i:03}{CORPUS[name][0]}").write_bytes(CORPUS[name][1]())
    sparse = tmp_path / "sparse.pt"  # a file of 2 GB without content
    with sparse.open("wb") as file:
        file.write(legacy(tensor_pickle(10**12, (10**12,), view=True), ["0"]) + struct.pack("<q", 10**12))
        file.truncate(2_000_000_000)
    program = """
import resource, sys
from pathlib import Path
from hyperbrush.hypernetworks import AttentionHypernetwork, load
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files import native, webui
AttentionHypernetwork([8]).save(Path(sys.argv[1]) / "good.pt")
load(Path(sys.argv[1]) / "good.pt")
AttentionHypernetwork([8]).save(Path(sys.argv[1]) / "good.safetensors")
load(Path(sys.argv[1]) / "good.safetensors")
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.stem != "good":
        try:
            load(path)
        except UserError as error:
            print(path.name, error)
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert len(lines) == len(names) + 2
    assert "allocate" not in out.stdout
    assert int(lines[-1].split()[1]) < 150_000  # KB; the largest file has 9 MB, the largest directory 5 MB


def test_paths_that_are_no_regular_files(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, message in {
        "folder.pt": "is a folder",
        "gone.pt": "does not exist",
        "loop.pt": "cannot read|does not exist",
        "zero.pt": "no regular file",
        "zero.safetensors": "no regular file",
        "pipe.pt": "no regular file",  # opening it would wait for ever
        "pipe.safetensors": "no regular file",
        "a\0b.pt": "NUL",
        "x" * 300 + ".pt": "cannot read",
        "picture.png": "expected a file ending in",
    }.items():
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to act as nobody")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_may_not_be_read(suffix: str, tmp_path: Path) -> None:
    path = good().save(tmp_path / f"w{suffix}")
    path.chmod(0)
    load(path)  # before, so that nothing of ours is first imported as nobody
    inside = tmp_path / "closed" / f"w{suffix}"
    inside.parent.mkdir(mode=0o700)
    inside.write_bytes(path.read_bytes())
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for place in (path, inside):
            with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
                load(place)
    finally:
        os.seteuid(0)


def test_names_never_leave_the_library(tmp_path: Path) -> None:
    good(name="secret").save(tmp_path / "secret.pt")
    folder = tmp_path / "library"
    folder.mkdir()
    good().save(folder / "water.pt")
    (folder / "link.pt").symlink_to(tmp_path / "secret.pt")
    (folder / "inside.pt").symlink_to(folder / "water.pt")
    library = HypernetworkLibrary(folder)
    assert library.names() == ["inside", "water"]
    for name in (
        "../secret",
        "../secret.pt",
        str(tmp_path / "secret"),
        "..\\secret",
        "link",
        "wa\0ter",
        "water/",
        "",
    ):
        with pytest.raises(UserError, match="unknown hypernetwork"):
            library.load(name)
    assert library.load("water").widths == [8, 12]


def test_the_command_line_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperbrush.cli import main

    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "zip bomb", "header of 2^63", "nan", "cut off after 50 %"):
        folder = tmp_path / "library"
        folder.mkdir(exist_ok=True)
        path = build(name, folder)
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "generate",
                    "a cat <hypernet:file>",
                    "--hypernetworks",
                    str(folder),
                    "--out",
                    "x.png",
                    "--steps",
                    "1",
                ]
            )
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"hyperbrush: {path}")
        assert said.count("\n") == 1
        path.unlink()
    assert not Path("executed").exists()
    assert not Path("x.png").exists()


def test_saved_files_replace_what_is_in_use(tmp_path: Path) -> None:
    """A network read from a file keeps its numbers when the file is saved anew: safetensors maps files."""
    for suffix in (".pt", ".safetensors"):
        path = good().save(tmp_path / f"w{suffix}")
        first = load(path)
        kept = [p.detach().clone() for p in first.parameters()]
        save_file({"x": torch.ones(3)}, tmp_path / "other.safetensors")
        AttentionHypernetwork([8, 12]).save(path)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), kept, strict=True))

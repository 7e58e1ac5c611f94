"""One target per parser: bytes in, True if they were accepted; only a one-line UserError may refuse them."""

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hyperbrush.errors import UserError

FOLDER = Path(
    tempfile.mkdtemp(prefix="hyperbrush-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


@dataclass(frozen=True)
class Target:
    """A parser: valid inputs to begin with, words that matter to it, and the call."""

    seeds: Callable[[], tuple[bytes, ...]]
    words: tuple[bytes, ...]
    run: Callable[[bytes], None]
    quotes: bool = False  # what was typed may be said again, what a file holds in short only
    longest: int = 3000

    def __call__(self, data: bytes) -> bool:
        """Whether the parser accepts the input.

        Raises:
            AssertionError, or anything but UserError: a bug.
        """
        refusal = self._refusal(data)
        if refusal is not None:
            assert "\n" not in refusal or (self.quotes and b"\n" in data), "more than one line"
            assert len(refusal) < self.longest + 12 * len(data) * self.quotes, "far too long a line"
        return refusal is None

    def _refusal(self, data: bytes) -> str | None:
        try:
            self.run(data)
        except UserError as error:
            return str(error)
        return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _tags(data: bytes) -> None:
    from math import isfinite

    from hyperbrush.generation.tags import parse_tags, repeated_names

    text = _text(data)
    left, tags = parse_tags(text)
    assert len(left) <= len(text)
    for tag in tags:
        assert tag.name.strip()
        assert all(map(isfinite, (tag.strength, tag.start, tag.end, tag.ramp or 0.0)))
        assert 0 <= tag.start < tag.end <= 1
    repeated_names(text)


def _learning_rate(data: bytes) -> None:
    from math import isfinite

    from hyperbrush.ldm.lr_scheduler import parse_piecewise, piecewise_rate

    for steps in (None, 1000):
        segments = parse_piecewise(_text(data), steps)
        ends = [until for _, until in segments]
        assert ends == sorted(set(ends))
        assert all(isfinite(rate) and rate >= 0 for rate, _ in segments)
        assert isfinite(piecewise_rate(segments, 10))


def _infotext(data: bytes) -> None:
    from hyperbrush.generation.infotext import read_infotext  # type: ignore[import-not-found,unused-ignore]

    read_infotext(_text(data))


def _file(suffix: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        import torch

        from hyperbrush.hypernetworks import load

        path = FOLDER / f"{os.getpid()}{suffix}"
        path.write_bytes(data)
        network = load(path)
        assert all(torch.isfinite(p).all() for p in network.parameters()), "not finite"
        assert sum(p.nbytes for p in network.parameters()) <= len(data), "more than the file has"
        # What was read can be written, and says the same when read again.
        if not network.sites:
            again = load(network.save(FOLDER / f"{os.getpid()}-again.pt"))
            assert _meaning(again) == _meaning(network)
        load(network.save(FOLDER / f"{os.getpid()}-again.safetensors"))

    return run


def _meaning(network: Any) -> Any:
    return replace(network.settings, dropout_structure=network.settings.rates), network.name, network.step


def _sidecar(data: bytes) -> None:
    from hyperbrush.hypernetworks.files.optimizer import check_fits, read_optimizer, sidecar_of

    network, path = _network()
    sidecar_of(path).write_bytes(data)
    state = read_optimizer(path)
    assert state is not None
    check_fits(state, network)


@cache
def _network() -> tuple[Any, Path]:
    import torch

    from hyperbrush.hypernetworks import AttentionHypernetwork

    torch.manual_seed(0)
    network = AttentionHypernetwork([8], weight_init="Normal", name="water", layer_norm=True)
    return network, network.save(FOLDER / f"{os.getpid()}-seed.pt")


@cache
def _pt_seeds() -> tuple[bytes, ...]:
    import torch

    _, path = _network()
    content = torch.load(path, weights_only=True)
    shapes = {
        "linear1.weight": (16, 8),
        "linear1.bias": (16,),
        "linear2.weight": (8, 16),
        "linear2.bias": (8,),
    }
    bare = {8: [{name: torch.ones(shape) for name, shape in shapes.items()} for _ in range(2)]}
    return (path.read_bytes(), _saved(content, False), _saved(bare, True))


def _saved(content: object, zipped: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@cache
def _safetensors_seeds() -> tuple[bytes, ...]:
    from hyperbrush.hypernetworks import AttentionHypernetwork

    site = AttentionHypernetwork(
        {"mid_block.attentions.0.transformer_blocks.0.attn2": 8}, layer_structure=[1, 1]
    )
    return tuple(
        network.save(FOLDER / f"{os.getpid()}-seed.safetensors").read_bytes()
        for network in (_network()[0], site)
    )


@cache
def _sidecar_seeds() -> tuple[bytes, ...]:
    import torch

    from hyperbrush.hypernetworks.files.optimizer import write_optimizer

    network, path = _network()
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return (write_optimizer(path, "AdamW", optimizer.state_dict()).read_bytes(),)


_PICKLE_WORDS = (
    b"\x80\x02",
    b"q\x00",
    b"h\x00",
    b"(",
    b"t",
    b"R",
    b"}",
    b"]",
    b"u",
    b"s",
    b"N",
    b"K\x08",
    b"X",
)
_PICKLE_WORDS += (
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"ctorch\nFloatStorage\n",
    b"\x8a\x08",
    b"Q",
)
_HEADER_WORDS = (
    b'"shape":[',
    b'"dtype":"F16"',
    b"-1",
    b"18446744073709551615",
    b"null",
    b"1e999",
    b"NaN",
    b'"',
)
_INFOTEXT = (
    b"a cat <hypernet:water:0.7>\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, "
    b'Size: 512x512, Model hash: abc, Hypernet hashes: "water: 1234567890"',
    b"a cat\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64, Hypernet: water(123), "
    b"Hypernet strength: 0.5, Clip skip: 2",
)
TARGETS: dict[str, Target] = {
    "tags": Target(
        lambda: ("a <hypernet:wäter:0.7:start=0.2:end=0.8:attn=cross:blocks=down.1+mid:ramp=0>, b".encode(),),
        (
            b"<hypernet:",
            b":",
            b">",
            b"start=",
            b"nan",
            b"inf",
            b"1e999",
            b"=",
            b"+",
            b"lora",
            b"-0",
            b"attn=self",
        ),
        _tags,
        quotes=True,
    ),
    "learning_rate": Target(
        lambda: (b"5e-5:100, 5e-6:1000, 1e-7", b"0.001:-1"),
        (b":", b",", b"-1", b"nan", b"inf", b"1e999", b"1_0", b"9" * 30, b"9" * 5000, " ٣".encode()),
        _learning_rate,
        quotes=True,
    ),
    "pt": Target(_pt_seeds, _PICKLE_WORDS, _file(".pt")),
    "safetensors": Target(_safetensors_seeds, _HEADER_WORDS, _file(".safetensors")),
    "optim": Target(_sidecar_seeds, _PICKLE_WORDS, _sidecar),
}
if find_spec("hyperbrush.generation.infotext") is not None:
    words = (
        b"Steps: ",
        b"Seed: ",
        b"\n",
        b'"',
        b"Hypernet hashes: ",
        b"Size: 0x0",
        b"nan",
        b"9" * 5000,
        b",",
        b":",
    )
    TARGETS["infotext"] = Target(lambda: _INFOTEXT, words, _infotext, quotes=True)

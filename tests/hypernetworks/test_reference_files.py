"""Every reference file gives what the program that wrote it computes, to 1e-5."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hyperbrush.hypernetworks import attach, load

HERE = Path(__file__).parent / "reference"
SHARED = Path(os.environ.get("HYPERBRUSH_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
BOUND = 1e-5
INDEX: dict[str, dict[str, Any]] = json.loads((HERE / "index.json").read_text())
FOLDERS = {name: next((f for f in (HERE, SHARED) if (f / f"{name}.pt").is_file()), None) for name in INDEX}
FILES = [n for n in INDEX if FOLDERS[n] is not None and n != "unet"]
STACKS = [n for n, entry in INDEX.items() if "files" in entry]


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


def read(name: str) -> Any:
    folder = FOLDERS[name]
    assert folder is not None
    return load(folder / f"{name}.pt")


def test_the_suite_alone_covers_every_variant() -> None:
    own = {p.stem for p in HERE.glob("*.pt")}
    assert {n.partition("-")[0] for n in own} == {"webui", "old", "olddrop", "bare", "residual"}
    assert len(own) == 23


@pytest.mark.parametrize("name", FILES)
def test_transform_matches(name: str) -> None:
    hypernetwork = read(name)
    assert hypernetwork.widths == sorted(INDEX[name]["dims"])
    folder = FOLDERS[name]
    assert folder is not None
    expected = load_file(folder / f"{name}.expected.safetensors")
    for width in INDEX[name]["dims"]:
        context = expected[f"{width}.context"]
        for strength in INDEX[name]["multipliers"]:
            key, value = hypernetwork.transform(context, strength=strength)
            assert relative(key, expected[f"{width}.k@{strength}"]) <= BOUND
            assert relative(value, expected[f"{width}.v@{strength}"]) <= BOUND


@pytest.mark.parametrize("name", STACKS)
def test_stack_matches(name: str) -> None:
    expected = load_file(HERE / "stacks.expected.safetensors")
    key = value = expected[f"{name.removeprefix('stack-')}.context"]
    for file, strength in zip(INDEX[name]["files"], INDEX[name]["multipliers"], strict=True):
        hypernetwork = read(file)
        key = hypernetwork.transform(key, strength)[0]
        value = hypernetwork.transform(value, strength)[1]
    assert relative(key, expected[f"{name.removeprefix('stack-')}.k"]) <= BOUND
    assert relative(value, expected[f"{name.removeprefix('stack-')}.v"]) <= BOUND


@pytest.mark.parametrize("name", FILES)
def test_round_trip_keeps_tensors_names_and_meaning(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name]
    assert folder is not None
    original = torch.load(folder / f"{name}.pt", weights_only=True)
    read(name).save(tmp_path / "a.safetensors")
    load(tmp_path / "a.safetensors").save(tmp_path / "b.pt")
    written = torch.load(tmp_path / "b.pt", weights_only=True)
    for key, value in original.items():
        if not isinstance(key, int):
            assert written[key] == value
            continue
        for ours, theirs in zip(written[key], value, strict=True):
            if name != "bare-0":  # the first format's names are the only ones not written again
                assert list(ours) == list(theirs)
            for a, b in zip(ours.values(), theirs.values(), strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


def test_whole_unet_matches(compvis_unet: Any, shared: Path) -> None:
    expected = load_file(shared / "unet.expected.safetensors")

    def run() -> torch.Tensor:
        inputs = [expected[k].float() for k in ("sample", "timesteps", "context")]
        out: torch.Tensor = compvis_unet(*inputs).sample
        return out

    with torch.no_grad():
        assert relative(run(), expected["out@none"]) <= BOUND
        hypernetwork = load(shared / "unet.pt")
        tried = 0
        for key, out in expected.items():
            if key.startswith("out@") and key != "out@none":
                with attach(compvis_unet, (hypernetwork, float(key.removeprefix("out@")))):
                    assert relative(run(), out) <= BOUND, key
                tried += 1
        assert tried >= 2
        assert relative(run(), expected["out@none"]) <= BOUND

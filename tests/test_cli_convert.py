"""`hyperbrush convert`, `merge` and `inspect` as a person uses them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hyperbrush.cli import main
from hyperbrush.hypernetworks import AttentionHypernetwork, load
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder; returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hyperbrush.cli.console.out", _console())
    monkeypatch.setattr("hyperbrush.cli.console.err", _console(stderr=True))

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        shown = capfd.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def _console(**settings: Any) -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, **settings)


def network(path: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A file for the embedded model, with an effect that shows."""
    torch.manual_seed(seed)
    settings = {"activation": "relu", "weight_init": "XavierNormal", "name": path.stem} | settings
    hn = AttentionHypernetwork((128, 256), **settings)
    with torch.no_grad():
        for name, parameter in hn.named_parameters():
            parameter.normal_(0, 0.05) if name.endswith("bias") else parameter.mul_(0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    return hn.save(path)


def test_inspect_a_page_and_json(run: Run, tmp_path: Path) -> None:
    path = network(tmp_path / "water.pt", step=300)
    status, page, _ = run("inspect", path)
    assert status == 0
    for words in ("attention hypernetwork", "step 300", "128, 256", "1,2,1 relu", "ComfyUI", "sha256"):
        assert words in page
    status, text, _ = run("inspect", path, "--json")
    told = json.loads(text)
    assert (status, told["widths"], told["structure"], told["step"]) == (0, [128, 256], [1, 2, 1], 300)
    assert {"kind", "format", "activation", "size", "hash", "metadata", "odd", "readers"} <= told.keys()
    assert told["sha256"] in page


def test_inspect_by_name(run: Run, tmp_path: Path) -> None:
    network(tmp_path / "models/hypernetworks/water.pt")
    network(tmp_path / "own/fire.pt")
    assert "water.pt" in run("inspect", "water")[1]
    assert "fire.pt" in run("inspect", "fire", "--hypernetworks", "own")[1]


def test_convert_to_files_and_back(run: Run, tmp_path: Path) -> None:
    path = network(tmp_path / "water.pt")
    own = load(path).state_dict()
    for target, *options in (
        ("a.safetensors",),
        ("b.pt",),
        ("c.pt", "--to", "comfyui"),
        ("d.pt", "--legacy-zip"),
        ("e.ckpt", "--to", "webui"),
    ):
        status, shown, _ = run("convert", path, target, *options)
        assert (status, shown.strip()) == (0, target)
        again = load(target).state_dict()
        assert all(torch.equal(again[k], own[k]) for k in own)
    assert not Path("d.pt").read_bytes().startswith(b"PK")
    assert run("convert", path, "a.safetensors")[0] == 2
    assert run("convert", path, "a.safetensors", "--overwrite", "--dtype", "fp16")[0] == 0
    assert next(load("a.safetensors").parameters()).dtype == torch.float16


def test_convert_to_lora(run: Run, tmp_path: Path) -> None:
    network(tmp_path / "models/hypernetworks/water.pt", activation="linear")
    quick = ("--prompts", "cat face", "--prompts", "red heart", "--steps", 2)
    status, shown, _ = run("convert", "water", "l.safetensors", "--to", "lora-diffusers", "--rank", 4, *quick)
    assert status == 0
    assert "14 attentions, rank 4, strength 1; error of the attentions' output" in shown
    assert "up_blocks.1.1.0.attn2" in shown
    state = load_file("l.safetensors")
    assert {v.shape[0] for k, v in state.items() if "lora_A" in k} == {4}
    half = ("--rank", 4, "--strength", 0.5, "--no-bias", "--seed", 7, "--pictures", "--dtype", "fp16", *quick)
    status, shown, _ = run("convert", "water", "h.safetensors", "--to", "lora-diffusers", *half)
    assert status == 0
    assert "strength 0.5" in shown
    assert "picture 'red heart': relative error" in shown
    assert "lost: the values' offset" in shown
    other = load_file("h.safetensors")
    assert not any("bias" in key for key in other)
    assert {v.dtype for v in other.values()} == {torch.float16}
    assert run("convert", "water", "folder", "--to", "lora-peft", "--rank", "full", *quick)[0] == 0
    assert Path("folder/adapter_config.json").is_file()
    assert run("convert", "water", "k.safetensors", "--to", "lora-kohya", "--bias", *quick)[0] == 0
    assert any("diff_b" in key for key in load_file("k.safetensors"))


def test_merge(run: Run, tmp_path: Path) -> None:
    a, b = network(tmp_path / "a.pt", seed=1), network(tmp_path / "b.pt", seed=2)
    status, shown, told = run("merge", f"{a}:0.25", f"{b}:0.75", "--out", "c.safetensors")
    assert (status, shown.strip()) == (0, "c.safetensors")
    assert "weights sum to 1" in told
    states = [load(p).state_dict() for p in (a, b, tmp_path / "c.safetensors")]
    for name, value in states[2].items():
        torch.testing.assert_close(value, 0.25 * states[0][name] + 0.75 * states[1][name])
    assert load("c.safetensors").name == "c"
    network(tmp_path / "models/hypernetworks/x.pt", activation="linear")
    network(tmp_path / "models/hypernetworks/y.pt", activation="linear", seed=3)
    assert run("merge", "x:-0.5", "y", "--out", "d.pt", "--how", "compose", "--name", "both")[0] == 0
    assert load("d.pt").settings.layer_structure == (1, 1)
    assert load("d.pt").name == "both"


def test_generated_weights_merge_by_file(run: Run, tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    for name, value in (("a", 1.0), ("b", 2.0)):
        factors = Factors(torch.full((1, 4), value), torch.ones(3, 1))
        GeneratedWeights({layer: factors}, name=name).save(tmp_path / f"{name}.safetensors")
    assert run("merge", "a.safetensors:0.5", "b.safetensors:2", "--out", "c.safetensors")[0] == 0
    merged = GeneratedWeights.load("c.safetensors")
    assert merged.name == "c"
    assert torch.allclose(merged.delta(layer), torch.full((3, 4), 4.5))
    status, _, told = run("merge", "a.safetensors", "b.safetensors", "--out", "d.pt")
    assert status == 2
    assert "generated weights are kept in .safetensors alone" in told
    network(tmp_path / "w.pt")
    status, _, told = run("merge", "a.safetensors", "w.pt", "--out", "d.safetensors")
    assert status == 2
    assert "attach both together" in told
    assert not list(tmp_path.glob("d.*"))


def test_the_older_form_for_comfyui(run: Run, tmp_path: Path) -> None:
    network(tmp_path / "a.pt", use_dropout=True, layer_structure=(1, 2, 2, 1))
    assert run("convert", "a.pt", "b.pt", "--to", "comfyui", "--legacy-zip")[0] == 0
    assert not (tmp_path / "b.pt").read_bytes().startswith(b"PK")
    assert not load("b.pt").use_dropout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nothing"], "no hypernetwork folder at models/hypernetworks"),
        (["inspect", "nothing.pt"], "nothing.pt does not exist"),
        (["inspect", "lora.safetensors"], "it is a LoRA"),
        (["inspect", "broken.pt"], "damaged"),
        (["inspect", "b\0d"], "no hypernetwork folder"),
        (["convert", "a.pt", "x.gif"], "cannot tell what to convert to"),
        (["convert", "a.pt", "x.pt", "--to", "lora-difusers"], "did you mean 'lora-diffusers'"),
        (["convert", "a.pt", "a.pt"], "exists already"),
        (["convert", "a.pt", "x.safetensors", "--legacy-zip"], "legacy_zip"),
        (["convert", "a.pt", "x.pt", "--rank", "4"], "rank is an option of the LoRA targets"),
        (
            ["convert", "a.pt", "x.safetensors", "--to", "lora-kohya", "--rank", "-1"],
            "--rank '-1' is impossible",
        ),
        (["convert", "a.pt", "x.pt", "--dtype", "int8"], "unknown dtype 'int8'"),
        (
            ["convert", "a.pt", "x.safetensors", "--to", "lora-kohya", "--model", "emojy"],
            "unknown model 'emojy'",
        ),
        (
            ["convert", "a.pt", "x.safetensors", "--to", "lora-kohya", "--strength", "nan"],
            "not a finite number",
        ),
        (["convert", "gelu.pt", "x.pt", "--to", "comfyui"], "ComfyUI has no activation 'gelu'"),
        (["convert", "sd.pt", "x.safetensors", "--to", "lora-kohya"], "reaches none of this UNet's"),
        (["convert", "a.pt", "x.safetensors", "--strength", "0.5"], "strength is an option"),
        (["merge", "a.pt", "--out", "x.pt"], "two or more"),
        (["merge", "a.pt:x", "a.pt", "--out", "x.pt"], "the weight 'x' is no finite number"),
        (["merge", "a.pt:nan", "a.pt", "--out", "x.pt"], "no finite number"),
        (["merge", "a.pt:1", "gelu.pt:1", "--out", "x.pt"], "they differ in activation"),
        (["merge", "a.pt:1", "a.pt:1", "--out", "x"], "cannot tell"),
        (["merge", "a.pt:1", "a.pt:1", "--out", "a.pt"], "exists already"),
        (["merge", "a.pt:1", "a.pt:1"], "--out"),
    ],
    ids=lambda x: " ".join(x).replace("\0", "NUL") if isinstance(x, list) else "",
)
def test_bad_input_is_one_clear_line(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network(tmp_path / "a.pt")
    network(tmp_path / "gelu.pt", activation="gelu")
    AttentionHypernetwork((768,), layer_structure=(1, 1)).save(tmp_path / "sd.pt")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2)}, tmp_path / "lora.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"PK nothing")
    before = sorted(p.name for p in tmp_path.iterdir())
    status, shown, told = run(*words)
    assert status == 2
    assert told.startswith("hyperbrush: ")
    assert told.count("\n") == 1
    assert message in told
    assert shown == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_as_a_process(tmp_path: Path) -> None:
    network(tmp_path / "a.pt")
    command = [sys.executable, "-m", "hyperbrush", "inspect"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for file, status in (("a.pt", 0), ("b.pt", 2)):
        done = subprocess.run(
            [*command, file], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


def test_what_generated_weights_do_not_take_is_refused(run: Run, tmp_path: Path) -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    factors = {path: Factors(torch.randn(1, 4), torch.randn(3, 1))}
    file = GeneratedWeights(factors, name="ink").save(tmp_path / "ink.safetensors")
    status, _, told = run("convert", file, "out.safetensors", "--pictures", "--seed", 3)
    assert status == 2
    assert "--pictures, --seed: of hypernetworks alone" in told
    assert not (tmp_path / "out.safetensors").exists()

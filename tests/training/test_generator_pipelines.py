"""Hypernetworks that generate weights, on diffusers' pipelines of transformers: each family at tiny width."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import PIPELINES, fresh
from transformer_helpers import MODELS, merge

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import GeneratedWeights, TunedWeights
from hyperbrush.ldm.models.pipelines import PipelineDiffusion
from hyperbrush.training import Interrupted

FAMILY = pytest.mark.parametrize("name", list(MODELS))
NETWORK: dict[str, Any] = {
    "embedding_dim": 16,
    "hidden_dim": 16,
    "rank": 2,
    "depth": 1,
    "heads": 2,
    "encoder_depth": 0,
    "patch_size": 2,
}
SHORT = {
    "size": 32,
    "max_steps": 3,
    "batch_size": 2,
    "pictures_per_style": 1,
    "shared_steps": 0,
    "warmup_steps": 0,
    "style_dropout": 0.0,
    "checkpoint_every": 1,
    "validate_every": 3,
    "preview_every": 3,
    "preview_steps": 1,
    "prompts": ["a dot"],
    "log_every": 1,
}
DRAWN: dict[str, Any] = {"steps": 2, "size": (32, 32), "seeds": [3]}


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Two styles of two pictures, light and dark."""
    noise = np.random.default_rng(0)
    for style, low in (("light", 190), ("dark", 0)):
        for name in ("a dot", "a bar"):
            file = tmp_path / "styles" / style / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(low, low + 60, (32, 32, 3), dtype=np.uint8)).save(file)
    return tmp_path / "styles"


def pipeline(name: str) -> Any:
    return PIPELINES["Flux2Klein" if name == "Flux2" else name]()


def make_net(pipe: Any, layers: list[str] | None = None) -> hb.Hypernetwork:
    torch.manual_seed(0)
    return hb.Hypernetwork(
        layers, target=hb.TargetNetwork(pipe), name="gen", condition_dropout=0.0, **NETWORK
    )


def stir(net: hb.Hypernetwork) -> hb.Hypernetwork:
    """As if it had learned much: B of every layer began at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


@FAMILY
def test_learns_generates_and_is_kept(name: str, styles: Path, tmp_path: Path) -> None:
    pipe = pipeline(name)
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    net = make_net(pipe)
    objective = hb.HypernetworkTrainer(net, SHORT, run=tmp_path / "run").objective(pipe, styles)
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), []
    batch = objective.batch(0, 2)
    for _ in range(3):
        losses.append(objective(batch)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    objective.close()
    assert losses[2] < losses[1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())
    assert not any(p.grad is not None for p in pipe.transformer.parameters())

    stir(net.eval())
    with torch.no_grad():
        told = [
            [str(styles / "light/a dot.png")],
            "a dark picture",
            "two texts",
            [str(p) for p in styles.rglob("*.png")],
        ]
        made = [net.generate_weights(condition) for condition in told]
    assert made[0].metadata["family"] == hb.TargetNetwork(pipe).family != ""
    assert made[0].layers == hb.TargetNetwork(pipe).layers
    assert all(made[0].squared_distance(other) > 1e-6 for other in made[1:])
    model = PipelineDiffusion(pipe)
    bare = model.sample("a dot", **DRAWN)
    with hb.attach(pipe, made[0]):
        got = model.sample("a dot", **DRAWN)
    other = fresh(name)
    merge(other.transformer, made[0])
    expected = PipelineDiffusion(other).sample("a dot", **DRAWN)
    assert (got - expected).abs().max() < 1e-4 < (got - bare).abs().max()
    assert torch.equal(model.sample("a dot", **DRAWN), bare)

    kept = hb.Hypernetwork.load(net.save(tmp_path / "gen.safetensors"), pipe)
    assert kept.size == 32
    with torch.no_grad():
        again = kept.generate_weights([str(styles / "light/a dot.png")])
    assert all(torch.equal(again.delta(n), made[0].delta(n)) for n in made[0].layers)
    with pytest.raises(UserError, match="was trained for .* bind it to the model it was trained for"):
        hb.Hypernetwork.load(tmp_path / "gen.safetensors", pipeline("SD3" if name != "SD3" else "Flux"))


@pytest.mark.parametrize("name", ["SD3", "ZImage"])
def test_a_whole_run(name: str, styles: Path, tmp_path: Path) -> None:
    pipe, layers = pipeline(name), ["attn", "ff"]

    def train(run: str, *, stop_at: int = 9, resume: bool = False) -> hb.Hypernetwork:
        net, seen = make_net(pipe, layers), [0]
        hb.HypernetworkTrainer(
            net,
            {**SHORT, "target_layers": layers},
            run=tmp_path / run,
            on_progress=lambda p: seen.append(p.step),
            should_stop=lambda: seen[-1] + 1 >= stop_at,
        ).train(pipe, styles, styles, resume=resume)
        return net

    whole = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop_at=2)
    again = train("parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    (valid,) = [row for row in rows if "validation_loss" in row]
    assert valid["validation_loss"] != valid["validation_base"]
    assert len(list((tmp_path / "whole/previews").rglob("*.png"))) == 1


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_decoding_is_the_pipelines(name: str) -> None:
    pipe = pipeline(name)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = PipelineDiffusion(pipe)
    if name == "QwenImage":
        expected = pipe.vae.decode(pipe.vae.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0]
    elif name == "Sana":
        expected = pipe.vae.decode(pipe.vae.encode(images).latent).sample
    else:
        expected = pipe.vae.decode(pipe.vae.encode(images).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode(model.encode(images)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="enable_tiling"):
        model.decode(model.encode(images), tiled=True)


def test_generated_weights_trained_on(styles: Path, tmp_path: Path) -> None:
    pipe = pipeline("Flux")
    with torch.no_grad():
        made = stir(make_net(pipe)).generate_weights("light")
    tuned = TunedWeights(made)
    config = {"size": 32, "max_steps": 2, "batch_size": 2, "checkpoint_every": 2, "prompts": []}
    file = hb.HypernetworkTrainer(tuned, config, run=tmp_path / "run").train(pipe, styles / "light")
    kept = GeneratedWeights.load(file)
    assert kept.metadata["family"] == "Flux.1"
    moved = [n for n in kept.layers if not torch.allclose(kept.delta(n), made.delta(n), atol=1e-7)]
    assert moved == kept.layers


def test_what_is_refused(styles: Path, tmp_path: Path) -> None:
    pipe = pipeline("SD3")

    def objective(**config: Any) -> None:
        net = make_net(pipe, ["to_k"])
        hb.HypernetworkTrainer(net, SHORT | config, run=tmp_path / "run").objective(pipe, styles)

    with pytest.raises(UserError, match="size is 36; .* multiples of 8"):
        objective(size=36)
    with pytest.raises(UserError, match="'min_snr' is not defined for a model trained by flow matching"):
        objective(weighting="min_snr")
    with pytest.raises(UserError, match="draws with its own scheduler"):
        objective(preview_sampler="Euler")
    with pytest.raises(UserError, match="unknown target layer 'mid'"):
        make_net(pipe, ["mid"])


def status(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_the_commands(styles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, made = tmp_path / "model", tmp_path / "generators"
    pipe = pipeline("Flux")
    pipe.save_pretrained(folder)
    settings = [
        f"{k}={v}"
        for k, v in {**SHORT, **NETWORK, "generators": made}.items()
        if k not in ("prompts", "max_steps")
    ]
    words = ["hyper", "train", "--model", str(folder), "--data", str(styles), "--name", "gen", "--steps", "2"]
    words += ["--run", str(tmp_path / "run"), "--prompt", "a dot", "-s", "target_layers=[text, ff]"]
    assert status([*words, *(word for one in settings for word in ("-s", one))]) == 0
    assert "hyperbrush hyper generate --model" in " ".join(capsys.readouterr().out.split())
    picture, style = styles / "light/a dot.png", tmp_path / "style.safetensors"
    ask = ["hyper", "generate", "--model", str(folder), "--generator", str(made / "gen.safetensors")]
    ask += ["--images", str(picture)]
    assert status([*ask, "--out", str(style)]) == 0
    weights = GeneratedWeights.load(style)
    assert weights.metadata["generator_step"] == 2
    assert set(weights.layers) == set(hb.TargetNetwork(pipe, ["text", "ff"]).layers)
    assert status([*ask, "--out", str(tmp_path / "lora.safetensors"), "--format", "lora-diffusers"]) == 0
    lora = GeneratedWeights.load(tmp_path / "lora.safetensors")
    assert all(torch.allclose(lora.delta(n), weights.delta(n), atol=1e-7) for n in weights.layers)
    kohya = tmp_path / "kohya.safetensors"
    assert status(["convert", str(style), str(kohya), "--to", "lora-kohya"]) == 0
    assert kohya.is_file()
    assert status(["inspect", str(style), "--json"]) == 0


def test_the_page_on_models(styles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    styles.rename(tmp_path / "STYLES")
    for name in ("a", "b"):
        shutil.copy(tmp_path / "STYLES/light/a dot.png", tmp_path / f"{name}.png")
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", page, re.S)[1]
    for said, small in (
        ("rank=4", ", ".join(f"{k}={v}" for k, v in NETWORK.items())),
        ('"size": 512, "max_steps": 2000', '"size": 32, "max_steps": 1, "batch_size": 2, "prompts": []'),
    ):
        assert said in block
        block = block.replace(said, small)
    exec(compile(block, "models.md", "exec"), {"pipe": pipeline("SD3")})
    assert (tmp_path / "lighthouse.png").is_file()
    assert GeneratedWeights.load(tmp_path / "style.safetensors").rank == 2


def test_in_bf16(styles: Path, tmp_path: Path) -> None:
    """The frozen pipeline in bf16, what is trained in fp32."""
    from hyperbrush.training.attention.run import HypernetworkRun, train_run
    from hyperbrush.training.generator.run import GeneratorRun, train_generator

    folder = tmp_path / "model"
    pipeline("SD3").save_pretrained(folder)
    losses: dict[str, list[float]] = {}
    for precision in ("no", "bf16"):
        data = {"name": precision, "data": str(styles / "light"), "model": str(folder)}
        loop = {
            "size": 32,
            "max_steps": 2,
            "batch_size": 2,
            "log_every": 1,
            "mixed_precision": precision,
            "prompts": [],
        }
        run = HypernetworkRun.of(**data, training=loop, hypernetworks=str(tmp_path / "library"))
        train_run(run, tmp_path / precision)
        rows = [
            json.loads(line) for line in (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        ]
        losses[precision] = [row["loss"] for row in rows if "loss" in row]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert losses["bf16"] != losses["no"]
    kept = hb.load(tmp_path / "library/bf16.safetensors")
    assert {p.dtype for p in kept.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    config = GeneratorRun(
        name="gen",
        data=str(styles),
        model=str(folder),
        generators=str(tmp_path / "generators"),
        network=NETWORK,
        training={**SHORT, "max_steps": 1, "mixed_precision": "bf16", "prompts": []},
    )
    original = PipelineDiffusion.__init__

    def spy(self: Any, pipe: Any) -> None:
        original(self, pipe)
        seen.append(pipe.transformer.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineDiffusion, "__init__", spy)
        result = train_generator(config, tmp_path / "gen")
    assert seen == [torch.bfloat16]
    assert result.file.is_file()

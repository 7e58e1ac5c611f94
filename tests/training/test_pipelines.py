"""Attention hypernetworks trained on diffusers' pipelines of transformers, each family at tiny width."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import MORE, PIPELINES

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import GeneratedWeights, TunedWeights
from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.ldm.models.pipelines import PipelineDiffusion, as_model
from hyperbrush.training import Interrupted

FAMILY = pytest.mark.parametrize("name", list(PIPELINES))
CAPTION = "a red square"
SHORT = {
    "size": 32,
    "max_steps": 4,
    "batch_size": 2,
    "flip": 0.0,
    "checkpoint_every": 2,
    "validate_every": 4,
    "preview_every": 4,
    "preview_steps": 2,
    "prompts": [CAPTION],
    "log_every": 1,
}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two pictures and their captions."""
    folder = tmp_path / "two"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name, channel in (("a red square", 0), ("blue", 2)):
        pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[8:24, 8:24, channel] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for name, value in module.state_dict().items()
    }


def unpacked(pipe: Any, rows: torch.Tensor) -> torch.Tensor:
    """Latents as maps, 32 pixels wide, of what a pipeline's scheduler is given."""
    if rows.ndim == 4:
        return rows
    if "Flux2" in type(pipe).__name__:
        return rows.transpose(1, 2).unflatten(2, (4, 4))
    found: torch.Tensor = pipe._unpack_latents(rows, 8, 8, 1)
    return found.reshape(*found.shape[:2], 8, 8)


@pytest.mark.parametrize("name", [*PIPELINES, *MORE])
@torch.no_grad()
def test_a_step_is_the_pipelines_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scheduler is told in a drawing, and what the model says of the same latents."""
    pipe, steps = (PIPELINES | MORE)[name](), []
    model = PipelineDiffusion(pipe)
    step = type(pipe.scheduler).step

    def spy(self: Any, output: torch.Tensor, t: Any, sample: torch.Tensor, **more: Any) -> Any:
        steps.append((output, t, sample))
        return step(self, output, t, sample, **more)

    monkeypatch.setattr(type(pipe.scheduler), "step", spy)
    model.sample([CAPTION], steps=2, size=(32, 32), guidance_scale=1.0)
    told = model.text_conditions([CAPTION, ""])  # beside another text, where one is filled up
    assert len(steps) == 2
    for output, t, sample in steps:
        x = unpacked(pipe, sample)
        ours = model.diffusion(x.expand(2, -1, -1, -1), t.expand(2), **told)[:1]
        torch.testing.assert_close(ours, unpacked(pipe, output), rtol=1e-4, atol=5e-5)


@FAMILY
@torch.no_grad()
def test_latents_are_scaled_as_the_pipeline_scales_them(name: str) -> None:
    pipe = PIPELINES[name]()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model, c = PipelineDiffusion(pipe), pipe.vae.config
    found = model.moments(images)
    assert found["mean"].shape[1] == model.latent_shape[0]
    assert found["mean"].shape[2] * model.downsampling == 32
    if name == "Flux2Klein":
        expected = pipe._encode_vae_image(images, None)
    elif name == "QwenImage":
        latents = pipe.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        shift, scale = (torch.tensor(x).view(1, 4, 1, 1) for x in (c.latents_mean, c.latents_std))
        expected = (latents - shift) / scale
    elif name == "Sana":
        expected = pipe.vae.encode(images).latent * 0.5
    else:
        latents = pipe.vae.encode(images).latent_dist.mode()
        expected = (latents - (c.shift_factor or 0.0)) * c.scaling_factor
    torch.testing.assert_close(found["mean"], expected)
    batch = {"latent_means": found["mean"], "latent_stds": found["std"]}
    drawn = model.latents_of(batch, torch.Generator().manual_seed(1))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, expected + found["std"] * noise)


@pytest.mark.parametrize("name", ["PixArt", "SD3", "Chroma", "Sana", "Lumina2"])
def test_no_caption_is_what_guidance_moves_away_from(name: str) -> None:
    pipe = PIPELINES[name]()
    places = {"SD3": 1, "Chroma": 3}
    options: dict[str, Any] = {"prompt_2": None, "prompt_3": None} if name == "SD3" else {}
    with torch.no_grad():
        told = pipe.encode_prompt(
            [CAPTION], negative_prompt=[""], do_classifier_free_guidance=True, **options
        )
    found = PipelineDiffusion(pipe).text_conditions(["", CAPTION])
    torch.testing.assert_close(found["context"][:1], told[places.get(name, 2)])


def network(pipe: Any) -> hb.AttentionHypernetwork:
    torch.manual_seed(0)
    return hb.AttentionHypernetwork.for_transformer(pipe.transformer, name="mine", weight_init="zero")


def train(pipe: Any, two: Path, run: Path, *, resume: bool = False, stop_at: int = 9) -> Any:
    hn, seen = network(pipe), [0]
    trainer = hb.HypernetworkTrainer(
        hn,
        SHORT,
        run=run,
        on_progress=lambda p: seen.append(p.step),
        should_stop=lambda: seen[-1] + 1 >= stop_at,
    )
    trainer.train(pipe, two, two, resume=resume)
    return hn


@FAMILY
def test_the_loss_of_a_batch_falls(name: str, two: Path, tmp_path: Path) -> None:
    pipe = PIPELINES[name]()
    before, hn = weights(pipe), network(pipe).requires_grad_(True)
    objective = hb.HypernetworkTrainer(hn, SHORT, run=tmp_path).objective(pipe, two)
    optimizer, losses = torch.optim.AdamW(hn.parameters(), lr=1e-3), []
    batch = objective.batch(0, 2)
    for _ in range(4):
        losses.append(objective(batch)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[3] < losses[2] < losses[1] < losses[0]
    objective.close()
    assert all(torch.equal(value, before[key]) for key, value in weights(pipe).items())
    assert not any(p.grad is not None for p in pipe.transformer.parameters())


@FAMILY
def test_a_run_resumes_to_the_bit_and_draws(name: str, two: Path, tmp_path: Path) -> None:
    pipe = PIPELINES[name]()
    before, scheduler = weights(pipe), pipe.scheduler
    whole = train(pipe, two, tmp_path / "whole")
    if name in ("PixArt", "SD3", "ZImage"):  # texts with a mask, with a pooled state, of their own lengths
        with pytest.raises(Interrupted):
            train(pipe, two, tmp_path / "parts", stop_at=3)
        again = train(pipe, two, tmp_path / "parts", resume=True)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))

    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    (valid,) = [row for row in rows if "validation_loss" in row]
    assert valid["validation_loss"] != valid["validation_base"]
    assert all(torch.equal(value, before[key]) for key, value in weights(pipe).items())
    assert pipe.scheduler is scheduler
    (drawn,) = (tmp_path / "whole/previews/step-00000004").iterdir()
    kept = hb.load(tmp_path / "whole/mine.safetensors")
    assert isinstance(kept, hb.AttentionHypernetwork)
    assert kept.sites == network(pipe).sites
    model = PipelineDiffusion(pipe)
    bare = model.sample([CAPTION], steps=2, size=(32, 32))
    with hb.attach(pipe, kept):
        moved = model.sample([CAPTION], steps=2, size=(32, 32))
    assert not torch.equal(moved, bare)
    shown = torch.from_numpy(np.asarray(Image.open(drawn)).copy()).permute(2, 0, 1) / 255
    assert (shown - moved[0]).abs().max() < 0.6 / 255 < (shown - bare[0]).abs().max()


def status(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", ["PixArt", "SD3", "Flux"])
def test_the_command(name: str, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run, library = tmp_path / "model", tmp_path / "run", tmp_path / "library"
    PIPELINES[name]().save_pretrained(model)
    words = ["train", "--model", str(model), "--data", str(two), "--name", "mine", "--steps", "2"]
    words += ["--set", "size=32", "--set", "batch_size=2", "--set", "checkpoint_every=1"]
    there = ["--run", str(run), "--hypernetworks", str(library)]
    assert status([*words, *there, "--dry-run"]) == 0
    assert "trained numbers" in capsys.readouterr().out
    assert status([*words, *there, "--prompt", CAPTION]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f'hyperbrush generate "{CAPTION} <hypernet:mine:1>" --model' in out
    made = hb.load(library / "mine.safetensors")
    assert isinstance(made, hb.AttentionHypernetwork)
    assert made.settings.layer_structure == (1, 1 / 16, 1)
    assert len(list((run / "previews").rglob("*.png"))) == 1
    assert status(["train", "--resume", str(run), "--steps", "3", "--hypernetworks", str(library)]) == 0
    further = hb.load(library / "mine.safetensors")
    assert further.step == 3
    again = [
        *words,
        "--run",
        str(tmp_path / "wide"),
        "--hypernetworks",
        str(library),
        "--set",
        "per_site=false",
        "--overwrite",
    ]
    assert status([*again, "--set", "layer_structure=[1, 2, 1]"]) == 0
    assert hb.load(library / "mine.safetensors").widths == [16]
    unrun = tmp_path / "unrun"
    assert status([*words, "--run", str(unrun), "--set", "preview_sampler=Euler"]) == 2
    assert "draws with its own scheduler" in capsys.readouterr().err
    assert not (unrun / "config.yaml").exists()


def test_what_is_refused(two: Path, tmp_path: Path) -> None:
    flux = PIPELINES["Flux"]()

    def objective(config: dict[str, Any], pipe: Any = flux, hn: Any = None) -> None:
        hb.HypernetworkTrainer(hn or network(flux), SHORT | config, run=tmp_path).objective(pipe, two)

    with pytest.raises(UserError, match="FluxPipeline is told none"):
        objective({"preview_negative": "grey"})
    with pytest.raises(UserError, match="'min_snr' is not defined for a model trained by flow matching"):
        objective({"weighting": "min_snr"})
    with pytest.raises(UserError, match="missing is 'masks', and this model is none for inpainting"):
        objective({"missing": "masks"})
    with pytest.raises(UserError, match=r"size is 36; .* multiples of 8"):
        objective({"size": 36})
    parts = {k: v for k, v in flux.components.items() if k not in ("image_encoder", "feature_extractor")}
    with pytest.raises(UserError, match=r"FluxInpaintPipeline is of no kind known here: .*FluxPipeline"):
        objective({}, diffusers.FluxInpaintPipeline(**parts))
    made = GeneratedWeights({"to_k": Factors(torch.ones(2, 16), torch.ones(16, 2))}, name="made")
    with pytest.raises(UserError, match=r"'made' reaches none of .* such as to_k"):
        objective({}, hn=TunedWeights(made))
    with pytest.raises(UserError, match=r"FluxInpaintPipeline is of no kind known here: .*FluxPipeline"):
        hb.generate(CAPTION, model=diffusers.FluxInpaintPipeline(**parts))
    parts = {**PIPELINES["SD3"]().components, "scheduler": diffusers.DDIMScheduler()}
    with pytest.raises(UserError, match=r"DDIMScheduler, which predicts 'epsilon': .* flow matching"):
        as_model(diffusers.StableDiffusion3Pipeline(**parts))

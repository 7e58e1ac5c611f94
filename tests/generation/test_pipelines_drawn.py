"""`generate` on diffusers' pipelines of transformers, each family at tiny width: what the pipeline itself draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import PIPELINES, fresh
from transformer_helpers import MODELS, merge, random_network, random_weights

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.generation import Picture, read_infotext

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILY = pytest.mark.parametrize("name", list(MODELS))
PROMPT = "a red square"


def pipeline(name: str) -> Any:
    return PIPELINES["Flux2Klein" if name == "Flux2" else name]()


def plain(pipe: Any, seed: int, guidance: float = 4.0) -> np.ndarray[Any, Any]:
    """What diffusers alone draws, in bytes."""
    scale = {"ZImagePipeline": guidance - 1}.get(type(pipe).__name__, guidance)
    told: dict[str, Any] = (
        {"true_cfg_scale": scale} if "Qwen" in type(pipe).__name__ else {"guidance_scale": scale}
    )
    if "PixArt" in type(pipe).__name__ or "Sana" in type(pipe).__name__:
        told["use_resolution_binning"] = False
    if "PixArt" in type(pipe).__name__:
        told["clean_caption"] = False
    if "Qwen" in type(pipe).__name__:
        told["negative_prompt"] = ""
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    pipe.scheduler = type(scheduler).from_config(scheduler.config)
    noise = torch.Generator().manual_seed(seed)
    (made,) = pipe(
        prompt=PROMPT, height=32, width=32, num_inference_steps=2, generator=noise, output_type="np", **told
    ).images
    pipe.scheduler = scheduler
    return (made * 255).round().astype(np.uint8)  # type: ignore[no-any-return]


def differing(picture: Picture | np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Share of bytes that are not the same."""
    own = picture if isinstance(picture, np.ndarray) else np.asarray(picture.image)
    return float((own != expected).mean())


@FAMILY
def test_what_the_pipeline_draws(name: str, tmp_path: Path) -> None:
    pipe, other = pipeline(name), fresh(name)
    library = tmp_path / "hypernetworks"
    network = random_network(pipe.transformer, name="mine")
    network.save(library / "mine.safetensors")
    weights = random_weights(pipe.transformer)
    weights.save(library / "made.safetensors")
    merge(other.transformer, weights, 0.5)
    steps: list[tuple[int, int]] = []
    made = hb.generate(
        [PROMPT, f"{PROMPT} <hypernet:mine:0.7>", f"{PROMPT} <hypernet:made:0.5>"],
        model=pipe,
        hypernetworks=library,
        size=(32, 32),
        steps=2,
        seed=1,
        on_step=lambda step, of, latents: steps.append((step, of)),
    )
    assert steps == [(step, 6) for step in range(1, 7)]
    bare = plain(pipe, 1)
    with hb.attach(pipe, (network, 0.7)):
        moved = plain(pipe, 1)
    changed = plain(other, 1)
    assert differing(made[0], bare) == differing(made[1], moved) == 0
    assert differing(made[2], changed) < 0.01  # rounding
    assert min(differing(moved, bare), differing(changed, bare)) > 0.03
    assert made[0].notes == []
    assert made[1].notes == [
        f"mine: {len(network.sites)} of {len(network.sites)} sites reached: "
        + made[1].notes[0].split("reached: ")[1]
    ]
    assert made[2].notes == [f"made: {len(weights.layers)} of {len(weights.layers)} layers reached"]
    info = read_infotext(made[1].parameters)
    assert (info.prompt, info.seed, info.steps, info.sampler, info.size) == (
        f"{PROMPT} <hypernet:mine:0.7>",
        1,
        2,
        "",
        (32, 32),
    )
    assert list(info.hypernet_hashes) == ["mine"]


@pytest.mark.parametrize("name", ["SD3", "Flux", "ZImage"])
def test_loras(name: str, tmp_path: Path) -> None:
    pipe, other = fresh(name), fresh(name)
    weights = random_weights(pipe.transformer)
    weights.save(tmp_path / "loras/style.safetensors", "lora-diffusers")
    merge(other.transformer, weights, 0.5)
    options: dict[str, Any] = {
        "model": pipe,
        "hypernetworks": tmp_path / "hypernetworks",
        "size": (32, 32),
        "steps": 2,
    }
    made, bare = hb.generate([f"{PROMPT} <lora:style:0.5>", PROMPT], seed=1, **options)
    assert differing(made, plain(other, 1)) < 0.01 < differing(made, plain(pipe, 1))
    assert made.notes == [f"style: LoRA, {len(weights.layers)} layers of transformer"]
    assert differing(bare, plain(pipe, 1)) == 0
    assert not any("lora" in key for key, _ in pipe.transformer.named_parameters())


def test_what_a_pipeline_is_not_told(tmp_path: Path) -> None:
    flux = pipeline("Flux")

    def generate(prompt: str = PROMPT, pipe: Any = flux, **options: Any) -> list[Picture]:
        return hb.generate(
            prompt,
            model=pipe,
            hypernetworks=tmp_path,
            **({"size": (32, 32), "steps": 1, "seed": 1} | options),
        )

    grey = Image.new("RGB", (32, 32))
    for options, told in (
        ({"sampler": "Euler"}, "sampler 'Euler': FluxPipeline draws with its own scheduler"),
        ({"negative": "grey"}, "FluxPipeline is told none"),
        ({"clip_skip": 2}, "clip_skip: FluxPipeline draws from texts alone"),
        ({"discretisation": "webui"}, "discretisation: FluxPipeline draws from texts alone"),
        ({"image": grey}, "image: FluxPipeline draws from texts alone"),
        ({"size": (36, 32)}, "size 32x36 is not possible: both sides must be multiples of 8"),
    ):
        with pytest.raises(UserError, match=told):
            generate(**options)  # type: ignore[arg-type]
    weights = random_weights(pipeline("PixArt").transformer)
    weights.save(tmp_path / "loras/style.safetensors", "lora-diffusers")
    with pytest.raises(UserError, match="PixArtSigmaPipeline loads no LoRAs in diffusers; .* <hypernet"):
        generate(f"{PROMPT} <lora:style:1>", pipeline("PixArt"), loras=tmp_path / "loras")
    random_weights(pipeline("ZImage").transformer).save(tmp_path / "made.safetensors")
    with pytest.raises(UserError, match="reaches none"):
        generate(f"{PROMPT} <hypernet:made:1>")
    assert generate("a [red:blue:0.5] square")[0].notes == [
        "FluxPipeline reads emphasis, BREAK, editing and AND as words: the prompt was handed over as it stands"
    ]
    with pytest.raises(UserError, match="axis|sampler"):
        hb.compare(PROMPT, "sampler=Euler,Heun", model=flux, hypernetworks=tmp_path, size=(32, 32), steps=1)


def test_a_grid_of_strengths(tmp_path: Path) -> None:
    pipe = pipeline("SD3")
    random_network(pipe.transformer, name="mine").save(tmp_path / "mine.safetensors")
    grid = hb.compare(
        f"{PROMPT} <hypernet:mine:1>",
        "strength=0,0.7",
        model=pipe,
        hypernetworks=tmp_path,
        size=(32, 32),
        steps=2,
        seed=1,
    )
    bare, moved = (grid.pictures[0, 0, i] for i in (0, 1))
    assert differing(bare, plain(pipe, 1)) == 0 < differing(moved, plain(pipe, 1))


def status(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, folder, library = pipeline("SD3"), tmp_path / "model", tmp_path / "hypernetworks"
    pipe.save_pretrained(folder)
    random_network(pipe.transformer, name="mine").save(library / "mine.safetensors")
    words = [
        "generate",
        f"{PROMPT} <hypernet:mine:0.7>",
        "--model",
        str(folder),
        "--hypernetworks",
        str(library),
    ]
    words += ["--seed", "1", "--steps", "2", "--cfg", "3"]
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert status([*words, "--out", str(first)]) == 0
    with hb.attach(pipe, (hb.load(library / "mine.safetensors"), 0.7)):
        expected = plain(pipe, 1, 3.0)
    assert differing(np.asarray(Image.open(first)), expected) == 0
    repeat = ["generate", "--from", str(first), "--model", str(folder), "--hypernetworks", str(library)]
    assert status([*repeat, "--out", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    capsys.readouterr()
    none = tmp_path / "none.png"
    assert status([*words, "--sampler", "Euler", "--out", str(none)]) == 2
    assert "draws with its own scheduler" in capsys.readouterr().err
    assert status([*words, "--attention", "sliced", "--out", str(none)]) == 2
    assert "keeps its own attentions" in capsys.readouterr().err
    assert not none.exists()

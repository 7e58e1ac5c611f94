"""Hypernetworks as a pipeline's own methods: bit for bit what `attach` draws."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_helpers import fresh

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion

FILE = Path(__file__).parents[2] / "integrations/diffusers/stable_diffusion_hypernetwork.py"


def draw(pipe: Any, **settings: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "generator": torch.manual_seed(1), "output_type": "np"} | settings
    drawn: np.ndarray[Any, Any] = pipe("cat face", **settings).images
    return drawn


def network(model: Any, seed: int) -> hb.AttentionHypernetwork:
    torch.manual_seed(seed)
    return hb.AttentionHypernetwork.for_unet(model.unet, activation="tanh", weight_init="XavierNormal")


@pytest.fixture
def files(tiny: LatentDiffusion, tmp_path: Path) -> list[Path]:
    return [network(tiny, seed).save(tmp_path / f"{name}.pt") for seed, name in ((3, "water"), (4, "ink"))]


@pytest.fixture
def pipe(tiny: LatentDiffusion) -> Any:
    return hb.with_hypernetworks(tiny.pipeline())


def attached(pipe: Any, *networks: Any, **settings: Any) -> np.ndarray[Any, Any]:
    with hb.attach(pipe, list(networks)):
        return draw(pipe, **settings)


def test_it_begins_anew_where_all_was_detached(pipe: Any, files: list[Path]) -> None:
    pipe.load_hypernetwork(files[0])
    pipe.hypernetworks.detach()
    assert pipe.get_list_hypernetworks() == {}
    with pytest.raises(UserError, match="unknown attached hypernetwork 'water'"):
        pipe.set_hypernetworks("water", 0.8)
    bare = draw(pipe)
    pipe.load_hypernetwork(files[1])
    assert pipe.get_active_hypernetworks() == ["ink"]
    assert not np.array_equal(draw(pipe), bare)


def test_a_custom_pipeline_from_the_folder(
    tiny: LatentDiffusion, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    tiny.pipeline().save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=str(FILE), trust_remote_code=True
    )
    assert type(pipe).__name__ == "StableDiffusionHypernetworkPipeline"
    assert pipe.load_hypernetwork(files[0]) == "water"
    pipe.load_hypernetwork(str(files[1]), "second", 0.4)
    drawn = draw(pipe)
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert np.array_equal(drawn, attached(plain, hb.load(files[0]), (hb.load(files[1]), 0.4)))
    assert not np.array_equal(drawn, draw(plain))


def test_the_verbs(pipe: Any, files: list[Path]) -> None:
    water, ink = map(hb.load, files)
    bare = draw(pipe)
    assert (pipe.get_active_hypernetworks(), pipe.get_list_hypernetworks()) == ([], {})
    for path in files:
        pipe.load_hypernetwork(path)
    assert pipe.get_active_hypernetworks() == ["water", "ink"]
    both = draw(pipe)
    pipe.disable_hypernetworks()
    assert pipe.get_active_hypernetworks() == []
    assert np.array_equal(draw(pipe), bare)
    pipe.enable_hypernetworks()
    assert np.array_equal(draw(pipe), both)
    results = [both]
    for names, weights, strengths in (
        (["water", "ink"], [0.5, -0.7], [0.5, -0.7]),
        (["ink", "water"], 0.7, [0.7, 0.7]),
        ("ink", None, [1.0]),
        (["water"], [hb.Ramp(0.0, 1.0)], [hb.Ramp(0.0, 1.0)]),
        (["ink", "water"], [None, (0.3, 0.9)], [1.0, (0.3, 0.9)]),
    ):
        pipe.set_hypernetworks(names, weights)
        assert pipe.get_active_hypernetworks() == ([names] if isinstance(names, str) else names)
        results.append(draw(pipe))
        saved, active = pipe.hypernetworks.strengths, pipe.get_active_hypernetworks()
        assert saved == strengths
        pipe.disable_hypernetworks()
        order = [{"water": water, "ink": ink}[name] for name in active]
        assert np.array_equal(results[-1], attached(pipe, *zip(order, strengths, strict=True)))
        pipe.enable_hypernetworks()
    assert len({result.tobytes() for result in [bare, *results]}) == len(results) + 1
    assert pipe.get_list_hypernetworks() == {"unet": ["water", "ink"]}
    pipe.set_hypernetworks([])
    assert np.array_equal(draw(pipe), bare)
    pipe.delete_hypernetworks("ink")
    assert pipe.get_list_hypernetworks() == {"unet": ["water"]}
    pipe.set_hypernetworks("water")
    pipe.unload_hypernetworks()
    assert pipe.get_list_hypernetworks() == {}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in pipe.unet.modules())
    assert np.array_equal(draw(pipe), bare)


def test_places_sides_and_one_that_is_loaded(pipe: Any, files: list[Path]) -> None:
    water = hb.load(files[0])
    pipe.load_hypernetwork(water, "here", attn=["attn2"], blocks=["up"], guidance="conditional")
    drawn = draw(pipe)
    pipe.set_hypernetworks("here", 0.5)
    half = draw(pipe)
    pipe.set_hypernetworks([])
    pipe.set_hypernetworks("here", 0.5)  # anew, with its places
    assert np.array_equal(draw(pipe), half)
    pipe.unload_hypernetworks()
    for picture, strength in ((drawn, 1.0), (half, 0.5)):
        use = hb.Use(water, strength, ["attn2"], ["up"], guidance="conditional")
        assert np.array_equal(picture, attached(pipe, use))


def test_what_is_refused_changes_nothing(pipe: Any, files: list[Path], tmp_path: Path) -> None:
    pipe.load_hypernetwork(files[0])
    pipe.load_hypernetwork(files[1])
    foreign = hb.AttentionHypernetwork([1024]).save(tmp_path / "sd2.pt")
    before = draw(pipe)
    for wrong, why in (
        (lambda: pipe.load_hypernetwork(files[0]), "'water' is loaded already: give this one another"),
        (lambda: pipe.load_hypernetwork(foreign), "reaches none of this UNet's"),
        (lambda: pipe.load_hypernetwork(tmp_path / "gone.pt"), "does not exist"),
        (
            lambda: pipe.set_hypernetworks(["water", "inc"]),
            "unknown attached hypernetwork 'inc'; did you mean",
        ),
        (lambda: pipe.set_hypernetworks(["ink", "ink"]), "'ink' is given twice"),
        (lambda: pipe.set_hypernetworks(["ink"], [1.0, 2.0]), "got 2 strengths for 1 hypernetworks"),
        (lambda: pipe.set_hypernetworks(["ink"], float("nan")), "is not a finite number"),
        (lambda: pipe.delete_hypernetworks(["ink", "inc"]), "unknown attached hypernetwork 'inc'"),
    ):
        with pytest.raises(UserError, match=why):
            wrong()
        assert pipe.get_active_hypernetworks() == ["water", "ink"]
    assert np.array_equal(draw(pipe), before)
    with pytest.raises(UserError, match="has no UNet"):
        hb.with_hypernetworks(object())


def test_it_stays_the_pipeline_it_was(tiny: LatentDiffusion, pipe: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    assert isinstance(pipe, StableDiffusionPipeline)
    assert hb.with_hypernetworks(pipe) is pipe
    assert len(type(pipe).__mro__) == len(StableDiffusionPipeline.__mro__) + 2
    pipe.load_hypernetwork(network(tiny, 3), "look")
    pipe.save_pretrained(tmp_path / "saved")
    about = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert about["_class_name"] == "StableDiffusionPipeline"
    assert "hypernetworks" not in json.dumps(about)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipe.unload_hypernetworks()
    assert np.array_equal(draw(again), draw(pipe))
    StableDiffusionImg2ImgPipeline.from_pipe(pipe)


def test_pipelines_of_transformers() -> None:
    pixart = hb.with_hypernetworks(fresh("PixArt"))
    torch.manual_seed(3)
    hn = hb.AttentionHypernetwork.for_transformer(
        pixart.transformer, weight_init="XavierNormal", layer_structure=(1, 1)
    )
    settings = {"height": 16, "width": 16, "use_resolution_binning": False, "output_type": "latent"}
    pixart.load_hypernetwork(hn, "look", 0.8)
    assert pixart.get_list_hypernetworks() == {"transformer": ["look"]}
    drawn = draw(pixart, **settings)
    pixart.unload_hypernetworks()
    assert torch.equal(drawn, attached(pixart, (hn, 0.8), **settings))
    assert not torch.equal(drawn, draw(pixart, **settings))

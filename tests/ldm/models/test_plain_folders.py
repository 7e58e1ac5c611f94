"""Folders that plain diffusers draws with, no precision named, and that tell nothing of who wrote them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbrush.assets import model_folder
from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion


def draw(folder: Path, **settings: Any) -> Any:
    """A picture as a user of diffusers draws it; the pipeline too."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, **settings)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe("cat", num_inference_steps=2, output_type="pt", generator=generator).images, pipe


def told(folder: Path) -> dict[str, Any]:
    """Every text in the JSON files of a folder, by file and key."""
    found = {}
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for key, value in content.items():
            found[f"{path.relative_to(folder)}: {key}"] = value
    return found


def says_nothing_of_its_writer(folder: Path) -> bool:
    for key, value in told(folder).items():
        if key.endswith("name_or_path") or (isinstance(value, str) and value.startswith("/")):
            return False
        if key.endswith("dtype") and value != "float32":
            return False
    return True


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_written_in_any_precision(dtype: torch.dtype | None, tiny: LatentDiffusion, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "model", dtype=dtype)
    opened = LatentDiffusion.from_pretrained(tmp_path / "model", dtype=dtype or torch.float32)
    opened.save_pretrained(tmp_path / "again")  # opened from a folder, parts know its path
    for folder in (tmp_path / "model", tmp_path / "again"):
        picture, pipe = draw(folder)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
        assert torch.isfinite(picture).all()
        assert says_nothing_of_its_writer(folder)
    stored = (tmp_path / "again/text_encoder/model.safetensors").stat().st_size
    assert stored == (tmp_path / "model/text_encoder/model.safetensors").stat().st_size
    half, pipe = draw(tmp_path / "again", torch_dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    assert torch.isfinite(half).all()


def test_the_embedded_model() -> None:
    picture, pipe = draw(model_folder("emoji"))
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert torch.isfinite(picture).all()
    assert says_nothing_of_its_writer(model_folder("emoji"))


def test_folders_that_are_newer_or_broken_are_one_line(tiny: LatentDiffusion, tmp_path: Path) -> None:
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/model_index.json").write_text(
        '{"_class_name": "NextYearPipeline", "unet": ["diffusers", "X"]}'
    )
    with pytest.raises(UserError, match="cannot open the model in .*newer"):
        LatentDiffusion.from_pretrained(tmp_path / "newer")
    tiny.pipeline().save_pretrained(tmp_path / "broken")
    weights = tmp_path / "broken/text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot open the model in .*broken"):
        LatentDiffusion.from_pretrained(tmp_path / "broken")

"""Shared: tiny real models and folders of small pictures."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line; it is read at import
os.environ["LC_ALL"] = "C.UTF-8"  # the command line speaks English, whoever runs the tests

import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.text import train_tokenizer

torch.set_num_threads(1)
CAPTIONS = ["red square", "green circle", "blue square", "yellow circle", "a red heart", "cat face"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(CAPTIONS, vocabulary=600, max_length=16)


@pytest.fixture(scope="session")
def make_tiny(tokenizer: Any) -> Callable[..., LatentDiffusion]:
    """Build a tiny model of 32-pixel pictures; keyword arguments as of `LatentDiffusion`."""

    def build(**settings: Any) -> LatentDiffusion:
        torch.manual_seed(0)
        shape: dict[str, Any] = {
            "image_size": 32,
            "channels": (32, 64),
            "attention_resolutions": [8],
            "num_heads": 4,
            "layers_per_block": 1,
            "first_stage_channels": (8, 16),
            "text_width": 32,
            "text_layers": 2,
            "tokenizer": tokenizer,
        }
        return LatentDiffusion(**(shape | settings))

    return build


@pytest.fixture(scope="session")
def tiny_folder(make_tiny: Callable[..., LatentDiffusion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved once for all tests that open a folder; nobody writes into it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    return make_tiny()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve 32-pixel pictures named after what is in them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(12):
        pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[4 + i : 16 + i, 6:20, i % 3] = 255
        Image.fromarray(pixels).save(folder / f"{CAPTIONS[i % 6].replace(' ', '-')}-{i}.png")
    return folder


def _script(path: str) -> ModuleType:
    """A script of the repository (benchmarks/training.py, …) as a module; its main does not run."""
    file = Path(__file__).parent.parent / path
    spec = importlib.util.spec_from_file_location(f"script_{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def open_script() -> Callable[[str], ModuleType]:
    return _script

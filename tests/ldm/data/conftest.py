from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Write a picture of seeded noise, or of one colour, under tmp_path."""

    def write(name: str, size=(16, 16), seed=0, colour=None, mode="RGB", **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if colour is not None:
            image = Image.new(mode, size, colour)
        else:
            noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
            image = Image.fromarray(noise.astype(np.uint8)).convert(mode)
        image.save(path, **options)
        return path

    return write

"""The masked region alone, drawn at the size of a drawing and put back into a larger picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.generation import generate
from hyperbrush.generation.infotext import read_infotext
from hyperbrush.generation.masks import masked_region
from hyperbrush.ldm.models import LatentDiffusion


def mask_of(size: tuple[int, int], *box: int) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


# Worked out from the webui's get_crop_region and expand_crop_region, but for rounding to the nearest pixel.
@pytest.mark.parametrize(
    ("box", "padding", "size", "expected"),
    [
        ((100, 100, 140, 140), 0, (64, 64), (100, 100, 140, 140)),
        ((100, 100, 140, 140), 10, (64, 64), (90, 90, 150, 150)),
        ((100, 100, 180, 120), 0, (64, 64), (100, 70, 180, 150)),  # widened to the drawing's proportions
        ((100, 100, 140, 140), 0, (64, 128), (80, 100, 160, 140)),
        ((0, 100, 20, 180), 0, (64, 64), (0, 100, 80, 180)),  # at the edge: shifted inwards
        ((280, 100, 300, 180), 8, (64, 64), (204, 92, 300, 188)),
        ((10, 10, 290, 20), 0, (64, 64), (10, 0, 290, 200)),  # no room: the whole height
    ],
)
def test_the_box(
    box: tuple[int, ...], padding: int, size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    picture = Image.new("RGB", (300, 200))
    assert masked_region(picture, mask_of(picture.size, *box), padding, size).box == expected


def test_the_mask_may_be_of_another_size() -> None:
    picture = Image.new("RGB", (300, 200))
    assert masked_region(picture, mask_of((30, 20), 10, 10, 14, 14), 0, (64, 64)).box == (100, 100, 140, 140)


def draw(model: LatentDiffusion, picture: Image.Image, **settings: Any) -> Any:
    about = {"seed": 1, "steps": 3, "image": picture, "image_strength": 1.0}
    return generate("cat face", model=model, **(about | settings))[0]


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (150, 240, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_the_region_is_drawn_and_all_else_stays(emoji: LatentDiffusion, picture: Image.Image) -> None:
    mask = mask_of(picture.size, 60, 40, 100, 80)
    found = draw(emoji, picture, mask=mask, mask_padding=8)
    assert found.image.size == picture.size
    change = np.abs(np.asarray(found.image, dtype=int) - np.asarray(picture, dtype=int)).max(axis=2)
    assert change[44:76, 64:96].mean() > 10
    change[38:82, 58:102] = 0  # the mask and its soft edge
    assert change.max() == 0
    # What is in the box is what drawing the box by itself gives.
    box = (52, 32, 108, 88)
    alone = draw(emoji, picture.crop(box), mask=mask.crop(box), size=(64, 64))
    inside = alone.image.resize((56, 56), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(found.image)[44:76, 64:96], np.asarray(inside)[12:44, 12:44])


def test_the_text_says_so_in_the_webuis_words(emoji: LatentDiffusion, picture: Image.Image) -> None:
    found = draw(emoji, picture, mask=mask_of(picture.size, 60, 40, 100, 80), mask_padding=8)
    info = read_infotext(found.parameters)
    assert info.size == (64, 64), "of the drawing"
    assert info.fields["Inpaint area"] == "Only masked"
    assert info.fields["Masked area padding"] == "8"
    assert info.fields["Mask blur"] == "0.5"


def test_what_cannot_be_is_refused(emoji: LatentDiffusion, picture: Image.Image) -> None:
    with pytest.raises(UserError, match="mask_padding needs a mask"):
        draw(emoji, picture, mask_padding=8)
    with pytest.raises(UserError, match="mask_padding must be a whole number, 0 to 4096, got -1"):
        draw(emoji, picture, mask=mask_of((9, 9), 1, 1, 3, 3), mask_padding=-1)
    with pytest.raises(UserError, match="the mask is black everywhere"):
        draw(emoji, picture, mask=Image.new("L", (9, 9)), mask_padding=8)

import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.ldm.data import augment


def gradient(width, height):
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).copy())


@pytest.mark.parametrize("size", [(16, 16), (40, 16), (16, 41), (7, 5), (100, 3), (1, 300)])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (1, 1)])
def test_fit_gives_the_shape(size, shape):
    image = gradient(*size)
    for crop in ("center", "none"):
        assert augment.fit(image, shape, crop).size == (shape[1], shape[0])
    roomy = augment.fit(image, shape, "random")
    assert shape[1] in (roomy.width, shape[1])
    assert roomy.width >= shape[1]
    assert roomy.height >= shape[0]
    assert (roomy.width == shape[1]) or (roomy.height == shape[0])


def test_a_picture_of_the_right_size_is_not_touched():
    image = gradient(16, 16)
    for crop in augment.CROPS:
        assert augment.fit(image, (16, 16), crop) is image


@pytest.mark.parametrize("width", [20, 21])
def test_centre_crop_without_scaling_copies_pixels(width):
    image = gradient(width, 16)
    left = (width - 16) // 2
    expected = np.asarray(image)[:, left : left + 16]
    assert np.array_equal(np.asarray(augment.fit(image, (16, 16), "center")), expected)


def test_none_keeps_the_whole_picture():
    squeezed = np.asarray(augment.fit(gradient(64, 16), (16, 16), "none"))
    cut = np.asarray(augment.fit(gradient(64, 16), (16, 16), "center"))
    assert np.ptp(squeezed) > 230
    assert np.ptp(cut) < 70


def test_a_long_strip_does_not_fill_the_memory():
    strip = augment.fit(gradient(20_000, 1), (64, 64), "random")
    assert strip.size == (512, 64)


def test_crop_at_reaches_both_ends():
    pixels = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    assert np.array_equal(augment.crop_at(pixels, (5, 4), 0.0, 0.0), pixels[:, :4])
    assert np.array_equal(augment.crop_at(pixels, (2, 4), 0.999, 0.999), pixels[3:, 5:])


def test_turn_fills_corners_with_the_background():
    turned = augment.turn(Image.new("RGB", (16, 16), "red"), 45, (0, 0, 255))
    assert turned.getpixel((0, 0)) == (0, 0, 255)
    assert turned.getpixel((8, 8)) == (255, 0, 0)


def test_recolour():
    image = Image.new("RGB", (4, 4), (100, 50, 50))
    assert augment.recolour(image, 1.0, 1.0, 1.0).getpixel((0, 0)) == (100, 50, 50)
    assert augment.recolour(image, 2.0, 1.0, 1.0).getpixel((0, 0)) == (200, 100, 100)
    assert len(set(augment.recolour(image, 1.0, 1.0, 0.0).getpixel((0, 0)))) == 1
    wide = augment.recolour(gradient(16, 4), 1.0, 0.5, 1.0)
    assert np.ptp(np.asarray(wide)) < 140


def test_draws_depend_on_every_part_of_the_key():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({tuple(augment.draws(*key)[0]) for key in keys}) == 4
    assert augment.draws(5, 6, 7)[0] == augment.draws(5, 6, 7)[0]


def test_to_tensor_reaches_both_ends_of_the_range():
    pixels = np.array([[[0, 255, 0]]], np.uint8)
    tensor = augment.to_tensor(pixels)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[[-1.0]], [[1.0]], [[-1.0]]]

import numpy as np
import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import BatchOrder, Buckets, ImageFolder, OriginalSizes, collate


@pytest.mark.parametrize(("size", "step"), [(64, 8), (512, 64), (1024, 64), (24, 8)])
def test_shapes_are_multiples_within_the_area_and_the_ratio(size, step):
    shapes = Buckets(size, step, max_ratio=2.0).shapes
    assert (size, size) in shapes
    for height, width in shapes:
        assert height % step == width % step == 0
        assert size * size * 0.75 <= height * width <= size * size
        assert max(height / width, width / height) <= 2
        assert (width, height) in shapes


def test_options_make_a_difference():
    assert len(Buckets(512, 32).shapes) > len(Buckets(512, 64).shapes)
    assert len(Buckets(512, 64, 3.0).shapes) > len(Buckets(512, 64, 2.0).shapes)
    assert Buckets(512, 64, 1.0).shapes == ((512, 512),)


def test_assign_takes_the_nearest_ratio():
    buckets = Buckets(64, 8)
    assert buckets.assign(100, 100) == (64, 64)
    assert buckets.assign(3000, 1000) == (48, 80)
    assert buckets.assign(1000, 3000) == (80, 48)
    assert buckets.assign(72, 56) == (56, 72)


def test_errors():
    with pytest.raises(UserError, match=r"size 500 with step 64; .* such as 512"):
        Buckets(500, 64)
    with pytest.raises(UserError, match=r"max_ratio 0\.5; expected"):
        Buckets(512, 64, 0.5)
    with pytest.raises(UserError, match="a picture of 0×5"):
        Buckets(64, 8).assign(0, 5)


def test_original_sizes_are_cut_never_resized(paint, tmp_path):
    for index, size in enumerate([(97, 130), (64, 64), (71, 72), (20, 64)]):
        paint(f"{index}.png", size=size, seed=index)
    dataset = ImageFolder(tmp_path, buckets=OriginalSizes(8), background="black")
    assert dataset.groups == [(128, 96), (64, 64), (72, 64), (64, 16)]
    for index in range(4):
        pixels = np.asarray(Image.open(dataset.paths[index]))
        height, width = dataset.groups[index]
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        shown = ((dataset[index]["image"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(shown, pixels[top : top + height, left : left + width])


def test_original_sizes_have_a_largest_and_a_smallest():
    assert OriginalSizes(64, largest=512).assign(4000, 3000) == (384, 576)
    assert OriginalSizes(64).assign(30, 200) == (192, 64)
    assert OriginalSizes(8, largest=64).assign(64, 64) == (64, 64)
    for wrong in ({"multiple": 0}, {"multiple": 64, "largest": 32}):
        with pytest.raises(UserError, match="original sizes with multiple"):
            OriginalSizes(**wrong)
    with pytest.raises(UserError, match="0×9 pixels"):
        OriginalSizes().assign(0, 9)


def test_batches_of_original_sizes_have_one_shape(paint, tmp_path):
    for index, size in enumerate([(16, 24)] * 3 + [(24, 16)] * 2 + [(40, 40)]):
        paint(f"{index}.png", size=size, seed=index)
    dataset = ImageFolder(tmp_path, buckets=OriginalSizes(8))
    order = BatchOrder(dataset.groups, 2)
    shapes = {
        tuple(collate([dataset.example(i, e) for e, i in order.pairs(step)])["image"].shape)
        for step in range(order.count)
    }
    assert shapes == {(2, 3, 24, 16), (2, 3, 16, 24), (2, 3, 40, 40)}

import pytest

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Buckets


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

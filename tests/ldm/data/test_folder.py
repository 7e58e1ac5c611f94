import pickle

import pytest
import torch
from PIL import Image, ImageOps

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Buckets, ImageFolder


@pytest.fixture
def folder(paint, tmp_path):
    for index in range(4):
        paint(f"picture_{index}.png", size=(24, 16), seed=index)
    return tmp_path


def image(folder, index=0, epoch=0, **options):
    return ImageFolder(folder, size=16, **options).example(index, epoch)["image"]


def test_examples(folder):
    dataset = ImageFolder(folder, size=(8, 12))
    assert len(dataset) == 4
    example = dataset[1]
    assert example["image"].shape == (3, 8, 12)
    assert example["image"].dtype == torch.float32
    assert -1 <= example["image"].min() < example["image"].max() <= 1
    assert example["caption"] == dataset.captions[1] == "picture 1"
    assert example["path"] == dataset.paths[1] == str(folder / "picture_1.png")
    assert dataset.groups == [(8, 12)] * 4
    assert torch.equal(dataset[-1]["image"], dataset[3]["image"])
    with pytest.raises(IndexError):
        dataset[4]


RANDOM = [
    {"crop": "random"},
    {"flip": 0.5},
    {"jitter": 0.5},
    {"rotate": 30.0},
    {"transform": lambda i, g: i.point(lambda v: v // 2) if torch.rand((), generator=g) < 0.5 else i},
]


@pytest.mark.parametrize("options", RANDOM, ids=lambda o: next(iter(o)))
def test_random_options_depend_on_seed_epoch_and_index_alone(folder, options):
    one = ImageFolder(folder, size=16, **options)
    other = ImageFolder(folder, size=16, memory_limit=0, **options)
    order = [(epoch, index) for epoch in range(6) for index in range(4)]
    first = {key: one.example(key[1], key[0])["image"] for key in order}
    for epoch, index in reversed(order):
        assert torch.equal(other.example(index, epoch)["image"], first[epoch, index])
    assert any(not torch.equal(first[0, 0], first[epoch, 0]) for epoch in range(6))
    seeded = ImageFolder(folder, size=16, seed=1, **options)
    assert any(not torch.equal(seeded.example(i, e)["image"], first[e, i]) for e, i in order)


def test_flip_mirrors(folder):
    assert torch.equal(image(folder, flip=1.0), image(folder).flip(-1))


def test_flips_stay_when_another_option_is_turned_on(folder):
    dataset, both = ImageFolder(folder, flip=0.5), ImageFolder(folder, flip=0.5, jitter=0.05)
    for epoch in range(8):
        a, b = dataset.example(0, epoch)["image"], both.example(0, epoch)["image"]
        assert (a - b).abs().mean() < 0.1


def test_crop_none_and_background(paint, tmp_path):
    paint("a.png", size=(32, 16))
    assert not torch.equal(image(tmp_path), image(tmp_path, crop="none"))
    paint("a.png", size=(16, 16), mode="RGBA", colour=(0, 0, 0, 0))
    assert image(tmp_path).min() == 1
    assert image(tmp_path, background="black").max() == -1
    assert image(tmp_path, background="black", rotate=20.0).max() == -1


def test_transform_is_called_last_and_keeps_the_size(folder):
    inverted = image(folder, transform=lambda picture, generator: ImageOps.invert(picture))
    assert torch.allclose(inverted, -image(folder), atol=1e-6)
    grey = image(folder, transform=lambda picture, generator: picture.convert("L"))
    assert torch.equal(grey[0], grey[2])
    with pytest.raises(UserError, match=r"picture_0\.png 4×4 pixels; expected 16×16"):
        image(folder, transform=lambda picture, generator: picture.resize((4, 4)))
    with pytest.raises(UserError, match=r"gave a NoneType for .*picture_0\.png; expected a PIL"):
        image(folder, transform=lambda picture, generator: None)


def test_buckets(paint, tmp_path):
    paint("a.png", size=(40, 40))
    paint("b.png", size=(80, 40))
    dataset = ImageFolder(tmp_path, buckets=Buckets(32, step=8))
    assert dataset.groups == [(32, 32), (24, 40)]
    assert [tuple(e["image"].shape) for e in dataset] == [(3, 32, 32), (3, 24, 40)]


def test_captions_option(folder):
    (folder / "picture_0.txt").write_text("said")
    assert ImageFolder(folder).captions[0] == "said"
    assert ImageFolder(folder, captions="filename").captions[0] == "picture 0"


def test_problems_raise_or_are_skipped(folder):
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"4 pictures can.*\n.*a\.png: .*empty.*\n.*b\.png: not a pic"):
        ImageFolder(folder)
    with pytest.raises(UserError, match='on_problem="skip"'):
        ImageFolder(folder)
    dataset = ImageFolder(folder, on_problem="skip")
    assert len(dataset) == 4
    assert [problem.path.name for problem in dataset.problems] == ["a.png", "b.png"]
    for index in range(4):
        (folder / f"picture_{index}.png").unlink()
    with pytest.raises(UserError, match=r"no picture in .* can be used:\n.*a\.png"):
        ImageFolder(folder, on_problem="skip")


def test_many_problems_are_counted(paint, tmp_path):
    paint("z.png")
    for index in range(25):
        (tmp_path / f"bad{index:02}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"bad19.*\n  … and 5 more\n") as caught:
        ImageFolder(tmp_path)
    assert "bad20" not in str(caught.value)


def test_a_picture_that_vanishes_is_named(folder):
    dataset = ImageFolder(folder)
    (folder / "picture_2.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the picture .*picture_2\.png: the file is gone"):
        dataset[2]


def test_memory_limit(folder):
    dataset = ImageFolder(folder, size=16, memory_limit=16 * 16 * 3 * 2)
    before = [example["image"] for example in dataset]
    for path in dataset.paths:
        Image.new("RGB", (24, 16)).save(path)
    after = [example["image"] for example in dataset]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, False]


def test_pickles_without_its_pixels(folder):
    dataset = ImageFolder(folder, size=16)
    expected = [example["image"] for example in dataset]
    blob = pickle.dumps(dataset)
    assert len(blob) < 4 * 16 * 16 * 3
    again = pickle.loads(blob)
    assert all(torch.equal(e["image"], x) for e, x in zip(again, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "centre"}, "unknown crop 'centre'; did you mean 'center'"),
        ({"flip": 2}, "flip is 2; expected a number from 0 to 1"),
        ({"jitter": -0.1}, r"jitter is -0\.1"),
        ({"rotate": float("nan")}, "rotate is nan"),
        ({"size": 0}, "size is 0"),
        ({"on_problem": "ignore"}, "unknown on_problem 'ignore'"),
        ({"background": "wite"}, "background is 'wite'"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(UserError, match=message):
        ImageFolder(folder, **options)

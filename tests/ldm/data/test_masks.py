import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Buckets, ImageFolder, LatentCache, Masks, cache_latents, collate


def encode(images):
    return {"mean": torch.nn.functional.avg_pool2d(images, 4), "std": torch.ones(len(images), 3, 4, 4)}


@pytest.fixture
def folder(tmp_path):
    """Pictures whose red is their own mask: opaque (white in the mask file) where red is 255."""
    noise = np.random.default_rng(0)
    for index, (width, height) in enumerate([(32, 16), (16, 24), (16, 16), (21, 33)]):
        blocks = noise.integers(0, 2, (4, 4)) * 255
        blocks[0, 0], blocks[0, 1] = 255, 0
        mask = Image.fromarray(blocks.astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
        zero = Image.new("L", mask.size, 0)
        (tmp_path / "alpha").mkdir(exist_ok=True)
        Image.merge("RGBA", (mask, zero, zero, mask)).save(tmp_path / f"alpha/{index}.png")
        for name in (f"files/{index}.png", f"beside/{index}.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.merge("RGB", (mask, zero, zero)).save(tmp_path / name)
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / f"masks/{index}.webp", lossless=True)
        mask.save(tmp_path / f"beside/{index}.mask.png")
    return tmp_path


def opened(folder, source, **options):
    masks = {
        "alpha": Masks("alpha", downscale=4),
        "files": Masks("files", folder / "masks", downscale=4),
        "beside": Masks("files", downscale=4),
    }[source]
    return ImageFolder(folder / source, size=16, masks=masks, background="black", **options)


RANDOM = [
    {},
    {"flip": 0.5},
    {"crop": "none"},
    {"crop": "random", "flip": 0.5},
    {"crop": "random", "crop_variants": 3, "flip": 0.5},
    {"rotate": 20.0},
    {"buckets": Buckets(16, step=4)},
]


@pytest.mark.parametrize("source", ["alpha", "files", "beside"])
@pytest.mark.parametrize("options", RANDOM, ids=str)
def test_masks_go_the_way_of_their_pictures(folder, source, options):
    dataset = opened(folder, source, **options)
    assert len(dataset) == 4
    worst = []
    for epoch in range(4):
        for index in range(4):
            example = dataset.example(index, epoch)
            height, width = dataset.groups[index]
            assert example["mask"].shape == (1, height // 4, width // 4)
            assert example["mask"].dtype == torch.float32
            assert 0 <= example["mask"].min() <= example["mask"].max() <= 1
            red = torch.nn.functional.avg_pool2d((example["image"][:1] + 1) / 2, 4)
            worst.append(float((red - example["mask"]).abs().max()))
            assert torch.equal(dataset.example(index, epoch)["mask"], example["mask"])
    # Pictures are resized with a sharper filter than masks, and rotated ones with a cubic one.
    assert max(worst) < 0.2
    assert float(np.mean(worst)) < 0.08


@pytest.mark.parametrize("options", RANDOM[:2] + RANDOM[4:5], ids=str)
def test_cached_masks_are_those_of_the_pictures(folder, tmp_path, options):
    dataset = opened(folder, "files", **options)
    for _ in range(2):  # encoded, then read
        with LatentCache(tmp_path / "cache", "x") as cache:
            latents = cache_latents(dataset, encode, cache)
        for epoch in range(5):
            for index in range(4):
                cached, example = latents.example(index, epoch), dataset.example(index, epoch)
                assert torch.equal(cached["mask"], example["mask"])
                assert torch.equal(cached["latent_mean"], encode(example["image"][None])["mean"][0])
        assert collate([latents[0], latents[1]])["mask"].shape == (2, 1, 4, 4)


def test_a_changed_mask_is_read_again(folder, tmp_path):
    def mask():
        with LatentCache(tmp_path / "cache", "x") as cache:
            return cache_latents(opened(folder, "files"), encode, cache)[0]["mask"]

    before = mask()
    Image.new("L", (32, 16), 255).save(folder / "masks/0.webp", lossless=True)
    assert before.mean() < 1
    assert mask().mean() == 1


def test_floor_and_normalise(folder):
    def mask(**options):
        masks = Masks("files", folder / "masks", downscale=4, **options)
        return ImageFolder(folder / "files", size=16, masks=masks)[2]["mask"]

    bare = mask()
    assert torch.allclose(mask(floor=0.25), 0.25 + 0.75 * bare)
    assert torch.allclose(mask(normalise=True), bare / bare.mean())
    assert abs(float(mask(normalise=True, floor=0.5).mean()) - 1) < 1e-6


def test_pictures_without_a_mask_count_everywhere(folder):
    (folder / "masks/1.webp").unlink()
    dataset = opened(folder, "files")
    assert dataset.mask_files[1] is None
    assert dataset[1]["mask"].min() == 1
    assert dataset[0]["mask"].min() < 1


def test_masks_are_no_pictures(folder):
    assert len(ImageFolder(folder / "beside", size=16)) == 4
    (folder / "masks").rename(folder / "files/masks")
    masks = Masks("files", folder / "files/masks", downscale=4)
    assert len(ImageFolder(folder / "files", size=16, masks=masks)) == 4


def test_bad_masks_are_named_and_set_aside(folder):
    (folder / "masks/0.webp").write_bytes(b"rubbish")
    Image.new("L", (16, 16), 0).save(folder / "masks/1.webp", lossless=True)
    Image.new("L", (16, 16), 9).save(folder / "masks/lost.png")
    with pytest.raises(
        UserError, match=r"(?s)the mask of 0\.png cannot be used: not a pic.*1\.png .*black all over"
    ):
        opened(folder, "files")
    dataset = opened(folder, "files", on_problem="skip")
    assert [p.rsplit("/", 1)[-1] for p in dataset.paths] == ["2.png", "3.png"]
    assert [(p.path.name, p.kind) for p in dataset.problems] == [
        ("0.webp", "mask"), ("1.webp", "mask"), ("lost.png", "mask"),
    ]  # fmt: skip
    assert len(dataset.mask_files) == 2


def test_errors(folder, tmp_path):
    with pytest.raises(UserError, match='masks="alpha", but no picture in .* is transparent'):
        ImageFolder(folder / "files", masks=Masks("alpha"))
    with pytest.raises(UserError, match=r"no picture has a mask in .*; expected files such as 0\.mask\.png"):
        ImageFolder(folder / "files", masks=Masks("files"))
    with pytest.raises(UserError, match="there is no folder of masks"):
        ImageFolder(folder / "files", masks=Masks("files", tmp_path / "nowhere"))
    with pytest.raises(UserError, match="unknown source of masks 'alfa'; did you mean 'alpha'"):
        Masks("alfa")
    with pytest.raises(UserError, match="expected one of them"):
        Masks("alpha", tmp_path)
    with pytest.raises(UserError, match=r"floor of masks is 2"):
        Masks(floor=2)
    with pytest.raises(UserError, match="downscale of masks is 0"):
        Masks(downscale=0)
    with pytest.raises(
        UserError, match="20×20 pixels and a latent map 8 times smaller; expected multiples of 8"
    ):
        ImageFolder(folder / "alpha", size=20, masks=Masks("alpha"))
    with LatentCache(tmp_path / "cache", "x") as cache:
        dataset = ImageFolder(folder / "alpha", size=16, masks=Masks("alpha", downscale=8))
        with pytest.raises(
            UserError, match=r"\(2, 2\) where its latents are \(4, 4\); set the downscale .* 4"
        ):
            cache_latents(dataset, encode, cache)
    with pytest.raises(UserError, match="opened without masks"):
        ImageFolder(folder / "files").mask(0)

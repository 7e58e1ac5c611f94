from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import Buckets, ImageFolder, LatentCache, cache_latents


class Encoder:
    """Every second pixel, and how often it was asked."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return {"mean": images[:, :, ::2, ::2], "std": images[:, :, ::2, ::2].abs()}


@pytest.fixture
def folder(paint, tmp_path):
    for index in range(5):
        paint(f"pictures/p{index}.png", seed=index)
    return tmp_path / "pictures"


def test_latents_are_what_the_encoder_gives(folder, tmp_path):
    dataset = ImageFolder(folder, size=16)
    encoder, seen = Encoder(), []
    with LatentCache(tmp_path / "cache", "x") as cache:
        progress = lambda done, total: seen.append((done, total))  # noqa: E731
        latents = cache_latents(dataset, encoder, cache, batch_size=2, progress=progress)
    assert encoder.batches == [2, 2, 1]
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert (latents.captions, latents.paths) == (dataset.captions, dataset.paths)
    assert latents.groups == dataset.groups
    for one, other in zip(latents, dataset, strict=True):
        assert set(one) == {"latent_mean", "latent_std", "caption", "path"}
        assert torch.equal(one["latent_mean"], other["image"][:, ::2, ::2])
        assert one["latent_mean"].untyped_storage().nbytes() == one["latent_mean"].nbytes


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what lies behind an address")
def test_latents_stay_in_the_files_of_the_cache(folder: Path, tmp_path: Path) -> None:
    def file_behind(tensor: torch.Tensor) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return line.split()[-1]
        return ""

    for _ in ("encoded", "read again"):
        with LatentCache(tmp_path / "cache", "x") as cache:
            latents = cache_latents(ImageFolder(folder, size=16), Encoder(), cache, batch_size=2)
        (shard,) = (tmp_path / "cache").rglob("*.safetensors")
        assert {file_behind(latents.example(i, 0)["latent_mean"]) for i in range(5)} == {str(shard)}
    before = latents.example(3, 0)["latent_mean"].clone()
    shard.unlink()
    assert torch.equal(latents.example(3, 0)["latent_mean"], before)


def test_a_second_run_encodes_only_what_changed(folder, tmp_path):
    def run(fingerprint="x", **options):
        encoder = Encoder()
        with LatentCache(tmp_path / "cache", fingerprint) as cache:
            dataset = ImageFolder(folder, **{"size": 16, **options})
            latents = cache_latents(dataset, encoder, cache)
        return latents, sum(encoder.batches)

    first, encoded = run()
    assert encoded == 5
    second, encoded = run()
    assert encoded == 0
    assert torch.equal(first[3]["latent_mean"], second[3]["latent_mean"])
    Image.new("RGB", (16, 16), "red").save(folder / "p3.png")
    changed, encoded = run()
    assert encoded == 1
    assert not torch.equal(first[3]["latent_mean"], changed[3]["latent_mean"])
    (folder / "p0.png").rename(folder / "renamed.png")
    assert run()[1] == 0
    assert run("other encoder")[1] == 5
    for options in ({"size": 8}, {"crop": "none"}, {"background": "black"}, {"flip": 0.5}):
        assert run(**options)[1] == 5
    for shard in (tmp_path / "cache").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-10])
    healed, encoded = run()
    assert encoded == 5
    assert torch.equal(healed[0]["latent_mean"], second[1]["latent_mean"])


def test_equal_pictures_are_encoded_once(folder, tmp_path):
    (folder / "copy.png").write_bytes((folder / "p1.png").read_bytes())
    encoder = Encoder()
    latents = cache_latents(ImageFolder(folder, size=16), encoder, LatentCache(tmp_path / "c", "x"))
    assert encoder.batches == [5]
    assert torch.equal(latents[0]["latent_mean"], latents[2]["latent_mean"])


def test_flips_are_those_of_the_pictures(folder, tmp_path):
    dataset = ImageFolder(folder, size=16, flip=0.5, seed=4)
    latents = cache_latents(dataset, Encoder(), LatentCache(tmp_path / "cache", "x"))
    flipped = 0
    for epoch in range(6):
        for index in range(5):
            image = dataset.example(index, epoch)["image"]
            assert torch.equal(latents.example(index, epoch)["latent_mean"], image[:, ::2, ::2])
            flipped += not torch.equal(image, dataset.picture(index))
    assert 5 < flipped < 25


def test_buckets_are_encoded_by_shape(paint, folder, tmp_path):
    paint("pictures/wide.png", size=(32, 16))
    dataset = ImageFolder(folder, buckets=Buckets(16, step=4))
    encoder = Encoder()
    latents = cache_latents(dataset, encoder, LatentCache(tmp_path / "cache", "x"))
    assert encoder.batches == [5, 1]
    assert latents[5]["latent_mean"].shape == (3, 6, 10)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crop": "random"}, 'crop="random"'),
        ({"jitter": 0.1, "rotate": 5.0}, "jitter and rotate"),
        ({"transform": lambda picture, generator: picture}, "transform"),
    ],
)
def test_random_pictures_cannot_be_cached(folder, tmp_path, options, named):
    dataset = ImageFolder(folder, size=16, **options)
    with pytest.raises(UserError, match=f"cannot be cached with {named}: .*Leave that out"):
        cache_latents(dataset, Encoder(), LatentCache(tmp_path / "cache", "x"))


def test_encoders_that_fail_are_told_apart(folder, tmp_path):
    dataset, cache = ImageFolder(folder, size=16), LatentCache(tmp_path / "cache", "x")
    with pytest.raises(UserError, match=r"'mean' with shape \(1, 3\) for 5 pictures"):
        cache_latents(dataset, lambda images: {"mean": torch.zeros(1, 3)}, cache)
    with pytest.raises(UserError, match=r"NaN or infinity in 'mean' for .*p0\.png; .*float32"):
        cache_latents(dataset, lambda images: {"mean": images * float("nan")}, cache)
    with pytest.raises(UserError, match="batch_size is 0"):
        cache_latents(dataset, Encoder(), cache, batch_size=0)
    assert len(cache) == 0


def test_fixed_random_crops_are_cached(paint, tmp_path):
    for index in range(4):
        paint(f"pictures/p{index}.png", size=(40, 16) if index else (16, 16), seed=index)
    # With this seed no picture's three crops fall on the same of its 25 places.
    dataset = ImageFolder(tmp_path / "pictures", size=16, crop="random", crop_variants=3, flip=0.5, seed=1)
    encoder = Encoder()
    with LatentCache(tmp_path / "cache", "x") as cache:
        latents = cache_latents(dataset, encoder, cache)
    assert sum(encoder.batches) == 3 * 3 * 2 + 2  # a square picture has nowhere else to be cut
    for index in range(4):
        seen = set()
        for epoch in range(24):
            image = dataset.example(index, epoch)["image"]
            assert torch.equal(latents.example(index, epoch)["latent_mean"], image[:, ::2, ::2])
            seen.add(image.numpy().tobytes())
        assert len(seen) == (6 if index else 2)
    encoder = Encoder()
    with LatentCache(tmp_path / "cache", "x") as cache:
        cache_latents(dataset, encoder, cache)
    assert not encoder.batches
    whole = ImageFolder(tmp_path / "pictures", size=16, crop="random", seed=2)
    held = {whole.example(1, epoch)["image"].numpy().tobytes() for epoch in range(40)}
    assert len(held) > 10
    for wrong in ({"crop_variants": 0, "crop": "random"}, {"crop_variants": 3}):
        with pytest.raises(UserError, match="crop_variants is .*; expected 1 or more, and crop='random'"):
            ImageFolder(tmp_path / "pictures", **wrong)


def test_posteriors(folder, tmp_path):
    dataset = ImageFolder(folder, size=16, flip=0.5, seed=9)

    def latents(posterior):
        with LatentCache(tmp_path / "cache", "x") as cache:
            return cache_latents(dataset, Encoder(), cache, posterior=posterior)

    plain, once, random = map(latents, ("deterministic", "once", "random"))
    scores = []
    for index in range(5):
        first = {}
        drawn = set()
        for epoch in range(12):
            row, one, new = (data.example(index, epoch) for data in (plain, once, random))
            assert set(one) == set(new) == {"latent_mean", "caption", "path"}
            side = row["latent_mean"].numpy().tobytes()
            assert torch.equal(one["latent_mean"], first.setdefault(side, one["latent_mean"]))
            drawn.add(new["latent_mean"].numpy().tobytes())
            assert torch.equal(new["latent_mean"], random.example(index, epoch)["latent_mean"])
            scores.append((new["latent_mean"] - row["latent_mean"]) / row["latent_std"])
        assert len(drawn) == 12
        assert not any(torch.equal(value, plain.example(index, 0)["latent_mean"]) for value in first.values())
    scores = torch.cat([score.flatten() for score in scores])
    assert abs(float(scores.mean())) < 0.03
    assert abs(float(scores.std()) - 1) < 0.03
    with pytest.raises(UserError, match="unknown posterior 'rand'"):
        latents("rand")
    with pytest.raises(UserError, match='the encoder gave code; expected "mean" and "std"'):
        cache_latents(
            dataset, lambda images: {"code": images}, LatentCache(tmp_path / "c", "x"), posterior="once"
        )


def test_what_is_no_folder_cannot_be_encoded(tmp_path):
    with pytest.raises(UserError, match="latents of a list; expected an ImageFolder"):
        cache_latents([], Encoder(), LatentCache(tmp_path / "cache", "x"))


@pytest.mark.parametrize("after", range(4))
def test_killed_while_encoding_it_encodes_the_same_batches(paint, tmp_path, monkeypatch, after):
    """A first stage's bits depend on the batch: with pictures of two shapes and a kill after any shard."""
    for index in range(13):
        paint(f"pictures/p{index}.png", size=(32, 32) if index % 3 else (40, 24), seed=index)

    def encode(images):
        return {"mean": images[:, :, ::2, ::2] + images.mean() + len(images)}

    def latents(folder):
        dataset = ImageFolder(tmp_path / "pictures", size=32, buckets=Buckets(32, step=8))
        assert len(set(dataset.groups)) == 2
        cache = LatentCache(tmp_path / folder, "x", shard_entries=3)
        return [one["latent_mean"] for one in cache_latents(dataset, encode, cache, batch_size=2)]

    class Killed(BaseException):
        pass

    whole = latents("whole")
    real, shards = LatentCache.flush, []

    def flush(cache):
        if len(shards) == after:
            raise Killed
        before = len(list(cache.folder.glob("*")))
        real(cache)
        shards.extend([1] * (len(list(cache.folder.glob("*"))) - before))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LatentCache, "flush", flush)
        latents("killed")
    assert all(torch.equal(one, other) for one, other in zip(latents("killed"), whole, strict=True))

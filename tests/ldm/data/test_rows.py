"""Datasets of one's own are seen as a folder of the same pictures is, to the bit; what could not be resumed is refused."""

import io
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import (
    BatchOrder,
    Buckets,
    Captioning,
    ImageFolder,
    LatentCache,
    Masks,
    PictureRows,
    cache_latents,
    rows,
    split,
)
from hyperbrush.training.data.ahead import Ahead, as_batch, decodes

SIZES = [(16, 16), (24, 16), (16, 24), (33, 17), (16, 16)]


def pixels(i):
    width, height = SIZES[i]
    return np.random.default_rng(i).integers(0, 256, (height, width, 3)).astype(np.uint8)


def image(i):
    return Image.fromarray(pixels(i))


def content(i):
    made = io.BytesIO()
    image(i).save(made, "PNG")
    return made.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i in range(len(SIZES)):
        (tmp_path / f"{i}.png").write_bytes(content(i))
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    return tmp_path


class Mapped(Dataset):
    def __getitem__(self, i):
        return image(i), f"text {i}"

    def __len__(self):
        return len(SIZES)


class Stream(IterableDataset):
    def __init__(self, count=5):
        self.count = count

    def __iter__(self):
        for i in range(self.count):
            yield {"__key__": str(i), "jpg": content(i % len(SIZES)), "txt": f"text {i}".encode()}


def hugging_face(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = {"image": [str(folder / f"{i}.png") for i in range(5)], "text": [f"text {i}" for i in range(5)]}
    return datasets.Dataset.from_dict(made, features=features)


FORMS = {
    "torch": lambda folder: Mapped(),
    "stream": lambda folder: Stream(),
    "generator": lambda folder: ({"image": image(i), "text": f"text {i}"} for i in range(5)),
    "pil": lambda folder: [{"image": image(i), "text": f"text {i}"} for i in range(5)],
    "paths": lambda folder: [{"image": folder / f"{i}.png", "caption": f"text {i}"} for i in range(5)],
    "bytes": lambda folder: [{"img": content(i), "prompt": f"text {i}"} for i in range(5)],
    "files": lambda folder: [
        {"image": {"bytes": content(i), "path": None}, "text": f"text {i}"} for i in range(5)
    ],
    "arrays": lambda folder: [{"image": pixels(i), "text": f"text {i}"} for i in range(5)],
    "tensors": lambda folder: [
        {"image": torch.from_numpy(pixels(i)).permute(2, 0, 1) / 255, "text": f"text {i}"} for i in range(5)
    ],
    "hugging face": hugging_face,
    "hugging face stream": lambda folder: hugging_face(folder).to_iterable_dataset(),
}


def examples(data, epochs=2):
    return [
        {k: v for k, v in data.example(i, epoch).items() if k != "path"}
        for epoch in range(epochs)
        for i in range(len(data))
    ]


def same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def encode(images):
    return {"mean": torch.nn.functional.avg_pool2d(images, 4), "std": torch.ones(len(images), 3, 4, 4)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_as_the_folder(form, folder):
    how = {
        "flip": 0.5, "crop": "random", "jitter": 0.2, "rotate": 10.0, "seed": 3,
        "captioning": Captioning(("[filewords], a", "[filewords], b")),
    }  # fmt: skip
    same(
        examples(PictureRows(FORMS[form](folder), size=16, **how)),
        examples(ImageFolder(folder, size=16, **how)),
    )
    bucketed = {"buckets": Buckets(16, step=4), "size": 16}
    one, other = PictureRows(FORMS[form](folder), **bucketed), ImageFolder(folder, **bucketed)
    assert (one.groups, one.sizes, one.captions) == (other.groups, other.sizes, other.captions)


@pytest.mark.parametrize("form", ["torch", "stream", "paths"])
def test_latents_are_cached_and_held_out_as_of_a_folder(form, folder, tmp_path):
    how = {"size": 16, "flip": 0.5, "crop": "random", "crop_variants": 2}
    found = []
    for data in (PictureRows(FORMS[form](folder), **how), ImageFolder(folder, **how)):
        train, held = split(data, 0.4)
        with LatentCache(tmp_path / "cache" / type(data).__name__, "x") as cache:
            found.append([examples(cache_latents(part, encode, cache)) for part in (train, held)])
    same(found[0][0], found[1][0])
    same(found[0][1], found[1][1])


def test_files_and_folders_share_a_cache(folder, tmp_path):
    for data in (ImageFolder(folder, size=16), PictureRows(FORMS["paths"](folder), size=16)):
        with LatentCache(tmp_path / "cache", "x") as cache:
            cache_latents(data, encode, cache)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_masks(folder):
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    given = [{"image": image(i), "text": "x", **({"mask": half} if i != 1 else {})} for i in range(3)]
    data = PictureRows(given, size=16, masks=Masks("files", downscale=4))
    assert [data.example(i, 0)["mask"].mean().item() for i in range(3)] == [0.5, 1.0, 0.5]
    with LatentCache(folder / "cache", "x") as cache:
        latents = cache_latents(data, encode, cache)
    assert torch.equal(latents.example(0, 0)["mask"], data.example(0, 0)["mask"])
    clear = Image.fromarray(np.dstack([pixels(0), half]))
    seen = PictureRows([(clear, "x"), (image(1), "y")], size=16, masks=Masks("alpha", downscale=4))
    assert [seen.example(i, 0)["mask"].mean().item() for i in range(2)] == [0.5, 1.0]
    with pytest.raises(UserError, match="no example of list has a mask; expected 'mask'"):
        PictureRows([(image(0), "x")], size=16, masks=Masks("files", downscale=4))
    with pytest.raises(UserError, match="transparent anywhere"):
        PictureRows([(image(0), "x")], size=16, masks=Masks("alpha", downscale=4))
    with pytest.raises(UserError, match="a folder of masks is for folders"):
        PictureRows([(image(0), "x")], size=16, masks=Masks("files", folder, downscale=4))


def test_several_captions_names_and_none(folder):
    given = [{"image": folder / "0.png", "captions": ["one", "two"]}, {"image": folder / "1.png"}]
    data = PictureRows(given)
    assert data.alternatives == [("one", "two"), ("1",)]
    assert PictureRows(given, captions="none").captions == ["", ""]
    lines = PictureRows([(image(0), "one\n two \n")], caption_lines=True)
    assert lines.alternatives == [("one", "two")]
    keyed = PictureRows([{"image": "x", "photo": image(0), "title": "t"}], image="photo", caption="title")
    assert keyed.captions == ["t"]


class Restless(Mapped):
    """As datasets with random augmentation of their own."""

    def __getitem__(self, i):
        turned = image(i).rotate(random.choice([90, 180, 270]) if i else random.random() * 90)
        return turned, f"text {i}"


def test_what_changes_from_call_to_call_is_refused_by_name():
    with pytest.raises(
        UserError, match=r"example \d of Restless is another picture .* not be resumed exactly.* flip, crop"
    ):
        PictureRows(Restless(), size=16)

    class Later(Mapped):
        def __getitem__(self, i):
            return image((i + self.shift) % 5), "x"

        shift = 0

    rows = Later()
    data = PictureRows(rows, size=16)
    data.example(0, 0)
    rows.shift = 1
    data.example(0, 0)  # from memory
    with pytest.raises(UserError, match="example 1 of Later is another picture"):
        data.example(1, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "list has no examples"),
        (3, "expected examples by number or one by one, got int 3"),
        ("pictures", "expected examples by number or one by one, got str"),
        ({"train": [1], "test": [2]}, r"a dict with train, test: expected one dataset, such as dataset\['train'\]"),
        ([3], r"00000000: an example is a int; expected a mapping with image and text, or a pair"),
        ([{"photo": 1, "text": "x"}], r"no picture among photo, text; expected 'image', or say which"),
        ([{"image": 3, "text": "x"}], r"a picture is 3 \(int\); expected a PIL image"),
        ([{"image": image(0)}], r"no caption and no file name; expected one of text, caption"),
        ([(image(0), 7)], r"the caption 7 is a int; expected a text"),
        ([{"image": image(0), "text": []}], r"the captions are \[\]; expected"),
        ([(b"rubbish", "x")], "not a picture Pillow can read"),
        ([("gone.png", "x")], "the file is gone"),
        ([(torch.rand(3, 8, 8) * 2 - 1, "x")], r"floats go from -[\d.]+ to .*; expected 0 to 1 \(undo a Normalize\)"),
        ([(torch.zeros(8, 8, 3), "x")], r"shape \(8, 8, 3\); expected an array .* or a tensor \(channels"),
        ([(np.zeros((3, 8, 8), np.uint8), "x")], r"shape \(3, 8, 8\)"),
        ([(np.zeros((8, 8), np.int64), "x")], "numbers of type int64; expected uint8"),
    ],
)  # fmt: skip
def test_what_is_no_dataset_is_said(given, words):
    with pytest.raises(UserError, match=words):
        PictureRows(given, size=16)


def test_bad_examples_are_left_out_or_all_named():
    given = [(image(0), "x"), (b"rubbish", "y"), (image(2), 5), (image(3), "z")]
    with pytest.raises(UserError, match=r"00000001: not a picture(.|\n)*00000002: the caption 5"):
        PictureRows(given, size=16)
    data = PictureRows(given, size=16, on_problem="skip")
    assert data.captions == ["x", "z"]
    assert [p.path.name for p in data.problems] == ["00000001", "00000002"]
    same([examples(data, 1)[1]], [examples(PictureRows([given[3]], size=16), 1)[0]])
    with pytest.raises(UserError, match="captions is 'text', which looks for files"):
        PictureRows(given, captions="text")


def test_endless_streams_are_refused(monkeypatch):
    monkeypatch.setattr(rows, "MOST_STREAMED", 20)
    assert len(PictureRows(Stream(20), size=16)) == 20
    with pytest.raises(UserError, match="a stream has given 20 examples and goes on"):
        PictureRows(Stream(10**9), size=16)


def test_a_streams_folder_goes_with_the_last_dataset_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = PictureRows(Stream(), size=16, memory_limit=0)
    held = data.without_chance()
    wanted = held.example(2, 0)["image"]
    sent = pickle.loads(pickle.dumps(data))
    assert torch.equal(sent.example(2, 0)["image"], wanted)
    del data, sent
    assert torch.equal(held.example(2, 0)["image"], wanted)
    assert list(tmp_path.iterdir())
    del held
    assert not list(tmp_path.iterdir())


class Counting(Mapped):
    def __init__(self):
        self.threads = set()

    def __getitem__(self, i):
        import threading

        self.threads.add(threading.current_thread().name.split("_")[0])
        return super().__getitem__(i)


@pytest.mark.parametrize("kind", ["rows", "folder", "selection"])
def test_batches_are_decoded_ahead_and_are_the_same(kind, folder):
    own = Counting()
    how = {"size": 16, "flip": 0.5, "jitter": 0.3, "memory_limit": 0, "seed": 1}
    data = ImageFolder(folder, **how) if kind == "folder" else PictureRows(own, **how)
    data = split(data, 0.4)[0] if kind == "selection" else data
    order, ahead = BatchOrder(data.groups, 2, 5), Ahead()
    assert decodes(data)
    own.threads.clear()
    for step in (0, 1, 2, 3, 9, 10, 4):  # on, and elsewhere
        expected = as_batch([data.example(i, epoch) for epoch, i in order.pairs(step)])
        found = ahead.batch(data, order, step)
        assert found.keys() == expected.keys()
        assert torch.equal(found["images"], expected["images"])
        assert found["captions"] == expected["captions"]
    other = BatchOrder(data.groups, 3, 6)
    assert len(ahead.batch(data, other, 5)["captions"]) == 3
    assert kind == "folder" or "pictures" in own.threads


def test_transforms_and_latents_are_made_in_the_step(folder, tmp_path):
    data = ImageFolder(folder, size=16, transform=lambda picture, generator: picture)
    assert not decodes(data)
    with LatentCache(tmp_path / "cache", "x") as cache:
        latents = cache_latents(ImageFolder(folder, size=16), encode, cache)
    assert not decodes(latents)
    assert Ahead().batch(latents, BatchOrder(5, 2, 0), 0)["latent_means"].shape == (2, 3, 4, 4)


def test_a_picture_that_is_gone_ends_the_step_that_needs_it(folder):
    data = ImageFolder(folder, size=16, memory_limit=0)
    order, ahead = BatchOrder(data.groups, 5, 0), Ahead()
    ahead.batch(data, order, 0)
    (folder / "3.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the picture .*3.png"):
        for step in range(1, 9):
            ahead.batch(data, order, step)

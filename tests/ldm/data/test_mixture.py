from collections import Counter

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import (
    BatchOrder,
    Buckets,
    ImageFolder,
    LatentCache,
    Mixture,
    Part,
    Selection,
    cache_latents,
    captions_seen,
    collate,
    split,
)


@pytest.fixture
def folders(paint, tmp_path):
    for name, count in (("a", 6), ("b", 3), ("c", 10)):
        for index in range(count):
            size = (32, 16) if index % 3 == 2 else (16, 16)
            paint(f"{name}/{name}{index}.png", size=size, seed=ord(name) * 100 + index)
    return {
        name: ImageFolder(
            tmp_path / name, buckets=Buckets(16, step=4), flip=0.5, crop="random", crop_variants=2, seed=seed
        )
        for seed, name in enumerate("abc")
    }


def shown(mixture, epochs, start=0):
    return Counter(
        mixture.example(index, epoch)["path"].rsplit("/", 1)[-1]
        for epoch in range(start, epochs)
        for index in range(len(mixture))
    )


def test_repeats(folders):
    mixture = Mixture([Part(folders["a"]), Part(folders["b"], repeats=3)])
    assert len(mixture) == 6 + 9
    counts = shown(mixture, 1)
    assert {name: counts[name] for name in ("a0.png", "b0.png", "b2.png")} == {
        "a0.png": 1, "b0.png": 3, "b2.png": 3,
    }  # fmt: skip
    assert Counter(mixture.paths) == Counter(
        {p: 1 for p in folders["a"].paths} | dict.fromkeys(folders["b"].paths, 3)
    )
    # Each repeat has chances of its own, and the next epoch goes on where this one stopped.
    places = [mixture.place(i, e) for e in (0, 1) for i in range(len(mixture))]
    assert [own for part, i, own in places if (part, i) == (1, 0)] == [0, 1, 2, 3, 4, 5]
    for index in range(len(mixture)):
        for epoch in range(3):
            part, own, own_epoch = mixture.place(index, epoch)
            example = mixture.example(index, epoch)
            expected = mixture.parts[part].data.example(own, own_epoch)
            assert torch.equal(example["image"], expected["image"])
            assert example["path"] == mixture.paths[index]
            assert example["caption"] == mixture.captions[index] == mixture.caption(index, epoch)
            assert tuple(example["image"].shape[1:]) == mixture.groups[index]


def test_shares_hold_whatever_the_sizes(folders):
    mixture = Mixture(
        [Part(folders["a"], share=1), Part(folders["b"], share=2.5), Part(folders["c"], share=1)], seed=5
    )
    counts = shown(mixture, 60)
    parts = Counter()
    for name, count in counts.items():
        parts[name[0]] += count
    assert abs(parts["b"] / parts["a"] - 2.5) < 0.05
    assert abs(parts["c"] / parts["a"] - 1) < 0.05
    for letter in "abc":
        for stem in ("0", "2"):  # of one shape each: equally often within a shape, to one use
            same = [
                n
                for name, n in counts.items()
                if name[0] == letter and (int(name[1]) % 3 == 2) == (stem == "2")
            ]
            assert max(same) - min(same) <= 1
    assert set(mixture.paths) == {path for data in folders.values() for path in data.paths}
    for index in range(len(mixture)):
        for epoch in range(5):
            assert tuple(mixture.example(index, epoch)["image"].shape[1:]) == mixture.groups[index]
    again = Mixture(mixture.parts, seed=5)
    other = Mixture(mixture.parts, seed=6)
    places = [[m.place(i, e) for i in range(len(m)) for e in range(4)] for m in (mixture, again, other)]
    assert places[0] == places[1] != places[2]


def test_a_permutation_is_drawn_once_whatever_the_order_of_asking(folders, monkeypatch):
    parts = [Part(folders["a"], share=1), Part(folders["b"], share=9.7)]
    mixture, drawn = Mixture(parts, seed=5), []
    pairs = [(index, epoch) for epoch in range(4) for index in range(len(mixture))]
    forwards = [mixture.place(*pair) for pair in pairs]
    backwards = [mixture.place(*pair) for pair in reversed(pairs)]
    assert forwards == backwards[::-1]
    for index, epoch in pairs:  # as one that keeps nothing has it
        assert Mixture.place(Mixture(parts, seed=5), index, epoch) == forwards[epoch * len(mixture) + index]
    actual = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: drawn.append(a) or actual(*a, **k))
    again = Mixture(parts, seed=5)
    order = BatchOrder(again.groups, 1, seed=3)
    drawn.clear()
    for step in range(len(again)):
        for epoch, index in order.pairs(step):
            again.place(index, epoch)
    assert len(drawn) <= 20 < len(again)


def test_loss_weights_come_with_the_examples(folders):
    mixture = Mixture([Part(folders["a"]), Part(folders["b"], loss_weight=0.25, keep_prior=True)])
    order = BatchOrder(mixture.groups, 4)
    seen = set()
    for step in range(12):
        batch = collate([mixture.example(i, e) for e, i in order.pairs(step)])
        assert batch["weight"].shape == (4,)
        for path, weight in zip(batch["path"], batch["weight"].tolist(), strict=True):
            assert weight == (0.25 if "/b/" in path else 1.0)
            seen.add(weight)
    assert seen == {0.25, 1.0}


def test_latents_of_a_mixture_are_those_of_its_pictures(folders, tmp_path):
    mixture = Mixture([Part(folders["a"], share=1), Part(folders["b"], share=3)])
    encode = lambda images: {"mean": images[:, :, ::4, ::4]}  # noqa: E731
    with LatentCache(tmp_path / "cache", "x") as cache:
        latents = cache_latents(mixture, encode, cache)
    assert (latents.groups, latents.paths, len(latents)) == (mixture.groups, mixture.paths, len(mixture))
    for index in range(len(mixture)):
        for epoch in range(3):
            cached, example = latents.example(index, epoch), mixture.example(index, epoch)
            assert torch.equal(cached["latent_mean"], example["image"][:, ::4, ::4])
            assert {k: cached[k] for k in ("caption", "path")} == {k: example[k] for k in ("caption", "path")}
    order = BatchOrder(latents.groups, 3)
    assert set(captions_seen(latents, order, 30)) == set(folders["a"].captions + folders["b"].captions)


def test_split_holds_out_pictures_not_entries(folders):
    mixture = Mixture(
        [Part(folders["a"], repeats=2), Part(folders["b"], keep_prior=True), Part(folders["c"])]
    )
    train, held = split(mixture, 0.3, seed=1)
    trained, out = set(train.paths), set(held.paths)
    assert not trained & out
    assert trained | out == set(mixture.paths)
    assert Counter(path.split("/")[-2] for path in held.paths) == {"a": 2, "c": 3}
    assert len(train) == 4 * 2 + 3 + 7
    assert shown(held, 1) == shown(held, 2, start=1)
    first, again = held.example(0, 0)["image"], held.example(0, 7)["image"]
    assert torch.equal(first, again)
    one, two = split(folders["c"], 0.2)
    assert (len(one), len(two)) == (8, 2)
    assert not set(one.paths) & set(two.paths)
    assert split(folders["c"], 0.2)[1].paths == two.paths
    assert {tuple(split(folders["c"], 0.2, seed)[1].paths) for seed in range(8)} != {tuple(two.paths)}


def test_only_the_selected_pictures_are_encoded(folders, tmp_path):
    asked = []

    def encode(images):
        asked.append(len(images))
        return {"mean": images[:, :, ::4, ::4]}

    train, held = split(folders["c"], 0.3)
    with LatentCache(tmp_path / "cache", "x") as cache:
        latents = cache_latents(held, encode, cache)
    assert sum(asked) == 3
    assert isinstance(latents, Selection)
    for index in range(3):
        image = held.example(index, 4)["image"]
        assert torch.equal(latents.example(index, 4)["latent_mean"], image[:, ::4, ::4])
    assert [train.example(i, 2)["path"] for i in range(7)] == train.paths


def test_errors(folders):
    a, b = folders["a"], folders["b"]
    for message, make in (
        ("a mixture of no datasets", lambda: Mixture([])),
        (
            "1 of 2 parts have a share; expected all of them or none",
            lambda: Mixture([Part(a, share=1), Part(b)]),
        ),
        ("repeats is 0", lambda: Part(a, repeats=0)),
        ("share is 0", lambda: Part(a, share=0)),
        ("share is nan", lambda: Part(a, share=float("nan"))),
        ("expected one of them", lambda: Part(a, share=1, repeats=2)),
        ("loss_weight is -1", lambda: Part(a, loss_weight=-1)),
        ("the share held out is 1", lambda: split(a, 1)),
        ("all parts keep the prior", lambda: split(Mixture([Part(a, keep_prior=True)]), 0.5)),
        ("part 1 is a Mixture", lambda: split(Mixture([Part(Mixture([Part(a)]))]), 0.5)),
        ("no examples", lambda: Selection(a, [])),
        ("there is no example 6 among 6", lambda: Selection(a, [0, 6])),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_one_picture_cannot_be_held_out(paint, tmp_path):
    paint("one/a.png")
    with pytest.raises(UserError, match="one usable picture; expected 2 or more"):
        split(ImageFolder(tmp_path / "one"), 0.5)

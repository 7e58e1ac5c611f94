"""Factors, arithmetic on ΔW, rank relaxation, and our files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.modelspec import hash_matches
from hyperbrush.hypernetworks.generator import Factors, GeneratedWeights, TargetNetwork, blend, mean

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pair() -> tuple[GeneratedWeights, GeneratedWeights]:
    generator = torch.Generator().manual_seed(0)

    def one(rank: int, scale: float) -> GeneratedWeights:
        return GeneratedWeights(
            {
                name: Factors(
                    torch.randn(rank, 6, generator=generator),
                    torch.randn(5, rank, generator=generator),
                    scale,
                )
                for name in ("a", "b")
            }
        )

    return one(2, 0.5), one(3, 2.0)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_factors_must_fit() -> None:
    for down, up in (
        ((2, 4), (4, 3)),
        ((2, 4), (1, 4, 2)),
        ((3, 2, 4), (2, 4, 2)),
        ((0, 4), (4, 0)),
        ((4,), (4,)),
    ):
        with pytest.raises(UserError, match="do not fit"):
            Factors(torch.zeros(down), torch.zeros(up))
    with pytest.raises(UserError, match="at least one layer"):
        GeneratedWeights({})
    one = Factors(torch.zeros(2, 4), torch.zeros(3, 2))
    with pytest.raises(UserError, match="batches differ"):
        GeneratedWeights({"a": one, "b": Factors(torch.zeros(1, 2, 4), torch.zeros(1, 3, 2))})


def test_delta_size_and_picking(pair: Any) -> None:
    one, _ = pair
    factors = one.factors["a"]
    assert torch.equal(one.delta("a"), 0.5 * factors.up @ factors.down)
    assert set(one.delta()) == {"a", "b"}
    assert one.size == 2 * 2 * 11
    assert one.nbytes == 4 * one.size
    with pytest.raises(UserError, match="unknown layer 'c'"):
        one.delta("c")
    many = GeneratedWeights({"a": Factors(torch.randn(3, 2, 6), torch.randn(3, 5, 2))})
    assert len(many) == 3
    assert [torch.equal(w.delta("a"), many.delta("a")[i]) for i, w in enumerate(many)] == [True] * 3
    assert many[-1].batch is None
    with pytest.raises(IndexError):
        many[3]
    assert "3 × 1 layers, rank 2" in repr(many)


def test_arithmetic(pair: Any) -> None:
    one, two = pair
    assert close((one + two).delta("a"), one.delta("a") + two.delta("a"))
    assert close((one - two).delta("b"), one.delta("b") - two.delta("b"))
    assert close((-one * 3).delta("a"), -3 * one.delta("a"))
    assert close(mean([one, two]).delta("a"), (one.delta("a") + two.delta("a")) / 2)
    assert close(blend([one, two], [0.3, -1.0]).delta("b"), 0.3 * one.delta("b") - two.delta("b"))
    assert (one + two).rank == 5
    alone = GeneratedWeights({"c": Factors(torch.ones(1, 4), torch.ones(4, 1))})
    assert close((one + alone).delta("c"), alone.delta("c"))
    assert close((one + alone).delta("a"), one.delta("a"))
    for wrong, message in (
        (lambda: blend([]), "nothing to blend"),
        (lambda: blend([one], [1.0, 2.0]), "2 shares for 1"),
        (
            lambda: one + GeneratedWeights({"a": Factors(torch.ones(1, 4), torch.ones(4, 1))}),
            "different shapes",
        ),
        (lambda: one + GeneratedWeights({"a": Factors(torch.ones(1, 1, 6), torch.ones(1, 5, 1))}), "batches"),
        (lambda: one.inner(alone), "no layer in common"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_truncation_is_the_best_of_its_rank(pair: Any) -> None:
    one, two = pair
    whole = (one + two).delta("a")
    cut = (one + two).truncate(2)
    u, s, v = torch.linalg.svd(whole)
    assert cut.rank == 2
    assert close(cut.delta("a"), (u[:, :2] * s[:2]) @ v[:2])
    assert close(blend([one, two], [1, 1], rank=2).delta("a"), cut.delta("a"))
    assert one.truncate(4).ranks == one.ranks
    with pytest.raises(UserError, match="impossible"):
        one.truncate(0)


def test_distances_without_delta_and_their_symmetries(pair: Any) -> None:
    one, two = pair
    by_hand = sum((one.delta(n) - two.delta(n)).square().sum() for n in ("a", "b"))
    assert close(one.squared_distance(two), torch.as_tensor(by_hand))
    turn = torch.linalg.qr(torch.randn(2, 2))[0] @ torch.diag(torch.tensor([3.0, 0.2]))
    same = GeneratedWeights(
        {n: Factors(turn @ f.down, f.up @ turn.inverse(), f.scale) for n, f in one.factors.items()}
    )
    assert float(one.squared_distance(same).abs()) < 1e-3 * float(one.squared_norm())
    many = GeneratedWeights({"a": Factors(torch.randn(3, 2, 6), torch.randn(3, 5, 2))})
    distances = many.squared_distance(many * 0.0)
    assert close(distances, many.delta("a").square().sum((1, 2)))
    leaves = one.requires_grad_()
    grads = torch.autograd.grad(leaves.squared_distance(two), leaves.parameters())
    assert all(bool(g.any()) for g in grads)


def test_expanding_the_rank_keeps_the_change_and_gives_room(
    make_unet: Make, make_weights: Make, call: Make
) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    wide = weights.expand_rank(6)
    assert set(wide.ranks.values()) == {6}
    for name in weights.layers:
        assert close(wide.delta(name), weights.delta(name))
        assert torch.equal(wide.factors[name].up[:, 2:], torch.zeros_like(wide.factors[name].up[:, 2:]))
    assert close(wide.delta(name), weights.expand_rank(6, seed=1).delta(name))
    assert not torch.equal(wide.factors[name].down, weights.expand_rank(6, seed=1).factors[name].down)
    assert torch.equal(wide.factors[name].down, weights.expand_rank(6).factors[name].down)
    tuned = wide.requires_grad_()
    with TargetNetwork(unet).apply_weights(tuned):
        call(unet).square().sum().backward()
    new = [f.up.grad[:, 2:] for f in tuned.factors.values()]
    assert all(float(g.abs().max()) > 0 for g in new)
    with pytest.raises(UserError, match="rank 2 already"):
        weights.expand_rank(1)
    batch = make_weights(unet, batch=2).expand_rank(3)
    assert batch.batch == 2
    assert batch.rank == 3


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_file_and_back(dtype: Any, make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    weights = make_weights(make_unet())
    weights.metadata["style"] = "ink"
    path = weights.save(tmp_path / "ink.safetensors", dtype=dtype)
    again = GeneratedWeights.load(path)
    assert again.name == "ink"
    assert again.metadata["style"] == "ink"
    assert set(again.layers) == set(weights.layers)
    tolerance = 1e-6 if dtype is None else 2e-2
    for name in weights.layers:
        assert torch.allclose(again.delta(name).float(), weights.delta(name), atol=tolerance)
    assert hash_matches(path)
    weights.save(tmp_path / "second.safetensors", dtype=dtype)
    assert (tmp_path / "second.safetensors").read_bytes() == path.read_bytes()
    with safe_open(path, "pt") as file:
        assert file.metadata()["hyperbrush.format"] == "generated-weights/1"
        names = set(file.keys())
    assert names == {f"{n}.{part}" for n in weights.layers for part in ("down", "up")}


def test_what_cannot_be_saved(make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    unet = make_unet()
    weights = make_weights(unet)
    path = tmp_path / "ink.safetensors"
    many = make_weights(unet, batch=2)
    huge = weights * 1e30
    broken = weights * float("nan")
    listed = GeneratedWeights(weights.factors, metadata={"a": object()})
    for save, message in (
        (lambda: many.save(path), "a file holds one adapter, but these are 2"),
        (lambda: weights.save(path, "lora"), "unknown format 'lora'"),
        (lambda: weights.save(tmp_path / "ink.pt"), "ending in .safetensors"),
        (lambda: huge.save(path, dtype=torch.float16), "too large"),
        (lambda: broken.save(path), "not finite"),
        (lambda: weights.save(path, dtype=torch.int8), "dtype torch.int8 is impossible"),
        (lambda: listed.save(path), "metadata"),
    ):
        with pytest.raises(UserError, match=message):
            save()
    assert not path.exists()
    weights.save(path)
    with pytest.raises(UserError, match="exists already"):
        weights.save(path, overwrite=False)
    assert GeneratedWeights.load(many[1].save(path)).batch is None


def test_what_cannot_be_read(make_unet: Make, make_weights: Make, tmp_path: Path) -> None:
    weights = make_weights(make_unet(), layers=["mid"])
    path = weights.save(tmp_path / "ink.safetensors")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    first = next(iter(tensors))

    def written(**changes: Any) -> Path:
        other = tmp_path / "other.safetensors"
        save_file(changes.get("tensors", tensors), other, metadata=header | changes.get("header", {}))
        return other

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-40])
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: tmp_path / "none.safetensors", "does not exist"),
        (lambda: tmp_path / "none.pt", "ending in .safetensors"),
        (lambda: tmp_path, "folder without adapter_config"),
        (lambda: cut, "damaged|cut off"),
        (lambda: text, "damaged|no safetensors"),
        (lambda: written(header={"hyperbrush.format": "generated-weights/9"}), "update it"),
        (lambda: written(header={"hyperbrush.config": "{"}), "config is damaged"),
        (
            lambda: written(header={"hyperbrush.config": json.dumps({"metadata": {}, "shapes": {"a": [1]}})}),
            "damaged",
        ),
        (lambda: written(tensors={k: v for k, v in tensors.items() if k != first}), "not whole"),
        (lambda: written(tensors=tensors | {first: torch.ones(7, 7)}), "expected .rank, in."),
        (lambda: written(tensors=tensors | {first: tensors[first] * float("inf")}), "not finite"),
        (
            lambda: written(header={"hyperbrush.format": "attention-hypernetwork/1"}),
            "neither generated weights",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            GeneratedWeights.load(make())


def test_the_lightweight_form_is_small(make_unet: Make, make_net: Make, tmp_path: Path) -> None:
    unet = make_unet()
    net = make_net(unet, output="lightweight", frame_widths=(3, 5), frame_seed=7, rank=1)
    weights = net.generate_weights(torch.randn(1, 2, 32))[0]
    light = weights.save(tmp_path / "light.safetensors")
    plain = GeneratedWeights(weights.factors).save(tmp_path / "plain.safetensors")
    with safe_open(light, "pt") as file:
        count = sum(file.get_tensor(n).numel() for n in file.keys())  # noqa: SIM118
    assert count == len(weights.layers) * (3 + 5)
    again, same = GeneratedWeights.load(light), GeneratedWeights.load(plain)
    for name in weights.layers:
        assert torch.allclose(again.delta(name), weights.delta(name), atol=1e-5)
        assert torch.allclose(same.delta(name), weights.delta(name), atol=1e-6)
    # Tuned at a higher rank they are no longer of the form, and are written as they are.
    wide = weights.expand_rank(2).save(tmp_path / "wide.safetensors")
    assert torch.allclose(GeneratedWeights.load(wide).delta(name), weights.delta(name), atol=1e-6)
    with safe_open(light, "pt") as file:
        header, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    content = json.loads(header["hyperbrush.config"])
    content["metadata"]["frames"] = "7,2,5"
    save_file(
        tensors, tmp_path / "bad.safetensors", metadata=header | {"hyperbrush.config": json.dumps(content)}
    )
    with pytest.raises(UserError, match="contradicts the header"):
        GeneratedWeights.load(tmp_path / "bad.safetensors")

from collections import Counter

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import BatchOrder, collate


def test_one_group_is_an_endless_stream_of_permutations():
    order = BatchOrder(10, batch_size=4, seed=3)
    assert order.steps_per_epoch == 3
    stream = [index for step in range(15) for index in order.at(step)[1]]
    epochs = [stream[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert [order.at(step)[0] for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_at_is_a_function_of_seed_and_step():
    steps = [17, 0, 5, 5, 16, 2]
    fresh = [BatchOrder("aabbbcaab", 2, seed=1).at(step) for step in steps]
    order = BatchOrder("aabbbcaab", 2, seed=1)
    assert [order.at(step) for step in steps] == fresh
    other = BatchOrder("aabbbcaab", 2, seed=2)
    assert [other.at(step) for step in range(20)] != [order.at(step) for step in range(20)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 16])
def test_batches_never_mix_groups_and_use_every_example_equally(batch_size):
    groups = [(64, 64)] * 9 + [(48, 80)] * 5 + [(80, 48)]
    order = BatchOrder(groups, batch_size, seed=0)
    used: Counter[int] = Counter()
    turns: Counter[tuple[int, int]] = Counter()
    for step in range(len(groups)):
        _, batch = order.at(step)
        assert len(batch) == batch_size
        assert len({groups[index] for index in batch}) == 1
        turns[groups[batch[0]]] += 1
        used.update(batch)
    assert turns == Counter(groups)
    assert set(used.values()) == {batch_size}


def test_groups_take_turns():
    groups = ["a"] * 50 + ["b"] * 50
    order = BatchOrder(groups, 5)
    firsts = [groups[order.at(step)[1][0]] for step in range(10)]
    assert Counter(firsts) == {"a": 5, "b": 5}


def test_pairs_never_repeat():
    order = BatchOrder([0, 0, 0, 1], batch_size=5, seed=0)
    pairs = [pair for step in range(40) for pair in order.pairs(step)]
    assert len(set(pairs)) == len(pairs) == 200
    assert [index for _, index in order.pairs(7)] == order.at(7)[1]


def test_fewer_examples_than_a_batch():
    order = BatchOrder(2, batch_size=5)
    assert order.steps_per_epoch == 1
    assert all(len(order.at(step)[1]) == 5 for step in range(4))
    assert Counter(i for step in range(4) for i in order.at(step)[1]) == {0: 10, 1: 10}


def test_wrong_numbers():
    with pytest.raises(UserError, match="no examples to make batches of"):
        BatchOrder(0, 4)
    with pytest.raises(UserError, match="no examples"):
        BatchOrder([], 4)
    with pytest.raises(UserError, match="batch_size is 0; expected 1 or more"):
        BatchOrder(3, 0)
    with pytest.raises(UserError, match="step is -1"):
        BatchOrder(3, 1).at(-1)


def test_collate():
    batch = collate([{"image": torch.zeros(3, 2, 2), "caption": str(i)} for i in range(4)])
    assert batch["image"].shape == (4, 3, 2, 2)
    assert batch["caption"] == ["0", "1", "2", "3"]


def test_collate_says_what_differs():
    one = {"image": torch.zeros(3, 2, 2), "path": "a.png"}
    two = {"image": torch.zeros(3, 2, 4), "path": "b.png"}
    with pytest.raises(UserError, match=r"\(3, 2, 2\) for a\.png and \(3, 2, 4\) for b\.png"):
        collate([one, two])
    with pytest.raises(UserError, match="different keys in one batch: image, path and path"):
        collate([one, {"path": "b.png"}])
    with pytest.raises(UserError, match="a batch of no examples"):
        collate([])

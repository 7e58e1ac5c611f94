"""Which examples make up the batch of a step: a function of (seed, step), all equally often."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import keyed_generator


class BatchOrder:
    """Endless, resumable batches of exactly ``batch_size`` examples that never mix groups.

    Each group (a bucket's shape) is an endless stream: a seeded permutation of it, then another,
    and so on; its batches are cut from the stream one after the other. Nothing is dropped: what is
    left at the end of a permutation begins the next batch, and a group smaller than a batch
    repeats. So within a group no example is ever more than one use ahead of another. Groups take
    turns in proportion to their sizes: in n steps, for n examples, a group of k has k batches.

    groups: the group of each example, or the number of examples when all are alike.
    steps_per_epoch: steps to see as many examples as there are, rounded up.

    Raises:
        UserError: no examples, or a batch of none.
    """

    def __init__(self, groups: Sequence[Hashable] | int, batch_size: int, seed: int = 0) -> None:
        count = groups if isinstance(groups, int) else len(groups)
        if count < 1:
            raise UserError("there are no examples to make batches of; expected 1 or more")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected 1 or more")
        self.batch_size, self.seed, self.count = batch_size, seed, count
        self.steps_per_epoch = -(-count // batch_size)
        members: dict[Hashable, list[int]] = {}
        for index in range(count):
            members.setdefault(None if isinstance(groups, int) else groups[index], []).append(index)
        self._members = list(members.values())
        self._turns = self._take_turns()
        self._kept: dict[int, tuple[int, list[int]]] = {}

    def at(self, step: int) -> tuple[int, list[int]]:
        """(epoch the step begins in, indices of its batch); ``step`` counts from 0.

        Raises:
            UserError: a negative step.
        """
        return step * self.batch_size // self.count, [index for _, index in self.pairs(step)]

    def pairs(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) for each example of a step's batch.

        The epoch says how often that example was used before, also in a batch that spans two
        permutations, so ``dataset.example(index, epoch)`` never gives the same draw twice.

        Raises:
            UserError: a negative step.
        """
        if step < 0:
            raise UserError(f"step is {step}; expected 0 or more")
        cycle, turn = divmod(step, self.count)
        group, number = self._turns[turn]
        size = len(self._members[group])
        start = (cycle * size + number) * self.batch_size
        result = []
        for place in range(start, start + self.batch_size):
            epoch, rank = divmod(place, size)
            result.append((epoch, self._permutation(group, epoch)[rank]))
        return result

    def _take_turns(self) -> list[tuple[int, int]]:
        """(group, its how-manieth batch) for ``count`` steps, each group spread out evenly."""
        if len(self._members) == 1:
            return [(0, number) for number in range(self.count)]
        starts = torch.rand(
            len(self._members), generator=keyed_generator(self.seed, "turns"), dtype=torch.float64
        ).tolist()
        moments = [
            ((number + start) / len(group), g, number)
            for g, (group, start) in enumerate(zip(self._members, starts, strict=True))
            for number in range(len(group))
        ]
        return [(g, number) for _, g, number in sorted(moments)]

    def _permutation(self, group: int, epoch: int) -> list[int]:
        members = self._members[group]
        if len(members) == 1:
            return members
        if group not in self._kept or self._kept[group][0] != epoch:
            generator = keyed_generator(self.seed, "order", group, epoch)
            ranks = torch.randperm(len(members), generator=generator).tolist()
            self._kept[group] = epoch, [members[rank] for rank in ranks]
        return self._kept[group][1]


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of several examples: tensors stacked along a new first axis, the rest in lists.

    Raises:
        UserError: no examples, or ones that differ in their keys or a tensor's shape.
    """
    if not examples:
        raise UserError("a batch of no examples; expected 1 or more")
    keys = list(examples[0])
    batch: dict[str, Any] = {}
    for example in examples:
        if set(example) != set(keys):
            raise UserError(
                f"examples with different keys in one batch: {', '.join(sorted(keys))} and "
                f"{', '.join(sorted(example))}"
            )
    for key in keys:
        values = [example[key] for example in examples]
        if not isinstance(values[0], torch.Tensor):
            batch[key] = values
            continue
        for example, value in zip(examples, values, strict=True):
            if value.shape != values[0].shape:
                raise UserError(
                    f"{key} has shape {tuple(values[0].shape)} for {_name(examples[0])} and "
                    f"{tuple(value.shape)} for {_name(example)} in one batch; give BatchOrder the "
                    "dataset's groups"
                )
        batch[key] = torch.stack(values)
    return batch


def _name(example: Mapping[str, Any]) -> str:
    return str(example.get("path", "an example"))

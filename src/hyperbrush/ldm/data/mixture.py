"""Several datasets as one: repeats or shares of the batches, and weights of the loss."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.examples import CaptionedExamples, Examples, Selection
from hyperbrush.ldm.data.folder import ImageFolder
from hyperbrush.ldm.util import keyed_generator


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture.

    data: an ``ImageFolder``, its latents, or a ``Selection``; give each a seed of its own.
    repeats: times each of its pictures counts in an epoch, each time with chances of its own.
    share: its part of all examples drawn, relative to the other parts' shares, however many
        pictures it has; in place of repeats, and for all parts or none.
    loss_weight: what the loss of its examples is multiplied with.
    keep_prior: pictures of the class, not of the subject: they hold the model to what it knew before
        (prior preservation, Ruiz et al. 2022, DreamBooth). ``split`` holds none of them out.

    Raises:
        UserError: a number out of range.
    """

    data: CaptionedExamples
    repeats: int = 1
    share: float | None = None
    loss_weight: float = 1.0
    keep_prior: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats is {self.repeats}; expected 1 or more")
        if self.share is not None and not 0 < self.share < math.inf:
            raise UserError(f"share is {self.share}; expected a number above 0")
        if self.share is not None and self.repeats != 1:
            raise UserError(
                f"share {self.share} and repeats {self.repeats} of one part; expected one of them"
            )
        if not 0 <= self.loss_weight < math.inf:
            raise UserError(f"loss_weight is {self.loss_weight}; expected 0 or more")


@dataclass(frozen=True)
class _Stretch:
    """Entries of a mixture that show one part's pictures of one shape, in turn."""

    part: int
    group: int
    members: list[int]
    entries: int


class Mixture(Examples):
    """Several datasets as one; in an epoch each picture comes once at least.

    With shares, a part has as many entries as its share asks for, and they go round its pictures: an
    entry may show another picture (of the same shape) in the next epoch, and over the epochs all
    pictures of a part and shape are seen equally often. Which, is a function of (seed, epoch, index).

    captions, paths, groups: of each entry in the first epoch; every picture is among them.

    Raises:
        UserError: no parts, or shares for some of them only.
    """

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        if not parts:
            raise UserError("a mixture of no datasets; expected 1 or more")
        shares = [part.share for part in parts if part.share is not None]
        if shares and len(shares) < len(parts):
            raise UserError(f"{len(shares)} of {len(parts)} parts have a share; expected all of them or none")
        self.parts, self.seed = list(parts), seed
        # The part that is short of pictures for its share least: it is seen once an epoch.
        most = max((len(part.data) / part.share for part in parts if part.share), default=1.0)
        self._places: list[tuple[_Stretch, int]] = []
        self._kept: dict[tuple[int, int, int], tuple[int, list[int]]] = {}
        for number, part in enumerate(parts):
            factor = part.share * most / len(part.data) if part.share else part.repeats
            for stretch in _stretches(number, part.data.groups, factor):
                self._places += [(stretch, entry) for entry in range(stretch.entries)]
        first = [self.place(index, 0) for index in range(len(self._places))]
        self.captions = [parts[part].data.captions[i] for part, i, _ in first]
        self.paths = [parts[part].data.paths[i] for part, i, _ in first]
        self.groups = [parts[part].data.groups[i] for part, i, _ in first]

    def place(self, index: int, epoch: int) -> tuple[int, int, int]:
        """(part, index in it, how often that picture came before) of an entry in an epoch."""
        stretch, entry = self._places[index]
        size = len(stretch.members)
        own_epoch, rank = divmod(epoch * stretch.entries + entry, size)
        if stretch.entries % size:
            rank = self._permutation(stretch, own_epoch)[rank]
        return stretch.part, stretch.members[rank], own_epoch

    def _permutation(self, stretch: _Stretch, own_epoch: int) -> list[int]:
        # An epoch of the mixture runs over at most so many epochs of a stretch, in any order.
        room = stretch.entries // len(stretch.members) + 2
        key = stretch.part, stretch.group, own_epoch % room
        if (kept := self._kept.get(key)) is None or kept[0] != own_epoch:
            generator = keyed_generator(self.seed, "mixture", stretch.part, stretch.group, own_epoch)
            order = torch.randperm(len(stretch.members), generator=generator).tolist()
            self._kept[key] = kept = own_epoch, order
        return kept[1]

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The part's example, with ``weight``: float32 (), what its loss is multiplied with.

        Raises:
            IndexError: no such entry.
            UserError: as the part's.
        """
        part, own, own_epoch = self.place(index, epoch)
        weight = torch.tensor(self.parts[part].loss_weight)
        return self.parts[part].data.example(own, own_epoch) | {"weight": weight}

    def caption(self, index: int, epoch: int) -> str:
        """Caption of an entry in an epoch."""
        part, own, own_epoch = self.place(index, epoch)
        return self.parts[part].data.caption(own, own_epoch)

    def variants(self, index: int) -> list[str]:
        """Every caption that the picture an entry shows in the first epoch may have."""
        part, own, _ = self.place(index, 0)
        return self.parts[part].data.variants(own)

    def over(self, change: Callable[[CaptionedExamples], CaptionedExamples]) -> "Mixture":
        """The same mixture of changed datasets, such as of their latents."""
        return Mixture([replace(part, data=change(part.data)) for part in self.parts], self.seed)


def folders_in(data: Any) -> list[ImageFolder]:
    """The folders of pictures that a dataset shows: itself, its parts', what it is a selection of; none of latents."""
    if isinstance(data, ImageFolder):
        return [data]
    inside = [part.data for part in data.parts] if isinstance(data, Mixture) else []
    inside += [data.data] if isinstance(data, Selection) else []
    return [folder for one in inside for folder in folders_in(one)]


def over_folders(data: Any, change: Callable[[ImageFolder], ImageFolder]) -> Any:
    """The same dataset with each of its folders changed.

    Raises:
        UserError: it shows something else.
    """
    if isinstance(data, Mixture):
        return data.over(lambda part: over_folders(part, change))
    if isinstance(data, Selection):
        return Selection(over_folders(data.data, change), data.indices)
    if not isinstance(data, ImageFolder):
        raise UserError(f"dataset: expected folders of pictures, got {type(data).__name__}")
    return change(data)


def split(
    data: ImageFolder | Mixture, share: float, seed: int = 0
) -> tuple[Selection | Mixture, Selection | Mixture]:
    """Cut pictures in two by a seeded choice: to train on, and held out, without chance.

    Of a mixture each part is cut, whatever its repeats: no picture is on both sides. What is held out
    comes once an epoch and weighs 1; parts that ``keep_prior`` are trained on whole.

    share: of the pictures to hold out, above 0 and below 1; one of each part at least.

    Raises:
        UserError: a share out of range; a dataset of one picture; only prior pictures; a part that is
            no ``ImageFolder`` nor a ``Selection`` of one.
    """
    if not 0 < share < 1:
        raise UserError(f"the share held out is {share}; expected a number between 0 and 1")
    if isinstance(data, Mixture):
        train, held = [], []
        for number, part in enumerate(data.parts):
            if part.keep_prior:
                train.append(part)
                continue
            own = part.data
            if not isinstance(own, ImageFolder | Selection):
                raise UserError(f"part {number + 1} is a {type(own).__name__}; expected an ImageFolder")
            if len(own) < 2 and len(data.parts) > 1 and isinstance(own, Selection):
                train.append(part)  # a folder's only picture of so many repeats
                continue
            rest, out = _cut(own, share, seed, number)
            train.append(replace(part, data=rest))
            held.append(Part(out))
        if not held:
            raise UserError("all parts keep the prior; expected one with pictures to learn")
        return Mixture(train, data.seed), Mixture(held, data.seed)
    return _cut(data, share, seed, 0)


MOST_REPEATS = 999  # what is more, as in 2023_holiday, is no repeats


def repeats_by_name(data: ImageFolder) -> dict[int, list[int]]:
    """Numbers of a folder's examples by repeats: as the folder in it says, ``10_red cat`` (sd-scripts), else one."""
    found: dict[int, list[int]] = {}
    for index, path in enumerate(data.paths):
        first, *inside = Path(path).relative_to(data.folder).parts
        number = re.match(r"(\d+)_", first) if inside else None
        repeats = int(number[1]) if number and 1 <= int(number[1]) <= MOST_REPEATS else 1
        found.setdefault(repeats, []).append(index)
    return found


def _cut(data: ImageFolder | Selection, share: float, seed: int, number: int) -> tuple[Selection, Selection]:
    whole = data.data if isinstance(data, Selection) else data
    if not isinstance(whole, ImageFolder):
        raise UserError(f"a selection of a {type(whole).__name__}; expected one of an ImageFolder")
    if len(data) < 2:
        raise UserError(f"{whole.folder} has one usable picture; expected 2 or more to hold one out")
    indices = data.indices if isinstance(data, Selection) else range(len(data))
    key = ("split", number) if number else ("split",)
    order = torch.randperm(len(data), generator=keyed_generator(seed, *key)).tolist()
    held = min(len(data) - 1, max(1, round(share * len(data))))
    kept, out = ([indices[i] for i in sorted(some)] for some in (order[held:], order[:held]))
    return Selection(whole, kept), Selection(whole.without_chance(), out)


def _stretches(part: int, groups: Sequence[tuple[int, int]], factor: float) -> list[_Stretch]:
    """A part's pictures by shape, with as many entries as the factor (1 or more) asks for in all."""
    members: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(groups):
        members.setdefault(shape, []).append(index)
    found, before = [], 0
    for group, own in enumerate(members.values()):
        # Rounding the running sum keeps the part's share however many shapes it has.
        start, stop = (math.floor(seen * factor + 0.5) for seen in (before, before + len(own)))
        found.append(_Stretch(part, group, own, stop - start))
        before += len(own)
    return found
